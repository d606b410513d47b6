"""Messages from leads, as their annotators read them: above every page of the project, until they are read."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from assent.people.store import messages
from assent.people.web.sessions import Visit, require

ANNOTATOR = require("annotator")

router = APIRouter()


@router.post("/p/{name}/read")
def read(visit: Visit = ANNOTATOR) -> Response:
    """Somebody has read what was written to them."""
    said = visit.field("upto")
    if said.isdecimal() and len(said) <= 18:
        with visit.writing() as c:
            messages.read(c, visit.place, visit.known, int(said), visit.now)
    return visit.go(f"/p/{visit.place.name}")
