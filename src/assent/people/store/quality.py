"""How good a project's labels are so far: agreement, agreement over time, and every annotator."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assent.config import AgreeConfig
from assent.data.records import Example
from assent.people.aggregate import habits_of
from assent.people.agree import Agreement, agreement_of, rated_twice
from assent.people.kinds import KINDS
from assent.people.questions import questions_of
from assent.people.store.evidence import Evidence, Given, Tables
from assent.people.store.oddities import Report, Work, reports
from assent.people.votes import Votes
from assent.statistics import Interval, share_interval

LATEST = 1000
"""Items, the latest that two annotators or more have judged, of which the coefficients are. `assent agree` on an export
takes all."""
TASTED = 20_000
"""Labels, the latest, by which tastes for a side or a length are told."""
TOPICS = 12
"""Topics, those of most items, by which agreement is shown."""
POINTS = 24
"""Points of agreement over time."""
FEWEST = 20
"""Labels of a point."""


@dataclass(frozen=True, slots=True)
class Point:
    """Agreement of the labels given from `start` to `end`, seconds UTC, with others' on the same items."""

    start: float
    end: float
    agreement: Interval


@dataclass(frozen=True, slots=True)
class Live:
    """`questions` are of the latest `items` of `of` that were judged twice; `by_annotator` of all labels up to
    `last`; their tastes of the latest `TASTED`."""

    last: int
    labels: int
    items: int
    of: int
    questions: tuple[Agreement, ...]
    timeline: tuple[Point, ...]
    annotators: Mapping[str, Report]


def measure(evidence: Evidence, machines: frozenset[str] = frozenset()) -> Live:
    """Everything of the labels in memory."""
    tables = evidence.tables()
    agreed = tables.agreed
    twice = _twice(evidence)
    work = _work(evidence, tables, agreed)
    habits = habits_of(_latest(tables), tables.words(evidence.things))
    found = reports(evidence.task, work, habits, machines)
    return Live(
        max(evidence.given, default=0), len(evidence.given), min(len(twice), LATEST), len(twice),
        _agreement(tables, twice[-LATEST:]), _timeline(tables.labels, agreed), found,
    )  # fmt: skip


def _latest(tables: Tables) -> Votes:
    """Of the items that were labelled last: enough to tell tastes by."""
    wanted = {one.item for one in tables.labels[-TASTED:]}
    rows = {row for row, item in enumerate(tables.items) if item in wanted}
    votes = tables.votes
    return replace(votes, comparisons={key: said for key, said in votes.comparisons.items() if key[0][0] in rows})


def _twice(evidence: Evidence) -> list[int]:
    """Items with work of two annotators or more, by their latest label."""
    latest = {item: max(labels) for item, labels in evidence.by_item.items() if len(labels) > 1}
    return sorted(latest, key=latest.__getitem__)


def _agreement(tables: Tables, items: Sequence[int]) -> tuple[Agreement, ...]:
    wanted = set(items)
    examples = [example for item, example in zip(tables.items, tables.examples, strict=True) if item in wanted]
    if not examples:
        return ()
    topics = Counter(str(example.meta["topic"]) for example in examples)
    known = {topic for topic, _ in topics.most_common(TOPICS) if topic}
    if len(known) > 1:
        examples = [replace(one, meta={"topic": _topic(one, known)}) for one in examples]
    questions = questions_of(examples, AgreeConfig(files=("labels",), topic="topic")).questions
    return tuple(
        agreement_of(question, topics=len(known) > 1, crowd=True)
        for question in questions
        if rated_twice(question.ratings).any()
    )


def _topic(example: Example, known: set[str]) -> str:
    topic = str(example.meta["topic"])
    return topic if topic in known else "all others"


def _timeline(labels: Sequence[Given], agreed: np.ndarray) -> tuple[Point, ...]:
    known = np.flatnonzero(~np.isnan(agreed))
    blocks = np.array_split(known, min(POINTS, max(1, len(known) // FEWEST))) if len(known) else []
    return tuple(
        Point(labels[block[0]].at, labels[block[-1]].at, share_interval(agreed[block], [labels[i].item for i in block]))
        for block in blocks
    )


def _work(evidence: Evidence, tables: Tables, agreed: np.ndarray) -> dict[str, Work]:
    """Of everybody who gave anything."""
    kind, task = KINDS[evidence.task.kind], evidence.task
    lines: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(tables.labels):
        lines[one.user].append(place)
    tested: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in evidence.of("gold", "screening"):
        expected = evidence.things[one.item].expected
        if expected is not None:
            tested[one.user, one.purpose].append(float(kind.right(one.value, expected, task)))
    first = {(one.user, one.item): one for one in tables.labels}
    for one in evidence.of("second"):
        before = first.get((one.user, one.item))
        if before is not None:
            tested[one.user, "again"].append(float(kind.right(one.value, before.value, task)))
    names = sorted({one.user for one in evidence.given.values()})
    return {name: _of(name, evidence, tables.labels, agreed, lines[name], tested) for name in names}


def _of(
    name: str,
    evidence: Evidence,
    labels: Sequence[Given],
    agreed: np.ndarray,
    places: Sequence[int],
    tested: Mapping[tuple[str, str], list[float]],
) -> Work:
    mine = [labels[place] for place in places]
    gold, again, screening = (np.array(tested.get((name, of), [])) for of in ("gold", "again", "screening"))
    return Work(
        agreed[np.array(places, np.int64)],
        np.array([one.item for one in mine], np.int64),
        np.array([one.seconds for one in mine], np.float64),
        np.array([evidence.things[one.item].reading for one in mine], np.float64),
        gold, again, screening,
    )  # fmt: skip
