"""A file, folder or hub id as `Example` records, with every row accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from assent.data.formats.fields import Row
from assent.data.formats.judged import HELPSTEER_ATTRIBUTES
from assent.data.formats.pairs import STRENGTH
from assent.data.formats.standard import with_prompt_text
from assent.data.formats.table import Format, choose, columns_of, detect, known_columns, suggest
from assent.data.readers import read_rows
from assent.data.records import Binary, Critique, Example, Feedback, Origin, Pair, Problem, Ranking, Rating, RowError
from assent.errors import DataError

SAMPLE = 100  # readable rows from which the shape is told
# Columns of a csv file, where every cell is text, that are not text.
CSV_VALUES = {
    *("label", "kto_tag", "history", "preference_strength", "overall_preference"),
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
    _check_expected(columns)
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
    _check_found(columns, readable, where)
    named = [_rename(row, columns) for row in readable]
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
            cells = _cells(_rename(row, columns), origin)
            example = with_prompt_text(fmt.parse(cells, origin), cells, fmt.required)
        except RowError as error:
            problems.append(error.at(origin))
            continue
        if fmt.merges and examples and examples[-1].prompt == example.prompt:
            examples[-1] = merge(examples[-1], example)
        else:
            examples.append(example)
    return Loaded(examples, problems, fmt.name, num_rows, num_rows - len(problems))


def merge(first: Example, second: Example) -> Example:
    """Two examples of one prompt as one: all responses, the second's feedback moved to their new indices."""
    shift = len(first.responses)
    feedback = tuple(_shifted(item, shift) for item in second.feedback)
    return replace(first, responses=first.responses + second.responses, feedback=first.feedback + feedback)


def _shifted(item: Feedback, shift: int) -> Feedback:
    match item:
        case Pair():
            return replace(item, chosen=item.chosen + shift, rejected=item.rejected + shift)
        case Ranking():
            return replace(item, levels=tuple(tuple(index + shift for index in level) for level in item.levels))
        case Rating() | Binary() | Critique():
            return replace(item, response=item.response + shift)


def _check_expected(columns: Mapping[str, str]) -> None:
    known = sorted(known_columns())
    for expected in columns:
        if expected not in known:
            hint = suggest(expected, known)
            raise DataError(f"--data.columns: no shape has a column {expected!r}{hint}. Known: {', '.join(known)}")


def _check_found(columns: Mapping[str, str], rows: Sequence[Row], where: str) -> None:
    found = columns_of(rows)
    for expected, name in columns.items():
        if name not in found:
            hint = suggest(name, found)
            raise DataError(
                f"--data.columns: {expected}:{name}: {where} has no column {name!r}{hint}. Found: {', '.join(found)}"
            )


def _check_required(fmt: Format, rows: Sequence[Row], where: str) -> None:
    found = columns_of(rows)
    missing = [column for column in fmt.required if column not in found]
    if missing:
        raise DataError(
            f"{where}: shape {fmt.name!r} needs the column {', '.join(missing)}, which the file does not have. Found: "
            f"{', '.join(found)}. Where only names differ, use --data.columns {missing[0]}:FOUND."
        )


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the file's names replaced by the expected ones (a mapped name wins over one of the same name)."""
    if not columns:
        return row
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {expected: row[name] for expected, name in columns.items() if name in row}


def _cells(row: Row, origin: Origin) -> Row:
    """A csv row with the cells decoded that are no text: verdicts and numbers by their column, messages by their look;
    an empty one of these is absent. Rows of other files know their types."""
    if not origin.file.removesuffix(".gz").endswith((".csv", ".tsv")):
        return row
    return {name: _cell(name, value) for name, value in row.items()}


def _cell(name: str, value: str) -> Any:
    looks_like_messages = value.lstrip().startswith("[{")
    if not (name in CSV_VALUES or looks_like_messages):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError as error:
        if looks_like_messages:
            raise RowError(name, "looks like a list of messages but is not JSON; write json.dumps, not str") from error
        return value


def _sample_cells(row: Row, origin: Origin) -> Row:
    try:
        return _cells(row, origin)
    except RowError:
        return row
