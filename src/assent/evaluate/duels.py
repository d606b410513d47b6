"""Comparisons with the baseline that are not made by scores: a judge's, asked in both orders, with probes of the judge
itself; and verdicts in a file of alpaca_eval's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from assent.data.readers import read_rows
from assent.data.records import Problem
from assent.errors import DataError
from assent.evaluate.prompts import PromptSet, by_key, keys_of
from assent.measures.aggregate import of_interval
from assent.measures.answers import Answers
from assent.measures.edits import repeated
from assent.measures.shapes import Duels, Measured
from assent.rewards.group import Group, GroupReward, Scores
from assent.statistics import share_interval

PROBED = 50
"""Prompts on which a judge itself is probed."""
NULL = "Thank you for your question. I would be happy to help you with that."
"""An answer that says nothing, the same to every prompt."""
LABELS = "labels"
UNLABELLED, NO_VERDICT = "nobody labelled this comparison", "no preference in the labels"


def one_to_one(ours: Answers, theirs: Answers) -> np.ndarray:
    """[M, 2]: the first answer of one policy with the first of the other to the same prompt, the second with the
    second, and so on."""
    places: list[dict[int, list[int]]] = [{}, {}]
    for found, answers in zip(places, (ours, theirs), strict=True):
        for index, prompt in enumerate(answers.prompt.tolist()):
            found.setdefault(prompt, []).append(index)
    mine, its = places
    pairs = [pair for prompt in mine for pair in zip(mine[prompt], its.get(prompt, ()), strict=False)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def judged(
    name: str, judge: GroupReward, prompts: PromptSet, ours: Answers, theirs: Answers
) -> tuple[Duels, Mapping[str, Sequence[float]]]:
    """A judge's verdicts, and its numbers about itself (consistency, first_shown_wins, ...). Every rank must call
    it."""
    pairs = one_to_one(ours, theirs)
    texts = [(ours.texts[i], theirs.texts[j]) for i, j in pairs.tolist()]
    found = _ask(judge, prompts, ours.prompt[pairs[:, 0]], texts)
    outcome, reasons = found.values[::2], found.reasons()[::2]
    return Duels(name, ours, theirs, pairs, outcome, tuple(reason or "" for reason in reasons)), found.metrics


def _ask(judge: GroupReward, prompts: PromptSet, places: np.ndarray, texts: Sequence[tuple[str, str]]) -> Scores:
    groups = [
        Group(prompts.examples[place], both, (True, True), (0, 0))
        for place, both in zip(places.tolist(), texts, strict=True)
    ]
    return judge.score(groups)


def probes(name: str, judge: GroupReward, prompts: PromptSet, baseline: Answers) -> dict[str, Measured]:
    """What a judge makes of answers whose worth is known: one that says nothing should lose to the baseline's, and
    the baseline's with its last sentence repeated should not win against itself. Every rank must call it."""
    _, first = np.unique(baseline.prompt, return_index=True)
    rows = first[:PROBED].tolist()
    edits: dict[str, list[tuple[str | None, str]]] = {
        "null-answer": [(NULL, baseline.texts[row]) for row in rows],
        "longer": [(repeated(baseline.texts[row]), baseline.texts[row]) for row in rows],
    }
    found = {}
    for probe, texts in edits.items():
        asked = [(row, (edited, text)) for row, (edited, text) in zip(rows, texts, strict=True) if edited is not None]
        if asked:
            scores = _ask(judge, prompts, baseline.prompt[[row for row, _ in asked]], [both for _, both in asked])
            reasons = [reason for reason in scores.reasons()[::2] if reason]
            counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
            found[f"{name}/{probe}"] = Measured(of_interval(share_interval(scores.values[::2])), counts)
    return found


def consistency(name: str, metrics: Mapping[str, Sequence[float]]) -> dict[str, Measured]:
    """How a judge behaved: the share of comparisons whose two orders agree, of verdicts for what was shown first, and
    of verdicts that could not be read."""
    return {
        f"{name}/{metric.replace('_', '-')}": Measured(of_interval(share_interval(list(metrics[metric]))))
        for metric in ("consistency", "first_shown_wins", "unreadable")
        if metrics.get(metric)
    }


# ---- verdicts of people, or of any annotator, in a file


class Verdict(NamedTuple):
    """A row of labels: what it may call its prompt, both outputs, and the preference from 1 (the first) to 2; NaN
    without one."""

    keys: list[str]
    first: str
    second: str
    preference: float


def read_labels(
    file: str, prompts: PromptSet, policies: Sequence[Answers], baseline: Answers
) -> tuple[dict[str, Duels], tuple[str, ...]]:
    """Policy -> its comparisons with the baseline as the file has them: every verdict is one, and answers that nobody
    compared are failures; and, in sentences, what in the file is about other prompts. Raises DataError for rows of
    another shape, and where no row is about these prompts, or these answers."""
    places, rows = by_key(prompts), list(_verdicts(file))
    verdicts: dict[tuple[int, str, str], list[float]] = {}
    other = 0
    for row in rows:
        place = next((places[key] for key in row.keys if key in places), None)
        if place is None:
            other += 1
        else:
            verdicts.setdefault((place, row.first, row.second), []).append(row.preference)
    if other == len(rows):
        raise DataError(
            f"--labels {file}: all of its {len(rows)} verdicts are about other prompts than {prompts.file}'s."
        )
    found = {each.policy: _labelled(each, baseline, verdicts) for each in policies if each is not baseline}
    if not any((~np.isnan(duels.outcome)).any() for duels in found.values()):
        raise DataError(
            f"--labels {file}: none of its {len(rows)} verdicts is about an answer of a policy and one of "
            f"{baseline.policy} to the same prompt of {prompts.file}."
        )
    told = f"{other} of the {len(rows)} verdicts of {file} are about other prompts, and not counted"
    return found, (told,) if other else ()


def _verdicts(file: str) -> Iterator[Verdict]:
    for origin, row in read_rows(file):
        if isinstance(row, Problem):
            raise DataError(f"--labels {file}: {row}")
        first, second = row.get("output_1"), row.get("output_2")
        keys = keys_of(row)
        if not keys or not isinstance(first, str) or not isinstance(second, str) or "preference" not in row:
            raise DataError(f"--labels {origin}: expected the columns instruction, output_1, output_2, preference.")
        try:
            value = row["preference"]
            number = np.nan if value in (None, "") else float(value)
        except (TypeError, ValueError):
            number = np.inf
        if isinstance(value, bool) or not (np.isnan(number) or number == 0 or 1 <= number <= 2):
            raise DataError(f"--labels {origin}: preference is a number from 1 to 2, or 0 for a tie; got {value}.")
        yield Verdict(keys, first, second, 1.5 if number == 0 else number)


def _labelled(ours: Answers, theirs: Answers, verdicts: Mapping[tuple[int, str, str], Sequence[float]]) -> Duels:
    pairs, outcome, reasons = [], [], []
    for i, j in one_to_one(ours, theirs).tolist():
        place, mine, its = int(ours.prompt[i]), ours.texts[i], theirs.texts[j]
        said = [2 - preference for preference in verdicts.get((place, mine, its), ())]
        if mine != its:
            said += [preference - 1 for preference in verdicts.get((place, its, mine), ())]
        for value in said or [np.nan]:
            pairs.append((i, j))
            outcome.append(value)
            reasons.append(UNLABELLED if not said else NO_VERDICT if np.isnan(value) else "")
    made = np.array(pairs, np.int64).reshape(-1, 2)
    return Duels(LABELS, ours, theirs, made, np.array(outcome, np.float64), tuple(reasons))
