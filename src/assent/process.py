"""The process of a command: output that cannot break it, and an end that nobody else's threads can put off."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

_own = False


class Steady:
    """A stream for words to a person: where it breaks (a reader that left, a terminal that is gone, a full disk, a
    character that it cannot carry), they are lost, and nothing else. `stream` gives the one to write to."""

    def __init__(self, stream: Callable[[], TextIO | None]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        stream = self._stream()
        with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a signal came in the middle of a write
            try:
                stream and stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(stream, "encoding", None) or "ascii"
                stream and stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError, RuntimeError):
            if (stream := self._stream()) is not None:
                stream.flush()

    def close(self) -> None:
        """The stream stays open: its number would be given to the next file that is opened."""
        self.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return (stream := self._stream()) is not None and stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


@contextmanager
def steady_output() -> Iterator[None]:
    """In here, printing cannot fail, whoever prints."""
    before = sys.stdout, sys.stderr
    out, err = before
    sys.stdout, sys.stderr = Steady(lambda: out), Steady(lambda: err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def tell(text: str) -> None:
    """A line to standard error that may be written at any moment, from a signal handler too, where Python's own streams
    may be in the middle of a write: they take no second one, and the message of a logger would be lost."""
    with suppress(OSError):
        os.write(2, text.encode())


def adopt() -> None:
    """This process is a command's own, which may end it. Its three streams are open from now on: the number of one that
    is closed would be given to a data file, and messages written into that."""
    global _own
    _own = True
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    err = sys.stderr
    sys.stderr = Steady(lambda: err)


def is_own() -> bool:
    """Whether the process may be ended when its command does."""
    return _own


def leave(code: int) -> NoReturn:
    """Ends the process of a command that did not come to its end: what was registered for the end is done, but no
    thread is waited for."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
