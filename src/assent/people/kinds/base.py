"""What a kind of task is, and the checks that all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from assent.data.records import Feedback, Pair
from assent.errors import UserError
from assent.names import suggestion
from assent.people.task import Item, KindName, TaskDefinition

Value = Mapping[str, Any]
"""An answer to an item, as JSON has it; answers of the item are named by their index in `Item.responses`."""
Shown = Sequence[int]
"""The order in which answers stood on the page, by index; empty where it is not known."""

COMMENT, TEXT = 10_000, 50_000
"""Most characters of a comment, and of an answer that an annotator writes."""
LETTERS = "ABCDEFGHI"


class LabelError(UserError):
    """An answer that the item or the task does not allow."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task.

    about      what annotators do
    question   what is asked, where the task does not say it
    check      raises LabelError, in words for an annotator, for a value that this item and task do not allow
    feedback   the records that trainers read of a value: (value, item, annotator, shown). What an annotator wrote is
               the answer behind the item's last one
    value      the value that an annotator's feedback amounts to, or None: (feedback, item, task); of what the task
               asks for, strengths may be missing
    differs    how far two values are apart, from 0 (the same) to 1: (value, value, task)
    right      whether a value agrees with the known one: (value, known, task)
    summary    a value in words: (value, item, shown); answers have their letters on the page where shown is given
    """

    name: KindName
    about: str
    question: str
    check: Callable[[Any, Item, TaskDefinition], None]
    feedback: Callable[[Value, Item, str | None, Shown], tuple[Feedback, ...]]
    value: Callable[[Sequence[Feedback], Item, TaskDefinition], Value | None]
    differs: Callable[[Value, Value, TaskDefinition], float]
    right: Callable[[Value, Value, TaskDefinition], bool]
    summary: Callable[[Value, Item, Shown], str]


def fields_of(value: Any, names: Sequence[str], task: TaskDefinition) -> Value:
    """A value as an object of these fields, and perhaps a comment, which is checked."""
    if not isinstance(value, Mapping):
        raise LabelError(f"An answer to this task is an object with {_listed(names)}. Got {said(value)}.")
    known = (*names, "comment")
    for name in value:
        if name not in known:
            hint = suggestion(str(name), known)
            raise LabelError(f"An answer to this task has no field '{name}'.{hint} Its fields: {', '.join(known)}.")
    comment = value.get("comment")
    if comment is not None and (checked := text(comment, "comment", COMMENT, blank=True)).strip():
        if task.comment == "off":
            raise LabelError(f"This task asks for no comments. Got {said(checked)}.")
    elif task.comment == "required":
        raise LabelError("A comment is missing: this task asks for a reason.")
    return value


def text(value: Any, name: str, most: int, blank: bool = False) -> str:
    """Text that can be stored, and is not too long."""
    if not isinstance(value, str):
        raise LabelError(f"The {name} must be text. Got {said(value)}.")
    if len(value) > most:
        raise LabelError(f"The {name} has {len(value):,} characters; at most {most:,} are kept. Shorten it.")
    if not blank and not value.strip():
        raise LabelError(f"The {name} is empty.")
    for place, letter in enumerate(value):
        if letter == "\0" or "\ud800" <= letter <= "\udfff":
            raise LabelError(f"The {name} has a character that is no text, at place {place + 1}. Remove it.")
    return value


def choice(value: Any, name: str, of: Collection[str]) -> str:
    """One of these words."""
    if not isinstance(value, str) or value not in of:
        hint = suggestion(value, of) if isinstance(value, str) else ""
        raise LabelError(f"The {name} must be one of {', '.join(of)}. Got {said(value)}.{hint}")
    return value


def whole(value: Any, name: str, lowest: int, highest: int) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise LabelError(f"The {name} must be a whole number from {lowest} to {highest}. Got {said(value)}.")
    return value


def index(value: Any, name: str, item: Item) -> int:
    """One of the item's answers."""
    if not item.responses:
        raise LabelError(f"This item has no answers, and {name} names one. Got {said(value)}.")
    return whole(value, name, 0, len(item.responses) - 1)


def listed(value: Any, name: str, count: int | None = None) -> Sequence[Any]:
    """A list, of so many entries."""
    if not isinstance(value, list | tuple):
        raise LabelError(f"The {name} must be a list. Got {said(value)}.")
    if count is not None and len(value) != count:
        raise LabelError(f"The {name} must have one entry for each of the {count} answers. Got {len(value)}.")
    return value


def said(value: Any) -> str:
    """What was given, briefly."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}" if len(f"{value}") <= 30 else f"a number of {len(f'{value}')} digits"
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else "no value"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


# ---- what kinds make


def pair(chosen: int, rejected: int, strength: float | None, annotator: str | None, shown: Shown) -> Pair:
    """A whole vote, with the side that each answer stood on."""
    first: Literal["chosen", "rejected"] | None = None
    if shown:
        first = "chosen" if shown.index(chosen) < shown.index(rejected) else "rejected"
    return Pair(chosen, rejected, strength, annotator, first=first)


def called(answer: int, shown: Shown) -> str:
    """An answer's letter on the page, or its number."""
    return LETTERS[shown.index(answer)] if shown else f"answer {answer + 1}"


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
