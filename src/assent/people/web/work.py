"""An annotator's work: the next item, and what becomes of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import JSONResponse, Response

from assent.people import kinds
from assent.people.store import drafts, labels, queue
from assent.people.store import errors as store_errors
from assent.people.store.errors import MissingError
from assent.people.store.records import Ahead, Slot, StoredLabel, Waiting
from assent.people.web import forms
from assent.people.web.refusals import Refused, TooLarge
from assent.people.web.sessions import Visit, require
from assent.people.web.sheet import SKIPS, fields_of, sheet_of

LARGEST = 100_000
"""Characters of all fields of an answer together."""
RECENT = 20
"""Answers from which the pace is told."""
LONGEST_REASON = 1000
LONGEST_TIME = 1e10
"""Seconds that nobody looks at an item."""
ANNOTATOR = require("annotator")
SAID = {
    "undone": "Your last label is taken back. Change it, and save it again.",
    "skipped": "Skipped. Undo brings it back.",
}
LOST = (store_errors.LeaseError, store_errors.StaleError, store_errors.GoneError)
"""Errors after which the answer is kept as a draft."""

router = APIRouter()


@router.get("/p/{name}")
def show(visit: Visit = ANNOTATOR) -> Response:
    """The item that somebody works on."""
    with visit.writing() as c:
        slot = queue.next_slot(c, visit.place, visit.known, visit.now)
    with visit.reading() as c:  # nobody waits for what is only read
        ahead = queue.ahead(c, visit.place, visit.known)
        if isinstance(slot, Waiting):
            return _waiting(visit, slot, ahead)
        latest = labels.history(c, visit.place, visit.known, RECENT)
        fields = fields_of(slot, drafts.draft(c, slot) or _before(slot, latest))
    return _sheet(visit, slot, ahead, fields, latest)


@router.post("/p/{name}/label")
def label(visit: Visit = ANNOTATOR) -> Response:
    """Saves the answer of a form."""
    fields = texts(visit.form.multi_items())
    slot = slot_named(visit)
    try:
        check_size(sum(map(len, fields.values())))
        value = forms.value_of(slot.definition.task, slot.item.content, slot.shown, fields)
        with visit.writing() as c:
            labels.save(c, slot.id, visit.known, request_id(visit), value, _seconds(visit), visit.now)
    except (kinds.LabelError, TooLarge) as error:
        return _again(visit, slot, fields, error)
    except LOST as error:
        return _lost(visit, slot, fields, error)
    return onward(visit)


@router.post("/p/{name}/skip")
def skip(visit: Visit = ANNOTATOR) -> Response:
    """Leaves an item out, with a reason."""
    slot = slot_named(visit)
    reason = visit.field("other", LONGEST_REASON) or visit.field("reason", LONGEST_REASON)
    if not reason:
        return _again(visit, slot, {}, kinds.LabelError("Say why you leave this item out."))
    try:
        with visit.writing() as c:
            labels.skip(c, slot.id, visit.known, request_id(visit), reason, visit.now)
    except LOST as error:
        return _lost(visit, slot, {}, error)
    return onward(visit, "skipped")


@router.post("/p/{name}/undo")
def undo(visit: Visit = ANNOTATOR) -> Response:
    """Takes the last label or skip back."""
    with visit.writing() as c:
        labels.undo(c, visit.known, visit.place, request_id(visit), visit.now)
    return onward(visit, "undone")


@router.post("/p/{name}/release")
def release(visit: Visit = ANNOTATOR) -> Response:
    """Gives an item back unanswered."""
    slot = slot_named(visit)
    with visit.writing() as c:
        queue.release(c, slot.id, visit.known, visit.now)
    return JSONResponse({"next": "/"}) if _by_script(visit) else visit.go("/")


@router.post("/p/{name}/renew")
def renew(visit: Visit = ANNOTATOR) -> Response:
    """Holds an item for longer, for a page that is being worked on."""
    slot = slot_named(visit)
    with visit.writing() as c:
        until = queue.renew(c, slot.id, visit.known, visit.now)
    return JSONResponse({"seconds": until - visit.now})


# ---- what forms bring


def texts(fields: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """The fields that are texts."""
    return {name: value for name, value in fields if isinstance(value, str)}


def check_size(characters: int) -> None:
    """Raises TooLarge for an answer that is."""
    if characters > LARGEST:
        raise TooLarge(
            f"Your answer has {characters:,} characters; {LARGEST:,} are taken. Nothing is lost: shorten it, and save "
            "it again."
        )


def slot_named(visit: Visit) -> Slot:
    """The slot that a form is about. Raises MissingError for one of somebody else's."""
    said = visit.field("slot")
    if not said.isdecimal() or len(said) > 18:
        raise Refused(422, "form", "The form does not say which item it is about. Load the page again.")
    with visit.reading() as c:
        return own_slot(c, visit, int(said))


