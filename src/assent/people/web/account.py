"""One's own account: another password, and the end of sessions elsewhere."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from assent.people.store import accounts, sessions
from assent.people.store.errors import AccountError
from assent.people.web.refusals import Refused
from assent.people.web.sessions import SESSION, Visit, address_of, password_of, require, set_cookie

USER = require("user")
SAID = {
    "password": "Your password is changed. Wherever else you were signed in, you no longer are.",
    "sessions": "You are signed in here alone.",
}

router = APIRouter()


@router.get("/account")
def account(visit: Visit = USER) -> Response:
    """What somebody may do about their own account."""
    return _page(visit, said=SAID.get(visit.request.query_params.get("said", ""), ""))


@router.post("/account/password")
def password(visit: Visit = USER) -> Response:
    """Changes one's password, for whoever knows the one before. Other sessions end."""
    new = password_of(visit, "new")
    if new != password_of(visit, "again"):
        return _page(visit, "The new password is not the same both times.", status=422)
    try:
        visit.site.tries.take(address_of(visit), visit.known.name)
    except Refused as refused:
        return _page(visit, refused.message, status=refused.status)
    with visit.site.hashing, visit.reading() as c:
        known = accounts.check_password(c, visit.known.name, password_of(visit))
    if known is None:
        return _page(visit, "That is not your current password.", status=403)
    visit.site.tries.fine(address_of(visit), visit.known.name)
    try:
        with visit.site.hashing:
            kept = accounts.hashed(new)
        with visit.writing() as c:
            accounts.set_password(c, visit.known, kept, visit.known, visit.now)
            token = sessions.start_session(c, visit.known, visit.now)
    except AccountError as error:
        return _page(visit, str(error), status=422)
    response = visit.go("/account?said=password")
    set_cookie(visit.request, response, SESSION, token, int(sessions.SESSION))
    return response


@router.post("/account/sessions")
def end_others(visit: Visit = USER) -> Response:
    """Ends one's sessions in other browsers."""
    with visit.writing() as c:
        sessions.end_others(c, visit.known, visit.secret, visit.now)
    return visit.go("/account?said=sessions")


def _page(visit: Visit, problem: str = "", said: str = "", status: int = 200) -> Response:
    with visit.reading() as c:
        others = sessions.others(c, visit.known, visit.secret, visit.now)
    return visit.page("account.html", status, others=others, problem=problem, said=said, shortest=accounts.SHORTEST)
