"""Records of CSV and TSV text, strictly by RFC 4180: a cell that holds a quote, the separator or a line end stands in
quotes, with quotes inside it written twice. Lines end with \\n or \\r\\n."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

INSIDE = re.compile(r'(?:[^"]++|"")*+')
"""What may stand between the quotes of a cell."""
STRAY = "a quote stands within a cell that is not quoted: quote the whole cell, and write the quotes inside it twice"
NUL = "holds a NUL byte, which is no text"


class Malformed(ValueError):
    """Text that falls into no records: where one begins and where it breaks, as line numbers, and why."""

    def __init__(self, first: int, last: int, reason: str) -> None:
        super().__init__(reason)
        self.first, self.last, self.reason = first, last, reason


@dataclass(slots=True)
class Record:
    """The cells of one record, the line where it begins, and what makes it unusable by itself."""

    line: int
    cells: list[str] = field(default_factory=list)
    flaw: str | None = None


def records(lines: Iterable[str], separator: str, longest: int) -> Iterator[Record]:
    """The records of a file's lines, with their ends. Blank lines are none. Raises `Malformed` where it is no longer
    certain which line belongs to which record, or where one has more than `longest` characters."""
    record, size, number = Record(0), 0, 0
    opened: list[str] | None = None  # of a quoted cell, what has been read so far
    for number, line in enumerate(lines, 1):
        if opened is None:
            if not line.strip("\r\n"):
                continue
            record, size = Record(number), 0
        size += len(line)
        if size > longest:
            raise Malformed(record.line, number, f"more than {longest:,} characters in one record")
        if "\0" in line:
            record.flaw = NUL
        body = line.removesuffix("\n").removesuffix("\r")
        if opened is None and '"' not in body and "\r" not in body:
            record.cells = body.split(separator)
        else:
            opened = _read(record, line, body, number, separator, opened)
        if opened is None:
            yield record
    if opened is not None:
        raise Malformed(record.line, number, "the file ends within a quoted cell")


def _read(
    record: Record, line: str, body: str, number: int, separator: str, opened: list[str] | None
) -> list[str] | None:
    """Adds the cells of a line, of which `body` is all but its end. Returns what has been read of the quoted one that
    goes on in the next line."""
    position = 0
    while True:
        if opened is None and body.startswith('"', position):
            opened, position = [], position + 1
        if opened is None:
            end = body.find(separator, position)
            cell = body[position:] if end < 0 else body[position:end]
            if "\r" in cell:
                raise Malformed(record.line, number, "a carriage return stands alone; lines end with \\n or \\r\\n")
            if '"' in cell:
                record.flaw = STRAY
            record.cells.append(cell)
            end = len(body) if end < 0 else end
        else:
            found = INSIDE.match(line, position)
            assert found is not None
            opened.append(found[0])
            if found.end() == len(line):
                return opened
            end = found.end() + 1
            if end < len(body) and body[end] != separator:
                raise Malformed(record.line, number, f"'{separator}' expected after '\"'")
            record.cells.append("".join(opened).replace('""', '"'))
            opened = None
        if end >= len(body):
            return None
        position = end + 1
