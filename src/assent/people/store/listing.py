"""Pages of items for those who lead: searched and filtered, each in a bounded time however many there are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Text, cast, func, or_, select

from assent.people.items import item_of
from assent.people.store import tables as t
from assent.people.store.records import Project

STRIDE = 4000
"""Items whose text is searched by one statement."""
PATIENCE = 0.12
"""Seconds of searching after which a page says how far it has come."""
SNIPPET = 160
PURPOSES = ("work", "gold", "screening")
STATES = ("open", "full", "done", "decided", "withdrawn")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which items a page lists; "" for all."""

    purpose: str = "work"
    state: str = ""
    topic: str = ""
    text: str = ""
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """An item in a list."""

    id: int
    prompt: str
    topic: str
    state: str
    purpose: str
    done: int
    wanted: int
    skips: int


@dataclass(frozen=True, slots=True)
class Page:
    """`lines`, and the id behind which the next page begins; None at the end. `searched` False: there may be more on
    this page, which would have taken too long to find; the next one goes on."""

    lines: tuple[Line, ...]
    next: int | None
    searched: bool = True


def page(
    c: Connection,
    project: Project,
    wanted: Wanted,
    after: int = 0,
    limit: int = 50,
    clock: Callable[[], float] = time.monotonic,
) -> Page:
    """The items behind the one with id `after`, in the order in which they came in."""
    query = _matching(project, wanted)
    if not wanted.text:
        rows = c.execute(query.where(t.items.c.id > after).limit(limit + 1)).all()
        lines = tuple(_line(row) for row in rows[:limit])
        return Page(lines, lines[-1].id if len(rows) > limit else None)
    return _searched(c, project, query, after, limit, clock)


def _searched(
    c: Connection, project: Project, query: Select[Any], after: int, limit: int, clock: Callable[[], float]
) -> Page:
    last = c.execute(select(func.max(t.items.c.id)).where(t.items.c.project_id == project.id)).scalar() or 0
    end = clock() + PATIENCE
    found: list[Line] = []
    while after < last:
        part = query.where(t.items.c.id > after, t.items.c.id <= after + STRIDE).limit(limit - len(found))
        rows = c.execute(part).all()
        found += [_line(row) for row in rows]
        if len(found) == limit:
            return Page(tuple(found), found[-1].id if found[-1].id < last else None)
        after += STRIDE
        if clock() > end and after < last:
            return Page(tuple(found), after, searched=False)
    return Page(tuple(found), None)


def _matching(project: Project, wanted: Wanted) -> Select[Any]:
    columns = ("id", "topic", "state", "purpose", "done", "wanted", "skips")
    query = select(*(t.items.c[name] for name in columns), t.contents.c.payload)
    query = query.join(t.contents, t.contents.c.item_id == t.items.c.id)
    query = query.where(t.items.c.project_id == project.id, t.items.c.purpose == wanted.purpose)
    if wanted.state:
        query = query.where(t.items.c.state == wanted.state)
    if wanted.topic:
        query = query.where(t.items.c.topic == wanted.topic)
    if wanted.skipped:
        query = query.where(t.items.c.skips > 0)
    if wanted.text:
        text = cast(t.contents.c.payload, Text)
        spelled = {json.dumps(wanted.text, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True)}
        query = query.where(or_(*(text.icontains(one, autoescape=True) for one in sorted(spelled))))
    return query.order_by(t.items.c.id)


def _line(row: Any) -> Line:
    prompt = " ".join(snippet(row.payload).split())
    return Line(row.id, prompt, row.topic or "", row.state, row.purpose, row.done, row.wanted, row.skips)


def snippet(payload: Mapping[str, Any], longest: int = SNIPPET) -> str:
    """The beginning of the last turn of an item's prompt."""
    turns = item_of(payload).prompt
    text = turns[-1].content if turns else ""
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def counts(c: Connection, project: Project) -> dict[str, dict[str, int]]:
    """How many items there are: purpose -> state -> number."""
    query = select(t.items.c.purpose, t.items.c.state, func.count()).where(t.items.c.project_id == project.id)
    found: dict[str, dict[str, int]] = {}
    for purpose, state, number in c.execute(query.group_by(t.items.c.purpose, t.items.c.state)):
        found.setdefault(purpose, {})[state] = number
    return found


def topics(c: Connection, project: Project, most: int = 200) -> list[str]:
    """Topics of items, those of most items first."""
    query = select(t.items.c.topic).where(t.items.c.project_id == project.id, t.items.c.topic.is_not(None))
    return list(
        c.execute(query.group_by(t.items.c.topic).order_by(func.count().desc(), t.items.c.topic).limit(most)).scalars()
    )
