"""The interface for machine annotators and scripts: JSON over HTTP, with a token. Answers are named by their index in
the item; `shown` is the order in which the item is given out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from assent.data.jsonl import plain_json
from assent.errors import UserError
from assent.foreign import brief
from assent.people import exchange, stored
from assent.people.items import item_row
from assent.people.store import labels, queue
from assent.people.store.records import Ahead, Slot, Waiting
from assent.people.task import TaskDefinition
from assent.people.task import plain as plain_task
from assent.people.web.leads_common import board_of
from assent.people.web.refusals import Refused
from assent.people.web.sessions import Visit, require
from assent.people.web.work import LONGEST_REASON, LONGEST_TIME, check_size, own_slot

Annotator = Annotated[Visit, require("annotator", machines=True)]
Lead = Annotated[Visit, require("lead", machines=True)]
PROBLEMS = 20
"""Rows that could not be used of which an answer says why."""
TOLD = (
    "kind", "title", "question", "instructions", "examples", "attributes", "labels", "strength", "ties", "both_bad",
    "cannot_judge", "comment",
)  # fmt: skip
"""Options of a task that annotators are told; others say what is behind it."""

router = APIRouter(prefix="/api")


async def sent(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "json", "Send the header Content-Type: application/json, and JSON.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "json", "Send the request as it is: compressed ones (Content-Encoding) are not read.")
    try:
        value = json.loads(
            (await request.body()).decode("utf-8-sig"), parse_constant=_no_number, object_pairs_hook=_once
        )
    except RecursionError:
        raise Refused(400, "json", "The request is nested too deeply.") from None
    except ValueError as error:
        raise Refused(400, "json", f"The request is no JSON in UTF-8: {brief(error)}.") from None
    if not isinstance(value, dict):
        raise Refused(400, "json", "The request is no JSON object, {...}.")
    return value


Sent = Annotated[dict[str, Any], Depends(sent)]


@router.get("/p/{name}/next")
def next_item(visit: Annotator) -> Response:
    """The item to answer: {slot, item, shown, task, seconds}; or {waiting}, with why there is none."""
    with visit.writing() as c:
        slot = queue.next_slot(c, visit.place, visit.known, visit.now)
    if isinstance(slot, Waiting):
        again = None if slot.again is None else max(0.0, slot.again - visit.now)
        return JSONResponse({"waiting": {"reason": slot.reason, "message": slot.message, "again": again}})
    return _json(given(slot, visit.now))


@router.post("/p/{name}/label")
def label(visit: Annotator, body: Sent) -> Response:
    """Saves {slot, request, value, seconds}: {label, repeated, locked}."""
    value = body.get("value")
    if not isinstance(value, dict):
        raise Refused(422, "label", "The request needs a value: an object, as the kind of task has it.")
    check_size(len(json.dumps(value, ensure_ascii=False)))
    slot, request, seconds = _slot(visit, body), _request(body), body.get("seconds")
    if seconds is not None and not _is_time(seconds):
        raise Refused(422, "request", "seconds must be a number, from 0 on.")
    with visit.writing() as c:
        saved = labels.save(c, slot, visit.known, request, value, seconds, visit.now)
    return JSONResponse({"label": saved.label, "repeated": saved.repeated, "locked": saved.locked})


@router.post("/p/{name}/skip")
def skip(visit: Annotator, body: Sent) -> Response:
    """Skips an item: {slot, request, reason}."""
    reason = body.get("reason")
    if not isinstance(reason, str) or not reason.strip() or len(reason) > LONGEST_REASON:
        raise Refused(422, "request", f"The request needs a reason, of at most {LONGEST_REASON:,} characters.")
    slot, request = _slot(visit, body), _request(body)
    with visit.writing() as c:
        saved = labels.skip(c, slot, visit.known, request, reason, visit.now)
    return JSONResponse({"label": saved.label, "repeated": saved.repeated, "locked": saved.locked})


@router.post("/p/{name}/undo")
def undo(visit: Annotator, body: Sent) -> Response:
    """Takes the last label back, {request}, and gives its item out again."""
    with visit.writing() as c:
        slot = labels.undo(c, visit.known, visit.place, _request(body), visit.now)
    return _json(given(slot, visit.now))


@router.post("/p/{name}/release")
def release(visit: Annotator, body: Sent) -> Response:
    """Gives an item back unanswered: {slot}."""
    slot = _slot(visit, body)
    with visit.writing() as c:
        queue.release(c, slot, visit.known, visit.now)
    return JSONResponse({})


@router.get("/p/{name}/progress")
def progress(visit: Annotator) -> Response:
    """How far the annotator is, and the project."""
    with visit.reading() as c:
        ahead = queue.ahead(c, visit.place, visit.known)
    return JSONResponse(counts(ahead))


def counts(ahead: Ahead) -> dict[str, int]:
    """Progress as JSON."""
    return {"mine": ahead.mine, "waiting": ahead.waiting, "items": ahead.items, "done": ahead.done}


def given(slot: Slot, now: float) -> dict[str, Any]:
    """A slot as it is given to an annotator: nothing of who wrote its answers, or what it is for."""
    row = item_row(slot.item.content)
    item = {name: row[name] for name in ("prompt", "responses", "tools") if row.get(name) is not None}
    return {
        "slot": slot.id,
        "item": item,
        "shown": list(slot.shown),
        "task": told(slot.definition.task),
        "seconds": slot.leased_until - now,
        "note": slot.note,
    }


def told(task: TaskDefinition) -> dict[str, Any]:
    """What annotators are told of a task."""
    values = plain_task(task)
    return {"name": task.name} | {name: values[name] for name in TOLD}


# ---- for those who lead


@router.get("/p/{name}/export")
def export(visit: Lead) -> Response:
    """The labels that hold now, in the shape that `?format=` names: rows as JSON lines, or one JSON list. `?of=` says
    which: best (a lead's decision where there is one), labels, or decisions."""
    asked = visit.request.query_params
    format, said = asked.get("format", "assent"), asked.get("of", "best")
    of = next((each for each in get_args(stored.Of) if each == said), None)
    if of is None:
        raise Refused(422, "request", f"of is one of {', '.join(get_args(stored.Of))}. Got {said[:40]!r}.")
    shape = exchange.shape_of(format, visit.place.task)
    with visit.reading() as c:
        found = exchange.planned(stored.chosen(c, visit.place, of), visit.place.task, format)
    with visit.writing() as c:
        stored.note_export(c, visit.place, format, of, len(found.rows), visit.known, visit.now)
    if shape.array:
        return _json(found.rows)
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in found.rows)
    return Response(lines, media_type="application/x-ndjson")


