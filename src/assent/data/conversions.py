"""One example's feedback read as another kind, as a task needs it. Only what is exact is converted; the rest is a
`RowError`, or `Unused` where the example is sound but says nothing to the task (a tie)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from assent.data.formats.fields import same_answer
from assent.data.records import ANNOTATED, Binary, Example, Pair, Ranking, Rating, Response, RowError
from assent.errors import DataError

Kinds = Mapping[type, str]
"""Kinds of feedback and, as a sentence, what is made of each; empty for the task's own kind."""

OVERALL = "overall rating (reward or helpfulness where all have it, else the sum of the scores)"
ALONE = ("reward", "helpfulness")
"""Scores that are the overall rating where all have one; the first counts."""

# What each task reads: the first group of which an example has any.
AS_ANSWERS: tuple[Kinds, ...] = (
    {
        Pair: "pairs are read as demonstrations: for each prompt the answer that wins most",
        Ranking: "rankings are read as demonstrations: for each prompt the best answer",
    },
    {Rating: f"ratings are read as demonstrations: for each prompt the answer of the highest {OVERALL}"},
    {Binary: "yes/no labels are read as demonstrations: the desirable answers"},
)
AS_PAIRS: tuple[Kinds, ...] = (
    {Pair: "", Ranking: "rankings are read as pairs: every two answers of different levels"},
    {Rating: f"ratings are read as pairs: every two answers to a prompt that differ in their {OVERALL}"},
)
AS_LABELS: tuple[Kinds, ...] = (
    {Binary: ""},
    {
        Pair: "pairs are read as yes/no labels: answers that only win are desirable, those that only lose are not",
        Ranking: "rankings are read as yes/no labels: the best level is desirable, the worst is not, the rest left out",
    },
    {Rating: f"ratings are read as yes/no labels: answers whose {OVERALL} reaches --threshold are desirable"},
)
AS_RANKINGS: tuple[Kinds, ...] = (
    {Ranking: "", Pair: "pairs are read as rankings of the answers that they compare"},
    {Rating: f"ratings are read as rankings: by {OVERALL}, equal ones tied"},
)
AS_RATINGS: tuple[Kinds, ...] = (
    {Rating: ""},
    {
        Pair: "pairs are read as ratings: 0 for the best answer to a prompt, minus infinity for the others",
        Ranking: "rankings are read as ratings: 0 for the best level, minus infinity for the others",
    },
)


TIE = "tie"
"""Why an example is of no use where answers are compared and all of its comparisons are ties."""


class Unused(RowError):
    """The example is sound, but the task has no use for it."""


def unfit(example: Example, reason: str, column: str = "feedback") -> RowError:
    """Why feedback says nothing to a task: no fault of a row that annotators have seen."""
    return (Unused if ANNOTATED in example.meta else RowError)(column, reason)


def kinds_read(example: Example, groups: tuple[Kinds, ...]) -> Kinds:
    """The kinds of feedback that a task reads of this example; empty where there is none for it."""
    found = {type(item) for item in example.feedback}
    each = ({kind: sentence for kind, sentence in group.items() if kind in found} for group in groups)
    return next(filter(None, each), {})


def best_answers(example: Example) -> list[int]:
    """Indices of the responses worth imitating."""
    if not example.responses:
        raise RowError("responses", f"no answer: the row ends with a {example.prompt[-1].role} turn")
    kinds = {type(item) for item in example.feedback}
    labels = [item for item in example.feedback if isinstance(item, Binary)]
    disliked = {item.response for item in labels if not item.label}
    if kinds & {Pair, Ranking, Rating}:
        best = _best(example)
        if best in disliked:
            raise Unused("label", "the best answer is labelled undesirable")
        return [best]
    if labels:
        desirable = sorted({item.response for item in labels if item.label} - disliked)
        if not desirable:
            raise Unused("label", "no answer is labelled desirable")
        return desirable
    if len(example.responses) > 1:
        reason = f"{len(example.responses)} answers and no feedback: which one is to be learnt?"
        raise unfit(example, reason, "responses")
    return [0]


