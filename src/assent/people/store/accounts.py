"""Accounts, their passwords, and who may do what in which project. Of passwords and tokens the database has hashes."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, get_args

from sqlalchemy import Connection, Row, Select, insert, select, update

from assent.foreign import printable
from assent.people.store import audit
from assent.people.store import tables as t
from assent.people.store.errors import AccessError, AccountError, MissingError
from assent.people.store.records import Member, Project, Role, User, clock

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST = 8
"""Characters of a password."""
LONGEST = 1000
"""Characters of a password: longer ones would only cost time to hash."""
_NAME = re.compile(r"[^\W_][\w.@+' -]{0,63}")


@functools.cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher()


@functools.cache
def _nobody() -> str:
    return _hasher().hash("nobody has this password")


class Hashed(str):
    """The hash of a new password: made before a transaction, since nobody else writes meanwhile."""


def hashed(password: str) -> Hashed:
    """Raises AccountError where it cannot be one."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise AccountError(f"A password has at least {SHORTEST} characters (and at most {LONGEST:,}).")
    return Hashed(_hasher().hash(password.encode("utf-8", "surrogatepass")))


def add_user(
    c: Connection, name: str, password: str | None, role: Role, by: User | None, now: float | None = None
) -> User:
    """A new account. One without a password signs in by tokens alone, as a judge always does.

    Raises AccountError where the name is taken or the password too short."""
    name = " ".join(name.split())
    if not _NAME.fullmatch(name):
        raise AccountError(
            "A name has up to 64 letters, digits, spaces and . @ + - _ ', and begins with a letter or digit."
        )
    if role not in get_args(Role):
        raise AccountError(f"No role '{role}'. Known: {', '.join(get_args(Role))}.")
    if role == "judge" and password is not None:
        raise AccountError("A judge signs in by a token, and has no password.")
    if c.execute(select(t.users.c.id).where(t.users.c.folded == folded(name))).first():
        raise AccountError(f"The name '{name}' is taken. Choose another one.")
    kept = password if password is None or isinstance(password, Hashed) else hashed(password)
    row = {"name": name, "folded": folded(name), "role": role, "password": kept, "made_at": clock(now)}
    key = t.made(c, t.users, row | {"made_by": by and by.id})
    audit.record(c, by, "account made", name, {"role": role}, now)
    return User(key, name, role)


def check_password(c: Connection, name: str, password: str) -> User | None:
    """The user of that name, where the password is theirs and they are not disabled. It takes as long for a name that
    is not there."""
    row = c.execute(_user().where(t.users.c.folded == folded(name))).first()
    kept = row.password if row is not None and row.password is not None else None
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        _hasher().verify(kept or _nobody(), password[: LONGEST + 1].encode("utf-8", "surrogatepass"))
    except (Argon2Error, InvalidHashError):
        return None
    return user_in(row) if row is not None and kept is not None and row.disabled_at is None else None


def set_password(c: Connection, user: User, password: str, by: User | None, now: float | None = None) -> None:
    """Changes a password; who is signed in with the old one no longer is."""
    kept = password if isinstance(password, Hashed) else hashed(password)
    c.execute(update(t.users).where(t.users.c.id == user.id).values(password=kept))
    c.execute(t.sessions.delete().where(t.sessions.c.user_id == user.id))
    audit.record(c, by, "password changed", user.name, None, now)


def user(c: Connection, who: str | int) -> User:
    """The user of a name or id. Raises MissingError."""
    where = t.users.c.id == who if isinstance(who, int) else t.users.c.folded == folded(who)
    row = c.execute(_user().where(where)).first()
    if row is None:
        raise MissingError(f"There is no user {who!r}.")
    return user_in(row)


def folded(name: str) -> str:
    """What two spellings of one name have in common."""
    return printable(" ".join(name.split()).casefold())


def any_user(c: Connection) -> bool:
    """Whether there is an account at all."""
    return c.execute(select(t.users.c.id).limit(1)).first() is not None


def _user() -> Select[tuple[int, str, str, str, float]]:
    return select(t.users.c.id, t.users.c.name, t.users.c.role, t.users.c.password, t.users.c.disabled_at)


def user_in(row: Row[tuple[int, str, str, str, float]]) -> User:
    """The user of a row that has their columns."""
    role: Role = row.role
    return User(row.id, row.name, role, row.disabled_at is not None)


# ---- members of a project


