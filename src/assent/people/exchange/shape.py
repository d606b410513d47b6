"""What a shape of exchange is: rows out of what annotators said, what it cannot carry, and rows read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assent.data.records import Problem
from assent.people.items import Label
from assent.people.task import Item, KindName, TaskDefinition

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item with all that annotators said of it."""

    item: Item
    labels: tuple[Label, ...] = ()


@dataclass(slots=True)
class Lost:
    """What a shape cannot carry: for each, in how many items."""

    counts: Counter[str] = field(default_factory=Counter)
    _of: set[str] = field(default_factory=set)

    def note(self, what: str, where: object = True) -> None:
        """Something of the present item, if `where` is true; each counts once an item."""
        if where:
            self._of.add(what)

    def close(self) -> None:
        """The present item is done."""
        self.counts.update(self._of)
        self._of.clear()


@dataclass(frozen=True, slots=True)
class Planned:
    """Rows of an export before they are written: `lost` says what they do not carry of how many items."""

    rows: list[Row]
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Imported:
    """Items and what was said of them; rows that could not be used; columns or questions that were not read, and in how
    many rows they stood; answers that were skipped or not sent off, by why."""

    labelled: list[Labelled]
    problems: list[Problem]
    unknown: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of exchange.

    kinds   kinds of tasks of which it has anything
    rows    the rows of one item; says what they do not carry
    array   whether a file of it is one JSON list, not a row a line
    check   what it cannot express of a task at all, in a sentence; None where it can
    """

    name: str
    about: str
    kinds: tuple[KindName, ...]
    rows: Callable[[Labelled, TaskDefinition, Lost], Iterable[Row]]
    array: bool = False
    check: Callable[[TaskDefinition], str | None] = lambda task: None


def plan(shape: Shape, labelled: Iterable[Labelled], task: TaskDefinition) -> Planned:
    """The rows of a shape. `shape.check` must have been asked."""
    lost, rows = Lost(), list[Row]()
    for each in labelled:
        rows += shape.rows(each, task, lost)
        lost.close()
    return Planned(rows, dict(lost.counts.most_common()))


# ---- what several shapes lose

SIDES = "the order in which answers stood on the page"
TIMES = "when, and how long it took"
COMMENTS = "comments"
ANNOTATORS = "who said it"
SOURCES = "who wrote each answer"
THOUGHTS = "thoughts, attributes and marks of answers that were cut off"
UNASKED = "prompts without a label"
PLAIN_PROMPT = "the prompt as the text that its row had"
COLUMNS = "columns of the row"
TOOLS = "tools and variables of the chat template"


def note_item(item: Item, lost: Lost, sources: bool = False, tools: bool = False, text: bool = False) -> None:
    """What a shape loses of an item, but for what it says that it keeps."""
    lost.note(SOURCES, not sources and any(item.sources))
    lost.note(THOUGHTS, any(_more(item)))
    lost.note(TOOLS, not tools and (item.tools or item.template_kwargs))
    lost.note(PLAIN_PROMPT, not text and item.prompt_text is not None)


def _more(item: Item) -> list[bool]:
    """For each answer, whether it is more than its text."""
    return [
        bool(each.messages[-1].reasoning or each.messages[-1].attributes or not each.finished) for each in item.answers
    ]


def note_labels(
    labels: Sequence[Label], lost: Lost, sides: bool = False, times: bool = False, comments: bool = False
) -> None:
    """What a shape loses of all labels, but for what it says that it keeps."""
    lost.note(SIDES, not sides and any(label.shown for label in labels))
    lost.note(TIMES, not times and any(label.seconds is not None or label.at is not None for label in labels))
    lost.note(COMMENTS, not comments and any((label.value.get("comment") or "").strip() for label in labels))