def _best(example: Example) -> int:
    """The response that wins most and loses least; of equals the better rated, then the first."""
    balance: dict[int, int] = defaultdict(int)
    for pair in _stated_pairs(example):
        balance[pair.chosen] += 1
        balance[pair.rejected] -= 1
    tied = [index for item in example.feedback if isinstance(item, Ranking) for level in item.levels for index in level]
    ratings = {} if balance else _overall(example)
    judged = sorted({*balance, *tied, *ratings})
    return max(judged, key=lambda index: (balance[index], ratings.get(index, float("-inf")), -index))


def with_pairs(example: Example, *, votes: bool = False, ties: bool = False) -> Example:
    """The example reduced to its pairs; `RowError` when there is none. With `ties` they are pairs too, and with `votes`
    those of the same two responses are one; either way every pair then has a `share`. Without `votes` an annotator's
    own `share` (a soft label) counts as a whole vote for `chosen`."""
    read = kinds_read(example, AS_PAIRS)
    _require_comparison(example, read)
    pairs = _rated_pairs(example) if Rating in read else _stated_pairs(example)
    if ties:
        pairs += _tied_pairs(example, Rating in read)
    if votes:
        pairs = _counted(pairs)
    else:
        pairs = [replace(pair, share=1.0 - pair.tie if ties else None) for pair in pairs]
    if not pairs:
        raise Unused("feedback", TIE)
    for pair in pairs:
        if pair.tie < 1 and same_answer(example.responses[pair.chosen], example.responses[pair.rejected]):
            raise RowError("responses", "equal answers in a pair")
    used = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
    place = {old: new for new, old in enumerate(used)}
    responses: tuple[Response, ...] = tuple(example.responses[index] for index in used)
    moved = tuple(replace(pair, chosen=place[pair.chosen], rejected=place[pair.rejected]) for pair in pairs)
    return replace(example, responses=responses, feedback=moved)


def comparisons(example: Example) -> tuple[list[Pair], list[tuple[int, int]]]:
    """All pairs that the feedback makes, and every two responses that it says are equally good, by the responses' own
    indices; none where no feedback compares. Raises `RowError` for ratings that cannot be compared."""
    if Rating in kinds_read(example, AS_PAIRS):
        overall = _overall(example)
        tied = [(one, other) for one, other in combinations(sorted(overall), 2) if overall[one] == overall[other]]
        return (_rated_pairs(example) if len(overall) > 1 else []), tied
    rankings = [item for item in example.feedback if isinstance(item, Ranking)]
    return _stated_pairs(example), [two for item in rankings for level in item.levels for two in combinations(level, 2)]


def overall_ratings(example: Example) -> Mapping[int, float]:
    """One number for each rated response: its reward, or its helpfulness, where all have one, else the sum of its
    scores. Raises `RowError` where they are rated in different attributes."""
    return _overall(example)


def with_labels(example: Example, threshold: float | None) -> Example:
    """The example reduced to what is desirable or undesirable; `RowError` when nothing is."""
    read = kinds_read(example, AS_LABELS)
    if not read:
        raise unfit(example, "no feedback that judges answers")
    if Rating in read:
        if threshold is None:
            raise DataError(
                f"{example.origin.file}: ratings say more or less, but not yes or no. Say from which overall rating on "
                "an answer is desirable: with --threshold 3, answers rated 3 or more are desirable and all others "
                "undesirable."
            )
        labels = {index: value >= threshold for index, value in _overall(example).items()}
    else:
        labels = _majority(example) if Binary in read else _winners(example)
    responses, values = _reduced(example, {index: float(label) for index, label in labels.items()})
    feedback = tuple(Binary(index, bool(value)) for index, value in enumerate(values))
    return replace(example, responses=responses, feedback=feedback)


