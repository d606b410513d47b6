"""A file, folder or hub id as `Example` records, with every row accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from assent.data.formats.detect import check_columns, choose, columns_of, detect, rename
from assent.data.formats.fates import Fate
from assent.data.formats.judged import HELPSTEER_ATTRIBUTES
from assent.data.formats.message import without_nulls
from assent.data.formats.pairs import STRENGTH
from assent.data.formats.shape import Format
from assent.data.formats.standard import with_prompt_text
from assent.data.formats.values import Row, json_value
from assent.data.readers import read_rows
from assent.data.records import Binary, Critique, Example, Feedback, Origin, Pair, Problem, Ranking, Rating, RowError
from assent.errors import DataError

SAMPLE = 100  # readable rows from which the shape is told
# Columns of a csv file, where every cell is text, that are not text.
CSV_VALUES = {
    *("label", "kto_tag", "history", "preference_strength", "overall_preference", "completions"),
    "individual_preference",
    *("responses", "feedback", "meta"),
    *STRENGTH,
    *HELPSTEER_ATTRIBUTES,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file gave. Each of the `num_rows` rows is in an example (`rows_used` of them; a shape that merges rows has
    fewer examples than rows) or is one of the `problems`."""

    examples: list[Example]
    problems: list[Problem]
    format: str
    num_rows: int
    rows_used: int


def load_examples(
    path: str | Path,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
) -> Loaded:
    """Reads rows of any known shape (`assent.data.formats.FORMATS`) as examples; rows that cannot be used become
    problems with their place, column and reason.

    `format` overrides the detection, `columns` maps an expected column to the file's own, `split` chooses in a folder
    or hub id, `limit` keeps the first rows. Raises `DataError` for a file that cannot be read, an unknown or ambiguous
    shape, and a column map that does not fit the file.
    """
    where = str(path)
    chosen = None if format == "auto" else choose(format)
    columns = dict(columns or {})
    rows = islice(read_rows(path, split), limit)
    sample: list[tuple[Origin, Row | Problem]] = []
    readable: list[Row] = []
    for origin, row in rows:
        sample.append((origin, row))
        if not isinstance(row, Problem):
            readable.append(row)
            if len(readable) == SAMPLE:
                break
    if not sample:
        raise DataError(f"{where}: no rows")
    if not readable:
        raise DataError(f"{where}: no row can be read. The first: {sample[0][1]}")
    check_columns(columns, readable, where)
    named = [rename(row, columns) for row in readable]
    if chosen is None:
        chosen = choose(detect([_sample_cells(row, sample[0][0]) for row in named], where))
    else:
        _check_required(chosen, named, where)
    return _parse_all(chain(sample, rows), chosen, columns)


def _parse_all(rows: Iterator[tuple[Origin, Row | Problem]], fmt: Format, columns: Mapping[str, str]) -> Loaded:
    examples: list[Example] = []
    problems: list[Problem] = []
    num_rows = 0
    for origin, row in rows:
        num_rows += 1
        if isinstance(row, Problem):
            problems.append(row)
            continue
        try:
            cells = _typed(rename(row, columns), origin, fmt)
            example = with_prompt_text(fmt.parse(cells, origin), cells, fmt.required)
        except RowError as error:
            problems.append(error.at(origin))
            continue
        except RecursionError:
            problems.append(Problem(origin, None, "nested too deeply"))
            continue
        if fmt.merges and examples and _asks(examples[-1]) == _asks(example):
            examples[-1] = merge(examples[-1], example)
        else:
            examples.append(example)
    return Loaded(examples, problems, fmt.name, num_rows, num_rows - len(problems))


def merge(first: Example, second: Example) -> Example:
    """Two examples of one prompt as one: all responses, the second's feedback moved to their new indices."""
    shift = len(first.responses)
    feedback = tuple(moved(item, lambda index: index + shift) for item in second.feedback)
    return replace(first, responses=first.responses + second.responses, feedback=first.feedback + feedback)


def moved(item: Feedback, place: Callable[[int], int]) -> Feedback:
    """The same feedback where each response stands at another place."""
    match item:
        case Pair():
            return replace(item, chosen=place(item.chosen), rejected=place(item.rejected))
        case Ranking():
            return replace(item, levels=tuple(tuple(map(place, level)) for level in item.levels))
        case Rating() | Binary() | Critique():
            return replace(item, response=place(item.response))


def _asks(example: Example) -> tuple[object, ...]:
    return example.prompt, example.tools, example.template_kwargs


def _check_required(fmt: Format, rows: Sequence[Row], where: str) -> None:
    found = columns_of(rows)
    missing = [column for column in fmt.required if column not in found]
    if missing:
        raise DataError(
            f"{where}: shape {fmt.name!r} needs the column {', '.join(missing)}, which the file does not have. Found: "
            f"{', '.join(found)}. Where only names differ, use --data.columns {missing[0]}:FOUND."
        )


def _typed(row: Row, origin: Origin, fmt: Format) -> Row:
    """The row as its kind of file means it: cells of a csv file decoded; without the keys that Arrow adds to objects
    whose neighbours have them, in what the shape reads."""
    kind = Path(origin.file.removesuffix(".gz")).suffix.lower()
    if kind in (".csv", ".tsv"):
        return _cells(row)
    if kind in (".jsonl", ".ndjson", ".json"):
        return row
    return {name: value if fmt.fate(name)[0] is Fate.META else without_nulls(value) for name, value in row.items()}


def _cells(row: Row) -> Row:
    """A csv row with the cells decoded that are no text: verdicts and numbers by their column, messages by their look;
    an empty one of these is absent."""
    return {name: _cell(name, value) for name, value in row.items()}


def _cell(name: str, value: str) -> Any:
    start = re.sub(r"\s", "", value[:40])
    looks_like_messages = start.startswith(("[{", '{"from":', '{"role":', "{'from':", "{'role':"))
    if not (name in CSV_VALUES or looks_like_messages):
        return value
    if not value.strip():
        return None
    try:
        return json_value(value.lower() if value.strip().lower() in ("true", "false") else value, name)
    except RowError as error:
        if looks_like_messages:
            raise RowError(name, "looks like a list of messages but is not JSON; write json.dumps, not str") from error
        return value


def _sample_cells(row: Row, origin: Origin) -> Row:
    try:
        return _cells(row) if origin.file.lower().removesuffix(".gz").endswith((".csv", ".tsv")) else row
    except RowError:
        return row