@router.get("/p/{name}/agreement")
def agreement(visit: Lead) -> Response:
    """How far annotators agree, and how good each of them is, as the lead's pages show it: {live, behind}; `live` is
    null until it was computed for the first time."""
    view = board_of(visit).look()
    return _json({"live": plain_json(view.live), "behind": view.behind})


@router.post("/p/{name}/items")
def add_items(visit: Lead, body: Sent) -> Response:
    """Adds {rows}, in any shape that `assent data` knows (`format` names it where that is needed), as items, with the
    labels that they have: {items, known, labels, repeated, people, problems}."""
    rows, format = body.get("rows"), body.get("format", "auto")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise Refused(422, "request", "The request needs rows: a list of objects.")
    if not isinstance(format, str):
        raise Refused(422, "request", "format must be the name of a shape.")
    with tempfile.TemporaryDirectory(prefix="assent-items-") as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            found = exchange.read(str(file), visit.place.task, format)
        except UserError as error:
            raise Refused(422, "data", str(error).replace(f"{folder}/", "")) from None
    with visit.writing() as c:
        taken = stored.add(c, visit.place, found, visit.known, visit.now)
        stored.note_import(c, visit.place, "rows of a program", taken, visit.known, visit.now)
    problems = [str(problem).replace(f"{folder}/", "") for problem in found.problems[:PROBLEMS]]
    counts = {name: getattr(taken, name) for name in ("items", "known", "labels", "repeated", "people")}
    return JSONResponse({**counts, "problems": problems, "refused": len(found.problems)})


# ---- what requests bring


def _slot(visit: Visit, body: dict[str, Any]) -> int:
    key = body.get("slot")
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 2**63:
        raise Refused(422, "request", "The request needs its slot: the number that /next gave.")
    with visit.reading() as c:
        return own_slot(c, visit, key).id


def _request(body: dict[str, Any]) -> str:
    request = body.get("request")
    if not isinstance(request, str) or not request.isascii() or not labels.REQUEST.fullmatch(request):
        raise Refused(
            422, "request", "The request needs a word of its own, request: up to 100 characters of ASCII, the same "
            "when it is sent again."
        )  # fmt: skip
    return request


def _is_time(seconds: object) -> bool:
    """Whether it is a number of seconds that a database can hold."""
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < LONGEST_TIME


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of it")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises ValueError where a name stands twice: which value was meant, nobody knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found


def _json(value: Any) -> Response:
    """JSON in ASCII: half of a surrogate pair is an escape in it."""
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")
