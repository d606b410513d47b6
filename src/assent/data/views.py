"""Projections of examples to what an algorithm trains on. Each returns (examples, problems) and accounts for every
example: it gives at least one example, or one problem. Where nothing at all is left, the data are of the wrong kind for
the task: `DataError`, with what would fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from assent.data.formats.fields import same_answer
from assent.data.records import Binary, Example, Pair, Problem, Ranking, Rating, Response, RowError
from assent.errors import DataError

View = tuple[list[Example], list[Problem]]


class _Unused(RowError):
    """The example is sound, but the task has no use for it."""


def sft_view(examples: Sequence[Example]) -> View:
    """One response in each: the best of pairs, rankings or ratings; each desirable one of yes/no labels; the response
    of demonstrations as it is. Raises `DataError` when no example has an answer."""
    return _project(
        examples,
        lambda example: [
            replace(example, responses=(example.responses[index],), feedback=()) for index in _answers(example)
        ],
        "supervised fine-tuning needs answers: demonstrations, pairs, rankings, ratings, or desirable answers",
    )


def pair_view(examples: Sequence[Example]) -> View:
    """Exactly the responses that stand in a pair, with `Pair` feedback by their new indices. Pairs stay; a ranking
    becomes all pairs of different levels; ratings of one prompt's responses become pairs with the gap as strength, by
    helpfulness where all have it, else by the sum. Ties make no pair; an example of ties alone is a problem without
    fault. Raises `DataError` when no example has a comparison."""
    return _project(
        examples,
        lambda example: [_with_pairs(example)],
        "comparisons are needed: pairs, rankings, or ratings of two answers to one prompt",
    )


def prompt_view(examples: Sequence[Example]) -> View:
    """The prompts alone, with their meta. Raises `DataError` when there are none (plain text)."""
    return _project(
        examples, lambda example: [_only_prompt(example)], "prompts are needed: any shape except plain text"
    )


def _project(examples: Sequence[Example], project: Callable[[Example], list[Example]], needs: str) -> View:
    kept: list[Example] = []
    problems: list[Problem] = []
    for example in examples:
        try:
            kept.extend(project(example))
        except RowError as error:
            problems.append(replace(error.at(example.origin), fault=not isinstance(error, _Unused)))
    if examples and not kept:
        raise DataError(
            f"{examples[0].origin.file}: {needs}. This file has {_kinds(examples)}, which fit: {_uses(examples)}. "
            f"The first row: {problems[0].reason}"
        )
    return kept, problems


def _kinds(examples: Sequence[Example]) -> str:
    names = {"Pair": "pairs", "Ranking": "rankings", "Rating": "ratings", "Binary": "yes/no labels"}
    found = {type(item).__name__ for example in examples for item in example.feedback}
    if kinds := [name for key, name in names.items() if key in found]:
        return " and ".join(kinds)
    if not any(example.prompt for example in examples):
        return "plain text"
    return "demonstrations" if any(example.responses for example in examples) else "prompts without answers"


def _uses(examples: Sequence[Example]) -> str:
    """Commands that take these examples."""
    uses = {"sft": _answers, "reward": _with_pairs, "dpo": _with_pairs, "ppo (its prompts)": _only_prompt}
    fitting = [name for name, project in uses.items() if any(_works(project, example) for example in examples)]
    return ", ".join(fitting) or "none of the commands"


def _works(project: Callable[[Example], object], example: Example) -> bool:
    try:
        project(example)
    except RowError:
        return False
    return True


def _only_prompt(example: Example) -> Example:
    if not example.prompt:
        raise RowError("prompt", "plain text has no prompt")
    return replace(example, responses=(), feedback=())


def _answers(example: Example) -> list[int]:
    """Indices of the responses worth imitating."""
    if not example.responses:
        raise RowError("responses", "no answer")
    kinds = {type(item) for item in example.feedback}
    if kinds & {Pair, Ranking, Rating}:
        return [_best(example)]
    labels = [item for item in example.feedback if isinstance(item, Binary)]
    if labels:
        disliked = {item.response for item in labels if not item.label}
        desirable = sorted({item.response for item in labels if item.label} - disliked)
        if not desirable:
            raise _Unused("label", "no answer is labelled desirable")
        return desirable
    if len(example.responses) > 1:
        raise RowError("responses", f"{len(example.responses)} answers and no feedback: which one is to be learnt?")
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


def _with_pairs(example: Example) -> Example:
    """The example reduced to its pairs; `RowError` when there is none."""
    kinds = {type(item) for item in example.feedback}
    if not kinds & {Pair, Ranking, Rating}:
        what = "yes/no labels compare nothing" if Binary in kinds else "no feedback that compares answers"
        raise RowError("feedback", what)
    pairs = _stated_pairs(example)
    if not kinds & {Pair, Ranking}:
        pairs = _rated_pairs(example)
    if not pairs:
        raise _Unused("feedback", "tie")
    for pair in pairs:
        if same_answer(example.responses[pair.chosen], example.responses[pair.rejected]):
            raise RowError("responses", "equal answers in a pair")
    used = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
    place = {old: new for new, old in enumerate(used)}
    responses: tuple[Response, ...] = tuple(example.responses[index] for index in used)
    moved = tuple(replace(pair, chosen=place[pair.chosen], rejected=place[pair.rejected]) for pair in pairs)
    return replace(example, responses=responses, feedback=moved)


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
    overall = _overall(example)
    if len(overall) < 2:
        raise _Unused("feedback", "only one rated answer to this prompt: a pair needs two")
    pairs = []
    for one, other in combinations(sorted(overall), 2):
        gap = overall[one] - overall[other]
        if gap:
            pairs.append(Pair(one, other, gap) if gap > 0 else Pair(other, one, -gap))
    return pairs


def _overall(example: Example) -> Mapping[int, float]:
    """One number for each rated response: its helpfulness where all have one, else the sum of its scores; the mean over
    annotators. Sums compare only over the same attributes."""
    ratings = [item for item in example.feedback if isinstance(item, Rating)]
    by_helpfulness = all("helpfulness" in item.scores for item in ratings)
    if not by_helpfulness and len({frozenset(item.scores) for item in ratings}) > 1:
        raise RowError("feedback", "answers are rated in different attributes")
    values: dict[int, list[float]] = defaultdict(list)
    for item in ratings:
        values[item.response].append(item.scores["helpfulness"] if by_helpfulness else sum(item.scores.values()))
    return {index: sum(scores) / len(scores) for index, scores in values.items()}
