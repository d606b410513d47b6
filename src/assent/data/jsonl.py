"""Writing JSON lines that every reader cuts in the same places, and files of them that are whole or not there."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from assent.errors import OutputError, RunFolderError
from assent.lock import check_free
from assent.outputs import append, try_file, writing

UNFINISHED = ".part"
"""Behind the name of a file of rows while it is written."""

# Line ends to some readers though not to JSON; and halves of surrogate pairs, which UTF-8 cannot write.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def json_line(row: Mapping[str, Any]) -> str:
    """One object as a line of JSON with its line end. ValueError for NaN and infinities."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def plain_json(value: Any) -> Any:
    """Nested mappings, lists and dataclasses as JSON has them: keys are text, a number that is not finite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_new_file(out: str) -> None:
    """Raises RunFolderError where something is at --out already or a run is at work there, OutputError where nothing
    can be written: before a model is loaded."""
    check_free(Path(out))
    if os.path.lexists(out):
        what = "is a folder" if os.path.isdir(out) else "exists already"
        raise RunFolderError(f"--out {out} {what}. Choose another name.")
    for file in (out, out + UNFINISHED):
        try_file(file, f"--out {file}")


def write_rows(rows: Iterable[Mapping[str, object]], out: str) -> int:
    """How many rows (one for each answer) there are, now in the file `out`. Until all are there, they are in
    `out`.part, and stay in it where something fails."""
    count, unfinished = 0, Path(out + UNFINISHED)
    with writing(out, f"--out {out}"):
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        file = unfinished.open("wb", buffering=0)
    with file:
        try:
            for row in rows:
                append(file, json_line(row).encode())
                count += 1
        except OutputError as error:
            raise OutputError(f"{error} {count} answers are in it.") from error
    with writing(out, f"--out {out}"):
        unfinished.rename(out)
    return count
