"""The audit log, as leads read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from assent.people.store import audit
from assent.people.store.records import Entry
from assent.people.store.review import OF_ITEMS
from assent.people.web.leads_common import LEAD, place, query_number
from assent.people.web.render import shown
from assent.people.web.sessions import Visit

PAGE = 100

router = APIRouter()


@dataclass(frozen=True)
class Line:
    """A row of the log. `detail` are names and what they were set to; `link` is where its target is shown."""

    id: int
    at: float
    by: str
    what: str
    target: str
    detail: tuple[tuple[str, str], ...]
    link: str = ""


def line_of(entry: Entry, visit: Visit) -> Line:
    """An entry in words."""
    item = entry.what in OF_ITEMS
    target = f"item {entry.target}" if item else shown(entry.target)
    link = place(visit, f"/item/{entry.target}") if item else ""
    detail = entry.detail if isinstance(entry.detail, Mapping) else {}
    words = tuple((name.replace("_", " "), _words(value)) for name, value in detail.items() if value is not None)
    return Line(entry.id, entry.made_at, entry.by or "the server", entry.what, target, words, link)


def _words(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return shown(", ".join(value)) or "none"
    return shown(json.dumps(value, ensure_ascii=False))


@router.get("/p/{name}/lead/audit")
def log(visit: Visit = LEAD) -> Response:
    """Everything that was changed, the newest first; admins also read what is of no project."""
    after = query_number(visit, "after") or None
    with visit.reading() as c:
        entries = audit.entries(c, visit.place, after, PAGE + 1, server=visit.role == "admin")
    lines = [line_of(entry, visit) for entry in entries[:PAGE]]
    more = f"{place(visit, '/audit')}?after={lines[-1].id}" if len(entries) > PAGE else ""
    return visit.page("lead_audit.html", lines=lines, more=more, first=after is None)
