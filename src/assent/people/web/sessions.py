"""Who asks: the session in a cookie, or the token of a machine; what they may do; and that forms come from our pages.

Every route says with `require(role)` who may use it. What it gives is the `Visit`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from fastapi import Depends, Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.responses import HTMLResponse, RedirectResponse, Response

from assent.people.store import accounts, messages, projects, sessions
from assent.people.store.errors import MissingError
from assent.people.store.records import Project, User
from assent.people.web.refusals import Refused
from assent.people.web.site import Site, page

SESSION = "assent_session"
GUEST = "assent_guest"
"""The cookie of those who are not signed in: it ties a form to the browser that it was shown to."""
CSRF = "csrf"
"""The field of a form, or `X-CSRF` as a header, that only our own pages know."""
RANK = {"annotator": 1, "judge": 1, "lead": 2, "admin": 3}
"""What each role may do includes what is below it."""


@dataclass(frozen=True)
class Visit:
    """One request by somebody: `role` is theirs in `project`, where the address names one."""

    request: Request
    site: Site
    form: FormData
    user: User | None = None
    project: Project | None = None
    role: str | None = None
    secret: str = ""
    now: float = 0.0

    @property
    def known(self) -> User:
        """Whoever is signed in."""
        assert self.user is not None
        return self.user

    @property
    def place(self) -> Project:
        """The project of the address."""
        assert self.project is not None
        return self.project

    @property
    def csrf(self) -> str:
        """What the forms of this page carry."""
        return csrf_of(self.secret)

    @property
    def leads(self) -> bool:
        return RANK.get(self.role or "", 0) >= RANK["lead"]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.site.store.reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self.site.store.writing() as connection:
            yield connection

    @property
    def messages(self) -> list[messages.Message]:
        """What leads wrote to the visitor, and they have not read."""
        if self.user is None or self.project is None or self.role is None:
            return []
        with self.reading() as c:
            return messages.messages(c, self.project, self.user, unread=True)

    def field(self, name: str, longest: int = 200) -> str:
        """A short field of the form, without blanks around it. Raises Refused where it is longer."""
        value = self.form.get(name)
        text = value.strip() if isinstance(value, str) else ""
        if len(text) > longest:
            raise Refused(422, "form", f"{name} has {len(text):,} characters; {longest:,} are taken.")
        return text

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page for this visit; the templates read it as `visit`."""
        made = page(template, {"visit": self, **values}, status)
        if self.user is None:
            set_cookie(self.request, made, GUEST, self.secret, None)
        return made

    def go(self, path: str) -> RedirectResponse:
        """On to another page, by GET."""
        return RedirectResponse(path, 303)


def csrf_of(secret: str) -> str:
    """What only a page of the session can know."""
    return hmac.new(secret.encode(), b"form", hashlib.sha256).hexdigest()


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: int | None) -> None:
    """A cookie that scripts cannot read and that other sites' forms do not bring; `seconds` None: until the browser is
    closed; 0: it is taken away."""
    response.set_cookie(
        name, value, max_age=seconds, path="/", httponly=True, samesite="lax", secure=bool(request.state.secure)
    )


async def posted(request: Request) -> FormData:
    """The form of a request; empty where it brings none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return await request.form(max_files=1, max_fields=2000)
    return FormData()


@dataclass(frozen=True)
class Require:
    """A dependency of a route that lets in who has `role` in the project of the address: None: everybody; "user":
    whoever is signed in; else a role of `RANK`, or a higher one. `machines` are let in by their tokens, and by these
    only."""

    role: str | None
    machines: bool = False

    async def __call__(self, request: Request) -> Visit:
        visit = await run_in_threadpool(self._visit, request)
        if request.method == "POST" and not self.machines:
            visit = replace(visit, form=await posted(request))  # once it is known that they may send one
            _check_csrf(visit)
        return visit

    def _visit(self, request: Request) -> Visit:
        site: Site = request.app.state.site
        now = site.clock()
        token = _bearer(request) if self.machines else request.cookies.get(SESSION, "")
        secret = token
        name = request.path_params.get("name")
        with site.store.reading() as connection:
            user = self._user(connection, token, now)
            project, role = None, None
            if user is not None and name is not None:
                with suppress(MissingError):
                    project = projects.project(connection, name)
                    role = accounts.membership(connection, project, user)
        if user is None:
            secret = request.cookies.get(GUEST, "") or secrets.token_urlsafe(24)
        visit = Visit(request, site, FormData(), user, project, role, secret, now)
        request.state.visit = visit
        self._check(visit, name)
        return visit

    def _user(self, connection: Connection, token: str, now: float) -> User | None:
        if not token:
            return None
        if self.machines:
            return sessions.user_of_api(connection, token)
        return sessions.user_of(connection, token, now)

    def _check(self, visit: Visit, name: str | None) -> None:
        if self.role is None:
            return
        if visit.user is None:
            if self.machines:
                client = visit.request.client
                visit.site.tries.take(f"token {client.host if client else ''}")  # apart from people's
                raise Refused(401, "token", "Send a token of this server, as the header Authorization: Bearer TOKEN.")
            raise SignIn(visit.request)
        if name is None:
            if self.role not in ("user", visit.user.role):
                raise Refused(403, "role", f"Only for people with the role {self.role}.")
            return
        if visit.project is None or visit.role is None:
            raise Refused(404, "project", "There is no project of this name, or you have no part in it.")
        if RANK[visit.role] < RANK.get(self.role, 0):
            raise Refused(403, "role", f"This is for the project's {self.role}s. You have the role {visit.role}.")


class SignIn(Refused):
    """Nobody is signed in."""

    def __init__(self, request: Request) -> None:
        super().__init__(401, "signed_out", "You are signed out. Sign in again; what you wrote is kept in this page.")
        path = request.url.path if request.method == "GET" else "/"
        self.place = "/login" if path == "/" else f"/login?next={quote(path)}"


def require(role: str | None, machines: bool = False) -> Any:
    """Who may use a route, as the default of its parameter."""
    return Depends(Require(role, machines))


def password_of(visit: Visit, name: str = "password") -> str:
    """A password of the form, as it was typed."""
    given = visit.form.get(name)
    return given[: accounts.LONGEST + 1] if isinstance(given, str) else ""


def address_of(visit: Visit) -> str:
    """Where the visitor comes from."""
    return visit.request.client.host if visit.request.client else ""


def inside(path: str) -> str:
    """A path of this server that somebody asks to be sent to; "/" for anything else."""
    fine = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if fine else "/"


def _bearer(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _check_csrf(visit: Visit) -> None:
    given = visit.form.get(CSRF) or visit.request.headers.get("x-csrf")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), visit.csrf.encode()):
        raise Refused(
            403,
            "csrf",
            "This page is older than your session: you signed in or out since it was opened, or the browser keeps no "
            "cookies. Load it again; what you wrote is kept in this browser.",
        )