def with_rankings(example: Example) -> list[Example]:
    """One example for each ranking; `RowError` when there is none."""
    read = kinds_read(example, AS_RANKINGS)
    _require_comparison(example, read)
    if Rating in read:
        rated = _rated(example)
        levels = [tuple(i for i in rated if rated[i] == value) for value in sorted({*rated.values()}, reverse=True)]
        rankings = [Ranking(tuple(levels))]
    else:
        rankings = _stated_rankings(example, _order)
    kept = []
    for ranking in _untied(rankings):
        responses, values = _reduced(
            example, {index: float(number) for number, level in enumerate(ranking.levels) for index in level}
        )
        levels = [tuple(i for i, value in enumerate(values) if value == level) for level in sorted({*values})]
        kept.append(replace(example, responses=responses, feedback=(replace(ranking, levels=tuple(levels)),)))
    return kept


def with_ratings(example: Example) -> list[Example]:
    """One example for the ratings, or one for each ranking; `RowError` when there is neither."""
    read = kinds_read(example, AS_RATINGS)
    _require_comparison(example, read)
    if Rating in read:
        found = [_rated(example)]
    else:
        found = [
            {index: -math.inf if number else 0.0 for number, level in enumerate(ranking.levels) for index in level}
            for ranking in _untied(_stated_rankings(example, _best_of))
        ]
    kept = []
    for each in found:
        if len(set(each.values())) < 2:
            raise Unused("feedback", TIE)
        responses, values = _reduced(example, each)
        feedback = tuple(Rating(index, {"rating": value}) for index, value in enumerate(values))
        kept.append(replace(example, responses=responses, feedback=feedback))
    return kept


def _require_comparison(example: Example, read: Kinds) -> None:
    if not read:
        labels = any(isinstance(item, Binary) for item in example.feedback)
        raise unfit(example, "yes/no labels compare nothing" if labels else "no feedback that compares answers")


def _reduced(example: Example, values: Mapping[int, float]) -> tuple[tuple[Response, ...], list[float]]:
    """The responses that have a value, and their values. Equal answers must have equal values."""
    used = sorted(values)
    for one, other in combinations(used, 2):
        if values[one] != values[other] and same_answer(example.responses[one], example.responses[other]):
            raise RowError("responses", "equal answers are judged differently")
    return tuple(example.responses[index] for index in used), [values[index] for index in used]


def _majority(example: Example) -> dict[int, bool]:
    """What most labels of each response say."""
    votes: dict[int, int] = defaultdict(int)
    for item in example.feedback:
        if isinstance(item, Binary):
            votes[item.response] += 1 if item.label else -1
    labels = {index: vote > 0 for index, vote in votes.items() if vote}
    if not labels:
        raise Unused("label", "as many labels say yes as no")
    return labels


def _winners(example: Example) -> dict[int, bool]:
    """What only wins its pairs is desirable, what only loses them is not."""
    pairs = _stated_pairs(example)
    if not pairs:
        raise Unused("feedback", TIE)
    won, lost = {pair.chosen for pair in pairs}, {pair.rejected for pair in pairs}
    if not won ^ lost:
        raise Unused("feedback", "every answer both wins and loses")
    return {index: index in won for index in won ^ lost}


def _stated_rankings(example: Example, of_pairs: Callable[[set[tuple[int, int]]], Ranking]) -> list[Ranking]:
    """Rankings as given, and one of all pairs (better, worse) together."""
    rankings = [item for item in example.feedback if isinstance(item, Ranking)]
    pairs = {(item.chosen, item.rejected) for item in example.feedback if isinstance(item, Pair)}
    return [*rankings, of_pairs(pairs)] if pairs else rankings


def _order(pairs: set[tuple[int, int]]) -> Ranking:
    """The one order in which every earlier response beats every later one, and never the other way round."""
    wins = {index: sum(better == index for better, _ in pairs) for pair in pairs for index in pair}
    order = sorted(wins, key=lambda index: -wins[index])
    if pairs != set(combinations(order, 2)):
        reason = f"the pairs do not rank their {len(order)} answers: every two must be compared, without contradiction"
        raise RowError("feedback", reason)
    return Ranking(tuple((index,) for index in order))


def _best_of(pairs: set[tuple[int, int]]) -> Ranking:
    """Two levels: what no pair rejects, which must beat all others; and these."""
    worse = {rejected for _, rejected in pairs}
    best = {chosen for chosen, _ in pairs} - worse
    if not best or any((one, other) not in pairs for one in best for other in worse):
        raise RowError("feedback", "the pairs name no best answer: it must be compared with every other one and win")
    return Ranking((tuple(sorted(best)), tuple(sorted(worse))))


