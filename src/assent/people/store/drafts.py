"""What an annotator has written and not yet sent, or could not: by item, so that a new lease finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from assent.people.store import tables as t
from assent.people.store.errors import MissingError
from assent.people.store.records import Slot, User, clock


def keep_draft(c: Connection, slot: int, user: User, value: Mapping[str, Any], now: float | None = None) -> None:
    """Keeps what a user has written so far for a slot of theirs, in place of the draft before."""
    row = c.execute(select(t.slots).where(t.slots.c.id == slot, t.slots.c.user_id == user.id)).first()
    if row is None:
        raise MissingError("This is none of your items.")
    keep(c, row, value, now)


def keep(c: Connection, slot: Row[Any], value: Mapping[str, Any], now: float | None) -> None:
    """The same for a row of slots."""
    found = c.execute(update(t.drafts).where(_of(slot)).values(value=value, made_at=clock(now))).rowcount
    if not found:
        row = {"item_id": slot.item_id, "user_id": slot.user_id, "purpose": slot.purpose}
        c.execute(insert(t.drafts).values(row | {"value": value, "made_at": clock(now)}))


def draft(c: Connection, slot: Slot) -> Mapping[str, Any] | None:
    """What the slot's user has written for it."""
    key = (
        (t.drafts.c.item_id == slot.item.id) & (t.drafts.c.user_id == slot.user) & (t.drafts.c.purpose == slot.purpose)
    )
    value: Mapping[str, Any] | None = c.execute(select(t.drafts.c.value).where(key)).scalar()
    return value


def forget(c: Connection, slot: Row[Any]) -> None:
    """Drops the draft of a row of slots."""
    c.execute(delete(t.drafts).where(_of(slot)))


def _of(slot: Row[Any]):  # type: ignore[no-untyped-def]
    mine = (t.drafts.c.item_id == slot.item_id) & (t.drafts.c.user_id == slot.user_id)
    return mine & (t.drafts.c.purpose == slot.purpose)
