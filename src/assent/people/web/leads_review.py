"""Adjudication: one item after the other on which annotators differ, decided by keyboard."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from assent.people import kinds
from assent.people.store import labels, projects, review
from assent.people.store.errors import StaleError
from assent.people.web import forms
from assent.people.web.leads_common import LEAD, as_slot, board_of, item_in, number, place, query_number, said_of
from assent.people.web.refusals import Refused, TooLarge
from assent.people.web.sessions import Visit
from assent.people.web.sheet import fields_of, sheet_of
from assent.people.web.work import check_size, request_id, texts

ADOPT = "qwtzghjkl"
"""Keys that take over an annotator's label: none of them is a key of a kind's own form."""
LEVELS = (0.0, 0.25, 0.5, 0.75)
"""How far labels must be apart."""

router = APIRouter()


@router.get("/p/{name}/lead/adjudicate")
def show(visit: Visit = LEAD) -> Response:
    """The item that is asked for, else the first that waits."""
    return _page(visit)


def _page(visit: Visit, problem: str = "", status: int = 200, fields: Mapping[str, str] | None = None) -> Response:
    threshold = _threshold(visit)
    view = board_of(visit).look()
    asked = query_number(visit, "item") or (number(visit, "item") if visit.form.get("item") else 0)
    with visit.reading() as c:
        waiting = review.waiting(c, visit.place, view.disputes, threshold)
        key = asked or next((one.item for one in waiting), 0)
        if not key:
            return visit.page("lead_nothing.html", view=view, threshold=threshold, levels=LEVELS, said=_done(visit))
        item = item_in(c, visit, key)
        if item.purpose != "work":
            raise Refused(409, "stale", "This is an item of known answer, about which nothing is decided.")
        rows = [row for row in said_of(c, visit.place, [(row, item) for row in labels.of_item(c, key)]) if row.holds]
        dispute = review.dispute_of(c, visit.place, key)
    slot = as_slot(visit, item)
    given = [row for row in rows if row.label.action == "label" and row.label.purpose == "work"]
    decided = next((row for row in rows if row.label.purpose == "adjudication"), None)
    return visit.page(
        "lead_adjudicate.html",
        status,
        sheet=sheet_of(slot, fields or (fields_of(slot, decided.label.value) if decided else {}), visit.now),
        item=item,
        given=list(zip(given, ADOPT, strict=False)) + [(row, "") for row in given[len(ADOPT) :]],
        skipped=[row for row in rows if row.label.action == "skip"],
        decided=decided,
        reasons=dispute.reasons(threshold),
        mark=dispute.mark,
        waiting=len(waiting),
        threshold=threshold,
        levels=LEVELS,
        quotes=range(forms.QUOTES),
        problem=problem,
        said=_done(visit),
    )


def _threshold(visit: Visit) -> float:
    said = visit.request.query_params.get("differ") or str(visit.form.get("differ") or "")
    return next((level for level in LEVELS if said == f"{level:g}"), review.DIFFER)


def _done(visit: Visit) -> str:
    last = query_number(visit, "last")
    return f"Item {last} is decided." if last else ""


@router.post("/p/{name}/lead/adjudicate")
def decide(visit: Visit = LEAD) -> Response:
    """Decides an item, by the form of its kind."""
    key, fields = number(visit, "item"), texts(visit.form.multi_items())
    with visit.reading() as c:
        item = item_in(c, visit, key)
    slot = as_slot(visit, item)
    try:
        check_size(sum(map(len, fields.values())))
        value = forms.value_of(slot.definition.task, item.content, slot.shown, fields)
        _decide(visit, key, value)
    except (kinds.LabelError, TooLarge, StaleError) as error:
        code = (409, "stale") if isinstance(error, StaleError) else (422, "label")
        refused = error if isinstance(error, Refused) else Refused(*code, str(error))
        if _by_script(visit):
            raise refused from None
        return _page(visit, refused.message, refused.status, fields)
    return _on(visit, last=key)


@router.post("/p/{name}/lead/adjudicate/adopt")
def adopt(visit: Visit = LEAD) -> Response:
    """Decides an item as one of its annotators did."""
    with visit.reading() as c:
        found = labels.label(c, number(visit, "label"))
        item_in(c, visit, found.item)
        meaning = projects.definition(c, found.definition).meaning
    if found.value is None or not found.current or meaning != visit.place.definition.meaning:
        raise Refused(409, "stale", "This label does not hold any more. Load the page again.")
    _decide(visit, found.item, found.value)
    return _on(visit, last=found.item)


def _decide(visit: Visit, key: int, value: Mapping[str, object]) -> None:
    known = number(visit, "known") if visit.form.get("known") else None
    with visit.writing() as c:
        review.decide(c, visit.place, key, visit.known, request_id(visit), value, visit.now, known=known)


@router.post("/p/{name}/lead/adjudicate/pass")
def pass_over(visit: Visit = LEAD) -> Response:
    """Leaves an item as it is: it comes again when somebody says something new about it."""
    with visit.writing() as c:
        review.pass_over(c, visit.place, number(visit, "item"), visit.known, visit.now)
    return _on(visit)


@router.post("/p/{name}/lead/adjudicate/undo")
def undo(visit: Visit = LEAD) -> Response:
    """Takes the last decision back, and shows its item."""
    with visit.writing() as c:
        key = review.last_decided(c, visit.place, visit.known)
        if key is None:
            raise Refused(409, "stale", "There is no decision of yours to take back.")
        review.undecide(c, visit.place, key, visit.known, visit.now)
    return _on(visit, item=key)


def _on(visit: Visit, **where: int) -> Response:
    """On to the next item, or to one."""
    threshold = _threshold(visit)
    asked = {name: str(value) for name, value in where.items()}
    asked |= {} if threshold == review.DIFFER else {"differ": f"{threshold:g}"}
    path = place(visit, "/adjudicate") + (f"?{urlencode(asked)}" if asked else "")
    return JSONResponse({"next": path}) if _by_script(visit) else visit.go(path)


def _by_script(visit: Visit) -> bool:
    return visit.request.headers.get("accept", "").startswith("application/json")
