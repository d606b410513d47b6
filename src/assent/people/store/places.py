"""What an item's slots say of the item: how many annotators it wants, has, has heard from, and where it stands in the
queue. Whoever changes a slot locks the item first and settles it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from assent.people.store import tables as t
from assent.people.task import TaskDefinition

FINISHED = ("done", "decided")
"""States of an item that wants nobody more."""


def locked(c: Connection, key: int) -> Row[Any]:
    """The item's row, which nobody else changes before this transaction ends."""
    return c.execute(select(t.items).where(t.items.c.id == key).with_for_update()).one()


def free_number(c: Connection, item: int) -> int:
    """The lowest number that no slot of the item holds."""
    query = select(t.slots.c.number).where(t.slots.c.item_id == item, t.slots.c.purpose == "work", live())
    held = set(c.execute(query).scalars())
    return next(number for number in range(len(held) + 1) if number not in held)


def live():  # type: ignore[no-untyped-def]
    """Slots that take a place of their item."""
    return t.in_state(t.slots, "leased", "done")


def change(c: Connection, item: Row[Any], **values: Any) -> None:
    """Changes a locked item, and what its project counts of it."""
    c.execute(update(t.items).where(t.items.c.id == item.id).values(values))
    if item.purpose != "work" or "state" not in values:
        return
    before, after = item.state, values["state"]
    size = (before == "withdrawn") - (after == "withdrawn")
    finished = (after in FINISHED) - (before in FINISHED)
    if size or finished:
        count(c, item.project_id, t.projects.c.size + size, t.projects.c.finished + finished)


def withdraw(c: Connection, item: Row[Any], why: str, at: float) -> None:
    """Takes a locked item out."""
    change(c, item, state="withdrawn", lane=None, turn=None, withdrawn_at=at, withdrawn_why=why)


def count(c: Connection, project: int, size: Any, finished: Any) -> None:
    """What a project counts of its items."""
    c.execute(update(t.projects).where(t.projects.c.id == project).values(size=size, finished=finished))


def count_anew(c: Connection, project: int) -> None:
    """The same from the items, where many have changed."""
    work = (t.items.c.project_id == project) & (t.items.c.purpose == "work")
    there = select(func.count()).select_from(t.items).where(work)
    count(
        c,
        project,
        there.where(t.items.c.state != "withdrawn").scalar_subquery(),
        there.where(t.items.c.state.in_(FINISHED)).scalar_subquery(),
    )


def settle(c: Connection, item: Row[Any], task: TaskDefinition, returned: bool = False) -> None:
    """Counts a locked item's slots anew, asks for further annotators where the task does so, and puts the item where it
    belongs in the queue. `returned`: a slot came back, so that even those who were past it may have it."""
    query = select(t.slots.c.state, t.labels.c.value).outerjoin(t.labels, t.labels.c.id == t.slots.c.label_id)
    query = query.where(t.slots.c.item_id == item.id, t.slots.c.purpose == "work")
    rows = c.execute(query.where(t.in_state(t.slots, "leased", "done", "skipped"))).all()
    values = [row.value for row in rows if row.state == "done"]
    skips = sum(row.state == "skipped" for row in rows)
    taken = len(rows) - skips
    wanted = max(wanted_of(task, item.overlap, values), taken)
    changed: dict[str, Any] = {"wanted": wanted, "taken": taken, "done": len(values), "skips": skips}
    if item.state not in ("withdrawn", "decided"):
        if taken < wanted:
            changed["state"] = "open"
            if returned or item.lane is None:
                changed |= {"lane": 0, "turn": _next_turn(c, item.project_id)}
        else:
            changed |= {"state": "done" if len(values) >= wanted else "full", "lane": None, "turn": None}
    change(c, item, **changed)


def wanted_of(task: TaskDefinition, overlap: int | None, values: Sequence[Mapping[str, Any]]) -> int:
    """How many annotators an item wants, from the answers that are there: HelpSteer2's rule (arXiv 2406.08673) asks for
    more of them where the first ones are far apart."""
    first = overlap or task.overlap
    extra = task.extra
    if extra is None or len(values) < first or extra.up_to <= first:
        return first
    return extra.up_to if spread(values, extra.attribute) > extra.when_differ_by else first


def of_known(task: TaskDefinition) -> TaskDefinition:
    """What a known answer must be: it needs neither strength nor reason."""
    return replace(task, strength=0, comment="optional")


def spread(values: Sequence[Mapping[str, Any]], attribute: str) -> float:
    """The widest gap between two annotators' ratings of one answer in an attribute."""
    widest = 0.0
    for one, other in combinations(values, 2):
        for left, right in zip(one["scores"], other["scores"]):
            if left.get(attribute) is not None and right.get(attribute) is not None:
                widest = max(widest, abs(left[attribute] - right[attribute]))
    return widest


def _next_turn(c: Connection, project: int) -> int:
    """A turn behind all others. Whoever draws one holds the project until they have committed: a later turn is never
    seen before an earlier one."""
    where = t.projects.c.id == project
    c.execute(update(t.projects).where(where).values(turn=t.projects.c.turn + 1))
    return c.execute(select(t.projects.c.turn).where(where)).scalar_one()
