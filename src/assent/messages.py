"""Messages to a person: what the loggers of `assent` say, on standard error, above the progress bars where there are
any. Results are no messages: they go to standard output."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import IO, TYPE_CHECKING, cast

from assent.foreign import message
from assent.process import Steady

if TYPE_CHECKING:
    from rich.console import Console

PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


@cache
def console() -> Console:
    """Where messages and progress bars are shown. Where it breaks, they fall silent."""
    from rich.console import Console  # not before there is something to say: --help is quick

    return Console(file=cast(IO[str], Steady(lambda: sys.stderr)), highlight=False)


def width() -> int | None:
    """Columns of the terminal; None where there is none, and lines are not to be broken."""
    return console().width if console().is_terminal else None


class Handler(logging.Handler):
    """Writes the text alone, without keys and unbroken, and before it what kind of message it is where it is no mere
    notice."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        text = PREFIXES.get(record.levelno, "") + self.format(record)
        console().print(Text(message(text)), soft_wrap=True)


def show(rank: int = 0) -> None:
    """Shows notices and all above them, unless the program has set up logging itself: a handler of the root logger or
    of `assent` gets them instead. Of several ranks the first speaks for all; the others report errors only."""
    logger = logging.getLogger("assent")
    if not logger.hasHandlers():
        logger.addHandler(Handler())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # else a user's reward function with logging.basicConfig() would have all said twice
    if rank > 0:
        logger.setLevel(logging.ERROR)
