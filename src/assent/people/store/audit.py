"""The audit log: who did what, append-only."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from assent.foreign import printable
from assent.people.store import tables as t
from assent.people.store.records import Entry, Project, User, clock

LONGEST = 200
"""Characters of what something was done to."""


def record(
    c: Connection,
    by: User | int | None,
    what: str,
    target: str,
    detail: object = None,
    now: float | None = None,
    project: Project | int | None = None,
) -> None:
    """Writes a row. `by` is None where the command line did it."""
    row = {
        "made_at": clock(now),
        "user_id": by.id if isinstance(by, User) else by,
        "project_id": project.id if isinstance(project, Project) else project,
        "what": what,
        "target": printable(target)[:LONGEST],
        "detail": detail,
    }
    c.execute(insert(t.audit).values(row))


def entries(
    c: Connection, project: Project | None, after: int | None = None, limit: int = 100, server: bool = False
) -> list[Entry]:
    """The newest rows first, of one project (with `server` also those of none: accounts, passwords, tokens) or of all;
    `after` goes on behind the row of that id."""
    query = select(t.audit, t.users.c.name).outerjoin(t.users, t.users.c.id == t.audit.c.user_id)
    if project is not None:
        mine = t.audit.c.project_id == project.id
        query = query.where(mine | t.audit.c.project_id.is_(None) if server else mine)
    if after is not None:
        query = query.where(t.audit.c.id < after)
    rows = c.execute(query.order_by(t.audit.c.id.desc()).limit(limit))
    return [Entry(r.id, r.made_at, r.name, r.project_id, r.what, r.target, r.detail) for r in rows]
