"""Projections of examples to what an algorithm trains on. Each returns (examples, problems) and accounts for every
example: it gives at least one example, or one problem. Where nothing at all is left, the data are of the wrong kind for
the task: `DataError`, with what would fit. Feedback of another kind than the task's own is converted where that is
exact, and the log says so once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from assent.data.attributes import attributes_in, with_attributes
from assent.data.conversions import (
    AS_ANSWERS,
    AS_LABELS,
    AS_PAIRS,
    AS_RANKINGS,
    AS_RATINGS,
    TIE,
    Kinds,
    Unused,
    best_answers,
    kinds_read,
    with_labels,
    with_pairs,
    with_rankings,
    with_ratings,
)
from assent.data.records import Example, Pair, Problem, RowError
from assent.errors import DataError

log = logging.getLogger(__name__)

Projected = tuple[list[Example], list[Problem]]


def sft_view(examples: Sequence[Example]) -> Projected:
    """One response in each: the best of pairs, rankings or ratings; each desirable one of yes/no labels; the response
    of demonstrations as it is. Raises `DataError` when no example has an answer."""
    return _project(
        examples,
        lambda example: [
            replace(example, responses=(example.responses[index],), feedback=()) for index in best_answers(example)
        ],
        "supervised fine-tuning needs answers: demonstrations, pairs, rankings, ratings, or desirable answers",
        AS_ANSWERS,
    )


def pair_view(examples: Sequence[Example], *, votes: bool = False, ties: bool = False) -> Projected:
    """Exactly the responses that stand in a pair, with `Pair` feedback by their new indices. Pairs stay; a ranking
    becomes all pairs of different levels; ratings of one prompt's responses become pairs with the gap as strength, by
    helpfulness where all have it, else by the sum. Ties make no pair; an example of ties alone is a problem without
    fault. Raises `DataError` when no example has a comparison.

    With `ties` they make pairs as well: every two different responses of one level or of equal ratings. With `votes`
    all pairs of the same two responses are one: the side with more votes is the chosen one (of equals the first), with
    its share of them and that of ties; its strength is the mean of theirs where all have one. A vote may be soft, and
    then counts for both sides by its own share; without `votes` it is a whole one, which the log says."""
    found = _project(
        examples,
        lambda example: [with_pairs(example, votes=votes, ties=ties)],
        "comparisons are needed: pairs, rankings, or ratings of two answers to one prompt",
        AS_PAIRS,
    )
    if not votes and any(isinstance(item, Pair) and _soft(item) for example in examples for item in example.feedback):
        log.warning(
            "%s: soft labels of pairs are read as whole votes; --reward.votes keeps them", examples[0].origin.file
        )
    return found


def _soft(pair: Pair) -> bool:
    return pair.share is not None and 0 < pair.share < 1


def binary_view(examples: Sequence[Example], threshold: float | None = None) -> Projected:
    """Exactly the responses that are desirable or undesirable, with one `Binary` each. Labels stay, by majority; of
    pairs and rankings, what only wins is desirable and what only loses is not; of ratings, an overall number of at
    least `threshold` is desirable. A response that is neither (as many yes as no; wins and losses) is left out; an
    example of such alone is a problem without fault. Raises `DataError` when no example judges an answer, and for
    ratings without a threshold."""
    return _project(
        examples,
        lambda example: [with_labels(example, threshold)],
        "judged answers are needed: yes/no labels, pairs, rankings, or ratings with --threshold",
        AS_LABELS,
    )


def ranking_view(examples: Sequence[Example]) -> Projected:
    """Exactly the responses of one ranking, with this `Ranking` by their new indices. Each ranking of an example gives
    one; its pairs together give one where they compare every two of their responses without contradiction; ratings are
    ranked by their overall number. One level alone is a tie, a problem without fault. Raises `DataError` when no
    example has an order."""
    return _project(
        examples,
        with_rankings,
        "rankings are needed, or what can be one: pairs of every two answers, ratings of two answers to one prompt",
        AS_RANKINGS,
    )


def rating_view(examples: Sequence[Example]) -> Projected:
    """At least two responses, with one `Rating` {"rating": x} each, not all equal: those are a tie, a problem without
    fault. Ratings stay, as their overall number; each ranking of an example gives 0.0 to its best level and -inf to all
    others, and so do its pairs together where the best responses beat every other one. Raises `DataError` when no
    example has either."""
    return _project(
        examples,
        with_ratings,
        "ratings of two answers to one prompt are needed, or what names a best answer: rankings, pairs with one winner",
        AS_RATINGS,
    )


def prompt_view(examples: Sequence[Example]) -> Projected:
    """The prompts alone, with their meta. Raises `DataError` when there are none (plain text)."""
    return _project(
        examples, lambda example: [_only_prompt(example)], "prompts are needed: any shape except plain text"
    )


def answered_view(examples: Sequence[Example]) -> Projected:
    """The prompts with their meta and, where the row has one worth imitating, one answer. Raises `DataError` when there
    are no prompts (plain text)."""
    return _project(
        examples, lambda example: [_with_best_answer(example)], "prompts are needed: any shape except plain text"
    )


def answers_view(examples: Sequence[Example]) -> Projected:
    """All answers as they are, with whatever feedback there is on them. Raises `DataError` when no example has an
    answer to a prompt."""
    return _project(
        examples, lambda example: [_with_answers(example)], "answers to prompts are needed: any shape that has them"
    )


def _project(
    examples: Sequence[Example],
    project: Callable[[Example], list[Example]],
    needs: str,
    groups: tuple[Kinds, ...] = (),
) -> Projected:
    kept: list[Example] = []
    problems: list[Problem] = []
    read: Kinds = {}
    for example in examples:
        try:
            projected = project(example)
            for each in projected:
                _check_trained(each)
            kept.extend(projected)
        except RowError as error:
            problems.append(replace(error.at(example.origin), fault=not isinstance(error, Unused)))
        else:
            read = {**read, **kinds_read(example, groups)}
    if examples and not kept:
        if {problem.reason for problem in problems} == {TIE}:
            raise DataError(
                f"{examples[0].origin.file}: all {len(problems):,} comparisons are ties, so nothing says which answers "
                "are better."
            )
        raise DataError(
            f"{examples[0].origin.file}: {needs}. This file has {_kinds(examples)}, which fit: {_uses(examples)}. "
            f"The first row: {problems[0].reason}"
        )
    for sentence in filter(None, read.values()):
        log.warning("%s: %s", examples[0].origin.file, sentence)
    return kept, problems


def _check_trained(example: Example) -> None:
    """Raises where a response has nothing to train: all its turns are there to be read only."""
    for index, response in enumerate(example.responses):
        if not any(turn.trained for turn in response.messages if turn.role in ("assistant", "text")):
            which = "" if len(example.responses) == 1 else f" of response {index + 1}"
            raise RowError("responses", f"no turn{which} is trained: all have weight 0 or train false")


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
    uses: dict[str, Callable[[Example], object]] = {
        "sft": best_answers,
        "reward": with_pairs,
        "reward-attributes": lambda example: with_attributes(example, attributes_in([example])),
        "dpo and every other pairwise objective": with_pairs,
        "kto": lambda example: with_labels(example, threshold=0.0),
        "reward-ranking": with_rankings,
        "pl-dpo": with_rankings,
        "nca": with_ratings,
        "ppo (its prompts)": _only_prompt,
    }
    fitting = [name for name, project in uses.items() if any(_works(project, example) for example in examples)]
    return ", ".join(fitting) or "none of the commands"


def _works(project: Callable[[Example], object], example: Example) -> bool:
    try:
        project(example)
    except RowError:
        return False
    return True


def _with_best_answer(example: Example) -> Example:
    alone = _only_prompt(example)
    try:
        best = best_answers(example)[0]
    except RowError:
        return alone
    return replace(alone, responses=(example.responses[best],))


def _with_answers(example: Example) -> Example:
    if not example.prompt:
        raise RowError("prompt", "plain text has no prompt")
    if not example.responses:
        raise RowError("responses", f"no answer: the row ends with a {example.prompt[-1].role} turn")
    return example


def _only_prompt(example: Example) -> Example:
    if not example.prompt:
        raise RowError("prompt", "plain text has no prompt")
    return replace(example, responses=(), feedback=())
