"""Standard output and standard error as they may be: closed, full, without a reader, or unable to carry a character."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from dataclasses import dataclass

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


def prepare() -> Broken | None:
    """Makes the standard streams take any text, and stand for those that are closed with one that forgets: otherwise
    the next file to be opened would take their place. Says whether standard output was closed."""
    closed = _is_closed(1)
    for descriptor in range(3):
        if _is_closed(descriptor):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPES)
    return Broken("it is closed") if closed else None


def broken() -> Broken | None:
    """What keeps standard output from taking what was printed. From then on it forgets, so that Python can end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        silence(1)
        return Broken(getattr(error, "strerror", None) or str(error), isinstance(error, BrokenPipeError))
    return None


def complain(text: str) -> None:
    """One message on standard error, where that takes it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(2)


def silence(descriptor: int) -> None:
    """Lets everything that is written there vanish."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False
