"""Kinds that compare answers: pair, ranking, best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from assent.data.records import Binary, Feedback, Pair, Ranking
from assent.people.kinds.base import (
    Kind,
    LabelError,
    Shown,
    Value,
    called,
    capital,
    choice,
    fields_of,
    index,
    listed,
    pair,
    said,
    whole,
)
from assent.people.task import Item, TaskDefinition

# ---- pair: {"verdict": "better", "better": 0, "strength": 2}, or tie, both_bad, cannot_judge

TOGGLES = {"tie": "ties", "both_bad": "both_bad", "cannot_judge": "cannot_judge"}
"""Verdicts, and the options of the task that allow them."""
WORDS = {"tie": "both equally good", "both_bad": "both bad", "cannot_judge": "cannot be judged"}
CLEARLY = {None: "better", 1: "slightly better", 2: "better", 3: "much better"}


def _check_pair(value: Any, item: Item, task: TaskDefinition) -> None:
    value = fields_of(value, ("verdict", "better", "strength"), task)
    allowed = ["better", *(verdict for verdict, option in TOGGLES.items() if getattr(task, option))]
    verdict = choice(value.get("verdict"), "verdict", allowed)
    if verdict != "better":
        for name in ("better", "strength"):
            if value.get(name) is not None:
                raise LabelError(f"The verdict {verdict} has no '{name}'. Got {said(value[name])}.")
        return
    index(value.get("better"), "better answer", item)
    strength = value.get("strength")
    if task.strength:
        whole(strength, "strength", 1, task.strength)
    elif strength is not None:
        raise LabelError(f"This task asks for no strengths. Got {said(strength)}.")


def _pair_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    match value["verdict"]:
        case "better":
            better, strength = value["better"], value.get("strength")
            return (pair(better, 1 - better, None if strength is None else float(strength), annotator, shown),)
        case "tie":
            return (Ranking(((0, 1),), annotator),)
        case "both_bad":
            return (Ranking(((0, 1),), annotator), Binary(0, False, annotator), Binary(1, False, annotator))
        case _:
            return ()


def _pair_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    labels = {each.response: each.label for each in feedback if isinstance(each, Binary)}
    compared = [each for each in feedback if isinstance(each, Pair | Ranking)]
    if labels and not any(isinstance(each, Pair) for each in compared):
        return {"verdict": "both_bad", "better": None, "strength": None} if labels == {0: False, 1: False} else None
    if len(compared) != 1:
        return None
    (said,) = compared
    if isinstance(said, Ranking):
        if sorted(answer for level in said.levels for answer in level) != [0, 1]:
            return None
        if len(said.levels) == 1:
            return {"verdict": "tie", "better": None, "strength": None}
        return {"verdict": "better", "better": said.levels[0][0], "strength": None}
    if said.share not in (None, 1.0) or said.tie:
        return None  # a soft label is several votes, or none
    strength = said.strength if said.strength in range(1, task.strength + 1) else None
    return {"verdict": "better", "better": said.chosen, "strength": None if strength is None else int(strength)}


def _pair_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    """Opposite verdicts 1; one and none 0.5; ties, both bad and cannot judge 0.25; the same with other strengths at
    most 0.25."""
    verdicts = {one["verdict"], other["verdict"]}
    if verdicts == {"better"}:
        if one["better"] != other["better"]:
            return 1.0
        gap = abs((one.get("strength") or 0) - (other.get("strength") or 0))
        return 0.25 * gap / max(task.strength - 1, 1) if one.get("strength") and other.get("strength") else 0.0
    return 0.0 if len(verdicts) == 1 else 0.5 if "better" in verdicts else 0.25


def _pair_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    """The same verdict, of whatever strength."""
    return value["verdict"] == known["verdict"] and value.get("better") == known.get("better")


def _pair_summary(value: Value, item: Item, shown: Shown) -> str:
    if value["verdict"] != "better":
        return capital(WORDS[value["verdict"]])
    return capital(f"{called(value['better'], shown)} is {CLEARLY[value.get('strength')]}")


PAIR = Kind(
    "pair", "which of two answers is better, and how clearly", "Which answer is better?",
    _check_pair, _pair_feedback, _pair_value, _pair_differs, _pair_right, _pair_summary,
)  # fmt: skip


# ---- ranking: {"levels": [[2], [0, 1], [3]]}, best first


def _check_ranking(value: Any, item: Item, task: TaskDefinition) -> None:
    levels = listed(fields_of(value, ("levels",), task).get("levels"), "levels")
    seen: list[int] = []
    for level in levels:
        answers = listed(level, "levels' entries")
        if not answers:
            raise LabelError("A level of the ranking is empty.")
        if len(answers) > 1 and not task.ties:
            raise LabelError("This task has no ties: every level holds one answer.")
        seen += [index(answer, "levels' answers", item) for answer in answers]
    for answer in range(len(item.responses)):
        if seen.count(answer) != 1:
            times = "not in the ranking" if answer not in seen else "in it more than once"
            raise LabelError(f"A ranking holds every answer once; {called(answer, ())} is {times}.")


def _ranking_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    return (Ranking(tuple(map(tuple, value["levels"])), annotator),)


def _ranking_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    compared = [each for each in feedback if isinstance(each, Pair | Ranking)]
    if len(compared) != 1:
        return None
    (said,) = compared
    levels = said.levels if isinstance(said, Ranking) else ((said.chosen,), (said.rejected,))
    everything = sorted(answer for level in levels for answer in level) == [*range(len(item.responses))]
    return {"levels": [list(level) for level in levels]} if everything else None


def _place(value: Value) -> dict[int, int]:
    return {answer: place for place, level in enumerate(value["levels"]) for answer in level}


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _ranking_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    """The share of two answers that are ordered the other way round; half of it where only one ranking orders them
    (Kendall's distance with ties)."""
    a, b = _place(one), _place(other)
    gaps = [abs(_sign(a[x] - a[y]) - _sign(b[x] - b[y])) / 2 for x, y in combinations(sorted(a), 2)]
    return sum(gaps) / len(gaps)


def _ranking_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    """No two answers that the known ranking orders are tied or the other way round."""
    a, b = _place(value), _place(known)
    return all(_sign(a[x] - a[y]) == _sign(b[x] - b[y]) for x, y in combinations(sorted(a), 2) if b[x] != b[y])


def _ranking_summary(value: Value, item: Item, shown: Shown) -> str:
    return capital(" > ".join(" = ".join(called(answer, shown) for answer in level) for level in value["levels"]))


RANKING = Kind(
    "ranking", "all answers in order, ties allowed", "Put the answers in order, the best first.",
    _check_ranking, _ranking_feedback, _ranking_value, _ranking_differs, _ranking_right, _ranking_summary,
)  # fmt: skip


# ---- best: {"best": 2}, or {"best": None}: none is good


def _check_best(value: Any, item: Item, task: TaskDefinition) -> None:
    value = fields_of(value, ("best",), task)
    if "best" not in value:
        raise LabelError("The best answer is missing: its number, or null where none is good.")
    if value["best"] is not None:
        index(value["best"], "best answer", item)
    elif not task.both_bad:
        raise LabelError("This task always has a best answer. Choose one.")


def _best_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    """The best one against each other, of whose order nothing was said."""
    best, answers = value["best"], range(len(item.responses))
    if best is None:
        return (Ranking((tuple(answers),), annotator), *(Binary(answer, False, annotator) for answer in answers))
    return tuple(pair(best, other, None, annotator, shown) for other in answers if other != best)


def _best_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    answers = set(range(len(item.responses)))
    pairs = [each for each in feedback if isinstance(each, Pair)]
    labels = {each.response: each.label for each in feedback if isinstance(each, Binary)}
    rankings = [each for each in feedback if isinstance(each, Ranking)]
    if not pairs and set(labels) == answers:
        good = [answer for answer, label in labels.items() if label]
        return {"best": good[0] if good else None} if len(good) < 2 else None
    if pairs and not rankings and all(each.share in (None, 1.0) and not each.tie for each in pairs):
        best = {each.chosen for each in pairs}
        if len(best) == 1 and {each.rejected for each in pairs} == answers - best:
            return {"best": best.pop()}
        return None
    if len(rankings) == 1 and not pairs:
        levels = rankings[0].levels
        if {answer for level in levels for answer in level} == answers and len(levels) > 1 and len(levels[0]) == 1:
            return {"best": levels[0][0]}
    return None


def _best_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    return 0.0 if one["best"] == other["best"] else 0.5 if None in (one["best"], other["best"]) else 1.0


def _best_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    return bool(value["best"] == known["best"])


def _best_summary(value: Value, item: Item, shown: Shown) -> str:
    return "None is good" if value["best"] is None else capital(f"{called(value['best'], shown)} is best")


BEST = Kind(
    "best", "which of several answers is best", "Which answer is best?",
    _check_best, _best_feedback, _best_value, _best_differs, _best_right, _best_summary,
)  # fmt: skip
