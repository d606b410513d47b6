"""From measures to numbers with intervals, failures and tests: of one policy, and of one against another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assent.measures.answers import Answers, Given
from assent.measures.estimates import Estimate, estimate, undefined
from assent.measures.shapes import (
    Column,
    Duels,
    Measure,
    Measured,
    Need,
    Statistic,
    Versus,
)
from assent.statistics import Interval, PairedDifference, holm, mean_interval, paired_difference, share_interval

NOTHING = "nothing could be measured"


def facts(answers: Answers, given: Given | None, num_policies: int, verdicts: bool) -> set[Need]:
    """What is there to measure one policy by."""
    found: dict[Need, bool] = {
        "references": any(answers.prompts.references),
        "kinds": any(answers.prompts.kinds),
        "tokens": answers.tokens is not None,
        "finished": answers.finished is not None,
        "log_prob": answers.log_prob is not None,
        "reference": answers.reference_log_prob is not None
        or (given is not None and given.reference_log_prob is not None),
        "entropy": answers.entropy is not None,
        "several": len(answers.prompt) > len(np.unique(answers.prompt)),
        "given": given is not None and len(given) > 0,
        "pairs": given is not None and len(given.pairs) > 0,
        "labels": given is not None and given.right is not None,
        "scores": bool(answers.scores),
        "baseline": num_policies > 1 and verdicts,
        "gamed": answers.prompts.alpaca_eval is not None,
        "toxicity": answers.toxicity is not None,
        "claims": answers.claims is not None,
    }
    return {need for need, there in found.items() if there}


def lacking(row: Measure, met: Collection[Need]) -> Need | None:
    """The first need of a measure that is not met."""
    return next((need for need in row.needs if need not in met), None)


def of_duels(row: Versus, duels: Duels) -> Measured:
    """One measure of one policy against another. Prompts that one of them did not answer are failures."""
    lost = _unanswered(duels.ours) + Counter(
        {f"{reason} (baseline)": count for reason, count in _unanswered(duels.theirs).items()}
    )
    return Measured(row.of(duels), dict(duels.failures + lost), _prompts(duels.prompt[~np.isnan(duels.outcome)]))


def of_column(row: Measure, column: Column, answers: Answers) -> Measured:
    """The mean of a column; several answers to one prompt are one cluster."""
    failures = column.failures + _unanswered(answers)
    known = answers.prompt[~np.isnan(column.values)]
    return Measured(_mean(row, column.values, answers.prompt), dict(failures), _prompts(known))


def of_statistic(row: Measure, statistic: Statistic, answers: Answers | None) -> Measured:
    """A statistic of all rows without a reason; of `answers`, prompts that have none are failures."""
    failures = Counter(reason for reason in statistic.reasons if reason)
    failures += Counter() if answers is None else _unanswered(answers)
    kept = np.array([index for index, reason in enumerate(statistic.reasons) if not reason], np.int64)
    prompt = statistic.prompt[kept]
    if statistic.values is not None:
        number = _mean(row, statistic.values[kept], prompt)
    else:
        number = estimate(lambda rows: statistic.of(kept[rows]), prompt, problem=NOTHING)
    return Measured(number, dict(failures), _prompts(prompt))


def _prompts(prompt: np.ndarray) -> int:
    return len(np.unique(prompt))


def _mean(row: Measure, values: np.ndarray, prompt: np.ndarray) -> Estimate:
    clusters = prompt.tolist()
    yes_or_no = row.unit == "share" and np.isin(values[~np.isnan(values)], (0.0, 0.5, 1.0)).all()
    return of_interval(share_interval(values, clusters) if yes_or_no else mean_interval(values, clusters))


def of_interval(found: Interval) -> Estimate:
    """An interval as an estimate: None for what is NaN."""
    if math.isnan(found.mean):
        return undefined(NOTHING)
    low, high = (None if math.isnan(bound) else bound for bound in (found.low, found.high))
    return Estimate(found.mean, low, high, found.n)


def _unanswered(answers: Answers) -> Counter[str]:
    return Counter(answers.unanswered.values())


# ---- one policy against another


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of ours - theirs over the prompts that both have, with the p-value of a paired permutation test of the mean,
    of the exact sign test (McNemar's, where values are 0 and 1), and the first corrected for the number of tests in the
    table (Holm)."""

    difference: Estimate
    p: float
    p_sign: float
    p_holm: float = math.nan


def column_difference(ours: tuple[Column, Answers], theirs: tuple[Column, Answers]) -> Difference:
    """Of a measure that is a number of each answer: the means of each prompt are paired."""
    mine, its = (by_prompt(column.values, answers.prompt) for column, answers in (ours, theirs))
    shared = [prompt for prompt in mine if prompt in its]
    return _difference(paired_difference([mine[p] for p in shared], [its[p] for p in shared]))


def duels_difference(duels: Duels) -> Difference:
    """Of a win rate from one half: the mean outcome of each prompt against a tie."""
    outcomes = list(by_prompt(duels.outcome, duels.prompt).values())
    return _difference(paired_difference(outcomes, [0.5] * len(outcomes)))


def statistic_difference(ours: Statistic, theirs: Statistic) -> Difference:
    """Of a statistic of what the prompt file gives: the same rows of both. Where it is a mean it is paired by prompt as
    any other; else the interval draws prompts anew, each for both, and there is no test."""
    known = [not a and not b for a, b in zip(ours.reasons, theirs.reasons, strict=True)]
    kept = np.flatnonzero(known)
    if ours.values is not None and theirs.values is not None:
        mine, its = (
            list(by_prompt(values[kept], ours.prompt[kept]).values()) for values in (ours.values, theirs.values)
        )
        return _difference(paired_difference(mine, its))
    found = estimate(lambda rows: ours.of(kept[rows]) - theirs.of(kept[rows]), ours.prompt[kept], problem=NOTHING)
    return Difference(found, math.nan, math.nan)


def apart_difference(ours: Estimate, theirs: Estimate) -> Difference:
    """Of two numbers of which only the intervals are known, as of samples that have nothing to do with each other:
    ours - theirs, half its interval sqrt(h_1² + h_2²). On the same tasks the true one is rather narrower. No test."""
    if ours.value is None or theirs.value is None:
        return Difference(undefined(NOTHING), math.nan, math.nan)
    value, halves = ours.value - theirs.value, [half_width(each) for each in (ours, theirs)]
    if any(math.isnan(half) for half in halves):
        return Difference(Estimate(value, n=min(ours.n, theirs.n)), math.nan, math.nan)
    half = math.hypot(*halves)
    return Difference(Estimate(value, value - half, value + half, min(ours.n, theirs.n)), math.nan, math.nan)


def half_width(found: Estimate) -> float:
    """Half the distance between the bounds; NaN without them."""
    return math.nan if found.low is None or found.high is None else (found.high - found.low) / 2


def with_holm(found: Sequence[Difference]) -> list[Difference]:
    """The same, corrected for their number."""
    corrected = holm([each.p for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]


def _difference(found: PairedDifference) -> Difference:
    return Difference(of_interval(found.difference), found.p_permutation, found.p_sign)


def by_prompt(values: np.ndarray, prompt: np.ndarray) -> dict[int, float]:
    """The mean of each prompt that has a value."""
    known = ~np.isnan(values)
    prompts, place = np.unique(prompt[known], return_inverse=True)
    sums = np.bincount(place, values[known], len(prompts))
    return dict(zip(prompts.tolist(), (sums / np.bincount(place, minlength=len(prompts))).tolist(), strict=True))
