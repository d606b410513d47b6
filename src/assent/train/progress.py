"""What a person sees and does while a run goes: a progress bar with the time left, and Ctrl-C that loses nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType, TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from assent.errors import AssentError

console = Console(stderr=True, highlight=False)
"""Where progress and notices go; standard output is for results."""

QUIET_SECONDS = 10.0
"""Least time between two lines where there is no terminal."""


def say(message: str) -> None:
    """One notice, above the bars if any are shown."""
    console.print(Text(message), soft_wrap=True)


class _Bars(RichProgress):
    """Bars with something above them, and their numbers below, where there is room for them."""

    above: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["shown"]:
                yield Text(task.fields["shown"], style="dim")


class Progress:
    """Progress of one phase: a live bar on a terminal, elsewhere a line at most every ten seconds and at the end.

    >>> with Progress(total=300, label="sft") as progress:  # doctest: +SKIP
    ...     progress.update(1, "loss 2.5")

    `start` is the step that a resumed run begins at. Phases may be nested.
    """

    _bars: _Bars | None = None  # one for the process; nested phases are rows of it
    _depth = 0

    def __init__(self, total: int, label: str, start: int = 0):
        self.total = total
        self.label = label
        self._start = self._step = start
        self._began = self._spoke = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._began = self._spoke = time.monotonic()
        if console.is_terminal:
            if Progress._bars is None:
                Progress._bars = _Bars(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=30),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[left]}", style="cyan"),
                    console=console,
                    refresh_per_second=4,
                )
                Progress._bars.start()
            Progress._depth += 1
            self._task = Progress._bars.add_task(self.label, total=self.total, completed=self._start, left="", shown="")
        return self

    def update(self, step: int, shown: str = "") -> None:
        """`step` steps are done; `shown` are a few numbers that stand below the bar."""
        self._step = step
        if self._task is not None and Progress._bars is not None:
            Progress._bars.update(self._task, completed=step, left=self._left(), shown=shown)
            return
        now = time.monotonic()
        if now - self._spoke >= QUIET_SECONDS or step >= self.total:
            self._spoke = now
            parts = (f"{self.label} {step}/{self.total}", self._left(), shown)
            say("  ".join(part for part in parts if part))

    def show(self, above: RenderableType) -> None:
        """Something to stand above the bars until the next; nothing where there is no terminal."""
        if Progress._bars is not None:
            Progress._bars.above = above

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None or Progress._bars is None:
            return
        Progress._depth -= 1
        self._task = None
        if Progress._depth == 0:  # the rows stay on the screen as a record
            Progress._bars.stop()
            Progress._bars = None

    def _left(self) -> str:
        """Time left at the mean speed since the start; after the last step, the time it took."""
        elapsed, done = time.monotonic() - self._began, self._step - self._start
        if self._step >= self.total:
            return f"took {clock(elapsed)}"
        return f"{clock(elapsed / done * (self.total - self._step))} left" if done > 0 else ""


def clock(seconds: float) -> str:
    """Seconds as `1:02` or `3:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ShutdownRequested(AssentError):
    """The run was asked to stop, and has saved: 130 after Ctrl-C (SIGINT), 143 after SIGTERM."""

    def __init__(self, number: int, saved: str = ""):
        super().__init__(f"Stopped by {signal.Signals(number).name}.{' ' + saved if saved else ''}")
        self.exit_code = 128 + number


class Interrupt:
    """Catches SIGINT and SIGTERM while it is entered. The first sets `requested`: the loop finishes its step, saves,
    and raises `interrupt.error()`. The second, at least a second later, ends the process at once. (torchrun passes a
    Ctrl-C on to workers that already had it from the terminal; that echo must not count as the second.)

    Python takes signals in the main thread only; entered elsewhere, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number: int = signal.SIGTERM
        self._when = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def error(self, saved: str = "") -> ShutdownRequested:
        """What to raise once everything is saved; `saved` tells the person where, and how to continue. A rank that
        got no signal itself counts as having had SIGTERM."""
        return ShutdownRequested(self._number, saved)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        # os.write: a signal may arrive in the middle of a print, which Python's own streams do not survive.
        now = time.monotonic()
        if not self.requested:
            self.requested, self._number, self._when = True, number, now
            os.write(2, b"\nfinishing this step, then saving; again to stop at once without saving\n")
        elif now - self._when >= 1.0:
            os.write(2, b"\x1b[?25h\n" if console.is_terminal else b"\n")  # the live bar had hidden the cursor
            os._exit(128 + number)
