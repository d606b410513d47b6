"""Answers: saved once, corrected by further rows, never overwritten."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, exists, func, select, update

from assent.foreign import printable
from assent.people.kinds import KINDS
from assent.people.store import accounts, drafts, items, places, standing
from assent.people.store import tables as t
from assent.people.store.errors import AccessError, GoneError, LeaseError, MissingError, StaleError
from assent.people.store.projects import definition, project_of
from assent.people.store.queue import own_slot, slot_of
from assent.people.store.records import Project, Purpose, Saved, Slot, StoredLabel, User

LONGEST_REASON = 2000
OWN = "\N{SECTION SIGN} "
"""Begins the requests that the server makes in somebody's name: those that come in are ASCII."""
REQUEST = re.compile(f"({OWN})?[ -~]{{1,100}}")
"""What tells a request from others."""
Action = Literal["label", "skip", "undo"]


def save(
    c: Connection,
    slot: int,
    user: User,
    request: str,
    value: Mapping[str, Any],
    seconds: float | None,
    now: float,
) -> Saved:
    """Saves an answer. The same request again changes nothing, and says so.

    Raises LabelError where the value is none of the task's; StaleError where the slot is answered already, or the
    request came before with another answer; LeaseError where the time ran out and somebody else has the slot; GoneError
    where the item was withdrawn. Of the latter three each has kept the value as a draft."""
    return _end(c, slot, user, request, "label", value, None, seconds, now)


def skip(c: Connection, slot: int, user: User, request: str, reason: str, now: float) -> Saved:
    """Skips an item, which then waits for somebody else. Raises what `save` raises."""
    return _end(c, slot, user, request, "skip", None, printable(reason.strip())[:LONGEST_REASON], None, now)


def _end(
    c: Connection,
    key: int,
    user: User,
    request: str,
    action: Action,
    value: Mapping[str, Any] | None,
    reason: str | None,
    seconds: float | None,
    now: float,
) -> Saved:
    slot = own_slot(c, key, user)
    project = project_of(c, slot.project_id)
    member = accounts.member(c, project, user)
    if (before := _request(c, user, request)) is not None:
        if (before.slot_id, before.action, before.value, before.reason) == (key, action, value, reason):
            return Saved(before.id, True, member.locked)
        raise StaleError("This was sent before, with another answer. Load the page again to see what is saved.")
    item = places.locked(c, slot.item_id)
    asked = definition(c, slot.definition_id)
    task, earlier = asked.task, asked.meaning != project.definition.meaning
    if action == "label":
        KINDS[task.kind].check(value, items.content(c, item.id), task)
    _check_open(c, slot, item, member.locked, value, now, earlier)
    row = {"action": action, "value": value, "reason": reason, "seconds": seconds, "supersedes": None}
    label = _append(c, slot, request, row, now)
    state = "lapsed" if earlier else "done" if action == "label" else "skipped"
    ended = {"state": state, "label_id": label, "ended_at": now, "note": None}
    c.execute(update(t.slots).where(t.slots.c.id == key).values(ended))
    drafts.forget(c, slot)
    if earlier:
        return Saved(label, False, member.locked)
    _count(c, slot, 1 if action == "label" else 0)
    if slot.purpose == "work":
        places.settle(c, item, project.task)
    return Saved(label, False, standing.judge(c, project, user, slot.purpose, now))


def _check_open(
    c: Connection,
    slot: Row[Any],
    item: Row[Any],
    locked: str | None,
    value: Mapping[str, Any] | None,
    now: float,
    earlier: bool,
) -> None:
    """Whether the slot can be answered: it is held, or it can be had again; or it is of an `earlier` meaning of the
    task, whose answers are kept and count no more."""
    problem: GoneError | StaleError | LeaseError
    if item.state == "withdrawn":
        problem = GoneError(
            "This item was withdrawn while you worked on it. What you wrote is kept; open the next one."
        )
    elif slot.label_id is not None:
        problem = StaleError("This item is answered already, perhaps in another tab. To change the answer, undo it.")
    elif (slot.state == "leased" or earlier) and locked is None:
        return
    elif locked is None and _again(c, slot, item):
        return
    else:
        problem = LeaseError(
            "Your time for this item ran out, and somebody else has it now. Nothing is lost: what you wrote is kept as "
            "a draft."
        )
    if value is not None and not earlier:
        drafts.keep(c, slot, value, now)
    raise problem


