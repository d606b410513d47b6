"""Rows of a stage that takes long, kept in parts beside its output while it is made: a kill loses at most the parts
under way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assent.data.jsonl import json_line
from assent.outputs import whole_file, write_text

PARTS = ".parts"
"""Behind the name of a file: the folder of its parts."""
MADE_BY = "made_by.json"


class Parts:
    """The parts of a file that are done. `made_by` is all that decides what is in them: parts that were made by
    something else are thrown away. For rank 0 alone."""

    def __init__(self, out: Path, made_by: Mapping[str, Any]) -> None:
        self.out, self.folder = out, _folder(out)
        text = json.dumps(made_by, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() + "\n"
        file = self.folder / MADE_BY
        if not file.is_file() or file.read_text(encoding="utf-8") != key:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_text(file, key)

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the parts that are there."""
        return frozenset(int(file.stem) for file in self.folder.glob("[0-9]*.jsonl"))

    def put(self, number: int, rows: Iterable[Mapping[str, Any]], about: Mapping[str, float]) -> None:
        """Writes a part; `about` are numbers of it, which add up over parts."""
        head = json_line({"about": dict(about)})
        write_text(self._file(number), head + "".join(map(json_line, rows)))

    def join(self) -> dict[str, float]:
        """Puts all parts together as the file, in order, and gives the sums of their numbers. The parts stay until
        `clear`: whoever is killed in between pays for none of them again."""
        total: dict[str, float] = {}
        with whole_file(self.out) as temporary, temporary.open("wb") as whole:
            for number in sorted(self.done):
                with self._file(number).open("rb") as part:
                    for name, value in json.loads(part.readline())["about"].items():
                        total[name] = total.get(name, 0) + value
                    shutil.copyfileobj(part, whole)
        return total

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.jsonl"


def clear(out: Path) -> None:
    """Removes the parts of a file that is done, and known to be."""
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(out.name + PARTS)
