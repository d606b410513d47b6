"""The table of an evaluation from answers as columns: which measures can be had, what they say, and tests against the
baseline. Pure given the answers."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from assent.data.records import Message
from assent.errors import UserError
from assent.evaluate.matches import Margins, Match, Outcomes
from assent.evaluate.results import Answer, Comparison, Described, Needed, PolicyResult, PolicyTable, needed
from assent.measures import aggregate
from assent.measures.aggregate import (
    Difference,
    apart_difference,
    column_difference,
    duels_difference,
    facts,
    lacking,
    statistic_difference,
    with_holm,
)
from assent.measures.answers import Answers, Given
from assent.measures.diversity import self_bleu_across
from assent.measures.extras import missing
from assent.measures.margins import histograms, pair_margins
from assent.measures.shapes import (
    NEEDS,
    Among,
    Column,
    Duels,
    Each,
    Likelihood,
    Measure,
    Measured,
    PerScore,
    Versus,
    Whole,
)
from assent.measures.table import by_default, measure
from assent.measures.wins import WINS, duels_by_score, reversed_duels

PROBED = 50
"""Prompts on which answers are compared with those to others, for notes."""
GOLD = "gold"
"""What the score of --scorer is called."""


@dataclass(frozen=True)
class Evaluated:
    """One policy: its answers, what it says of the file's own, comparisons with the baseline that are not by scores,
    and why it lacks what others have."""

    answers: Answers
    given: Given | None = None
    duels: Mapping[str, Duels] = field(default_factory=dict)
    path: str = ""
    notes: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    """Need -> why this policy does not meet it, where that is known better than the table knows it."""
    numbers: Mapping[str, Measured] = field(default_factory=dict)
    """Numbers that were measured elsewhere."""
    run: str = ""
    """What run it is a state of; "" none."""
    step: int | None = None
    """Which step of the run."""

    @property
    def name(self) -> str:
        return self.answers.policy

    @property
    def of(self) -> str:
        """The run that it is a state of, or its own name."""
        return self.run or self.name


@dataclass(frozen=True)
class Found:
    """The table; by policy and measure the numbers of single answers that means in it are of; and by policy and source
    the comparisons with the baseline."""

    table: PolicyTable
    columns: Mapping[str, Mapping[str, Column]]
    duels: Mapping[str, Mapping[str, Duels]]


def evaluate_policies(
    policies: Sequence[Evaluated],
    prompts: Sequence[Sequence[Message]],
    baseline: str,
    *,
    measures: Sequence[str] = (),
    own: Sequence[Measure] = (),
    within: float | None = None,
    by: str = "",
    file: str = "",
    show: int = 8,
    seed: int = 0,
) -> Found:
    """The table of `policies` compared with the one called `baseline`.

    `measures` are names of the table; default: all whose needs any policy meets. `own` are measured besides, in place
    of rows of the same name. `within` is how narrow intervals should be. `by` is the source that decides: default gold,
    else the first source of verdicts. Intervals draw prompts anew, not answers. `show` prompts, drawn by
    chance and not by result, go into `comparisons`. Raises `UserError` for a baseline or a source that is not there and
    for a policy without answers."""
    first = _first(policies, baseline)
    sources = _sources(policies)
    by = by or (GOLD if GOLD in sources else next(iter(sources), ""))
    if by and by not in sources:
        raise UserError(f"No source of verdicts is called {by!r}: there are {', '.join(sources) or 'none'}")
    chosen = [row for row in map(measure, measures) if row is not None] or by_default()
    rows = [*(row for row in chosen if row.name not in {each.name for each in own}), *own]
    duels = {policy.name: _duels(policy, first) for policy in policies if policy is not first}
    absent = {policy.name: _absent(policy, rows, len(policies), bool(sources)) for policy in policies}
    columns = {policy.name: _columns(policy, rows, absent[policy.name]) for policy in policies}
    results = [
        _result(policy, rows, duels.get(policy.name, {}), columns[policy.name], absent[policy.name])
        for policy in policies
    ]
    if not measures:
        results = [_without_empty(result, rows) for result in results]
    results = [replace(r, notes=(*r.notes, *sameness(p.answers))) for r, p in zip(results, policies, strict=True)]
    everyone = _all_duels(policies, [policy.name for policy in policies].index(baseline))
    results = _with_rankings(results, policies, everyone, rows)
    compared = _compared(results, policies, first, rows, columns, duels)
    left_out = {row.name: results[0].absent[row.name] for row in rows if all(row.name in r.absent for r in results)}
    results = [
        replace(
            result,
            absent={name: why for name, why in result.absent.items() if name not in left_out},
            needed=_needed(result, within),
        )
        for result in compared
    ]
    used = {key.partition("/")[0] for result in results for key in result.numbers}
    table = PolicyTable(
        baseline=baseline,
        by=by,
        policies=tuple(results),
        prompts=len(prompts),
        file=file,
        measures={row.name: Described(row.about, row.unit, row.better) for row in rows if row.name in used},
        left_out=left_out,
        comparisons=_comparisons(policies, prompts, show, seed),
        matches=tuple(_matches([policy.name for policy in policies], everyone)),
        margins=tuple(_margins(policies)),
        within=within,
    )
    each = {name: {key: column for key, (column, _) in own.items()} for name, own in columns.items()}
    return Found(table, each, duels)


def _first(policies: Sequence[Evaluated], baseline: str) -> Evaluated:
    names = [policy.name for policy in policies]
    if baseline not in names:
        raise UserError(f"The baseline must be one of the policies. Got {baseline!r}, expected one of {names}")
    for policy in policies:
        if not len(policy.answers):
            why = next(iter(policy.answers.unanswered.values()), "there are none")
            raise UserError(f"Policy {policy.name!r} has no answers to evaluate: {why}")
    return policies[names.index(baseline)]


def _sources(policies: Sequence[Evaluated]) -> list[str]:
    """Whatever gives verdicts: scores that all policies have, then judges and labels."""
    scores = [name for name in policies[0].answers.scores if all(name in p.answers.scores for p in policies)]
    return [*dict.fromkeys([*scores, *(name for policy in policies for name in policy.duels)])]


def _duels(policy: Evaluated, baseline: Evaluated) -> dict[str, Duels]:
    ours, theirs = policy.answers, baseline.answers
    scores = [name for name in ours.scores if name in theirs.scores]
    return {name: duels_by_score(name, ours, theirs) for name in scores} | dict(policy.duels)


Columns = Mapping[str, tuple[Column, Measure]]
"""Measure (and source) -> its number of each answer."""


def _absent(policy: Evaluated, rows: Sequence[Measure], num_policies: int, verdicts: bool) -> dict[str, str]:
    """Measure -> why this policy cannot have it."""
    met = facts(policy.answers, policy.given, num_policies, verdicts)
    found: dict[str, str] = {}
    for row in rows:
        need = lacking(row, met)
        why = missing(row.package) if need is None else policy.without.get(need, NEEDS[need])
        found |= {row.name: why} if why else {}
    return found


def _columns(policy: Evaluated, rows: Sequence[Measure], absent: Mapping[str, str]) -> Columns:
    answers, found = policy.answers, dict[str, tuple[Column, Measure]]()
    for row in rows:
        if isinstance(row, Each) and row.name not in absent:
            found[row.name] = row.of(answers), row
        elif isinstance(row, PerScore):
            found |= {f"{row.name}/{name}": (row.of(answers, name), row) for name in answers.scores}
    return found


def _result(
    policy: Evaluated, rows: Sequence[Measure], duels: Mapping[str, Duels], columns: Columns, absent: Mapping[str, str]
) -> PolicyResult:
    numbers: dict[str, Measured] = {}
    for row in rows:
        own = {key: column for key, (column, measure) in columns.items() if measure is row}
        numbers |= {key: aggregate.of_column(row, column, policy.answers) for key, column in own.items()}
        if row.name in absent:
            continue
        if isinstance(row, Whole):
            numbers[row.name] = aggregate.of_statistic(row, row.prepare(policy.answers), policy.answers)
        elif isinstance(row, Versus):
            numbers |= {f"{row.name}/{name}": aggregate.of_duels(row, found) for name, found in duels.items()}
        elif isinstance(row, Likelihood):
            assert policy.given is not None
            numbers[row.name] = aggregate.of_statistic(row, row.prepare(policy.given), None)
    outcomes = {name: _outcomes(found) for name, found in duels.items()}
    return PolicyResult(
        policy.name, policy.path, numbers | dict(policy.numbers), {}, outcomes, absent, tuple(policy.notes)
    )


def _without_empty(result: PolicyResult, rows: Sequence[Measure]) -> PolicyResult:
    """Without the measures of answers that can say nothing of any of them, and that nobody asked for; the reason is
    their commonest failure. Scores and verdicts stay, whatever became of them."""
    names = [row.name for row in rows if isinstance(row, Each | Whole | Likelihood)]
    empty = {
        name: max(found.failures, key=lambda reason: found.failures[reason], default=found.number.problem)
        for name in names
        if (found := result.numbers.get(name)) is not None and found.number.value is None
    }
    numbers = {key: found for key, found in result.numbers.items() if key not in empty}
    told = {name: f"something that it can measure ({reason})" for name, reason in empty.items()}
    return replace(result, numbers=numbers, absent={**result.absent, **told})


def _needed(result: PolicyResult, within: float | None) -> dict[str, Needed]:
    """Measure -> how many prompts would make its interval how narrow."""
    found = {key: needed(number.number, number.prompts, within) for key, number in result.numbers.items()}
    return {key: each for key, each in found.items() if each is not None}


SAME, FEW_PROMPTS = 0.5, 5
"""Share of prompts with one and the same answer from which on that is said, and below how many prompts it is not."""
ALIKE = 0.8
"""The same for how alike answers to different prompts are (BLEU of each against those to others)."""


def sameness(answers: Answers) -> list[str]:
    """Whether a policy says the same whatever it is asked, in a sentence: a reward or a judge that such answers please
    measures something else than whether they help."""
    prompts, first = np.unique(answers.prompt, return_index=True)
    texts = [answers.texts[index] for index in first.tolist()]
    if len(prompts) < FEW_PROMPTS:
        return []
    text, count = Counter(texts).most_common(1)[0]
    if count >= SAME * len(texts) and count > 1:
        return [f"gives the same answer to {count} of {len(texts)} prompts: {reprlib.repr(text)}"]
    drawn = min(len(texts), PROBED)
    places = np.linspace(0, len(texts) - 1, drawn).astype(np.int64)
    alike = self_bleu_across([texts[place] for place in places], places)
    mean = float(np.nanmean(alike)) if not np.isnan(alike).all() else 0.0
    if mean >= ALIKE:
        return [
            f"gives nearly the same answer whatever is asked (BLEU between answers to different prompts {mean:.2f})"
        ]
    return []


def _outcomes(duels: Duels) -> Outcomes:
    known = duels.outcome[~np.isnan(duels.outcome)]
    return Outcomes(int((known > 0.5).sum()), int((known == 0.5).sum()), int((known < 0.5).sum()))


def _with_rankings(
    results: Sequence[PolicyResult], policies: Sequence[Evaluated], everyone: AllDuels, rows: Sequence[Measure]
) -> list[PolicyResult]:
    """With numbers that are of all policies together, by each source: every two policies where scores compare them,
    each with the baseline where a judge or people did."""
    found: list[dict[str, Measured]] = [{} for _ in policies]
    names = tuple(policy.name for policy in policies)
    for row in rows:
        if not isinstance(row, Among) or all(row.name in result.absent for result in results):
            continue
        for source, duels in everyone.items():
            for place, estimate in enumerate(row.of(names, duels)):
                failures = Counter[str]()
                for pair, one in duels.items():
                    failures += one.failures if place in pair else Counter()
                found[place][f"{row.name}/{source}"] = Measured(estimate, dict(failures))
    return [replace(r, numbers={**r.numbers, **more}) for r, more in zip(results, found, strict=True)]


def _matches(names: Sequence[str], everyone: AllDuels) -> list[Match]:
    return [
        Match(names[i], names[j], source, aggregate.of_duels(WINS, duels), _outcomes(duels))
        for source, pairs in everyone.items()
        for (i, j), duels in pairs.items()
    ]


def _margins(policies: Sequence[Evaluated]) -> list[Margins]:
    """Of the pairs that the prompt file gives, by each policy that can be asked."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for policy in policies:
        if policy.given is not None and len(policy.given.pairs):
            for kind, values in pair_margins(policy.given).items():
                found.setdefault(kind, {})[policy.name] = values
    made = []
    for kind, columns in found.items():
        edges, counts = histograms(columns)
        shown = {name: tuple(own.tolist()) for name, own in counts.items()}
        unread = {name: int(np.isnan(values).sum()) for name, values in columns.items()}
        made.append(Margins(kind, tuple(edges.tolist()), shown, unread))
    return made


