"""Rows from files, folders and the Hugging Face hub, one at a time, each with where it came from.

A line that cannot be read is a `Problem` in its place, so that every row is accounted for; a file that cannot be read
at all is a `DataError`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from assent.data.records import Origin, Problem
from assent.errors import DataError
from assent.files import not_a_file
from assent.foreign import brief

Row = dict[str, Any]
Rows = Iterator[tuple[Origin, Row | Problem]]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
# The words for a split that file names use, as on the hub.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Files beside the data that describe it.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?(:[\w.-]+)?")


def read_rows(path: str | Path, split: str = "train") -> Rows:
    """Rows of a file (jsonl, json, parquet, csv, tsv; .gz too), of a folder of such files or one written by
    `datasets.save_to_disk`, or of a hub id: `owner/name`, `owner/name/folder`, `owner/name:configuration`.

    `split` chooses among the splits of a folder or hub id; a single file has none. Rows are numbered from 1; in a
    jsonl file the number is the line. Raises `DataError` (at once when the path is missing) for what cannot be read.
    """
    target = Path(path).expanduser()
    if target.is_file():
        return _file_rows(target)
    if target.is_dir():
        return _folder_rows(target, split)
    name = str(path)
    in_local_folder = target.parent != Path(".") and target.parent.exists()
    if HUB_ID.fullmatch(name) and not _data_suffix(target) and not in_local_folder and not name.startswith("."):
        return _hub_rows(name, split)
    if (kind := not_a_file(target)) is not None:
        raise DataError(f"{name} is {kind}; expected a file. Write its content into one.")
    raise DataError(f"{name}: no such file or folder{_did_you_mean(target)}. {_expected(name)}")


def _expected(name: str) -> str:
    if "/" not in name and not _data_suffix(Path(name)):
        return "A hub id is written owner/name."
    return "Expected a jsonl, json, parquet or csv file, a folder of them, or a hub id owner/name."


def _did_you_mean(target: Path) -> str:
    try:
        names = [entry.name for entry in target.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(target.name, names, n=1)
    return f"; did you mean {target.parent / close[0]}" if close else ""


def _data_suffix(path: Path) -> str | None:
    """The suffix that decides how a file is read, without .gz; None for what is not a data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def _file_rows(path: Path) -> Rows:
    suffix = _data_suffix(path)
    if suffix is None:
        raise DataError(f"{path}: cannot read a {path.suffix or 'file without suffix'}; expected {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    if suffix == ".parquet":
        return _checked(path, _parquet_rows(path))
    if suffix in (".csv", ".tsv"):
        return _checked(path, _csv_rows(path, "\t" if suffix == ".tsv" else ","))
    if suffix == ".json":
        return _checked(path, _json_rows(path))
    return _checked(path, _jsonl_rows(path))


def _checked(path: Path, rows: Rows) -> Rows:
    """Turns what the operating system says (no permission, a broken gzip or parquet file) into one clear line."""
    try:
        yield from rows
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _jsonl_rows(path: Path) -> Rows:
    """One object per line. Lines end at \\n only (text may hold other separators); \\r\\n and a byte order mark are
    accepted, blank lines are no rows."""
    with _open(path) as handle:
        for number, line in enumerate(handle, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                origin = Origin(str(path), number)
                yield origin, _parse_line(line, origin)


def _parse_line(line: bytes, origin: Origin) -> Row | Problem:
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
            twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
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


def _as_row(value: object, origin: Origin, flawed: bool = False) -> Row | Problem:
    if isinstance(value, dict):
        for column, each in value.items() if flawed else ():
            if (flaw := _flaw(each)) is not None:
                return Problem(origin, column, flaw.reason)
        return value
    return Problem(origin, None, f"expected an object {{...}}, got {type(value).__name__}")


def _json_rows(path: Path) -> Rows:
    """An array of objects; an object with `rows` or `data`; or, as many files with this suffix really are, jsonl."""
    with _open(path) as handle:
        raw = handle.read()
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
        yield from _jsonl_rows(path)
        return
    del text
    yield from _numbered(str(path), _rows_of(value, path), flawed)


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _rows_of(value: object, path: Path) -> list[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for key in ("rows", "data"):
            inner = value.get(key)
            if isinstance(inner, list):
                # The hub's viewer wraps each row: {"row_idx": 0, "row": {...}, ...}.
                return [item["row"] if isinstance(item, dict) and "row_idx" in item else item for item in inner]
        return [value]
    raise DataError(f"{path}: expected an array of objects, or an object with 'rows', got {type(value).__name__}")


def _numbered(file: str, values: Iterable[object], flawed: bool = False) -> Rows:
    for number, value in enumerate(values, start=1):
        origin = Origin(file, number)
        yield origin, _as_row(value, origin, flawed)


def _parquet_rows(path: Path) -> Rows:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
            yield from _numbered(str(path), batches)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error


def _csv_rows(path: Path, delimiter: str) -> Rows:
    """Records under a header line; every cell is text (`assent.data.formats` knows which columns are not)."""
    csv.field_size_limit(sys.maxsize)  # an answer may be longer than the 128 KiB that csv allows by itself
    with _open(path) as handle:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(handle))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        number = start = 0
        try:
            header = next(reader)
            if len(set(header)) < len(header):
                raise DataError(f"{path}: the header names a column twice: {', '.join(header)}")
            start = reader.line_num
            for cells in reader:
                if cells:
                    number += 1
                    origin = Origin(str(path), number)
                    yield origin, _csv_row(header, cells, origin)
                start = reader.line_num
        except UnicodeDecodeError as error:
            where = f"{path}: after line {reader.line_num}"
            raise DataError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except csv.Error as error:
            raise DataError(_csv_error(path, start + 1, reader.line_num, error)) from error


def _csv_error(path: Path, first: int, last: int, error: csv.Error) -> str:
    """A quote that is never closed swallows all lines up to the next one, so the line where the record begins says
    more than that where it breaks."""
    through = f" (the record goes on to line {last})" if last > first else ""
    hint = ". Is there a quote that is not closed? Inside a quoted cell a quote is written twice."
    return f"{path}:{first}: not readable as csv: {error}{through}{hint}"


def _csv_row(header: list[str], cells: list[str], origin: Origin) -> Row | Problem:
    if len(cells) != len(header):
        return Problem(origin, None, f"has {len(cells)} cells where the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def _folder_rows(folder: Path, split: str) -> Rows:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_rows(folder, split)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and _data_suffix(path)
        and path.name not in NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{folder}: no data files in this folder; expected {', '.join(SUFFIXES)}")
    chosen = _files_of_split(folder, files, split)
    return (row for path in chosen for row in _file_rows(path))


def _files_of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files whose name or folder is the split; then those that carry a word for it (`data-train.jsonl`,
    `val/a.csv`); where no file carries such a word, all of them are the one split `train`."""
    names = {path: _split_names(path.relative_to(folder)) for path in files}
    exact = [path for path in files if split in names[path]]
    if exact:
        return exact
    words = {path: {SPLIT_WORDS[word] for word in _words(names[path]) if word in SPLIT_WORDS} for path in files}
    mixed = [path for path in files if len(words[path]) > 1]
    if mixed:
        raise DataError(f"{mixed[0]}: its name says more than one split ({', '.join(sorted(words[mixed[0]]))})")
    wanted = [path for path in files if SPLIT_WORDS.get(split, split) in words[path]]
    if wanted:
        return wanted
    if split == "train" and not any(words.values()):
        return files
    known = sorted(set().union(*words.values())) or ["train"]
    raise DataError(f"{folder}: no split {split!r}; splits found: {', '.join(known)} ({len(files)} files)")


def _split_names(relative: Path) -> set[str]:
    """Folders and file name without suffixes and shard numbers (`train_sft-00000-of-00003.parquet`)."""
    stem = relative.name.split(".")[0]
    return {*relative.parts[:-1], re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", stem)}


def _words(names: set[str]) -> list[str]:
    return [word for name in names for word in re.split(r"[^a-z0-9]+", name.lower())]


def _saved_rows(folder: Path, split: str) -> Rows:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder fails in many ways: json, arrow, file system
        raise DataError(f"{folder}: not a readable `datasets` folder: {_first_line(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{folder}: no split {split!r}; splits found: {', '.join(saved)}")
        saved = saved[split]
    return _numbered(str(folder), saved)


def _hub_rows(name: str, split: str) -> Rows:
    import datasets

    identifier, _, configuration = name.partition(":")
    owner, repository, *subfolder = identifier.split("/")
    options = {"data_dir": "/".join(subfolder)} if subfolder else {}
    try:
        rows = datasets.load_dataset(f"{owner}/{repository}", configuration or None, split=split, **options)
    except Exception as error:  # no network, no such id, no such split, a broken file: the library's types differ
        raise DataError(
            f"{name}: no such file or folder here, and not loadable from the hub: {_first_line(error)} "
            "Check the name and the network, or download the files and give their folder."
        ) from error
    return _numbered(name, rows)


def _first_line(error: Exception) -> str:
    line = brief(error)
    return line if line.endswith((".", "!", "?")) else line + "."
