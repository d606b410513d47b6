"""Accounts of a project: who is in it, invitations, roles, and the tokens of machines."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import Connection, func, select

from assent.people.store import accounts, sessions
from assent.people.store import tables as t
from assent.people.store.errors import AccountError, MissingError
from assent.people.store.records import Role, User
from assent.people.web.leads_common import LEAD, member_of, number, place
from assent.people.web.refusals import Refused
from assent.people.web.sessions import Visit, require

USES, DAYS = 500, 90
"""Most people of one invitation, and most days that it holds."""
ADMIN = require("admin")
INVITED: dict[str, Role] = {"annotator": "annotator", "lead": "lead"}

router = APIRouter()


@dataclass(frozen=True)
class Secret:
    """What is shown once, and never again."""

    title: str
    value: str
    about: str


@dataclass(frozen=True)
class Invitation:
    """One that holds."""

    id: int
    role: str
    by: str
    left: int
    uses: int
    until: float


@router.get("/p/{name}/lead/people")
def people(visit: Visit = LEAD) -> Response:
    """Everybody in the project."""
    return _page(visit)


def _page(visit: Visit, secret: Secret | None = None, problem: str = "", status: int = 200) -> Response:
    with visit.reading() as c:
        members = accounts.members(c, visit.place)
        invitations = _invitations(c, visit)
        tokens = _tokens(c, visit)
    return visit.page(
        "lead_people.html",
        status,
        members=members,
        invitations=invitations,
        tokens=tokens,
        secret=secret,
        problem=problem,
        admin=visit.role == "admin",
        leads=sum(member.role == "lead" and not member.user.disabled for member in members),
    )


def _invitations(c: Connection, visit: Visit) -> list[Invitation]:
    """Those that hold, the newest first."""
    query = select(t.invitations, t.users.c.name).outerjoin(t.users, t.users.c.id == t.invitations.c.made_by)
    query = query.where(t.invitations.c.project_id == visit.place.id, t.invitations.c.revoked_at.is_(None))
    query = query.where(t.invitations.c.expires_at > visit.now, t.invitations.c.used < t.invitations.c.uses)
    rows = c.execute(query.order_by(t.invitations.c.id.desc()))
    return [Invitation(r.id, r.role, r.name or "the server", r.uses - r.used, r.uses, r.expires_at) for r in rows]


def _tokens(c: Connection, visit: Visit) -> dict[int, int]:
    """How many tokens hold, by user."""
    query = select(t.tokens.c.user_id, func.count()).join(t.memberships, t.memberships.c.user_id == t.tokens.c.user_id)
    query = query.where(t.memberships.c.project_id == visit.place.id, t.tokens.c.revoked_at.is_(None))
    return {row[0]: row[1] for row in c.execute(query.group_by(t.tokens.c.user_id))}


@router.post("/p/{name}/lead/people/invite")
def invite(visit: Visit = LEAD) -> Response:
    """A link that lets people in."""
    role = INVITED.get(visit.field("role"))
    if role is None:
        raise Refused(422, "form", "Invite annotators or leads.")
    uses, days = _within(visit, "uses", USES), _within(visit, "days", DAYS)
    with visit.writing() as c:
        token = sessions.invite(c, visit.place, role, visit.known, uses, days, visit.now)
    link = f"{(visit.site.public_url or str(visit.request.base_url)).rstrip('/')}/join/{token}"
    who = "one person" if uses == 1 else f"up to {uses} people"
    about = f"Lets {who} in as {role}, for {days} days. It is shown this once: copy it now."
    return _page(visit, Secret("Invitation link", link, about))


def _within(visit: Visit, name: str, most: int) -> int:
    value = number(visit, name)
    if not 1 <= value <= most:
        raise Refused(422, "form", f"{name} must be from 1 to {most}. Got {value}.")
    return value


@router.post("/p/{name}/lead/people/revoke")
def revoke(visit: Visit = LEAD) -> Response:
    """Ends an invitation."""
    key = number(visit, "invitation")
    with visit.writing() as c:
        if key not in {one.id for one in _invitations(c, visit)}:
            raise MissingError("This invitation has ended already.")
        sessions.revoke_invitation(c, key, visit.known, visit.now)
    return visit.go(place(visit, "/people"))


@router.post("/p/{name}/lead/people/role")
def role(visit: Visit = LEAD) -> Response:
    """Makes somebody a lead, or an annotator."""
    member, wanted = member_of(visit, number(visit, "user")), INVITED.get(visit.field("role"))
    if wanted is None:
        raise Refused(422, "form", "Somebody is an annotator or a lead.")
    if member.user.id == visit.known.id and visit.role != "admin":
        return _page(visit, problem="Nobody takes the lead from themselves. Ask another lead.", status=422)
    with visit.writing() as c:
        accounts.add_member(c, visit.place, member.user, wanted, visit.known, visit.now)
    return visit.go(place(visit, "/people"))


@router.post("/p/{name}/lead/people/judge")
def judge(visit: Visit = LEAD) -> Response:
    """An account for a machine, with its token."""
    try:
        with visit.writing() as c:
            user = accounts.add_user(c, visit.field("user"), None, "judge", visit.known, visit.now)
            accounts.add_member(c, visit.place, user, "judge", visit.known, visit.now)
            token = sessions.api_token(c, user, visit.known, visit.now)
    except AccountError as error:
        return _page(visit, problem=str(error), status=422)
    return _page(visit, _token(user, token))


def _token(user: User, token: str) -> Secret:
    about = "Sent as the header Authorization: Bearer TOKEN. It is shown this once: copy it now."
    return Secret(f"Token of {user.name}", token, about)


@router.post("/p/{name}/lead/people/token")
def token(visit: Visit = LEAD) -> Response:
    """A further token for a judge."""
    member = member_of(visit, number(visit, "user"))
    if member.role != "judge":
        raise Refused(422, "form", "Tokens are for judges: people sign in.")
    with visit.writing() as c:
        made = sessions.api_token(c, member.user, visit.known, visit.now)
    return _page(visit, _token(member.user, made))


@router.post("/p/{name}/lead/people/no-tokens")
def no_tokens(visit: Visit = LEAD) -> Response:
    """Ends all tokens of a judge."""
    member = member_of(visit, number(visit, "user"))
    if member.role != "judge":
        raise Refused(422, "form", "Tokens are for judges: people sign in.")
    with visit.writing() as c:
        sessions.revoke_tokens(c, member.user, visit.known, visit.now)
    return visit.go(place(visit, "/people"))


# ---- accounts as such, which other projects may share: admins only


def _other(visit: Visit) -> User:
    """The member that a form is about. Raises Refused where it is the visitor."""
    user = member_of(visit, number(visit, "user")).user
    if user.id == visit.known.id:
        raise Refused(422, "form", "Nobody shuts themselves out.")
    return user


@router.post("/p/{name}/lead/people/disable")
def disable(visit: Visit = ADMIN) -> Response:
    """Shuts an account, in all projects."""
    user = _other(visit)
    with visit.writing() as c:
        accounts.disable(c, user, visit.known, visit.now)
    return visit.go(place(visit, "/people"))


@router.post("/p/{name}/lead/people/enable")
def enable(visit: Visit = ADMIN) -> Response:
    """Opens an account again."""
    user = _other(visit)
    with visit.writing() as c:
        accounts.enable(c, user, visit.known, visit.now)
    return visit.go(place(visit, "/people"))


@router.post("/p/{name}/lead/people/password")
def password(visit: Visit = ADMIN) -> Response:
    """A new password for somebody who has lost theirs."""
    user = _other(visit)
    if user.role == "judge":
        raise Refused(422, "form", "A judge has no password.")
    made = secrets.token_urlsafe(12)
    with visit.site.hashing:
        kept = accounts.hashed(made)
    with visit.writing() as c:
        accounts.set_password(c, user, kept, visit.known, visit.now)
    about = "Give it to them on a safe way. It is shown this once; they are signed out everywhere."
    return _page(visit, Secret(f"New password of {user.name}", made, about))
