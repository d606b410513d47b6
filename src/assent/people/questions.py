"""What several annotators were asked, as tables of ratings: an item a row, an annotator a column."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from assent.config import AgreeConfig
from assent.data.formats.values import Row
from assent.data.readers import read_rows
from assent.data.records import Example, Problem
from assent.errors import ConfigError, DataError
from assent.foreign import brief
from assent.measures.reliability import Scale
from assent.names import suggestion
from assent.people.votes import UNNAMED, votes_of

NO_LABEL = ("", "nan")
"""Cells that are no labels, in any case."""


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


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of some feedback, what an annotator gave again (the last counts), and how much names nobody."""

    questions: list[Question]
    repeated: Mapping[str, int]
    unnamed: int = 0


def questions_of(examples: Sequence[Example], config: AgreeConfig) -> Asked:
    """The questions that the feedback of rows answers: which of two answers is better (with strengths where all have
    one), yes or no, and each attribute of ratings. The same answers in several rows or files are one item. Feedback
    that names nobody is one annotator's, and left out where it contradicts itself. Raises ConfigError for a topic that
    no row has."""
    asked: dict[str, _Asked] = {}
    votes, several = votes_of(examples), False
    repeated = Counter(votes.repeated)
    if config.topic is not None and examples and not any(config.topic in example.meta for example in examples):
        known = list(dict.fromkeys(name for example in examples for name in example.meta))
        raise ConfigError(f"--topic {config.topic}: no row has such a column.{_there(config.topic, known)}")
    strong = bool(votes.comparisons) and all(
        vote.strength is not None or vote.first == 0.5 for vote in votes.comparisons.values()
    )

    def note(name: str, scale: Scale, row: int, answers: tuple[int, ...], who: str, value: float, kind: str) -> None:
        nonlocal several
        example = examples[row]
        texts = tuple(example.responses[index].text for index in answers)
        found = asked.setdefault(name, _Asked(scale))
        item = (example.prompt, texts)
        if who.startswith(UNNAMED):
            who = UNNAMED
            several |= found.cells.get((item, who), value) != value
        else:
            repeated[kind] += (item, who) in found.cells
        found.add(item, who, value, _topic(example, config.topic), example.prompt)

    for ((row, low, high), who), vote in votes.comparisons.items():
        one, other = examples[row].responses[low].text, examples[row].responses[high].text
        forward = one <= other  # the same two answers may stand in another order elsewhere
        value = 0.0 if vote.first == 0.5 else float(np.sign(vote.first - 0.5))
        value *= abs(vote.strength) if strong and vote.strength is not None else 1.0
        answers = (low, high) if forward else (high, low)
        scale: Scale = "ordinal" if strong else "nominal"
        note("comparison", scale, row, answers, who, value if forward else -value, "comparisons")
    for ((row, index), who), label in votes.labels.items():
        note("yes/no", "nominal", row, (index,), who, float(label), "yes/no labels")
    for ((row, index), who), scores in votes.ratings.items():
        for place, (name, score) in enumerate(scores.items()):
            note(name, "ordinal", row, (index,), who, score, "" if place else "ratings")
    repeated.pop("", None)
    if several:  # no telling who said what
        for each in asked.values():
            each.cells = {key: value for key, value in each.cells.items() if key[1] != UNNAMED}
    questions = [_table(name, each, config) for name, each in asked.items() if each.cells]
    return Asked(questions, dict(+repeated), votes.unnamed if several else 0)


def _topic(example: Example, column: str | None) -> str:
    return "" if column is None else str(example.meta.get(column, ""))


def _table(name: str, asked: _Asked, config: AgreeConfig) -> Question:
    groups: dict[Hashable, int] = defaultdict(lambda: len(groups))
    who, ratings = _matrix(asked.cells, list(asked.topics), sorted({name for _, name in asked.cells}))
    scale = asked.scale if config.scale == "auto" else config.scale
    places = np.array([groups[asked.groups[item]] for item in asked.topics])
    return Question(name, scale, who, ratings, tuple(asked.topics.values()), places)


