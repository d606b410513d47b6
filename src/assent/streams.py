"""Standard output, on which commands print their results: closed, full, without a reader, or with few letters."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ESCAPES = "assent.escapes"
"""The error handler that writes what an encoding lacks as JSON does: an answer stays a line of JSON, and a person can
read it."""


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPES, _escaped)


@dataclass(frozen=True, slots=True)
class Broken:
    """Why nothing more can be written to standard output; `reader_left` where that is as it should be
    (`assent --help | head`)."""

    reason: str
    reader_left: bool = False


class _Output(io.TextIOWrapper):
    """Standard output, which remembers why it took no more text: of an error alone nobody could tell whose it is."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        """`stream` is kept: it would close the descriptor."""
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=ESCAPES,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.failed: OSError | None = None
        self.stream = stream

    def write(self, text: str) -> int:
        return self._kept(lambda: super(_Output, self).write(text))

    def flush(self) -> None:
        return self._kept(super().flush)

    def _kept(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            self.failed = error
            raise


def prepare() -> Broken | None:
    """Makes the standard streams take any text, and stand for those that are closed with one that forgets. Says whether
    standard output was closed."""
    closed = sys.stdout is None
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = _Output(sys.stdout)
    return Broken("it is closed") if closed else None


def broken() -> Broken | None:
    """What keeps standard output from taking what was printed. From then on it forgets, so that Python can end."""
    error: Exception | None = getattr(sys.stdout, "failed", None)
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as now:
        error = error or now
    if error is None:
        return None
    _silence()
    return Broken(getattr(error, "strerror", None) or str(error), isinstance(error, BrokenPipeError))


def _silence() -> None:
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
