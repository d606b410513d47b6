"""Files: labels out in the shapes of other tools, items and labels in."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fastapi import APIRouter, BackgroundTasks
from fastapi.responses import FileResponse, Response

from assent.errors import UserError
from assent.foreign import message
from assent.people import stored
from assent.people.exchange import SHAPES, Imported, export, planned, read
from assent.people.exchange.labelstudio import config_of
from assent.people.store import audit, items
from assent.people.store.records import ItemPurpose
from assent.people.task import TaskDefinition
from assent.people.web.leads_common import LEAD
from assent.people.web.refusals import Refused
from assent.people.web.render import shown
from assent.people.web.sessions import Visit

OF: dict[stored.Of, str] = {
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


@router.get("/p/{name}/lead/files")
def files(visit: Visit = LEAD) -> Response:
    """What can be had, and brought."""
    return _page(visit)


def _page(visit: Visit, problem: str = "", status: int = 200, taken: Mapping[str, object] | None = None) -> Response:
    task = visit.place.task
    with visit.reading() as c:
        first = list(islice(stored.chosen(c, visit.place, "best"), PREVIEW))
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
    format = visit.field("format")
    of = next((each for each in OF if each == (visit.field("of") or "best")), None)
    if format not in SHAPES or of is None:
        raise Refused(422, "form", "Choose a shape of the page, and what goes into it.")
    folder = tempfile.TemporaryDirectory(prefix="assent-export-")
    try:
        ending = "json" if SHAPES[format].array else "jsonl"
        name = f"{visit.place.name}-{format}.{ending}"
        path = Path(folder.name) / name
        with visit.reading() as c:
            found = export(stored.chosen(c, visit.place, of), visit.place.task, format, str(path))
        with visit.writing() as c:
            stored.note_export(c, visit.place, format, of, len(found.rows), visit.known, visit.now)
        after = BackgroundTasks()
        after.add_task(folder.cleanup)
        return FileResponse(path, filename=name, background=after)
    except BaseException:
        folder.cleanup()
        raise


@router.get("/p/{name}/lead/interface.xml")
def interface(visit: Visit = LEAD) -> Response:
    """Label Studio's labelling interface for the task."""
    with visit.reading() as c:
        found = [len(each.item.responses) for each in islice(stored.chosen(c, visit.place, "best"), PREVIEW)]
    name = f"{visit.place.name}.xml"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(config_of(visit.place.task, max(found, default=2)), media_type="application/xml", headers=headers)


# ---- in


@router.post("/p/{name}/lead/import")
def imported(visit: Visit = LEAD) -> Response:
    """Takes in a file of items, and of what was said of them."""
    given, purpose = visit.form.get("file"), INTO.get(visit.field("purpose") or "work")
    if given is None or isinstance(given, str) or not given.filename or purpose is None:
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
