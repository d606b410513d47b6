"""Who gets which item next. A slot is one annotator's place at an item, leased for a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, func, select, update

from assent.people.store import accounts, items, places
from assent.people.store import tables as t
from assent.people.store.errors import LeaseError, MissingError
from assent.people.store.projects import definition, project_of
from assent.people.store.records import Ahead, Member, Project, Purpose, Slot, User, Waiting
from assent.people.store.standing import judge, screening

SWEPT = 20
"""Leases that have run out and are taken back at once; more are taken back later."""
BEFORE_SECOND = 20
"""Answers that lie between an annotator's first and second look at an item."""
COUNTED = 1000
"""Items up to which those that wait for somebody are counted; beyond, they are estimated."""
SOON = 5.0
"""Seconds after which one asks again, where nothing better is known."""


_had = t.slots.alias("had")


def next_slot(c: Connection, project: Project, user: User, now: float) -> Slot | Waiting:
    """The slot that a user works on next: the one that they hold, else a new lease."""
    member = accounts.member(c, project, user, lock=True)
    if member.locked is not None:
        return Waiting("locked", member.locked)
    if (held := _held(c, project, user)) is not None:
        _renew(c, held, project, now)
        return slot_of(c, held.id)
    _take_back(c, project, now)
    if project.task.screening and not member.screened and member.role != "lead":
        if (row := screening(c, project, user)) is not None:
            return _lease(c, project, member, row, "screening", now)
        if (why := judge(c, project, user, "screening", now)) is not None:
            return Waiting("locked", why)  # the items that were left to give were withdrawn
    for purpose in _draws(project, member):
        if purpose == "gold" and (row := _known(c, project, user)) is not None:
            return _lease(c, project, member, row, "gold", now)
        if purpose == "second" and (row := _own_again(c, project, member)) is not None:
            return _lease(c, project, member, row, "second", now)
        if purpose == "work" and (row := _work(c, project, member)) is not None:
            return _lease(c, project, member, row, "work", now)
    return _nothing(c, project, user, now)


def _draws(project: Project, member: Member) -> Iterator[Purpose]:
    """What is looked for, in this order: mostly work, now and then and by chance (which the project's seed decides) an
    item of known answer, or one of their own again."""
    drawn = _chance(project.seed, member.user.id, member.served)
    task = project.task
    gold = task.gold_share if task.gold else 0.0
    if drawn < gold:
        yield "gold"
    elif drawn < gold + task.second_pass:
        yield "second"
    yield "work"


