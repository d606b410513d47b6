"""What several annotators were asked, as tables of ratings: an item a row, an annotator a column."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from assent.config import AgreeConfig
from assent.data.readers import read_rows
from assent.data.records import Example, Problem
from assent.errors import ConfigError, DataError
from assent.measures.reliability import Scale
from assent.names import suggestion
from assent.people.votes import UNNAMED, votes_of


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that annotators were asked of items: `ratings` [I, A], NaN where one was not asked; `topics` [I]; of a
    scale. `groups` [I], of answers to one prompt, is given where they can be ranked."""

    name: str
    scale: Scale
    annotators: tuple[str, ...]
    ratings: np.ndarray
    topics: tuple[str, ...]
    groups: np.ndarray
    values: tuple[str, ...] = ()
    """The names of values that are words; ratings hold their places."""


@dataclass(slots=True)
class _Asked:
    """A question while it is gathered."""

    scale: Scale
    cells: dict[tuple[Hashable, str], float] = field(default_factory=dict)
    topics: dict[Hashable, str] = field(default_factory=dict)
    groups: dict[Hashable, Hashable] = field(default_factory=dict)

    def add(self, item: Hashable, who: str, value: float, topic: str, group: Hashable) -> None:
        self.cells[item, who] = value
        self.topics[item] = self.topics.get(item) or topic
        self.groups[item] = group


def questions_of(examples: Sequence[Example], config: AgreeConfig) -> list[Question]:
    """The questions that the feedback of rows answers: which of two answers is better (with strengths where all have
    one), yes or no, and each attribute of ratings. The same answers in several files are one item. Unnamed annotators
    are left out."""
    asked: dict[str, _Asked] = {}
    votes = votes_of(examples)
    strong = bool(votes.comparisons) and all(
        vote.strength is not None or vote.first == 0.5 for vote in votes.comparisons.values()
    )

    def note(name: str, scale: Scale, row: int, answers: tuple[int, ...], who: str, value: float) -> None:
        if who.startswith(UNNAMED):
            return
        example = examples[row]
        texts = tuple(example.responses[index].text for index in answers)
        asked.setdefault(name, _Asked(scale)).add(
            (example.prompt, texts), who, value, _topic(example, config.topic), example.prompt
        )

    for ((row, low, high), who), vote in votes.comparisons.items():
        one, other = examples[row].responses[low].text, examples[row].responses[high].text
        forward = one <= other  # the same two answers may stand in another order elsewhere
        value = 0.0 if vote.first == 0.5 else float(np.sign(vote.first - 0.5))
        value *= abs(vote.strength) if strong and vote.strength is not None else 1.0
        answers = (low, high) if forward else (high, low)
        note("comparison", "ordinal" if strong else "nominal", row, answers, who, value if forward else -value)
    for ((row, index), who), label in votes.labels.items():
        note("yes/no", "nominal", row, (index,), who, float(label))
    for ((row, index), who), scores in votes.ratings.items():
        for name, score in scores.items():
            note(name, "ordinal", row, (index,), who, score)
    return [_table(name, each, config) for name, each in asked.items()]


def _topic(example: Example, column: str | None) -> str:
    return "" if column is None else str(example.meta.get(column, ""))


def _table(name: str, asked: _Asked, config: AgreeConfig) -> Question:
    items = {item: place for place, item in enumerate(asked.topics)}
    who = {name: place for place, name in enumerate(sorted({name for _, name in asked.cells}))}
    ratings = np.full((len(items), len(who)), np.nan)
    for (item, annotator), value in asked.cells.items():
        ratings[items[item], who[annotator]] = value
    groups: dict[Hashable, int] = defaultdict(lambda: len(groups))
    scale = asked.scale if config.scale == "auto" else config.scale
    places = np.array([groups[asked.groups[item]] for item in items])
    return Question(name, scale, tuple(who), ratings, tuple(asked.topics.values()), places)


def columns_of_labels(config: AgreeConfig) -> Question:
    """Columns of a table as annotators: numbers where every label is one, else words in alphabetical order. Empty cells
    are no ratings. Raises ConfigError for columns that are not there, DataError for cells that are no single value."""
    (file,) = config.files
    rows = [row for _, row in islice(read_rows(file, config.split), config.limit)]
    known = list(dict.fromkeys(name for row in rows if not isinstance(row, Problem) for name in row))
    for name in (*config.labels, *([config.topic] if config.topic else [])):
        if name not in known:
            flag = "--labels" if name in config.labels else "--topic"
            raise ConfigError(f"{flag} {name}: {file} has no such column.{suggestion(name, known)} {_listed(known)}")
    cells: list[list[str | float | None]] = []
    topics: list[str] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, Problem):
            raise DataError(str(row))
        cells.append([_cell(row.get(name), f"{file}:{number}: {name}") for name in config.labels])
        topics.append("" if config.topic is None else str(row.get(config.topic)))
    given = [cell for row in cells for cell in row if cell is not None]
    words = () if all(isinstance(cell, float) for cell in given) else tuple(sorted({str(cell) for cell in given}))
    code = {word: float(place) for place, word in enumerate(words)}
    ratings = np.array(
        [[np.nan if c is None else code[str(c)] if words else float(c) for c in row] for row in cells]
    ).reshape(-1, len(config.labels))
    scale: Scale = config.scale if config.scale != "auto" else "nominal" if words else "ordinal"
    return Question(
        "label", scale, config.labels, ratings, tuple(topics), np.arange(len(ratings)), words
    )  # fmt: skip


def _cell(value: Any, where: str) -> str | float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: expected one label, got {type(value).__name__}.")
    try:
        return float(value)
    except ValueError:
        return value


def _listed(names: Sequence[str]) -> str:
    return f"There are: {', '.join(names)}."
