"""Kinds that judge each answer by itself: attributes, yesno."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assent.data.records import Binary, Feedback, Rating
from assent.names import suggestion
from assent.people.kinds.base import (
    Kind,
    LabelError,
    Shown,
    Value,
    called,
    capital,
    fields_of,
    listed,
    said,
    whole,
)
from assent.people.task import Item, TaskDefinition

# ---- attributes: {"scores": [{"helpfulness": 4, ...}, ...]}, one for each answer


def _check_attributes(value: Any, item: Item, task: TaskDefinition) -> None:
    scores = listed(fields_of(value, ("scores",), task).get("scores"), "scores", len(item.responses))
    for answer, given in enumerate(scores):
        who = called(answer, ())
        if not isinstance(given, Mapping):
            raise LabelError(f"The scores of {who} must be named numbers. Got {said(given)}.")
        for name in given:
            if name not in task.attributes:
                known = ", ".join(task.attributes)
                raise LabelError(
                    f"{capital(who)}: there is no attribute '{name}'.{suggestion(str(name), task.attributes)} This "
                    f"task's: {known}."
                )
        for name, attribute in task.attributes.items():
            if name not in given:
                raise LabelError(f"{capital(who)} has no rating in {name}.")
            whole(given[name], f"{name} of {who}", attribute.lowest, attribute.highest)


def _attributes_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    return tuple(
        Rating(answer, {name: float(score) for name, score in scores.items()}, annotator)
        for answer, scores in enumerate(value["scores"])
    )


def _attributes_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    ratings: dict[int, dict[str, int]] = {}
    for each in feedback:
        if isinstance(each, Rating):
            mine = ratings.setdefault(each.response, {})
            for name, score in each.scores.items():
                ends = task.attributes.get(name)
                if ends is None:
                    continue  # what the task does not ask for
                if score != int(score) or not ends.lowest <= score <= ends.highest or name in mine:
                    return None
                mine[name] = int(score)
    if set(ratings) != set(range(len(item.responses))) or any(set(r) != set(task.attributes) for r in ratings.values()):
        return None
    order = list(task.attributes)
    return {"scores": [{name: ratings[answer][name] for name in order} for answer in range(len(item.responses))]}


def _gaps(one: Value, other: Value, task: TaskDefinition) -> list[float]:
    return [
        abs(mine[name] - theirs[name]) / (each.highest - each.lowest)
        for mine, theirs in zip(one["scores"], other["scores"], strict=True)
        for name, each in task.attributes.items()
    ]


def _attributes_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    """The largest gap, as a share of its attribute's range."""
    return max(_gaps(one, other, task))


def _attributes_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    """No rating is more than a step away, nor more than a quarter of the range where that is more."""
    return all(
        abs(mine[name] - theirs[name]) <= max(1, (each.highest - each.lowest) / 4)
        for mine, theirs in zip(value["scores"], known["scores"], strict=True)
        for name, each in task.attributes.items()
    )


def _attributes_summary(value: Value, item: Item, shown: Shown) -> str:
    order = shown or range(len(value["scores"]))
    return "; ".join(
        capital(f"{called(answer, shown)}: {', '.join(f'{n} {s}' for n, s in value['scores'][answer].items())}")
        for answer in order
    )


ATTRIBUTES = Kind(
    "attributes", "ratings of each answer in several attributes", "Rate each answer.",
    _check_attributes, _attributes_feedback, _attributes_value, _attributes_differs, _attributes_right,
    _attributes_summary,
)  # fmt: skip


# ---- yesno: {"labels": [true, false, null]}, one for each answer; null: cannot be judged


def _check_yesno(value: Any, item: Item, task: TaskDefinition) -> None:
    labels = listed(fields_of(value, ("labels",), task).get("labels"), "labels", len(item.responses))
    for answer, label in enumerate(labels):
        if label is None and not task.cannot_judge:
            raise LabelError(f"{capital(called(answer, ()))} has no label, and this task always has one.")
        if label is not None and not isinstance(label, bool):
            raise LabelError(f"The label of {called(answer, ())} must be true or false. Got {said(label)}.")


def _yesno_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    return tuple(Binary(answer, label, annotator) for answer, label in enumerate(value["labels"]) if label is not None)


def _yesno_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    labels: list[bool | None] = [None] * len(item.responses)
    for each in feedback:
        if isinstance(each, Binary):
            if labels[each.response] is not None:
                return None
            labels[each.response] = each.label
    return {"labels": labels} if any(label is not None for label in labels) else None


def _yesno_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    """The share of answers with another label; half of it where one of them cannot be judged."""
    gaps = [
        0.0 if a == b else 0.5 if a is None or b is None else 1.0
        for a, b in zip(one["labels"], other["labels"], strict=True)
    ]
    return sum(gaps) / len(gaps)


def _yesno_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    return all(mine == label for mine, label in zip(value["labels"], known["labels"], strict=True) if label is not None)


def _yesno_summary(value: Value, item: Item, shown: Shown) -> str:
    words = {True: "yes", False: "no", None: "cannot be judged"}
    order = shown or range(len(value["labels"]))
    if len(value["labels"]) == 1:
        return capital(words[value["labels"][0]])
    return capital(", ".join(f"{called(answer, shown)} {words[value['labels'][answer]]}" for answer in order))


YESNO = Kind(
    "yesno", "yes or no for each answer", "Is this a good answer?",
    _check_yesno, _yesno_feedback, _yesno_value, _yesno_differs, _yesno_right, _yesno_summary,
)  # fmt: skip