def add_member(
    c: Connection, project: Project, user: User, role: Role, by: User | None, now: float | None = None
) -> None:
    """Makes somebody a member, or changes what they are in the project."""
    a_role = f"an {role}" if role in ("admin", "annotator") else f"a {role}"
    if role == "admin" or (role == "judge") != (user.role == "judge"):
        raise AccountError(f"{user.name} ({user.role}) cannot be {a_role} of {project.name}.")
    key = (t.memberships.c.project_id == project.id) & (t.memberships.c.user_id == user.id)
    found = c.execute(select(t.memberships.c.role).where(key)).scalar()
    if found == role:
        return
    if found is None:
        row = {"project_id": project.id, "user_id": user.id, "role": role, "joined_at": clock(now)}
        c.execute(insert(t.memberships).values(row))
    else:
        c.execute(update(t.memberships).where(key).values(role=role))
    audit.record(c, by, "member", user.name, {"role": role, "before": found}, now, project)


def membership(c: Connection, project: Project, user: User) -> Role | None:
    """What somebody is in a project; an admin is one everywhere."""
    if user.disabled:
        return None
    if user.role == "admin":
        return "admin"
    key = (t.memberships.c.project_id == project.id) & (t.memberships.c.user_id == user.id)
    role: Role | None = c.execute(select(t.memberships.c.role).where(key)).scalar()
    return role


def member(c: Connection, project: Project, user: User, lock: bool = False) -> Member:
    """A member's row; with `lock` nobody else changes it before this transaction ends. An admin who works in a project
    becomes its lead. Raises AccessError where somebody is none."""
    query = select(t.memberships).where(t.memberships.c.project_id == project.id, t.memberships.c.user_id == user.id)
    row = c.execute(query.with_for_update() if lock else query).first()
    if row is None and user.role == "admin" and not user.disabled and lock:
        add_member(c, project, user, "lead", None)
        row = c.execute(query.with_for_update()).first()
    if row is None or user.disabled:
        raise AccessError(f"{user.name} is no member of {project.name}.")
    return _member(row, user)


def users(c: Connection, project: Project | None = None) -> list[User]:
    """All users, or the members of a project, by name."""
    query = _user().order_by(t.users.c.folded)
    if project is not None:
        query = query.join(t.memberships, t.memberships.c.user_id == t.users.c.id)
        query = query.where(t.memberships.c.project_id == project.id)
    return [user_in(row) for row in c.execute(query)]


def members(c: Connection, project: Project) -> list[Member]:
    """The members of a project, by name."""
    query = select(t.memberships, t.users.c.id, t.users.c.name, t.users.c.role.label("as_made"), t.users.c.disabled_at)
    query = query.join(t.users, t.users.c.id == t.memberships.c.user_id).where(t.memberships.c.project_id == project.id)
    rows = c.execute(query.order_by(t.users.c.folded)).all()
    return [_member(r, User(r.id, r.name, r.as_made, r.disabled_at is not None)) for r in rows]


def _member(row: Row[tuple[object, ...]], user: User) -> Member:
    locked = None if row.locked_at is None else row.locked_why or "locked by a lead"
    cursors = (row.cursor_0, row.cursor_1)
    screened = row.screened_at is not None
    return Member(user, row.project_id, row.role, locked, screened, row.served, row.done, cursors)


def disable(c: Connection, user: User, by: User | None, now: float | None = None) -> None:
    """Shuts an account: its sessions and tokens end, and what it holds goes back when its lease ends. Its labels
    stay."""
    c.execute(
        update(t.users).where(t.users.c.id == user.id, t.users.c.disabled_at.is_(None)).values(disabled_at=clock(now))
    )
    c.execute(t.sessions.delete().where(t.sessions.c.user_id == user.id))
    c.execute(
        update(t.tokens)
        .where(t.tokens.c.user_id == user.id, t.tokens.c.revoked_at.is_(None))
        .values(revoked_at=clock(now))
    )
    held = (t.slots.c.user_id == user.id) & t.in_state(t.slots, "leased")
    c.execute(update(t.slots).where(held).values(leased_until=clock(now)))
    audit.record(c, by, "account disabled", user.name, None, now)


def enable(c: Connection, user: User, by: User | None, now: float | None = None) -> None:
    """Opens an account again."""
    c.execute(update(t.users).where(t.users.c.id == user.id).values(disabled_at=None))
    audit.record(c, by, "account enabled", user.name, None, now)