def _again(c: Connection, slot: Row[Any], item: Row[Any]) -> bool:
    """Takes back a slot whose time ran out, where its place is still free and the user has no other at the item."""
    mine = (t.slots.c.item_id == item.id) & (t.slots.c.user_id == slot.user_id) & (t.slots.c.purpose == slot.purpose)
    known = t.in_state(t.slots, "leased", "done", "skipped")
    if c.execute(select(exists().where(mine, known))).scalar():
        return False
    number = slot.number
    if slot.purpose == "work":
        if item.lane is None:
            return False
        number = places.free_number(c, item.id)
    c.execute(update(t.slots).where(t.slots.c.id == slot.id).values(state="leased", number=number, ended_at=None))
    return True


def _request(c: Connection, user: User, request: str) -> Row[Any] | None:
    if not REQUEST.fullmatch(request):
        raise StaleError("The form has no proper request number. Load the page again.")
    query = select(t.labels).where(t.labels.c.user_id == user.id, t.labels.c.request == request)
    return c.execute(query).first()


def _append(c: Connection, slot: Row[Any], request: str, row: Mapping[str, Any], now: float) -> int:
    """Writes a row of the history. What it corrects is the slot's last row."""
    last = select(t.labels.c.id).where(t.labels.c.slot_id == slot.id).order_by(t.labels.c.id.desc()).limit(1)
    values = dict(row) | {"supersedes": c.execute(last).scalar(), "request": request, "made_at": now}
    values |= {name: getattr(slot, name) for name in ("project_id", "item_id", "user_id", "definition_id", "purpose")}
    key = t.made(c, t.labels, values | {"slot_id": slot.id})
    return key


def _count(c: Connection, slot: Row[Any], more: int) -> None:
    where = (t.memberships.c.project_id == slot.project_id) & (t.memberships.c.user_id == slot.user_id)
    c.execute(update(t.memberships).where(where).values(done=t.memberships.c.done + more))


def undo(c: Connection, user: User, project: Project, request: str, now: float) -> Slot:
    """Takes the user's last answer or skip back, and leases its slot to them again. The same request again changes
    nothing.

    Raises MissingError where there is none; StaleError where a lead has decided the item, or its place was given to
    others after a skip; GoneError where it was withdrawn; AccessError where the user is locked out."""
    member = accounts.member(c, project, user, lock=True)
    if (before := _request(c, user, request)) is not None:
        if before.action == "undo" and before.project_id == project.id:
            return slot_of(c, before.slot_id)
        raise StaleError("This was sent before, with another meaning. Load the page again.")
    if member.locked is not None:
        raise AccessError(member.locked)
    mine = (t.labels.c.user_id == user.id) & (t.labels.c.project_id == project.id)
    mine &= t.slots.c.label_id == t.labels.c.id
    query = select(t.slots).join(t.labels, t.labels.c.slot_id == t.slots.c.id)
    query = query.where(mine, t.in_state(t.slots, "done", "skipped"), t.slots.c.purpose != "adjudication")
    slot = c.execute(query.order_by(t.labels.c.id.desc()).limit(1)).first()  # not the latest by a clock that was set
    if slot is None:
        raise MissingError("There is nothing to undo.")
    reopen(c, slot, project, request, None, now)
    return slot_of(c, slot.id)