def _chance(*what: object) -> float:
    digest = blake2b(" ".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _known(c: Connection, project: Project, user: User) -> Row[Any] | None:
    """The first gold item that the user has not had."""
    mine = _has(user, "gold")
    query = select(t.items).where(t.items.c.project_id == project.id, t.items.c.purpose == "gold")
    query = query.where(t.items.c.state != "withdrawn", ~mine).order_by(t.items.c.id)
    return c.execute(query.limit(1)).first()


def _own_again(c: Connection, project: Project, member: Member) -> Row[Any] | None:
    """An item that the user answered a while ago, drawn by chance."""
    mine = (t.slots.c.user_id == member.user.id) & (t.slots.c.project_id == project.id)
    mine &= (t.slots.c.purpose == "work") & t.in_state(t.slots, "done")
    latest = select(t.slots.c.id).where(mine).order_by(t.slots.c.id.desc()).offset(BEFORE_SECOND - 1).limit(1)
    last = c.execute(latest).scalar()
    first = c.execute(select(func.min(t.slots.c.id)).where(mine)).scalar()
    if last is None or first is None or first >= last:
        return None
    start = first + int(_chance("second", project.seed, member.user.id, member.served) * (last - first))
    found = select(t.items).join(t.slots, t.slots.c.item_id == t.items.c.id)
    found = found.where(mine, t.slots.c.id < last, t.items.c.state != "withdrawn", ~_has(member.user, "second"))
    for beyond in (t.slots.c.id >= start, t.slots.c.id < start):
        row = c.execute(found.where(beyond).order_by(t.slots.c.id).limit(1)).first()
        if row is not None:
            return row
    return None


def _work(c: Connection, project: Project, member: Member) -> Row[Any] | None:
    """The first open item of the queue that the user has not had, locked. Where others have just locked it, the next
    one."""
    for lane, cursor in enumerate(member.cursors):
        ahead = (t.items.c.project_id == project.id) & (t.items.c.lane == lane) & (t.items.c.turn > cursor)
        query = select(t.items).where(ahead, ~_has(member.user, "work")).order_by(t.items.c.turn).limit(1)
        row = c.execute(query.with_for_update(skip_locked=True, of=t.items)).first()
        passed = _passed(c, query, ahead, row)
        if passed > cursor:
            where = (t.memberships.c.project_id == project.id) & (t.memberships.c.user_id == member.user.id)
            c.execute(update(t.memberships).where(where).values({f"cursor_{lane}": passed}))
        if row is not None:
            return row
    return None


def _passed(c: Connection, query: Select[Any], ahead: ColumnElement[bool], row: Row[Any] | None) -> int:
    """Up to which turn there is nothing more for the user. What others have locked is not passed, and neither is what
    comes in while one looks: the end is read before it is looked whether there is anything up to it."""
    if row is not None and c.dialect.name == "sqlite":
        return int(row.turn)
    end = c.execute(select(func.max(t.items.c.turn)).where(ahead)).scalar()
    first = c.execute(query.with_only_columns(t.items.c.turn)).scalar()
    if row is not None and row.turn == first:
        return int(row.turn)
    return int((end or 0) if first is None else first - 1)


def _has(user: User, purpose: Purpose) -> ColumnElement[bool]:
    """Whether the user has, or had, a slot of that purpose at the item of the row."""
    held = (_had.c.item_id == t.items.c.id) & (_had.c.user_id == user.id) & (_had.c.purpose == purpose)
    return exists().where(held, t.in_state(_had, "leased", "done", "skipped"))


def _lease(c: Connection, project: Project, member: Member, item: Row[Any], purpose: Purpose, now: float) -> Slot:
    number = places.free_number(c, item.id) if purpose == "work" else 0
    shown = _shown(c, project, member.user, item, purpose, number)
    until = now + 60 * project.task.lease_minutes
    row = {
        "project_id": project.id,
        "item_id": item.id,
        "user_id": member.user.id,
        "definition_id": project.definition.id,
        "purpose": purpose,
        "number": number,
        "state": "leased",
        "shown": list(shown),
        "leased_at": now,
        "leased_until": until,
    }
    key = t.made(c, t.slots, row)
    where = (t.memberships.c.project_id == project.id) & (t.memberships.c.user_id == member.user.id)
    c.execute(update(t.memberships).where(where).values(served=t.memberships.c.served + 1))
    if purpose == "work":
        places.settle(c, item, project.task)
    found = items.item(c, item.id)
    return Slot(key, found, project.id, member.user.id, shown, purpose, until, project.definition)


def _shown(
    c: Connection, project: Project, user: User, item: Row[Any], purpose: Purpose, number: int
) -> tuple[int, ...]:
    """The order of the answers on the page: by chance for the first annotator of an item, turned around for the next,
    so that of two annotators each has the other's left answer on the right; turned around in a second look, too."""
    answers = range(item.answers)
    if purpose == "second":
        own = (t.slots.c.item_id == item.id) & (t.slots.c.user_id == user.id) & (t.slots.c.purpose == "work")
        before = c.execute(select(t.slots.c.shown).where(own, t.in_state(t.slots, "done"))).scalar_one()
        return tuple(reversed(before))
    whose = number // 2 if purpose == "work" else f"{purpose} {user.id}"
    drawn = random.Random(f"{project.seed} {item.key} {whose}").sample(answers, len(answers))
    return tuple(reversed(drawn) if number % 2 else drawn)


def _held(c: Connection, project: Project, user: User) -> Row[int, float] | None:
    """What the user has leased: of several the latest, as undo makes one."""
    mine = (t.slots.c.user_id == user.id) & (t.slots.c.project_id == project.id) & t.in_state(t.slots, "leased")
    query = select(t.slots.c.id, t.slots.c.leased_until).join(t.items, t.items.c.id == t.slots.c.item_id)
    query = query.where(mine, t.items.c.state != "withdrawn").order_by(t.slots.c.leased_at.desc(), t.slots.c.id.desc())
    return c.execute(query.limit(1)).first()


def _renew(c: Connection, slot: Row[*tuple[Any, ...]], project: Project, now: float) -> float:
    until = max(float(slot.leased_until), now + 60 * project.task.lease_minutes)
    c.execute(update(t.slots).where(t.slots.c.id == slot.id).values(leased_until=until))
    return until


def _take_back(c: Connection, project: Project, now: float) -> None:
    """Puts the slots whose lease has run out back into the queue."""
    due = (t.slots.c.project_id == project.id) & t.in_state(t.slots, "leased") & (t.slots.c.leased_until <= now)
    query = select(t.slots.c.id.label("slot"), t.items).join(t.items, t.items.c.id == t.slots.c.item_id).where(due)
    query = query.order_by(t.slots.c.leased_until).limit(SWEPT).with_for_update(skip_locked=True, of=t.items)
    for row in c.execute(query).all():
        ended = (t.slots.c.id == row.slot) & due
        values = {"state": "lapsed", "ended_at": now}
        if c.execute(update(t.slots).where(ended).values(values)).rowcount and row.purpose == "work":
            places.settle(c, places.locked(c, row.id), project.task, returned=True)


def _nothing(c: Connection, project: Project, user: User, now: float) -> Waiting:
    """Why there is nothing: whether something may come back."""
    other = (t.slots.c.project_id == project.id) & t.in_state(t.slots, "leased") & (t.slots.c.purpose == "work")
    query = select(func.min(t.slots.c.leased_until)).join(t.items, t.items.c.id == t.slots.c.item_id)
    until = c.execute(query.where(other, t.slots.c.user_id != user.id, ~_has(user, "work"))).scalar()
    if until is not None:
        again = now + SOON if until <= now else min(until, now + 60.0)
        return Waiting(
            "others", "All that is left is with other annotators. It comes back if they do not finish.", again
        )
    return Waiting("done", "There is nothing left for you here. Thank you.")


# ---- a slot by its id


def slot_of(c: Connection, key: int) -> Slot:
    """The slot of an id. Raises MissingError."""
    row = c.execute(select(t.slots).where(t.slots.c.id == key)).first()
    if row is None:
        raise MissingError(f"There is no slot {key}.")
    return Slot(
        id=row.id,
        item=items.item(c, row.item_id),
        project=row.project_id,
        user=row.user_id,
        shown=tuple(row.shown),
        purpose=row.purpose,
        leased_until=row.leased_until,
        definition=definition(c, row.definition_id),
        note=row.note,
    )


def own_slot(c: Connection, key: int, user: User) -> Row[Any]:
    """The row of a slot of the user's, with membership, item and slot locked, in this order. Raises MissingError."""
    row = c.execute(select(t.slots).where(t.slots.c.id == key, t.slots.c.user_id == user.id)).first()
    if row is None:
        raise MissingError("This is none of your items.")
    where = (t.memberships.c.project_id == row.project_id) & (t.memberships.c.user_id == user.id)
    c.execute(select(t.memberships.c.user_id).where(where).with_for_update())
    places.locked(c, row.item_id)
    return c.execute(select(t.slots).where(t.slots.c.id == key).with_for_update()).one()


def renew(c: Connection, slot: int, user: User, now: float) -> float:
    """Prolongs a lease, and says until when. Raises LeaseError where the slot is no longer held."""
    row = own_slot(c, slot, user)
    if row.state != "leased":
        raise LeaseError("Your time for this item ran out. Open the next one; what you wrote is kept as a draft.")
    return _renew(c, row, project_of(c, row.project_id), now)


def release(c: Connection, slot: int, user: User, now: float) -> None:
    """Gives a slot back unanswered; nothing where it is not held."""
    row = own_slot(c, slot, user)
    if row.state != "leased":
        return
    c.execute(update(t.slots).where(t.slots.c.id == slot).values(state="released", ended_at=now))
    if row.purpose == "work":
        places.settle(c, places.locked(c, row.item_id), project_of(c, row.project_id).task, returned=True)


def ahead(c: Connection, project: Project, user: User) -> Ahead:
    """Progress of a user and of the project. An admin may ask who has no part in it yet."""
    admin = accounts.membership(c, project, user) == "admin"
    member = None if admin and not _is_member(c, project, user) else accounts.member(c, project, user)
    mine = member.done if member else 0
    size, finished = c.execute(
        select(t.projects.c.size, t.projects.c.finished).where(t.projects.c.id == project.id)
    ).one()
    waiting = 0
    for lane, cursor in enumerate(member.cursors if member else (0, 0)):
        left = (t.items.c.project_id == project.id) & (t.items.c.lane == lane) & (t.items.c.turn > cursor)
        some = select(t.items.c.turn).where(left).limit(COUNTED - waiting).subquery()
        waiting += c.execute(select(func.count()).select_from(some)).scalar_one()
    if waiting == COUNTED:
        waiting = max(COUNTED, size - max(finished, mine))
    return Ahead(mine, waiting, size, finished)


def _is_member(c: Connection, project: Project, user: User) -> bool:
    key = (t.memberships.c.project_id == project.id) & (t.memberships.c.user_id == user.id)
    return c.execute(select(t.memberships.c.user_id).where(key)).first() is not None
