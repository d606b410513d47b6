"""Rows of one file: jsonl, json, parquet, csv and tsv, the text ones gzipped as well.

A row that cannot be used is a `Problem` in its place. Where it is no longer certain what the rows are, where a file is
damaged, changes while it is read, or unpacks to far more than text does, the file is a `DataError`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from assent.data.delimited import Malformed, records
from assent.data.records import Origin, Problem, too_deep
from assent.errors import DataError
from assent.foreign import brief

RawRow = dict[str, Any]
Rows = Iterator[tuple[Origin, RawRow | Problem]]

ROW_BYTES = 32 * 2**20
"""The largest row that is read: several times what the longest contexts hold."""
COLUMNS = 1000
"""Most columns of a row."""
PACKED, UNPACKED = 500, 256 * 2**20
"""Text packs to a tenth, the same row over and over to a hundredth. A file that has unpacked to more than `UNPACKED`
bytes and to more than `PACKED` times its size was made to fill the memory."""
KINDS = {
    b"\x1f\x8b": "gzip data: name it FILE.gz",
    b"\x28\xb5\x2f\xfd": "zstd data: unpack it, or pack it with gzip",
    b"\xfd7zXZ": "xz data: unpack it, or pack it with gzip",
    b"BZh": "bzip2 data: unpack it, or pack it with gzip",
    b"PK\x03\x04": "a zip archive, perhaps of a spreadsheet: unpack it, or export it as CSV",
    b"PAR1": "parquet data: name it FILE.parquet",
    b"ARROW1": "arrow data: convert it to parquet",
}
"""How files of other kinds begin."""


def refuse_other_kinds(path: Path) -> None:
    """Raises DataError for a file that is not what its name says."""
    try:
        with path.open("rb") as handle:
            start = handle.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    own = {".gz": b"\x1f\x8b", ".parquet": b"PAR1"}.get(path.suffix.lower())
    for magic, kind in KINDS.items():
        if start.startswith(magic) and magic != own:
            raise DataError(f"{path}: holds {kind}")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) and own is None:
        raise DataError(f"{path}: not UTF-8 at byte 1; save the file as UTF-8 (it begins as UTF-16 does)")


def checked(path: Path, rows: Rows) -> Rows:
    """Turns what the operating system and the unpackers say (no permission, a damaged file) into one clear line, and
    notices when the file is another at the end than at the beginning."""
    try:
        before = _state(path)
        yield from rows
        if _state(path) != before:
            raise DataError(f"{path}: has changed while it was read; start again when it is complete")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _state(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


# ------------------------------------------------------------------------------------------------ bytes


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _refuse_bomb(path: Path, unpacked: int) -> None:
    if unpacked > UNPACKED and unpacked > PACKED * (size := path.stat().st_size):
        raise DataError(f"{path}: unpacks to more than {PACKED} times its {size:,} bytes, which no text does")


def _lines(path: Path) -> Iterator[bytes | None]:
    """The lines of a file, without a byte order mark; None for one of more than `ROW_BYTES`, which is not kept."""
    unpacked, packed = 0, path.suffix.lower() == ".gz"
    with _open(path) as handle:
        while piece := handle.readline(ROW_BYTES + 1):
            line: bytes | None = piece if unpacked else piece.removeprefix(b"\xef\xbb\xbf")
            while len(piece) > ROW_BYTES or line is None:
                line = None
                unpacked += len(piece)
                if packed:
                    _refuse_bomb(path, unpacked)
                if not piece or piece.endswith(b"\n"):
                    break
                piece = handle.readline(2**20)
            else:
                unpacked += len(piece)
            if packed:
                _refuse_bomb(path, unpacked)
            yield line


def _whole(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    pieces, unpacked = list[bytes](), 0
    with _open(path) as handle:
        while piece := handle.read(2**24):
            pieces.append(piece)
            _refuse_bomb(path, unpacked := unpacked + len(piece))
    return b"".join(pieces)


# ------------------------------------------------------------------------------------------------ JSON


def jsonl_rows(path: Path) -> Rows:
    """One object per line. Lines end at \\n only (text may hold other separators); \\r\\n and a byte order mark are
    accepted, blank lines are no rows."""
    for number, line in enumerate(_lines(path), start=1):
        origin = Origin(str(path), number)
        if line is None:
            yield origin, Problem(origin, None, f"the line has more than {ROW_BYTES:,} bytes")
        elif line.strip():
            yield origin, _parse_line(line, origin)


def _parse_line(line: bytes, origin: Origin) -> RawRow | Problem:
    try:
        value, flawed = _parse(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        return Problem(origin, None, f"not UTF-8 at byte {error.start + 1} of the line ({error.reason})")
    except json.JSONDecodeError as error:
        return Problem(origin, None, _json_error(error))
    except RecursionError:
        return Problem(origin, None, "not usable JSON: nested too deeply")
    return _as_row(value, origin, flawed)


@dataclass(frozen=True, slots=True)
class _Flaw:
    """Stands where a value cannot be used although it is JSON."""

    reason: str


def _parse(text: str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether it has a `_Flaw` inside."""
    flawed = False

    def whole(digits: str) -> int | _Flaw:
        nonlocal flawed
        try:
            return int(digits)
        except ValueError:
            flawed = True
            return _Flaw(f"a whole number of {len(digits.lstrip('-'))} digits is too large")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal flawed
        made: dict[str, Any] = dict(pairs)
        if len(made) < len(pairs):
            flawed = True
            seen = set[str]()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            made[twice] = _Flaw(f"the key {twice!r} stands twice in one object; which one is right?")
        return made

    try:
        return json.loads(text, object_pairs_hook=once), flawed
    except json.JSONDecodeError:
        raise
    except ValueError:  # too many digits for int; a hook for numbers costs time, so only now
        return json.loads(text, object_pairs_hook=once, parse_int=whole), flawed