AllDuels = Mapping[str, Mapping[tuple[int, int], Duels]]
"""Source -> pair of policies (the first before the second) -> their comparisons."""


def _all_duels(policies: Sequence[Evaluated], baseline: int) -> AllDuels:
    found: dict[str, dict[tuple[int, int], Duels]] = {}
    for i, ours in enumerate(policies):
        for j, theirs in enumerate(policies[i + 1 :], i + 1):
            for name in ours.answers.scores:
                if name in theirs.answers.scores:
                    duels = duels_by_score(name, ours.answers, theirs.answers)
                    found.setdefault(name, {})[i, j] = duels
    for place, policy in enumerate(policies):
        for name, duels in policy.duels.items():
            pair = (place, baseline) if place < baseline else (baseline, place)
            found.setdefault(name, {})[pair] = duels if place < baseline else reversed_duels(duels)
    return found


def _compared(
    results: Sequence[PolicyResult],
    policies: Sequence[Evaluated],
    baseline: Evaluated,
    rows: Sequence[Measure],
    columns: Mapping[str, Columns],
    duels: Mapping[str, Mapping[str, Duels]],
) -> list[PolicyResult]:
    """With the differences from the baseline of whatever has a better direction, all of them one family of tests."""
    found: list[tuple[int, str, Difference]] = []
    for place, (result, policy) in enumerate(zip(results, policies, strict=True)):
        if policy is not baseline:
            wins = {f"win-rate/{name}": duels_difference(one) for name, one in duels[policy.name].items()}
            both = (columns[policy.name], policy.answers), (columns[baseline.name], baseline.answers)
            differences = _differences(*both) | wins | _likelihood_differences(policy, baseline, rows)
            differences |= {
                key: apart_difference(found.number, baseline.numbers[key].number)
                for key, found in policy.numbers.items()
                if key in baseline.numbers
            }
            found += [(place, key, one) for key, one in differences.items() if key in result.numbers]
    corrected = with_holm([one for *_, one in found])
    made: list[dict[str, Difference]] = [{} for _ in results]
    for (place, key, _), one in zip(found, corrected, strict=True):
        made[place][key] = one
    return [replace(result, differences=own) for result, own in zip(results, made, strict=True)]


