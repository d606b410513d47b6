"""Files: labels out in the shapes of other tools, items and labels in."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, Response

from assent.errors import UserError
from assent.foreign import message
from assent.people import stored
from assent.people.exchange import SHAPES, Imported, Labelled, export, planned, read
from assent.people.exchange.labelstudio import config_of
from assent.people.store import audit, items
from assent.people.store.records import ItemPurpose, Project
from assent.people.task import TaskDefinition
from assent.people.web.leads_common import LEAD
from assent.people.web.refusals import Refused
from assent.people.web.render import shown
from assent.people.web.sessions import Visit

OF = {
    "best": "decisions where there are any, else all labels",
    "labels": "all labels, without decisions",
    "decisions": "decisions alone",
}
PREVIEW = 200
"""Items of which the page says what a shape does not carry."""
PROBLEMS = 20
"""Rows that could not be read, of which the page says why."""
INTO: dict[str, ItemPurpose] = {"work": "work", "gold": "gold", "screening": "screening"}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

router = APIRouter()


@dataclass(frozen=True)
class Fit:
    """A shape that fits the task, and what it does not carry of the first items."""

    name: str
    about: str
    lost: tuple[tuple[str, int], ...]


def chosen(c: Connection, project: Project, of: str) -> Iterator[Labelled]:
    """A project's items with the labels that are asked for (`OF`)."""
    if of == "labels":
        yield from stored.labelled(c, project)
        return
    decided = {each.item.digest: each for each in stored.labelled(c, project, "adjudication")}
    if of == "decisions":
        yield from decided.values()
        return
    for each in stored.labelled(c, project):
        yield decided.pop(each.item.digest, each)
    yield from decided.values()  # decided without a label


@router.get("/p/{name}/lead/files")
def files(visit: Visit = LEAD) -> Response:
    """What can be had, and brought."""
    return _page(visit)


def _page(visit: Visit, problem: str = "", status: int = 200, taken: Mapping[str, object] | None = None) -> Response:
    task = visit.place.task
    with visit.reading() as c:
        first = list(islice(chosen(c, visit.place, "best"), PREVIEW))
    fits = []
    for shape in SHAPES.values():
        if task.kind in shape.kinds and shape.check(task) is None:
            lost = planned(first, task, shape.name).lost if first else {}
            fits.append(Fit(shape.name, shape.about, tuple(lost.items())))
    return visit.page(
        "lead_files.html", status, fits=fits, of=OF, first=len(first), preview=PREVIEW, problem=problem, taken=taken
    )


@router.post("/p/{name}/lead/export")
def exported(visit: Visit = LEAD) -> Response:
    """A file of labels."""
    format, of = visit.field("format"), visit.field("of") or "best"
    if format not in SHAPES or of not in OF:
        raise Refused(422, "form", "Choose a shape of the page, and what goes into it.")
    folder = tempfile.TemporaryDirectory(prefix="assent-export-")
    try:
        ending = "json" if SHAPES[format].array else "jsonl"
        name = f"{visit.place.name}-{format}.{ending}"
        path = Path(folder.name) / name
        with visit.reading() as c:
            found = export(chosen(c, visit.place, of), visit.place.task, format, str(path))
        detail = {"format": format, "of": of, "rows": len(found.rows)}
        with visit.writing() as c:
            audit.record(c, visit.known, "labels exported", visit.place.name, detail, visit.now, visit.place)
        return FileResponse(path, filename=name, background=BackgroundTask(folder.cleanup))
    except BaseException:
        folder.cleanup()
        raise


@router.get("/p/{name}/lead/interface.xml")
def interface(visit: Visit = LEAD) -> Response:
    """Label Studio's labelling interface for the task."""
    with visit.reading() as c:
        found = [len(each.item.responses) for each in islice(chosen(c, visit.place, "best"), PREVIEW)]
    name = f"{visit.place.name}.xml"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(config_of(visit.place.task, max(found, default=2)), media_type="application/xml", headers=headers)


# ---- in


@router.post("/p/{name}/lead/import")
def imported(visit: Visit = LEAD) -> Response:
    """Takes in a file of items, and of what was said of them."""
    given, purpose = visit.form.get("file"), INTO.get(visit.field("purpose") or "work")
    if not isinstance(given, UploadFile) or not given.filename or purpose is None:
        return _page(visit, "Choose a file first.", 422)
    name = re.sub(r"[^\w.-]", "_", Path(given.filename).name)[-80:]
    if not name.lower().endswith(ENDINGS):
        return _page(visit, f"{name}: the name must end in {', '.join(ENDINGS)}, which says what the file is.", 422)
    with tempfile.TemporaryDirectory(prefix="assent-import-") as folder:
        path = Path(folder) / name
        with path.open("wb") as file:
            while part := given.file.read(1 << 20):
                file.write(part)
        try:
            found = read(str(path), _asked(visit.place.task, purpose))
            counts = _take(visit, found, purpose, name)
        except UserError as error:
            return _page(visit, message(str(error).replace(f"{folder}/", "")), 422)
        problems = [shown(str(one).replace(f"{folder}/", "")) for one in found.problems[:PROBLEMS]]
    taken = {"name": name, "counts": counts, "problems": problems, "more": len(found.problems) - len(problems),
             "unknown": dict(found.unknown), "skipped": dict(found.skipped)}  # fmt: skip
    return _page(visit, taken=taken)


def _asked(task: TaskDefinition, purpose: ItemPurpose) -> TaskDefinition:
    """What labels of the file must be: known answers need neither strength nor reason."""
    return task if purpose == "work" else replace(task, strength=0, comment="optional")


def _take(visit: Visit, found: Imported, purpose: ItemPurpose, name: str) -> list[tuple[str, int]]:
    """Takes it in, in one transaction; how many of what."""
    with visit.writing() as c:
        if purpose == "work":
            added = stored.add(c, visit.place, found, visit.known, visit.now)
            counts = [
                ("new items", added.items), ("items that were here already", added.known), ("labels", added.labels),
                ("labels that were here already", added.repeated),
                ("accounts made for their annotators", len(added.people)),
            ]  # fmt: skip
        else:
            known = [each for each in found.labelled if each.labels]
            answers = [each.labels[0].value for each in known]
            new = items.add_items(
                c, visit.place, [each.item for each in known], purpose, answers, visit.known, visit.now
            )
            counts = [
                ("new items of known answer", new.new), ("items that were here already", new.known),
                ("items without an answer, which were left out", len(found.labelled) - len(known)),
            ]  # fmt: skip
        counts = [(what, number) for what, number in counts if number]
        audit.record(
            c, visit.known, "file imported", name, {"purpose": purpose, **dict(counts)}, visit.now, visit.place
        )
    return counts
