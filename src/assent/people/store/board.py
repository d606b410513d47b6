"""What the leads' pages ask of all labels of a project, kept in memory and brought up to date in the background: no
page waits for statistics of a hundred thousand labels."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, func, select

from assent.foreign import named
from assent.people.items import item_of
from assent.people.store import projects, review
from assent.people.store import tables as t
from assent.people.store.evidence import Evidence, Given, Thing
from assent.people.store.quality import Live, measure
from assent.people.store.records import Project
from assent.people.store.review import Dispute
from assent.people.store.store import Store

log = logging.getLogger(__name__)

MARGIN = 1000
"""Rows before the last one that are read again: another program may have committed them later than rows behind."""
BATCH = 500
REST = 4.0
"""After it worked for a second, the background rests for so many."""
PURPOSES = ("work", "second", "gold", "screening")


@dataclass(frozen=True, slots=True)
class View:
    """What is known. `live` is None until it was computed for the first time; `behind` are rows of the history that
    came since; `disputes` are of all items with labels, whatever they say."""

    live: Live | None
    disputes: Mapping[int, Dispute]
    skips: Mapping[str, int]
    behind: int


@dataclass
class Board:
    """Of one project. `look` is what pages call."""

    store: Store
    project: int
    _evidence: Evidence | None = None
    _meaning: str = ""
    _last: int = 0
    _upto: int = 0
    """The newest row of the history when it was last read, of whatever meaning."""
    _seen: set[int] = field(default_factory=set)
    _skips: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """Skips that stand: by item, row of the history and who."""
    _disputes: dict[int, Dispute] = field(default_factory=dict)
    _live: Live | None = None
    _thread: threading.Thread | None = None
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, wait: float = 1.0, first: float = 4.0) -> View:
        """As of now, where the background is ready within `wait` seconds (`first`, the first time); else as of a moment
        ago."""
        with self.store.reading() as c:
            newest = _newest(c, self.project)
        with self._lock:
            thread = self._thread
            if thread is None and (self._live is None or newest != self._upto) and time.monotonic() >= self._free_at:
                thread = self._thread = threading.Thread(target=self._work, name="labels", daemon=True)
                thread.start()
        if thread is not None:
            thread.join(first if self._live is None else wait)
        with self._lock:
            counts: dict[str, int] = defaultdict(int)
            for one in self._skips.values():
                for who in one.values():
                    counts[who] += 1
            return View(self._live, self._disputes, counts, max(0, newest - self._upto))

    def _work(self) -> None:
        start = time.monotonic()
        try:
            with self.store.reading() as c:
                project = projects.project_of(c, self.project)
                machines = frozenset(c.execute(select(t.users.c.name).where(t.users.c.role == "judge")).scalars())
                self._read(c, project)
            assert self._evidence is not None
            self._live = measure(self._evidence, machines)
        except Exception as error:  # a thread of its own: the page goes on with what it has
            log.error("live agreement: %s", named(error), exc_info=error)
        finally:
            end = time.monotonic()
            with self._lock:
                self._thread, self._free_at = None, end + REST * (end - start)

    def _read(self, c: Connection, project: Project) -> None:
        """Takes in what is new in the history."""
        if self._evidence is None or self._meaning != project.definition.meaning:
            self._evidence, self._meaning, self._last = Evidence(project.task), project.definition.meaning, 0
            self._seen, self._skips, disputes = set(), defaultdict(dict), {}
        else:
            disputes = dict(self._disputes)
        self._evidence.task = project.task
        newest = _newest(c, project.id)
        rows = _rows(c, project, self._last - MARGIN)
        new = [row for row in rows if row.id not in self._seen]
        _learn(c, self._evidence, {row.item_id for row in new})
        touched = {row.item_id for row in new} | self._without_withdrawn(c, project)
        for row in new:
            self._take(self._evidence, row)
        for item in touched:
            given = [self._evidence.given[label].value for label in self._evidence.by_item.get(item, ())]
            disputes[item] = review.dispute(project.task, item, given, len(self._skips.get(item, ())))
        last = max((row.id for row in rows), default=self._last)
        seen = {row.id for row in rows if row.id > last - MARGIN}
        with self._lock:
            self._disputes, self._last, self._seen, self._upto = disputes, max(last, self._last), seen, newest

    def _take(self, evidence: Evidence, row: Row[Any]) -> None:
        if row.supersedes is not None:
            evidence.remove(row.supersedes)
            self._skips[row.item_id].pop(row.supersedes, None)
        if row.purpose not in PURPOSES:
            return
        if row.action == "skip" and row.purpose == "work":
            self._skips[row.item_id][row.id] = row.name
        elif row.action == "label":
            shown, seconds = tuple(row.shown), math.nan if row.seconds is None else row.seconds
            evidence.add(Given(row.id, row.item_id, row.name, row.purpose, row.value, seconds, row.made_at, shown))

    def _without_withdrawn(self, c: Connection, project: Project) -> set[int]:
        """Forgets what was said of items that were withdrawn, and says which these are."""
        assert self._evidence is not None
        query = select(t.items.c.id).where(t.items.c.project_id == project.id, t.items.c.state == "withdrawn")
        gone = set(c.execute(query.where(t.items.c.purpose.in_(("work", "gold", "screening")))).scalars())
        for one in [one for one in self._evidence.given.values() if one.item in gone] if gone else ():
            self._evidence.remove(one.label)
        for item in gone:
            self._skips.pop(item, None)
        return gone


def _newest(c: Connection, project: int) -> int:
    return c.execute(select(func.max(t.labels.c.id)).where(t.labels.c.project_id == project)).scalar() or 0


def _rows(c: Connection, project: Project, after: int) -> Sequence[Row[Any]]:
    """The history behind a row, of all definitions with the meaning of the newest."""
    alike = select(t.definitions.c.id).where(
        t.definitions.c.project_id == project.id, t.definitions.c.meaning == project.definition.meaning
    )
    columns = ("id", "item_id", "action", "purpose", "value", "seconds", "supersedes", "made_at")
    query = select(*(t.labels.c[name] for name in columns), t.users.c.name, t.slots.c.shown)
    query = query.join(t.users, t.users.c.id == t.labels.c.user_id).join(t.slots, t.slots.c.id == t.labels.c.slot_id)
    query = query.where(t.labels.c.project_id == project.id, t.labels.c.id > after)
    rows: Sequence[Any] = c.execute(query.where(t.labels.c.definition_id.in_(alike)).order_by(t.labels.c.id)).all()
    return rows


def _learn(c: Connection, evidence: Evidence, wanted: Iterable[int]) -> None:
    """Reads items that are not known yet, for their lengths."""
    missing = sorted(set(wanted) - evidence.things.keys())
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        query = select(t.items.c.id, t.items.c.topic, t.items.c.expected, t.contents.c.payload)
        query = query.join(t.contents, t.contents.c.item_id == t.items.c.id).where(t.items.c.id.in_(part))
        for row in c.execute(query):
            content = item_of(row.payload)
            words = tuple(len(text.split()) for text in content.responses)
            prompt = sum(len(turn.content.split()) for turn in content.prompt[-1:])
            evidence.things[row.id] = Thing(words, prompt + sum(words), row.topic or "", row.expected)
