"""Pages of everybody: signing in and out, joining, the projects, and what an annotator reads about their work."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from assent.people.kinds import KINDS
from assent.people.store import accounts, items, labels, projects, queue, sessions
from assent.people.store.errors import AccessError, AccountError
from assent.people.store.records import Ahead, Project, User
from assent.people.web.refusals import Refused
from assent.people.web.render import shown
from assent.people.web.sessions import SESSION, Visit, address_of, inside, password_of, require, set_cookie
from assent.people.web.sheet import help_of
from assent.people.web.words import count
from assent.people.web.work import RECENT, pace_of

OPEN = require(None)
USER = require("user")
ANNOTATOR = require("annotator")
LISTED = 50
"""Labels on the page of one's own."""
BRIEF = 300
"""Characters of a prompt there."""
ABOUT = {
    "lead": "You are invited to lead this project: to see all labels, to invite others, to decide where they differ.",
    "annotator": "You are invited to label in this project.",
    "admin": "Whoever opens this link first leads all projects of this server, and invites the others.",
}

router = APIRouter()


@router.get("/health")
def health(visit: Visit = OPEN) -> Response:
    """Whether the server lives, for machines."""
    return PlainTextResponse("ok\n")


# ---- signing in and out


@router.get("/login")
def login_page(visit: Visit = OPEN) -> Response:
    """The form to sign in."""
    place = inside(visit.request.query_params.get("next", "/"))
    return visit.go(place) if visit.user else _login(visit, place)


@router.post("/login")
def login(visit: Visit = OPEN) -> Response:
    """Signs somebody in."""
    name, place = visit.field("user"), inside(visit.field("next", 2000) or "/")
    try:
        visit.site.tries.take(address_of(visit), name)
    except Refused as refused:
        return _login(visit, place, name, refused.message, refused.status)
    with visit.site.hashing, visit.reading() as c:
        user = accounts.check_password(c, name, password_of(visit))
    if user is None:
        return _login(visit, place, name, "Name and password do not belong together.", 401)
    visit.site.tries.fine(address_of(visit), name)
    return _signed_in(visit, user, place)


@router.post("/logout")
def logout(visit: Visit = USER) -> Response:
    """Signs somebody out."""
    with visit.writing() as c:
        sessions.end_session(c, visit.secret)
    response = visit.go("/login?said=out")
    set_cookie(visit.request, response, SESSION, "", 0)
    response.headers["Clear-Site-Data"] = '"storage"'  # drafts that this browser has kept
    return response


@router.get("/join/{token}")
def join_page(token: str, visit: Visit = OPEN) -> Response:
    """An invitation."""
    return _join(visit, token)


@router.post("/join/{token}")
def join(token: str, visit: Visit = OPEN) -> Response:
    """Accepts an invitation."""
    name = visit.field("user")
    visit.site.tries.take(address_of(visit), name)
    with visit.reading() as c:
        project, _ = sessions.invited(c, token, visit.now)
    try:
        with visit.site.hashing, visit.reading() as c:
            proof = sessions.proof(c, name, password_of(visit))
        with visit.writing() as c:
            user = sessions.join(c, token, name, proof, visit.now)
    except (AccountError, AccessError) as error:
        return _join(visit, token, name, str(error), 422)
    visit.site.tries.fine(address_of(visit), name)
    return _signed_in(visit, user, f"/p/{project.name}" if project else "/")


def _login(visit: Visit, place: str, user: str = "", problem: str = "", status: int = 200) -> Response:
    said = "You are signed out." if visit.request.query_params.get("said") == "out" else ""
    return visit.page("login.html", status, next=place, user=user, problem=problem, said=said)


def _join(visit: Visit, token: str, user: str = "", problem: str = "", status: int = 200) -> Response:
    with visit.reading() as c:
        project, role = sessions.invited(c, token, visit.now)
    return visit.page(
        "join.html",
        status,
        project=project.task.heading if project else "",
        about=ABOUT[role],
        user=user or (visit.user.name if visit.user else ""),
        problem=problem,
        shortest=accounts.SHORTEST,
    )


def _signed_in(visit: Visit, user: User, place: str) -> Response:
    with visit.writing() as c:
        if visit.user is not None:  # who joins while signed in has one session after it, too
            sessions.end_session(c, visit.secret)
        token = sessions.start_session(c, user, visit.now)
        if place == "/" and user.role == "annotator" and len(only := projects.projects(c, user)) == 1:
            place = f"/p/{only[0].name}"
    response = visit.go(place)
    set_cookie(visit.request, response, SESSION, token, int(sessions.SESSION))
    return response


# ---- projects


@dataclass(frozen=True)
class Row:
    """A project in the list."""

    project: Project
    ahead: Ahead
    leads: bool

    @property
    def about(self) -> str:
        return KINDS[self.project.task.kind].about.capitalize() + "."

    @property
    def words(self) -> str:
        left = f", about {self.ahead.waiting:,} to go" if self.ahead.waiting else ""
        return f"{count(self.ahead.mine, 'label')} by you{left}."


@router.get("/")
def projects_page(visit: Visit = USER) -> Response:
    """What somebody has a part in."""
    with visit.reading() as c:
        rows = []
        for project in projects.projects(c, visit.known):
            role = accounts.membership(c, project, visit.known)
            rows.append(Row(project, queue.ahead(c, project, visit.known), role in ("lead", "admin")))
    return visit.page("projects.html", projects=rows, said="")


# ---- what annotators read


@router.get("/p/{name}/instructions")
def instructions(visit: Visit = ANNOTATOR) -> Response:
    """How to decide, and examples."""
    task = visit.place.task
    return visit.page("instructions.html", help=help_of(task), heading=task.heading)


@router.get("/p/{name}/mine")
def mine(visit: Visit = ANNOTATOR) -> Response:
    """One's own latest labels."""
    with visit.reading() as c:
        ahead = queue.ahead(c, visit.place, visit.known)
        history = labels.history(c, visit.place, visit.known, 3 * LISTED)
        rows: list[dict[str, Any]] = []
        for each in history:
            if not each.current or len(rows) == LISTED:
                continue
            item = items.content(c, each.item)
            prompt = item.prompt[-1].content if item.prompt else ""
            kind = KINDS[projects.definition(c, each.definition).task.kind]
            summary = kind.summary(each.value, item, each.shown) if each.value else f"Skipped: {each.reason}"
            rows.append(
                {
                    "when": each.made_at,
                    "seconds": each.seconds,
                    "prompt": shown(prompt if len(prompt) <= BRIEF else f"{prompt[:BRIEF].rstrip()} …"),
                    "summary": summary,
                    "comment": (each.value or {}).get("comment"),
                }
            )
    return visit.page(
        "mine.html", rows=rows, ahead=ahead, pace=pace_of(history[:RECENT]), request_id=secrets.token_hex(16)
    )