def _untied(rankings: list[Ranking]) -> list[Ranking]:
    """The rankings that order anything."""
    ordered = [ranking for ranking in rankings if len(ranking.levels) > 1]
    if not ordered:
        raise Unused("feedback", TIE)
    return ordered


def _stated_pairs(example: Example) -> list[Pair]:
    """Pairs as given, and all pairs of different levels of each ranking."""
    pairs = [item for item in example.feedback if isinstance(item, Pair)]
    for item in example.feedback:
        if isinstance(item, Ranking):
            pairs.extend(
                Pair(better, worse, annotator=item.annotator)
                for high, low in combinations(item.levels, 2)
                for better in high
                for worse in low
            )
    return pairs


def _rated_pairs(example: Example) -> list[Pair]:
    """Pairs of differently rated responses, the gap as strength."""
    overall = _rated(example)
    pairs = []
    for one, other in combinations(sorted(overall), 2):
        gap = overall[one] - overall[other]
        if gap:
            pairs.append(Pair(one, other, gap) if gap > 0 else Pair(other, one, -gap))
    return pairs


def _tied_pairs(example: Example, rated: bool) -> list[Pair]:
    """Every two different responses of the same level of a ranking, or with the same rating."""
    tied: list[tuple[tuple[int, int], str | None]]
    if rated:
        overall = _rated(example)
        tied = [(two, None) for two in combinations(sorted(overall), 2) if overall[two[0]] == overall[two[1]]]
    else:
        rankings = [item for item in example.feedback if isinstance(item, Ranking)]
        levels = [(level, item.annotator) for item in rankings for level in item.levels]
        tied = [(two, annotator) for level, annotator in levels for two in combinations(sorted(level), 2)]
    return [
        Pair(one, other, annotator=annotator, tie=1.0)
        for (one, other), annotator in tied
        if not same_answer(example.responses[one], example.responses[other])
    ]


def _counted(pairs: Sequence[Pair]) -> list[Pair]:
    """One pair of all votes on the same two responses."""
    by_two: dict[tuple[int, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_two[min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected)].append(pair)
    made = []
    for (one, other), votes in by_two.items():
        preferred = [vote for vote in votes if vote.tie < 1]
        tied = sum(vote.tie for vote in votes)
        wins = sum(_part(vote, one) for vote in votes)
        if wins < len(votes) - tied - wins:
            one, other, wins = other, one, len(votes) - tied - wins
        strengths = [vote.strength for vote in preferred if vote.strength is not None]
        strength = sum(strengths) / len(strengths) if strengths and len(strengths) == len(preferred) else None
        made.append(Pair(one, other, strength, share=wins / len(votes), tie=1 - (len(votes) - tied) / len(votes)))
    return made


def _part(vote: Pair, one: int) -> float:
    """What part of a vote is for the answer `one`; of a whole one all or nothing."""
    share = 1 - vote.tie if vote.share is None else vote.share
    return share if vote.chosen == one else 1 - vote.tie - share


def _rated(example: Example) -> Mapping[int, float]:
    """The overall ratings of at least two responses."""
    overall = _overall(example)
    if len(overall) < 2:
        raise Unused("feedback", "only one rated answer to this prompt: a comparison needs two")
    return overall


def _overall(example: Example) -> Mapping[int, float]:
    """One number for each rated response: its reward, or its helpfulness, where all have one, else the sum of its
    scores; the mean over annotators. Sums compare only over the same attributes."""
    ratings = [item for item in example.feedback if isinstance(item, Rating)]
    alone = next((name for name in ALONE if all(name in item.scores for item in ratings)), None)
    if alone is None and len({frozenset(item.scores) for item in ratings}) > 1:
        raise RowError("feedback", "answers are rated in different attributes")
    values: dict[int, list[float]] = defaultdict(list)
    for item in ratings:
        values[item.response].append(sum(item.scores.values()) if alone is None else item.scores[alone])
    return {index: sum(scores) / len(scores) for index, scores in values.items()}
