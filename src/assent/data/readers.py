"""Rows from files, folders and the Hugging Face hub, one at a time, each with where it came from.

A line that cannot be read is a `Problem` in its place, so that every row is accounted for; a file that cannot be read
at all is a `DataError`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from assent.data.files import Rows, checked, csv_rows, json_rows, jsonl_rows, numbered, parquet_rows, refuse_other_kinds
from assent.errors import DataError
from assent.files import not_a_file
from assent.foreign import brief

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
    refuse_other_kinds(path)
    if suffix in (".csv", ".tsv"):
        return checked(path, csv_rows(path, "\t" if suffix == ".tsv" else ","))
    kinds = {".parquet": parquet_rows, ".json": json_rows}
    return checked(path, kinds.get(suffix, jsonl_rows)(path))


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
    try:
        for batch in saved.data.to_batches():
            batch.validate(full=True)  # what is damaged would be read as other text, or end the process
    except (ValueError, OSError) as error:
        raise DataError(f"{folder}: is damaged: {_first_line(error)}") from error
    return _decoded(str(folder), saved)


def _decoded(name: str, dataset: Iterable[object]) -> Rows:
    """The rows of a `datasets` table; what it cannot turn into Python's values ends it."""
    try:
        yield from numbered(name, dataset)
    except Exception as error:  # the library's types differ
        raise DataError(f"{name}: a row cannot be read: {_first_line(error)}") from error


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
    return _decoded(name, rows)


def _first_line(error: Exception) -> str:
    line = brief(error)
    return line if line.endswith((".", "!", "?")) else line + "."
