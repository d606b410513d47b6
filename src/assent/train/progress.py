"""Progress bars with the time left, and lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from assent import messages

log = logging.getLogger(__name__)

QUIET_SECONDS = 10.0
"""Least time between two lines where there is no terminal."""


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


class ProgressDisplay:
    """Progress of one phase: a live bar on a terminal, elsewhere a line at most every ten seconds and at the end.

    >>> with ProgressDisplay(total=300, label="sft") as progress:  # doctest: +SKIP
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

    def __enter__(self) -> ProgressDisplay:
        self._began = self._spoke = time.monotonic()
        if messages.console().is_terminal:
            if ProgressDisplay._bars is None:
                ProgressDisplay._bars = _Bars(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=30),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[left]}", style="cyan"),
                    console=messages.console(),
                    refresh_per_second=4,
                )
                ProgressDisplay._bars.start()
            ProgressDisplay._depth += 1
            self._task = ProgressDisplay._bars.add_task(
                self.label, total=self.total, completed=self._start, left="", shown=""
            )
        return self

    def update(self, step: int, shown: str = "") -> None:
        """`step` steps are done; `shown` are a few numbers that stand below the bar."""
        self._step = step
        if self._task is not None and ProgressDisplay._bars is not None:
            ProgressDisplay._bars.update(self._task, completed=step, left=self._left(), shown=shown)
            return
        now = time.monotonic()
        if now - self._spoke >= QUIET_SECONDS or step >= self.total:
            self._spoke = now
            parts = (f"{self.label} {step}/{self.total}", self._left(), shown)
            log.info("  ".join(part for part in parts if part))

    def refresh(self, shown: str) -> None:
        """Other numbers below the bar, at the same step; nothing where there is no terminal."""
        if self._task is not None and ProgressDisplay._bars is not None:
            ProgressDisplay._bars.update(self._task, shown=shown)

    def show(self, above: RenderableType) -> None:
        """Something to stand above the bars until the next; nothing where there is no terminal."""
        if ProgressDisplay._bars is not None:
            ProgressDisplay._bars.above = above

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None or ProgressDisplay._bars is None:
            return
        ProgressDisplay._depth -= 1
        self._task = None
        if ProgressDisplay._depth == 0:  # the rows stay on the screen as a record
            ProgressDisplay._bars.stop()
            ProgressDisplay._bars = None

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