def _differences(ours: tuple[Columns, Answers], theirs: tuple[Columns, Answers]) -> dict[str, Difference]:
    """Of the measures that are a number of each answer and have a better direction."""
    (mine, my_answers), (its, its_answers) = ours, theirs
    return {
        key: column_difference((column, my_answers), (its[key][0], its_answers))
        for key, (column, row) in mine.items()
        if row.better is not None and key in its
    }


def _likelihood_differences(policy: Evaluated, baseline: Evaluated, rows: Sequence[Measure]) -> dict[str, Difference]:
    """Of what the prompt file gives. Perplexity is per token: it is compared between policies of the same tokens."""
    ours, theirs = policy.given, baseline.given
    if ours is None or theirs is None:
        return {}
    same = np.array_equal(ours.tokens, theirs.tokens)
    return {
        row.name: statistic_difference(row.prepare(ours), row.prepare(theirs))
        for row in rows
        if isinstance(row, Likelihood) and (same or row.unit == "share")
        if all(lacking(row, facts(each.answers, each.given, 2, True)) is None for each in (policy, baseline))
    }


def _comparisons(
    policies: Sequence[Evaluated], prompts: Sequence[Sequence[Message]], show: int, seed: int
) -> tuple[Comparison, ...]:
    first: dict[str, dict[int, int]] = {}
    for policy in policies:
        first[policy.name] = {}
        for index, prompt in enumerate(policy.answers.prompt.tolist()):
            first[policy.name].setdefault(prompt, index)
    shared = [index for index in range(len(prompts)) if all(index in answers for answers in first.values())]
    chosen = sorted(np.random.default_rng(seed).choice(shared, min(show, len(shared)), replace=False).tolist())
    return tuple(
        Comparison(
            tuple(prompts[index]),
            {policy.name: _shown(policy.answers, first[policy.name][index]) for policy in policies},
        )
        for index in chosen
    )


def _shown(answers: Answers, index: int) -> Answer:
    scores = {name: float(values[index]) for name, values in answers.scores.items()}
    return Answer(
        answers.texts[index],
        None if answers.tokens is None else int(answers.tokens[index]),
        None if answers.finished is None else bool(answers.finished[index]),
        {name: None if np.isnan(score) else score for name, score in scores.items()},
    )