def reopen(c: Connection, slot: Row[Any], project: Project, request: str, note: str | None, now: float) -> None:
    """Takes the answer or skip of a slot back: a row of the history says so, and the slot is leased again. `note` is
    what its annotator is told. Raises StaleError or GoneError where it cannot be."""
    note = note and printable(note)[:LONGEST_REASON]
    item = places.locked(c, slot.item_id)
    if item.state == "withdrawn":
        raise GoneError("The item was withdrawn meanwhile: its answer counts no more, and cannot be changed.")
    if item.state == "decided":
        raise StaleError("A lead has decided this item meanwhile; its answers cannot be changed.")
    number = slot.number
    if slot.state == "skipped" and slot.purpose == "work":
        if item.lane is None:
            raise StaleError("You skipped this item, and others have it now.")
        number = places.free_number(c, item.id)
    row = {"action": "undo", "value": None, "reason": note, "seconds": None}
    _append(c, slot, request, row, now)
    _count(c, slot, -1 if slot.state == "done" else 0)
    until = now + 60 * project.task.lease_minutes
    mine = (t.slots.c.user_id == slot.user_id) & (t.slots.c.project_id == slot.project_id)
    latest = c.execute(select(func.max(t.slots.c.leased_at)).where(mine, t.in_state(t.slots, "leased"))).scalar()
    first = max(now, (latest or 0.0) + 0.001)  # the next that they get, whatever the clock says
    values = {"state": "leased", "label_id": None, "ended_at": None, "leased_at": first, "leased_until": until}
    c.execute(update(t.slots).where(t.slots.c.id == slot.id).values(values | {"number": number, "note": note}))
    if slot.purpose == "work":
        places.settle(c, item, project.task)


# ---- reading


def history(
    c: Connection, project: Project, user: User, limit: int = 100, before: int | None = None
) -> list[StoredLabel]:
    """A user's own rows, the newest first; `before` goes on behind the row of that id."""
    query = _joined().where(t.labels.c.user_id == user.id, t.labels.c.project_id == project.id)
    if before is not None:
        query = query.where(t.labels.c.id < before)
    return [_label(row) for row in c.execute(query.order_by(t.labels.c.id.desc()).limit(limit))]


def of_item(c: Connection, key: int) -> list[StoredLabel]:
    """All rows about an item, the oldest first."""
    return [_label(row) for row in c.execute(_joined().where(t.labels.c.item_id == key).order_by(t.labels.c.id))]


def labels(
    c: Connection, project: Project, purpose: Purpose | None = "work", current: bool = True
) -> Iterator[StoredLabel]:
    """The answers (and skips) of a project in the order of its items, read as they are needed. With `current` only what
    holds now, and nothing of withdrawn items; without, all of the history. `purpose` None: of all purposes."""
    query = _joined().where(t.labels.c.project_id == project.id)
    if purpose is not None:
        query = query.where(t.labels.c.purpose == purpose)
    if current:
        query = query.where(t.slots.c.label_id == t.labels.c.id)
        query = query.join(t.items, t.items.c.id == t.labels.c.item_id).where(t.items.c.state != "withdrawn")
    query = query.order_by(t.labels.c.item_id, t.labels.c.id)
    for row in c.execute(query, execution_options={"yield_per": 500}):
        yield _label(row)


def label(c: Connection, key: int) -> StoredLabel:
    """The row of an id. Raises MissingError."""
    row = c.execute(_joined().where(t.labels.c.id == key)).first()
    if row is None:
        raise MissingError(f"There is no label {key}.")
    return _label(row)


def _joined() -> Select[Any]:
    query = select(t.labels, t.users.c.name, t.slots.c.shown, t.slots.c.label_id)
    query = query.join(t.users, t.users.c.id == t.labels.c.user_id)
    return query.join(t.slots, t.slots.c.id == t.labels.c.slot_id)


def _label(r: Row[Any]) -> StoredLabel:
    return StoredLabel(
        id=r.id,
        item=r.item_id,
        slot=r.slot_id,
        user=r.user_id,
        name=r.name,
        definition=r.definition_id,
        action=r.action,
        purpose=r.purpose,
        value=r.value,
        reason=r.reason,
        seconds=r.seconds,
        shown=tuple(r.shown),
        supersedes=r.supersedes,
        made_at=r.made_at,
        current=r.label_id == r.id,
    )