def _flaw(value: object) -> _Flaw | None:
    if isinstance(value, _Flaw):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for each in inner if (found := _flaw(each)) is not None), None)


def _json_error(error: json.JSONDecodeError) -> str:
    return f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"


def _as_row(value: object, origin: Origin, flawed: bool = False) -> RawRow | Problem:
    if isinstance(value, _Flaw):
        return Problem(origin, None, value.reason)
    if not isinstance(value, dict):
        return Problem(origin, None, f"expected an object {{...}}, got {type(value).__name__}")
    if len(value) > COLUMNS:
        return Problem(origin, None, f"has {len(value):,} columns; at most {COLUMNS:,} are read")
    for column, each in value.items():
        if too_deep(each):
            return Problem(origin, column, "nested too deeply")
        if flawed and (flaw := _flaw(each)) is not None:
            return Problem(origin, column, flaw.reason)
    return value


def json_rows(path: Path) -> Rows:
    """An array of objects; an object with `rows` or `data`; or, as many files with this suffix really are, jsonl."""
    raw = _whole(path)
    if not raw.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        text = raw.decode("utf-8-sig")
        del raw
        value, flawed = _parse(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{path}: not usable JSON: nested too deeply") from error
    except json.JSONDecodeError as error:
        # An array is one value: where it breaks nothing after it can be trusted. Lines stand on their own.
        if text.lstrip().startswith("[") or not _first_line_is_object(text):
            where = f"{path}:{error.lineno}"
            raise DataError(f"{where}: {_json_error(error)}") from error
        yield from jsonl_rows(path)
        return
    del text
    yield from numbered(str(path), _rows_of(value, path), flawed)


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _rows_of(value: object, path: Path) -> Sequence[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        found = [key for key in ("rows", "data") if isinstance(value.get(key), list)]
        if len(found) > 1:
            raise DataError(f"{path}: holds two lists, 'rows' and 'data'; which of them are the rows?")
        return [_of_viewer(item) for item in value[found[0]]] if found else [value]
    raise DataError(f"{path}: expected an array of objects, or an object with 'rows', got {type(value).__name__}")


def _of_viewer(item: object) -> object:
    """The hub's viewer wraps each row: {"row_idx": 0, "row": {...}, "truncated_cells": []}."""
    if not (isinstance(item, dict) and "row_idx" in item and "row" in item):
        return item
    cut = item.get("truncated_cells")
    return _Flaw(f"the viewer of the hub has cut its cells {cut}; download the file itself") if cut else item["row"]


def numbered(file: str, values: Iterable[object], flawed: bool = False) -> Rows:
    """Values as rows that are counted from 1."""
    for number, value in enumerate(values, start=1):
        origin = Origin(file, number)
        yield origin, _as_row(value, origin, flawed)


# ------------------------------------------------------------------------------------------------ tables


def parquet_rows(path: Path) -> Rows:
    """The rows of all row groups, a few at a time."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    where, count, unpacked = "", 0, 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{path}: names a column twice: {', '.join(names)}")
            for group in range(file.num_row_groups):
                where = f", row group {group + 1} of {file.num_row_groups}"
                about = file.metadata.row_group(group)
                size = ROW_BYTES * about.num_rows // max(about.total_byte_size, 1)
                for batch in file.iter_batches(batch_size=min(max(size, 1), 256), row_groups=[group]):
                    _refuse_bomb(path, unpacked := unpacked + batch.nbytes)
                    yield from _batch_rows(batch, str(path), count)
                    count += len(batch)
            if count != file.metadata.num_rows:
                raise DataError(f"{path}: has {count:,} rows where its footer says {file.metadata.num_rows:,}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file{where}: {brief(error)}") from error


def _batch_rows(batch: Any, file: str, count: int) -> Rows:
    """`count` rows stand before those of the batch."""
    origins = [Origin(file, count + n) for n in range(1, len(batch) + 1)]
    try:
        rows = batch.to_pylist() if batch.nbytes <= ROW_BYTES else None
    except (ValueError, OverflowError):
        rows = None  # one of them holds what Python cannot: which one, and where?
    for n, origin in enumerate(origins):
        yield origin, _as_row(rows[n], origin) if rows else _single_row(batch.slice(n, 1), origin)


def _single_row(row: Any, origin: Origin) -> RawRow | Problem:
    if row.nbytes > ROW_BYTES:
        return Problem(origin, None, f"the row has more than {ROW_BYTES:,} bytes")
    made = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            made[name] = column[0].as_py()
        except UnicodeDecodeError as error:
            return Problem(origin, name, f"not UTF-8 at byte {error.start + 1} ({error.reason})")
        except (ValueError, OverflowError) as error:
            return Problem(origin, name, f"cannot be read: {brief(error)}")
    return _as_row(made, origin)


def csv_rows(path: Path, separator: str) -> Rows:
    """Records under a header line; every cell is text (`assent.data.formats` knows which columns are not)."""
    rows = records(_decoded(path), separator, ROW_BYTES)
    try:
        header = next(rows, None)
        if header is None:
            raise DataError(f"{path}: the file is empty")
        names = _header(path, header.cells, header.flaw, separator)
        for number, record in enumerate(rows, start=1):
            origin = Origin(str(path), number)
            flaw = record.flaw
            if flaw is None and len(record.cells) != len(names):
                flaw = f"has {len(record.cells)} cells where the header has {len(names)}"
            if flaw is None:
                yield origin, _as_row(dict(zip(names, record.cells, strict=True)), origin)
            else:
                yield origin, Problem(origin, None, f"{flaw} (line {record.line})")
    except Malformed as error:
        raise DataError(_csv_error(path, error)) from error


def _decoded(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if line is None:
            raise Malformed(number, number, f"the line has more than {ROW_BYTES:,} bytes")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{path}:{number}"
            raise DataError(
                f"{where}: not UTF-8 at byte {error.start + 1} of the line ({error.reason}); save the file as UTF-8"
            ) from error


def _header(path: Path, names: list[str], flaw: str | None, separator: str) -> list[str]:
    if flaw is not None:
        raise DataError(f"{path}: its header {flaw}" if flaw.startswith("holds") else f"{path}: in its header {flaw}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: the header names a column twice: {', '.join(names)[:300]}")
    other = next((mark for mark in ",;\t|" if mark != separator and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        shown = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
        raise DataError(
            f"{path}: its header is the one column {names[0][:100]!r}; a {path.suffix} file is read with "
            f"{shown[separator]} between cells, and this one seems to have {shown[other]}"
        )
    return names


def _csv_error(path: Path, error: Malformed) -> str:
    """A quote that is never closed swallows all lines up to the next one, so the line where the record begins says
    more than that where it breaks."""
    through = f" (the record goes on to line {error.last})" if error.last > error.first else ""
    hint = ". Is there a quote that is not closed? Inside a quoted cell a quote is written twice."
    return f"{path}:{error.first}: not readable as csv: {error.reason}{through}{hint}"
