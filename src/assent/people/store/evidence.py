"""The labels of a project in memory, as statistics want them: what stands, by item and annotator, and how far the
others agree with each label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from assent.data.records import Example, Feedback, Message, Pair, Ranking, Response
from assent.people.kinds import KINDS
from assent.people.task import Item, TaskDefinition
from assent.people.votes import One, Votes, votes_of

COMPARED = ("pair", "ranking", "best")
"""Kinds of which comparisons are measured, and nothing that comes with them."""
MARKED = "spans"
"""The kind whose labels agree in parts."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An item without its text. `words` are those of each answer, `reading` those of all that an annotator reads."""

    words: tuple[int, ...]
    reading: int
    topic: str = ""
    expected: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A label that stands: nothing supersedes it. `purpose`: work, second (the annotator's second, blind look), gold or
    screening; `shown` is the order of the answers on the page."""

    label: int
    item: int
    user: str
    purpose: str
    value: Mapping[str, Any]
    seconds: float
    at: float
    shown: tuple[int, ...]


@dataclass(slots=True)
class Evidence:
    """Everything that stands in a project. `add` and `remove` change it; `tables` is what is derived, made anew."""

    task: TaskDefinition
    things: dict[int, Thing] = field(default_factory=dict)
    given: dict[int, Given] = field(default_factory=dict)
    feedback: dict[int, tuple[Feedback, ...]] = field(default_factory=dict)
    by_item: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """The labels of each item that are work."""
    examples: dict[int, Example] = field(default_factory=dict)
    """Items as rows, as long as nothing new is said of them."""

    def add(self, one: Given) -> None:
        """Takes a label in; its item is one of `things`."""
        self.given[one.label] = one
        if one.purpose == "work":
            self.feedback[one.label] = _feedback(self.task, one, len(self.things[one.item].words))
            self.by_item[one.item].add(one.label)
            self.examples.pop(one.item, None)

    def remove(self, label: int) -> Given | None:
        """Forgets a label that no longer stands, and says which it was."""
        one = self.given.pop(label, None)
        if one is not None and self.feedback.pop(label, None) is not None:
            self.by_item[one.item].discard(label)
            self.examples.pop(one.item, None)
        return one

    def of(self, *purposes: str) -> list[Given]:
        """Labels given for these purposes, oldest first."""
        return sorted((one for one in self.given.values() if one.purpose in purposes), key=lambda one: one.label)

    def tables(self) -> Tables:
        """Votes on all items, as of now."""
        items = [item for item, labels in self.by_item.items() if labels]
        for item in items:
            if item not in self.examples:
                self.examples[item] = _slim(item, self.things[item], self._said(item))
        return Tables(self.task, tuple(items), tuple(map(self.examples.__getitem__, items)), tuple(self.of("work")))

    def _said(self, item: int) -> Iterable[Feedback]:
        return (piece for label in sorted(self.by_item[item]) for piece in self.feedback[label])


def _feedback(task: TaskDefinition, one: Given, answers: int) -> tuple[Feedback, ...]:
    """What can be compared with others' of a label. Texts are asked for by no kind of which that is used."""
    if task.kind in ("edit", MARKED):
        return ()
    item = Item((), ("",) * answers)
    found = KINDS[task.kind].feedback(one.value, item, one.user, one.shown)
    if task.kind in COMPARED:
        return tuple(piece for piece in found if isinstance(piece, Pair | Ranking))
    return found


def _slim(item: int, thing: Thing, feedback: Iterable[Feedback]) -> Example:
    """An item as a row whose texts only tell prompts and answers apart."""
    answers = tuple(Response((Message("assistant", str(index)),)) for index in range(len(thing.words)))
    return Example((Message("user", str(item)),), answers, tuple(feedback), meta={"topic": thing.topic})


@dataclass(frozen=True)
class Tables:
    """Items with work done on them as rows, their numbers, and the labels, oldest first."""

    task: TaskDefinition
    items: tuple[int, ...]
    examples: tuple[Example, ...]
    labels: tuple[Given, ...]

    @cached_property
    def votes(self) -> Votes:
        """Who said what of which answers; rows are places in `items`."""
        return votes_of(self.examples)

    def words(self, things: Mapping[int, Thing]) -> dict[One, int]:
        """How long each answer is."""
        return {(row, i): words for row, item in enumerate(self.items) for i, words in enumerate(things[item].words)}

    @cached_property
    def agreed(self) -> np.ndarray:
        """[L]: of each of `labels`, how many of the others on the same item say the same: the mean over what was said.
        NaN where nobody else has said anything."""
        if self.task.kind == MARKED:
            return self._alike()
        cells: list[tuple[int, Any, Any, str]] = []  # row, of what, said what, by whom
        cells += [(two[0], two, vote.first, who) for (two, who), vote in self.votes.comparisons.items()]
        cells += [(one[0], one, label, who) for (one, who), label in self.votes.labels.items()]
        cells += [
            (one[0], (one, name), score, who)
            for (one, who), scores in self.votes.ratings.items()
            for name, score in scores.items()
        ]
        asked, said = _codes(cell[1] for cell in cells), _codes(cell[1:3] for cell in cells)
        others, alike = np.bincount(asked)[asked] - 1, np.bincount(said)[said] - 1
        row = {item: place for place, item in enumerate(self.items)}
        places = {(row[one.item], one.user): place for place, one in enumerate(self.labels)}
        label = np.array([places[cell[0], cell[3]] for cell in cells], np.int64)
        return _means(label[others > 0], alike[others > 0] / others[others > 0], len(self.labels))

    def _alike(self) -> np.ndarray:
        """The same of labels that agree in parts: 1 - how far two differ."""
        differs = KINDS[self.task.kind].differs
        by_item: dict[int, list[int]] = defaultdict(list)
        for place, one in enumerate(self.labels):
            by_item[one.item].append(place)
        pairs = [(a, b) for places in by_item.values() for a in places for b in places if a != b]
        alike = [1 - differs(self.labels[a].value, self.labels[b].value, self.task) for a, b in pairs]
        return _means(np.array([a for a, _ in pairs], np.int64), np.array(alike, np.float64), len(self.labels))


def _codes(values: Iterable[Any]) -> np.ndarray:
    known: dict[Any, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64)


def _means(place: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """[length] the mean of the values at each place; NaN where there is none."""
    total, count = np.bincount(place, values, length), np.bincount(place, minlength=length)
    with np.errstate(invalid="ignore"):
        return total / count
