"""Leads' pages of items: searched and filtered, and one with everything that was said of it."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import Response

from assent.people.store import items, labels, listing, review
from assent.people.store.listing import Wanted
from assent.people.web import render
from assent.people.web.leads_audit import line_of
from assent.people.web.leads_common import LEAD, as_slot, item_in, place, query_number, said_of
from assent.people.web.refusals import Refused
from assent.people.web.sessions import Visit
from assent.people.web.sheet import sheet_of

PAGE = 50
LONGEST = 2000
"""Characters of a note or a reason."""
STATES = {
    "": "All states",
    "open": "Open",
    "full": "With annotators",
    "done": "Done",
    "decided": "Decided",
    "withdrawn": "Withdrawn",
}
PURPOSES = {"work": "Work", "gold": "Gold", "screening": "Screening"}

router = APIRouter()


@router.get("/p/{name}/lead/items")
def listed(visit: Visit = LEAD) -> Response:
    """Items, 50 at a time."""
    asked = visit.request.query_params
    wanted = Wanted(
        purpose=_one_of(asked.get("purpose", "work"), PURPOSES, "work"),
        state=_one_of(asked.get("state", ""), STATES, ""),
        topic=asked.get("topic", "")[:200],
        text=asked.get("q", "").strip()[:200],
        skipped=asked.get("skipped") == "1",
    )
    with visit.reading() as c:
        found = listing.page(c, visit.place, wanted, query_number(visit, "after"), PAGE)
        counts = listing.counts(c, visit.place)
        topics = listing.topics(c, visit.place)
    lines = [replace(line, prompt=render.shown(line.prompt)) for line in found.lines]
    kept = {"purpose": wanted.purpose, "state": wanted.state, "topic": wanted.topic, "q": wanted.text}
    kept |= {"skipped": "1"} if wanted.skipped else {}
    more = urlencode({**kept, "after": found.next}) if found.next is not None else ""
    return visit.page(
        "lead_items.html",
        found=found,
        lines=lines,
        wanted=wanted,
        counts=counts.get(wanted.purpose, {}),
        purposes={key: words for key, words in PURPOSES.items() if key == "work" or key in counts},
        states=STATES,
        topics=topics,
        more=f"{place(visit, '/items')}?{more}" if more else "",
        first=not query_number(visit, "after"),
    )


def _one_of(said: str, known: dict[str, str], otherwise: str) -> str:
    return said if said in known else otherwise


@router.get("/p/{name}/lead/item/{key}")
def show(key: int, visit: Visit = LEAD) -> Response:
    """One item: what it asks, who said what, and what was done to it."""
    return item_page(visit, key)


def item_page(visit: Visit, key: int, problem: str = "", status: int = 200) -> Response:
    """The page, with what was wrong."""
    with visit.reading() as c:
        item = item_in(c, visit, key)
        rows = said_of(c, visit.place, [(row, item) for row in labels.of_item(c, key)])
        dispute = review.dispute_of(c, visit.place, key) if item.purpose == "work" else None
        log = review.log_of(c, visit.place, key)
    sheet = sheet_of(as_slot(visit, item), {}, visit.now)
    sources = dict(enumerate(render.shown(source or "") for source in item.content.sources))
    return visit.page(
        "lead_item.html",
        status,
        item=item,
        sheet=sheet,
        sources=sources,
        rows=rows,
        dispute=dispute,
        states=STATES,
        log=[line_of(entry, visit) for entry in log],
        problem=problem,
    )


@router.post("/p/{name}/lead/item/{key}/mark")
def mark(key: int, visit: Visit = LEAD) -> Response:
    """Marks an item for another look."""
    with visit.writing() as c:
        review.mark(c, visit.place, key, visit.known, visit.field("note", LONGEST), visit.now)
    return visit.go(place(visit, f"/item/{key}"))


@router.post("/p/{name}/lead/item/{key}/unmark")
def unmark(key: int, visit: Visit = LEAD) -> Response:
    """Takes the mark away."""
    with visit.writing() as c:
        review.unmark(c, visit.place, key, visit.known, visit.now)
    return visit.go(place(visit, f"/item/{key}"))


@router.post("/p/{name}/lead/item/{key}/withdraw")
def withdraw(key: int, visit: Visit = LEAD) -> Response:
    """Takes an item out of the work."""
    reason = visit.field("reason", LONGEST)
    if not reason:
        return item_page(visit, key, "Say why the item is withdrawn: it stands in the audit log.", 422)
    with visit.writing() as c:
        item_in(c, visit, key)
        items.withdraw(c, key, visit.known, reason, visit.now)
    return visit.go(place(visit, f"/item/{key}"))


@router.post("/p/{name}/lead/item/{key}/undecide")
def undecide(key: int, visit: Visit = LEAD) -> Response:
    """Takes a decision back."""
    with visit.writing() as c:
        review.undecide(c, visit.place, key, visit.known, visit.now)
    return visit.go(place(visit, f"/item/{key}"))


@router.post("/p/{name}/lead/label/{key}/back")
def send_back(key: int, visit: Visit = LEAD) -> Response:
    """Gives an answer back to its annotator, with the reason that they read."""
    reason = visit.field("reason", LONGEST)
    if not reason:
        raise Refused(422, "form", "Say what the annotator should look at: they read it above the item.")
    with visit.writing() as c:
        found = labels.label(c, key)
        item_in(c, visit, found.item)
        review.send_back(c, visit.place, key, visit.known, reason, visit.now)
    return visit.go(place(visit, f"/item/{found.item}"))
