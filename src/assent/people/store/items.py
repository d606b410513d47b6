"""Items: what annotators are asked about, with how many of them want it, have it, and have answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, Text, cast, insert, select, update

from assent.foreign import printable
from assent.people.items import item_of, item_row
from assent.people.store import audit, places, versions
from assent.people.store import tables as t
from assent.people.store.engine import as_json
from assent.people.store.errors import MissingError
from assent.people.store.records import Added, ItemPurpose, Project, StoredItem, User, clock
from assent.people.task import Item

BATCH = 500
"""Items that are written by one statement."""


def add_items(
    c: Connection,
    project: Project,
    items: Iterable[Item],
    purpose: ItemPurpose = "work",
    expected: Iterable[Mapping[str, Any]] | None = None,
    by: User | None = None,
    now: float | None = None,
) -> Added:
    """Adds items, at the end of the queue. Those that are there already, prompt and answers alike, are left as they
    are. `expected` has the known answer to each gold or screening item; one that is there gets it, too."""
    assert (expected is None) == (purpose == "work"), "known answers belong to gold and screening items"
    turn = _locked_turn(c, project)
    rows = ((item, None) for item in items) if expected is None else zip(items, expected, strict=True)
    new = seen = changed = 0
    pending = iter(rows)
    while batch := list(islice(pending, BATCH)):
        added, renewed = _add(c, project, batch, purpose, turn, now)
        new, changed = new + added, changed + renewed
        seen += len(batch)
        turn += len(batch)
    values = {"turn": turn, "size": t.projects.c.size + (new if purpose == "work" else 0)}
    c.execute(update(t.projects).where(t.projects.c.id == project.id).values(values))
    if new:
        detail = {"purpose": purpose, "new": new, "known": seen - new}
        audit.record(c, by, "items added", project.name, detail, now, project)
    if changed:
        detail = {"purpose": purpose, "changed": changed}
        audit.record(c, by, "known answers changed", project.name, detail, now, project)
    return Added(new, seen - new)


def _locked_turn(c: Connection, project: Project) -> int:
    query = select(t.projects.c.turn).where(t.projects.c.id == project.id).with_for_update(key_share=True)
    return c.execute(query).scalar_one()


def _add(
    c: Connection,
    project: Project,
    batch: Sequence[tuple[Item, Mapping[str, Any] | None]],
    purpose: ItemPurpose,
    turn: int,
    now: float | None,
) -> tuple[int, int]:
    """Inserts what is new in the batch, and says how many that are, and of how many others the known answer changed;
    the project is locked meanwhile."""
    mine = (t.items.c.project_id == project.id) & (t.items.c.purpose == purpose)
    ids = select(t.items).where(mine, t.items.c.key.in_([item.digest for item, _ in batch]))
    known = {row.key: row for row in c.execute(ids)}
    new: dict[str, tuple[Item, dict[str, Any]]] = {}
    for place, (item, answer) in enumerate(batch, turn + 1):
        row = _row(project, item, purpose, answer, place, now)
        if row["key"] not in known:
            new.setdefault(row["key"], (item, row))
    if new:
        c.execute(insert(t.items), [row for _, row in new.values()])
        made = [row for row in c.execute(ids) if row.key in new]
        c.execute(insert(t.contents), [{"item_id": row.id, "payload": item_row(new[row.key][0])} for row in made])
    answers = {item.digest: answer for item, answer in batch if answer is not None}
    return len(new), versions.renewed(c, list(known.values()), answers)


def _row(
    project: Project, item: Item, purpose: ItemPurpose, expected: Mapping[str, Any] | None, turn: int, now: float | None
) -> dict[str, Any]:
    queued = purpose == "work"
    return {
        "project_id": project.id,
        "purpose": purpose,
        "key": item.digest,
        "answers": len(item.responses),
        "expected": expected,
        "topic": item.topic and printable(item.topic),
        "overlap": item.overlap,
        "wanted": (item.overlap or project.task.overlap) if queued else 0,
        "state": "open",
        "lane": 1 if queued else None,
        "turn": turn if queued else None,
        "made_at": clock(now),
    }


def _joined() -> Select[Any]:
    return select(t.items, t.contents.c.payload).join(t.contents, t.contents.c.item_id == t.items.c.id)


def content(c: Connection, key: int) -> Item:
    """What an item asks about."""
    return item_of(c.execute(select(t.contents.c.payload).where(t.contents.c.item_id == key)).scalar_one())


def stored(r: Row[Any]) -> StoredItem:
    """The item of a row of the tables."""
    return StoredItem(
        id=r.id,
        project=r.project_id,
        purpose=r.purpose,
        content=item_of(r.payload),
        expected=r.expected,
        wanted=r.wanted,
        taken=r.taken,
        done=r.done,
        skips=r.skips,
        state=r.state,
        withdrawn=None if r.withdrawn_at is None else r.withdrawn_why or "",
    )


def item(c: Connection, key: int) -> StoredItem:
    """The item of an id. Raises MissingError."""
    row = c.execute(_joined().where(t.items.c.id == key)).first()
    if row is None:
        raise MissingError(f"There is no item {key}.")
    return stored(row)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items a page shows."""

    purpose: ItemPurpose = "work"
    state: Literal["open", "full", "done", "decided", "withdrawn"] | None = None
    topic: str | None = None
    text: str = ""


def page(
    c: Connection, project: Project, filter: Filter | None = None, after: int = 0, limit: int = 50
) -> list[StoredItem]:
    """The items behind the one with id `after`, in the order in which they came in."""
    wanted = filter or Filter()
    query = _joined().where(t.items.c.project_id == project.id, t.items.c.purpose == wanted.purpose)
    if wanted.state is not None:
        query = query.where(t.items.c.state == wanted.state)
    if wanted.topic is not None:
        query = query.where(t.items.c.topic == printable(wanted.topic))
    if wanted.text:
        query = query.where(cast(t.contents.c.payload, Text).contains(_in_json(wanted.text), autoescape=True))
    rows = c.execute(query.where(t.items.c.id > after).order_by(t.items.c.id).limit(limit))
    return [stored(row) for row in rows]


def _in_json(text: str) -> str:
    return as_json(text)[1:-1]


def withdraw(c: Connection, key: int, by: User | None, reason: str, now: float | None = None) -> None:
    """Takes an item out: nobody gets it any more, and what was answered about it stays in the history alone. Raises
    MissingError."""
    row = c.execute(select(t.items).where(t.items.c.id == key).with_for_update()).first()
    if row is None:
        raise MissingError(f"There is no item {key}.")
    if row.state == "withdrawn":
        return
    why = printable(reason)
    places.withdraw(c, row, why, clock(now))
    audit.record(c, by, "item withdrawn", str(key), {"reason": why}, now, row.project_id)
