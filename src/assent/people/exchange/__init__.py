"""Labels in the shapes of other tools: out, with what a shape cannot carry said before anything is written, and in."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from assent.data.jsonl import check_new_file, write_rows
from assent.data.readers import read_rows as rows_of
from assent.data.records import Problem, RowError
from assent.errors import ConfigError, DataError
from assent.files import not_a_file
from assent.names import suggestion
from assent.outputs import write_text
from assent.people.exchange import flat
from assent.people.exchange.argilla import ARGILLA, read_record
from assent.people.exchange.labelstudio import LABELSTUDIO, config_of, most_answers, read_task_row
from assent.people.exchange.marks import Questions
from assent.people.exchange.reading import read_rows
from assent.people.exchange.rows import ASSENT, SHARE, STEER, TRL
from assent.people.exchange.shape import Imported, Labelled, Planned, Shape, plan
from assent.people.task import TaskDefinition

log = logging.getLogger(__name__)

SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in (ASSENT, TRL, SHARE, STEER, ARGILLA, LABELSTUDIO)}
READERS: Mapping[str, Callable[[Mapping[str, Any], TaskDefinition, Questions], Labelled]] = {
    "argilla": lambda row, task, found: read_record(flat.record(row), task, found),
    "labelstudio": lambda row, task, found: read_task_row(flat.task_row(row), task, found),
}
"""Shapes of annotation tools, and the reader of one of their objects."""
KEYS = {"argilla": "fields", "labelstudio": "data"}
"""The key that most of their files have."""
CONFIG = ".xml"
"""Behind the name of a file for Label Studio: its labelling interface."""
__all__ = ["SHAPES", "Imported", "Labelled", "Planned", "Shape", "export", "planned", "read"]


def shape_of(name: str, task: TaskDefinition) -> Shape:
    """The shape of that name. Raises ConfigError where it has nothing of such a task."""
    if name not in SHAPES:
        raise ConfigError(
            f"--format {name}: there is no such shape.{suggestion(name, SHAPES)} Known: {', '.join(SHAPES)}."
        )
    shape = SHAPES[name]
    fit = ", ".join(other.name for other in SHAPES.values() if task.kind in other.kinds and not other.check(task))
    if task.kind not in shape.kinds:
        raise ConfigError(f"--format {name}: it has no place for a task of kind {task.kind}. These have: {fit}.")
    if (why := shape.check(task)) is not None:
        raise ConfigError(f"--format {name}: {why}. These fit: {fit}.")
    return shape


def planned(labelled: Iterable[Labelled], task: TaskDefinition, format: str) -> Planned:
    """The rows of an export, and what they do not carry of how many items. Raises ConfigError."""
    return plan(shape_of(format, task), labelled, task)


def export(labelled: Iterable[Labelled], task: TaskDefinition, format: str, out: str) -> Planned:
    """Writes a file of a shape; what it cannot carry is said first. Raises ConfigError, RunFolderError where `out` is
    there already, OutputError."""
    shape = shape_of(format, task)
    check_new_file(out)
    if shape is LABELSTUDIO:
        check_new_file(out + CONFIG)
    listed = list(labelled)
    if not listed:
        raise DataError(f"{task.name} has no such labels yet.")
    found = plan(shape, listed, task)
    for what, count in found.lost.items():
        log.warning(f"--format {format} does not carry {what} (of {count:,} of {len(listed):,} items)")
    if not found.rows:
        raise DataError(f"--format {format}: there is nothing that it could carry of {len(listed):,} items.")
    if not shape.array:
        write_rows(found.rows, out)
        return found
    write_text(
        Path(out), json.dumps(found.rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n", f"--export {out}"
    )
    if shape is LABELSTUDIO:
        interface = config_of(task, most_answers([each.item for each in listed], task))
        write_text(Path(out + CONFIG), interface, f"--export {out}{CONFIG}")
    return found


def read(path: str, task: TaskDefinition, format: str = "auto") -> Imported:
    """Items and labels of a file: a shape of `SHAPES`, any other that `assent data` knows, or auto. What is not read is
    named, never dropped in silence. Raises DataError for a file of no known shape."""
    if format == "auto":
        format = _told(path) or "auto"
    if format in READERS:
        found = _read_tool(path, task, format)
    elif format in SHAPES or format == "auto":
        found = read_rows(path, task)
    else:
        found = read_rows(path, task, format)
    for name, count in found.unknown.items():
        log.warning(f"{path}: not read: {name} ({count:,} rows)")
    for why, count in found.skipped.items():
        log.info(f"{path}: no label: {why} ({count:,} items)")
    return found


def _told(path: str) -> str | None:
    """Which annotation tool wrote a file, by its first row."""
    if not Path(path).is_file() or not_a_file(path):
        return None
    with suppress(DataError):  # which is for `load_examples` to say
        for _, row in rows_of(path):
            return flat.tool_of(row) if isinstance(row, Mapping) else None
    return None


def _read_tool(path: str, task: TaskDefinition, format: str) -> Imported:
    found, problems = Questions(task), list[Problem]()
    labelled: list[Labelled] = []
    rows = list(rows_of(path))
    if not rows or not any(isinstance(row, Problem) or flat.tool_of(row) == format for _, row in rows):
        raise DataError(f"{path}: expected a list of objects with '{KEYS[format]}', as {format} writes them.")
    for origin, row in rows:
        try:
            if isinstance(row, Problem):
                problems.append(row)
                continue
            labelled.append(READERS[format](row, task, found))
        except RowError as error:
            problems.append(error.at(origin))
        except (TypeError, AttributeError, ValueError, KeyError):
            problems.append(Problem(origin, None, f"is not as {format} writes it"))
        problems += [error.at(origin) for error in found.refused]
        found.refused.clear()
    return Imported(_merged(labelled), problems, dict(found.unknown), dict(found.skipped))


def _merged(labelled: Iterable[Labelled]) -> list[Labelled]:
    """The same item once, with all labels."""
    found: dict[str, Labelled] = {}
    for each in labelled:
        known = found.get(each.item.digest)
        found[each.item.digest] = each if known is None else Labelled(known.item, known.labels + each.labels)
    return list(found.values())
