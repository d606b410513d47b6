"""What leads write to an annotator, who reads it above their next item."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from assent.people.store import audit
from assent.people.store import tables as t
from assent.people.store.errors import StoreError
from assent.people.store.records import Project, User

LONGEST = 2000
"""Characters of a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """`read` is when its annotator said that they have read it."""

    id: int
    by: str
    text: str
    at: float
    read: float | None


def send(c: Connection, project: Project, user: User, text: str, by: User, now: float) -> None:
    """Writes to an annotator. Raises StoreError for an empty or overlong message."""
    text = text.strip()
    if not 1 <= len(text) <= LONGEST:
        raise StoreError(f"A message has from 1 to {LONGEST:,} characters. Got {len(text):,}.")
    row = {"project_id": project.id, "user_id": user.id, "made_by": by.id, "made_at": now, "text": text}
    c.execute(insert(t.messages).values(row))
    audit.record(c, by, "message", user.name, {"text": text}, now, project)


def messages(c: Connection, project: Project, user: User, unread: bool = False, limit: int = 20) -> list[Message]:
    """What was written to somebody, the newest first; with `unread` only what they have not read."""
    query = select(t.messages, t.users.c.name).outerjoin(t.users, t.users.c.id == t.messages.c.made_by)
    query = query.where(t.messages.c.user_id == user.id, t.messages.c.project_id == project.id)
    if unread:
        query = query.where(t.messages.c.read_at.is_(None))
    rows = c.execute(query.order_by(t.messages.c.id.desc()).limit(limit))
    return [Message(r.id, r.name or "a lead", r.text, r.made_at, r.read_at) for r in rows]


def read(c: Connection, project: Project, user: User, upto: int, now: float) -> None:
    """Somebody has read their messages, up to the one of that id."""
    mine = (t.messages.c.user_id == user.id) & (t.messages.c.project_id == project.id)
    new = mine & t.messages.c.read_at.is_(None) & (t.messages.c.id <= upto)
    c.execute(update(t.messages).where(new).values(read_at=now))