def own_slot(c: Connection, visit: Visit, key: int) -> Slot:
    """A slot of the visitor's in this project. Raises MissingError."""
    slot = queue.slot_of(c, key)
    if slot.user != visit.known.id or slot.project != visit.place.id:
        raise MissingError("This is none of your items.")
    return slot


def request_id(visit: Visit) -> str:
    """What tells a repeated request from a new one."""
    said = visit.field("request")
    if not said.isascii():
        raise Refused(422, "form", "The form has no proper request number. Load the page again.")
    return said or secrets.token_hex(16)


def _seconds(visit: Visit) -> float | None:
    """How long somebody looked at the page: what its script counted while it was in sight, but no longer than it has
    been open."""
    opened, counted = _positive(visit.field("opened")), _positive(visit.field("seconds"))
    whole = None if opened is None else max(0.0, visit.now - opened)
    return counted if whole is None else whole if counted is None else min(whole, counted)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < LONGEST_TIME else None


# ---- what is answered


def onward(visit: Visit, said: str = "") -> Response:
    """On to the next item."""
    place = f"/p/{visit.place.name}" + (f"?said={said}" if said else "")
    return JSONResponse({"next": place}) if _by_script(visit) else visit.go(place)


def _by_script(visit: Visit) -> bool:
    return visit.request.headers.get("accept", "").startswith("application/json")


def _before(slot: Slot, latest: Sequence[StoredLabel]) -> Mapping[str, Any] | None:
    """The answer to an item that was taken back or sent back."""
    return next((each.value for each in latest if each.slot == slot.id and each.action == "label"), None)


def _sheet(
    visit: Visit,
    slot: Slot,
    ahead: Ahead,
    fields: Mapping[str, str],
    latest: Sequence[StoredLabel],
    problem: str = "",
    status: int = 200,
) -> Response:
    return visit.page(
        "work.html",
        status,
        sheet=sheet_of(slot, fields, visit.now),
        ahead=ahead,
        pace=pace_of(latest),
        said=SAID.get(visit.request.query_params.get("said", ""), ""),
        problem=problem,
        skips=SKIPS,
        quotes=range(forms.QUOTES),
        lease=slot.leased_until - visit.now,
    )


def pace_of(latest: Sequence[StoredLabel]) -> float | None:
    """Seconds that somebody's latest answers took, the middle one."""
    seconds = [each.seconds for each in latest if each.action == "label" and each.seconds is not None]
    return median(seconds) if seconds else None


def _waiting(visit: Visit, waiting: Waiting, ahead: Ahead) -> Response:
    headings = {"done": "All done", "others": "Nothing for the moment", "locked": "You are paused here"}
    return visit.page(
        "waiting.html",
        waiting=waiting,
        heading=headings[waiting.reason],
        ahead=ahead,
        can_undo=bool(ahead.mine) and waiting.reason != "locked",
        request_id=secrets.token_hex(16),
    )


def _again(visit: Visit, slot: Slot, fields: Mapping[str, str], error: Exception) -> Response:
    """The same page, with what was wrong and all that was written."""
    refused = error if isinstance(error, Refused) else Refused(422, "label", str(error))
    if _by_script(visit):
        raise refused
    with visit.reading() as c:
        ahead = queue.ahead(c, visit.place, visit.known)
        latest = labels.history(c, visit.place, visit.known, RECENT)
    return _sheet(visit, slot, ahead, fields, latest, refused.message, refused.status)


def _lost(visit: Visit, slot: Slot, fields: Mapping[str, str], error: store_errors.StoreError) -> Response:
    """An answer that came too late, which is kept, with the offer to send it again."""
    if _by_script(visit):
        raise error
    gone = isinstance(error, store_errors.GoneError)
    return visit.page(
        "lost.html",
        410 if gone else 409,
        message=str(error),
        fields={name: text for name, text in fields.items() if name not in ("csrf", "slot", "request")},
        slot=slot.id,
        request_id=request_id(visit),
        again=isinstance(error, store_errors.LeaseError) and bool(fields),
    )