def _matrix(
    cells: Mapping[tuple[Hashable, str], float], items: Sequence[Hashable], who: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    rows, columns = {item: place for place, item in enumerate(items)}, {name: place for place, name in enumerate(who)}
    ratings = np.full((len(rows), len(columns)), np.nan)
    for (item, annotator), value in cells.items():
        ratings[rows[item], columns[annotator]] = value
    return tuple(columns), ratings


# ---- plain tables


def table_of_labels(config: AgreeConfig) -> Asked:
    """The labels of a plain table: numbers where every label is one, else words. A column an annotator, or with --item
    and --annotator a row a label. Empty cells and nan are no ratings. Raises ConfigError for columns that are not
    there, DataError for cells that are no single value."""
    if len(config.files) > 1:
        raise ConfigError("--labels names columns of one file. Put the tables into one.")
    (file,) = config.files
    rows = _rows(config, file)
    if config.item or config.annotator:
        return _long(config, file, rows)
    if len(config.labels) < 2 or len(set(config.labels)) < len(config.labels):
        raise ConfigError(
            "--labels names two columns or more, an annotator each: --labels first second. Of a table with a row for "
            "each label: --labels LABEL --item ITEM --annotator ANNOTATOR."
        )
    cells: dict[tuple[Hashable, str], str | float] = {}
    topics: list[str] = []
    for number, row in enumerate(rows, 1):
        for name in config.labels:
            if (cell := _cell(row.get(name), f"{file}:{number}: {name}")) is not None:
                cells[number, name] = cell
        topics.append(_word(row, config.topic))
    question = _labelled(config, cells, dict(enumerate(topics, 1)), config.labels)
    return Asked([question], {})


def _long(config: AgreeConfig, file: str, rows: Sequence[Row]) -> Asked:
    if len(config.labels) != 1 or not config.item or not config.annotator:
        raise ConfigError(
            "of a table with a row for each label, give all three: --labels LABEL --item ITEM --annotator ANNOTATOR."
        )
    cells: dict[tuple[Hashable, str], str | float] = {}
    topics: dict[Hashable, str] = {}
    repeated, unnamed = 0, 0
    for number, row in enumerate(rows, 1):
        cell = _cell(row.get(config.labels[0]), f"{file}:{number}: {config.labels[0]}")
        item, who = _word(row, config.item), _word(row, config.annotator)
        if cell is None:
            continue
        if not item:
            raise DataError(f"{file}:{number}: {config.item}: a label without an item.")
        if not who:
            unnamed += 1
            continue
        repeated += (item, who) in cells
        cells[item, who] = cell
        topics[item] = topics.get(item) or _word(row, config.topic)
    names = sorted({name for _, name in cells})
    return Asked([_labelled(config, cells, topics, names)], {"labels": repeated} if repeated else {}, unnamed)


def _rows(config: AgreeConfig, file: str) -> list[Row]:
    found: list[Row] = []
    for _, row in islice(read_rows(file, config.split), config.limit):
        if isinstance(row, Problem):
            raise DataError(str(row))
        found.append(row)
    if not found:
        raise DataError(f"{file}: no rows.")
    known = list(dict.fromkeys(name for row in found for name in row))
    asked: list[tuple[str, str | None]] = [("--labels", name) for name in config.labels]
    asked += [("--topic", config.topic), ("--item", config.item), ("--annotator", config.annotator)]
    for flag, name in asked:
        if name is not None and name not in known:
            raise ConfigError(f"{flag} {name}: {file} has no such column.{_there(name, known)}")
    return found


def _word(row: Row, column: str | None) -> str:
    value = None if column is None else row.get(column)
    return "" if value is None else str(value).strip()


def _labelled(
    config: AgreeConfig,
    cells: Mapping[tuple[Hashable, str], str | float],
    topics: Mapping[Any, str],
    who: Sequence[str],
) -> Question:
    words = (
        () if all(isinstance(cell, float) for cell in cells.values()) else sorted({_name(c) for c in cells.values()})
    )
    if words and config.scale in ("ordinal", "interval"):
        raise DataError(
            f"{config.files[0]}: --scale {config.scale} needs numbers, for words have no order: got "
            f"{', '.join(brief(word, 20) for word in words[:4])}. Write 1, 2, 3 in their place."
        )
    code = {word: float(place) for place, word in enumerate(words)}
    values = {key: code[_name(cell)] if words else float(cell) for key, cell in cells.items()}
    names, ratings = _matrix(values, list(topics), who)
    scale: Scale = config.scale if config.scale != "auto" else "nominal" if words else "ordinal"
    return Question("label", scale, names, ratings, tuple(topics.values()), np.arange(len(ratings)), tuple(words))


def _name(cell: str | float) -> str:
    """A label in a table of words: 1 and 1.0 are the same."""
    return cell if isinstance(cell, str) else str(int(cell)) if cell.is_integer() else repr(cell)


def _cell(value: Any, where: str) -> str | float | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in NO_LABEL:
            return None
        try:
            value = float(value)
        except ValueError:
            return str(value)
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise DataError(f"{where}: expected one label, got {type(value).__name__}.")
    number = float(value)
    if math.isinf(number):
        raise DataError(f"{where}: expected a label, got an infinite number.")
    return None if math.isnan(number) else number


def _there(name: str, known: Sequence[str]) -> str:
    return f"{suggestion(name, known)} There are: {', '.join(known)}." if known else " The rows have no other columns."
