"""The label server as an application: its routes, and what becomes of errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from assent.errors import UserError
from assent.foreign import brief, named
from assent.people.kinds import LabelError
from assent.people.store import Store, errors
from assent.people.web import account, api, leads, notes, pages, work
from assent.people.web.refusals import Refused
from assent.people.web.security import Gate
from assent.people.web.sessions import SignIn, Visit
from assent.people.web.site import STATIC, Site, page

log = logging.getLogger(__name__)

ROUTERS: tuple[APIRouter, ...] = (pages.router, account.router, work.router, notes.router, leads.router, api.router)

STATUS: dict[type[Exception], tuple[int, str]] = {
    errors.LeaseError: (409, "lease"),
    errors.StaleError: (409, "stale"),
    errors.ChangedError: (409, "changed"),
    errors.GoneError: (410, "gone"),
    LabelError: (422, "label"),
    errors.BusyError: (503, "busy"),
    errors.RoomError: (507, "room"),
    errors.AccessError: (403, "access"),
    errors.AccountError: (422, "account"),
    errors.MissingError: (404, "missing"),
    errors.OpenError: (503, "database"),
    errors.StoreError: (500, "store"),
    UserError: (422, "data"),
}
"""Errors that say to a person what is the matter, with their status and their word for programs."""
TELL = "Nothing was saved; what you wrote is kept in the browser. Tell whoever runs the server, and send it again."
FOR_PEOPLE: dict[type[Exception], str] = {
    errors.BusyError: "The database is busy with another program. Nothing was saved; send it again in a moment.",
    errors.RoomError: f"The server's disk is full. {TELL}",
    errors.OpenError: f"The server cannot use its database at the moment, and its log says why. {TELL}",
}
"""What people read of errors that are about the server's own files, which its log names."""
BUSY_WAIT = 2.0
HEADINGS = {
    401: "Signed out",
    403: "Not allowed",
    404: "Not found",
    409: "Somebody was quicker",
    410: "The item is gone",
    413: "Too large",
    422: "Something is missing",
    429: "Too often",
    503: "Not now",
    507: "The disk is full",
}


def application(
    store: Store,
    *,
    hosts: Collection[str] = (),
    public_url: str = "",
    clock: Callable[[], float] = time.time,
) -> Gate:
    """The server over a database. `hosts` are names by which it may be asked, beside this machine's own; `public_url`
    is where people reach it, if a proxy stands before it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = Site(store, clock, public_url)
    app.mount("/static", _Static(directory=STATIC), name="static")
    for router in ROUTERS:
        app.include_router(router)
    handlers: dict[type[Exception], Callable[[Request, Exception], Refused]] = {
        **dict.fromkeys(STATUS, _of_error),
        Refused: _itself,
        HTTPException: _of_http,
        ClientDisconnect: _of_nobody,
        RequestValidationError: _of_request,
        Exception: _of_bug,
    }

    def handled(into: Callable[[Request, Exception], Refused]) -> Callable[[Request, Exception], Response]:
        return lambda request, error: refuse(app, request, into(request, error))

    for kind, into in handlers.items():
        app.add_exception_handler(kind, handled(into))

    async def refused(request: Request, error: Refused) -> Response:
        return refuse(app, request, error)

    return Gate(app, frozenset(hosts), public_url, refused)


def routes() -> Iterator[APIRoute]:
    """Every route but the files of `static`."""
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            yield route


class _Static(StaticFiles):
    """Files whose address changes with what is in them: browsers may keep them."""

    def file_response(self, *given: object, **more: object) -> Response:
        response = super().file_response(*given, **more)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


# ---- errors


def refuse(app: FastAPI, request: Request, refused: Refused) -> Response:
    """What is answered to a request that is refused: JSON to programs, a page to people."""
    if wants_json(request):
        body = {"error": {"code": refused.code, "message": refused.message}}
        return JSONResponse(body, refused.status, refused.headers)
    if isinstance(refused, SignIn):
        return RedirectResponse(refused.place, 303)
    visit = getattr(request.state, "visit", None) or Visit(request, app.state.site, FormData())
    back, words = _way_on(request, visit)
    values = {
        "visit": visit,
        "refused": refused,
        "heading": HEADINGS.get(refused.status, "That did not work"),
        "back": back,
        "back_words": words,
    }
    response = page("problem.html", values, refused.status)
    response.headers.update(refused.headers)
    return response


def wants_json(request: Request) -> bool:
    """Whether a program asks: the interface for machines, or a script of our pages."""
    return request.url.path.startswith("/api/") or request.headers.get("accept", "").startswith("application/json")


def _way_on(request: Request, visit: Visit) -> tuple[str, str]:
    if visit.user is None:
        return "/login", "Sign in"
    if visit.project is not None:
        return f"/p/{visit.project.name}", "Go on"
    return "/", "All projects"


def _itself(request: Request, error: Exception) -> Refused:
    assert isinstance(error, Refused)
    return error


def _of_error(request: Request, error: Exception) -> Refused:
    status, code = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if status >= 500:
        log.error("%s: %s", code, named(error))
    wait = BUSY_WAIT if isinstance(error, errors.BusyError) else None
    return Refused(status, code, FOR_PEOPLE.get(type(error), str(error)), wait)


def _of_http(request: Request, error: Exception) -> Refused:
    status = getattr(error, "status_code", 500)
    words = {404: "There is no such page.", 405: f"{request.method} is not answered here."}
    refused = Refused(status, "http", words.get(status, brief(getattr(error, "detail", "") or "That did not work.")))
    if status == 405:
        here = {each for route in routes() if route.path_regex.match(request.url.path) for each in route.methods or ()}
        refused.allow = ", ".join(sorted(here | ({"HEAD"} if "GET" in here else set())))
    return refused


def _of_nobody(request: Request, error: Exception) -> Refused:
    return Refused(400, "gone", "The connection ended before the request had come whole.")


def _of_request(request: Request, error: Exception) -> Refused:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return Refused(422, "request", f"{'.'.join(map(str, first['loc'][1:])) or 'The request'}: {first['msg']}.")


def _of_bug(request: Request, error: Exception) -> Refused:
    route = request.scope.get("route")
    log.error("%s %s: %s", request.method, getattr(route, "path", "?"), named(error), exc_info=error)
    return Refused(500, "failure", "The server failed on this request; its log says why. Nothing of it was saved.")
