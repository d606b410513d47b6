"""Ways in: sessions of a browser, tokens of a program, invitations. Each is a long random word that is shown once, and
of which the database has the hash."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from assent.people.store import accounts, audit
from assent.people.store import tables as t
from assent.people.store.errors import AccessError, AccountError
from assent.people.store.projects import project_of
from assent.people.store.records import Project, Role, User, clock

SESSION = 14 * 86_400.0
"""Seconds that somebody stays signed in."""


def _new() -> tuple[str, str]:
    word = secrets.token_urlsafe(32)
    return word, _hash(word)


def _hash(word: str) -> str:
    return hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()


def start_session(c: Connection, user: User, now: float) -> str:
    """Signs somebody in; the token goes into their cookie."""
    word, hashed = _new()
    c.execute(delete(t.sessions).where(t.sessions.c.expires_at <= now))
    c.execute(insert(t.sessions).values(hash=hashed, user_id=user.id, made_at=now, expires_at=now + SESSION))
    return word


def user_of(c: Connection, token: str, now: float) -> User | None:
    """Whose session it is, while that lasts."""
    query = select(t.users).join(t.sessions, t.sessions.c.user_id == t.users.c.id)
    row = c.execute(query.where(t.sessions.c.hash == _hash(token), t.sessions.c.expires_at > now)).first()
    return accounts.user_in(row) if row is not None and row.disabled_at is None else None


def end_session(c: Connection, token: str) -> None:
    """Signs somebody out."""
    c.execute(delete(t.sessions).where(t.sessions.c.hash == _hash(token)))


def others(c: Connection, user: User, token: str, now: float) -> int:
    """How many sessions of the same user there are beside this one."""
    return int(c.execute(select(func.count()).where(_others(user, token), t.sessions.c.expires_at > now)).scalar_one())


def end_others(c: Connection, user: User, token: str, now: float | None = None) -> int:
    """Ends them, and says how many there were."""
    ended = c.execute(delete(t.sessions).where(_others(user, token))).rowcount
    audit.record(c, user, "sessions ended", user.name, {"sessions": ended}, now)
    return ended


def _others(user: User, token: str) -> ColumnElement[bool]:
    return (t.sessions.c.user_id == user.id) & (t.sessions.c.hash != _hash(token))


def api_token(c: Connection, user: User, by: User | None, now: float | None = None) -> str:
    """A token for a program that works as `user`, until it is revoked."""
    word, hashed = _new()
    c.execute(insert(t.tokens).values(hash=hashed, user_id=user.id, made_at=clock(now), made_by=by and by.id))
    audit.record(c, by, "token made", user.name, None, now)
    return word


def user_of_api(c: Connection, token: str) -> User | None:
    """Whose token it is, unless it was revoked."""
    query = select(t.users).join(t.tokens, t.tokens.c.user_id == t.users.c.id)
    row = c.execute(query.where(t.tokens.c.hash == _hash(token), t.tokens.c.revoked_at.is_(None))).first()
    return accounts.user_in(row) if row is not None and row.disabled_at is None else None


def revoke_tokens(c: Connection, user: User, by: User | None, now: float | None = None) -> int:
    """Ends all API tokens of a user, and says how many there were."""
    held = (t.tokens.c.user_id == user.id) & t.tokens.c.revoked_at.is_(None)
    ended = c.execute(update(t.tokens).where(held).values(revoked_at=clock(now))).rowcount
    audit.record(c, by, "tokens revoked", user.name, {"tokens": ended}, now)
    return ended


def invite(
    c: Connection,
    project: Project | None,
    role: Role,
    by: User | None,
    uses: int = 1,
    days: float = 7,
    now: float | None = None,
) -> str:
    """A word that lets so many people in as `role`; without a project as an admin."""
    if (project is None) != (role == "admin") or role == "judge":
        raise AccountError(
            "Leads and annotators are invited to a project, admins to none, and a judge is given a token."
        )
    word, hashed = _new()
    start = clock(now)
    row = {"hash": hashed, "project_id": project and project.id, "role": role, "uses": uses, "made_at": start}
    c.execute(insert(t.invitations).values(row | {"made_by": by and by.id, "expires_at": start + 86_400 * days}))
    audit.record(c, by, "invitation", role, {"uses": uses, "days": days}, now, project)
    return word


def invited(c: Connection, token: str, now: float | None = None) -> tuple[Project | None, Role]:
    """What an invitation lets somebody into, and as what. Raises AccessError where it holds no longer."""
    row = c.execute(_valid(token, clock(now))).first()
    if row is None:
        raise AccessError("This invitation is used up, has ended, or never was. Ask the lead for a new one.")
    return (None if row.project_id is None else project_of(c, row.project_id)), row.role


def proof(c: Connection, name: str, password: str) -> User | accounts.Hashed:
    """Who somebody is, by name and password; a hash of the password where there is nobody of this name. Raises
    AccessError where it is not theirs, AccountError where it cannot be one."""
    if c.execute(select(t.users.c.id).where(t.users.c.folded == accounts.folded(name))).first() is None:
        return accounts.hashed(password)
    user = accounts.check_password(c, name, password)
    if user is None:
        raise AccessError("The name is taken, and the password is not its own. Choose another name, or try again.")
    return user


def join(
    c: Connection, token: str, name: str, password: str | User | accounts.Hashed, now: float | None = None
) -> User:
    """Accepts an invitation: with a new name an account is made; an existing one, with its password, becomes a
    member. In place of the password it takes its `proof`, which was made before the transaction."""
    project, role = invited(c, token, now)
    row = c.execute(_valid(token, clock(now)).with_for_update()).first()
    if row is None:
        raise AccessError("This invitation was used up a moment ago. Ask the lead for a new one.")
    who = password if isinstance(password, User | accounts.Hashed) else proof(c, name, password)
    user = accounts.user(c, who.id) if isinstance(who, User) else accounts.add_user(c, name, who, role, None, now)
    if project is not None:
        before = accounts.membership(c, project, user)
        if before not in ("admin", "lead"):
            accounts.add_member(c, project, user, role, None, now)
    elif user.role != "admin":
        c.execute(update(t.users).where(t.users.c.id == user.id).values(role="admin"))
        user = accounts.user(c, user.id)
    c.execute(update(t.invitations).where(t.invitations.c.id == row.id).values(used=t.invitations.c.used + 1))
    audit.record(c, user, "joined", user.name, {"role": role, "invitation": row.id}, now, project)
    return user


def revoke_invitation(c: Connection, key: int, by: User | None, now: float | None = None) -> None:
    """Ends an invitation."""
    held = (t.invitations.c.id == key) & t.invitations.c.revoked_at.is_(None)
    c.execute(update(t.invitations).where(held).values(revoked_at=clock(now)))
    project = c.execute(select(t.invitations.c.project_id).where(t.invitations.c.id == key)).scalar()
    audit.record(c, by, "invitation revoked", str(key), None, now, project)


def _valid(token: str, now: float):  # type: ignore[no-untyped-def]
    return select(t.invitations).where(
        t.invitations.c.hash == _hash(token),
        t.invitations.c.used < t.invitations.c.uses,
        t.invitations.c.expires_at > now,
        or_(t.invitations.c.revoked_at.is_(None), t.invitations.c.revoked_at > now),
    )
