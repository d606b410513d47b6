"""A run that may be at work, from its files, look by look: only what was written since the last look is read."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from assent import lock
from assent.errors import RunFolderError
from assent.evaluate.alarms import alarms_of
from assent.evaluate.runs import Columns, Run, Series, find_runs, is_step
from assent.lock import Owner
from assent.train import closing, opening
from assent.train.commands import SPAN, TrainingCommand, named_command

State = Literal["starting", "training", "finishing", "finished", "stopped"]
KEPT = 64
"""Newest answers that are remembered."""
TRACE = 64
"""Bytes before the place up to which a file was read: where they have changed, it is another file."""


@dataclass(frozen=True)
class View:
    """One look at a run. `step` is the last that was logged, `total` the last that there will be, where that is known;
    `silence` are the seconds since anything was logged. `lines` are what the run said before its first step, `answers`
    rows of samples.jsonl, the newest last."""

    path: Path
    state: State
    step: int = 0
    total: int | None = None
    silence: float | None = None
    owner: Owner | None = None
    command: TrainingCommand | None = None
    metrics: dict[str, Series] = field(default_factory=dict)
    answers: tuple[dict[str, Any], ...] = ()
    lines: dict[str, str] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether a process is at work."""
        return self.owner is not None

    @property
    def elapsed(self) -> float | None:
        """Seconds since that process began."""
        if self.owner is None:
            return None
        try:
            return max(0.0, time.time() - datetime.fromisoformat(self.owner.since).timestamp())
        except ValueError:
            return None

    @property
    def pace(self) -> float | None:
        """Seconds of a step, a mean of the last ones."""
        return self.now("time/step")

    @property
    def left(self) -> float | None:
        """Seconds to the last step at the pace of the last ones; evaluations and saving come on top."""
        if not self.runs or self.total is None or self.pace is None:
            return None
        return self.pace * max(0, self.total - self.step)

    def now(self, metric: str) -> float | None:
        """The mean of the last `SPAN` values of an optimiser step, the last one of an evaluation; None without any."""
        series = self.metrics.get(metric)
        if series is None:
            return None
        last = series.values[-1:] if metric.startswith("eval/") else series.values[-SPAN:]
        known = last[~np.isnan(last)]
        return float(known.mean()) if known.size else None


class Tail:
    """The rows that were added to a file of JSON lines since it was last asked. A row that is only half written comes
    when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end, self._trace = 0, b""

    def rows(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the rows are all there are, since the file was cut back or replaced, and the new ones. Lines that are
        no objects are left out: `assent report` names them."""
        try:
            with self.path.open("rb") as file:
                start = max(0, self._end - TRACE)
                file.seek(start)
                again = file.read(self._end - start) != self._trace
                file.seek(0 if again else self._end)
                new = file.read()
        except OSError:
            new, again = b"", self._end > 0
        whole = new[: new.rfind(b"\n") + 1]
        before = b"" if again else self._trace
        self._end = (0 if again else self._end) + len(whole)
        self._trace = (before + whole)[-min(TRACE, self._end) :] if self._end else b""
        return again, list(_objects(whole))


class Following:
    """One run folder. Every `look` costs what was written since the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics, self._samples = Tail(path / "metrics.jsonl"), Tail(path / "samples.jsonl")
        self._columns, self._answers = Columns(), deque[dict[str, Any]](maxlen=KEPT)

    def look(self) -> View:
        """The run as it is now."""
        again, rows = self._metrics.rows()
        if again:
            self._columns = Columns()
        for row in rows:
            self._columns.take(row)
        again, rows = self._samples.rows()
        if again:
            self._answers.clear()
        self._answers.extend(row for row in rows if isinstance(row.get("response"), str) and _prompt(row))
        metrics, step = self._columns.series(), max(0, self._columns.newest)
        start, owner = _json(self.path / opening.FILE), lock.holder(self.path)
        total = start.get("steps")
        total = total if isinstance(total, int) else None
        run = Run(self.path.name, self.path, metrics)
        return View(
            path=self.path,
            state=_state(self.path, owner, step, total, bool(metrics)),
            step=step,
            total=total,
            silence=_silence(self._metrics.path),
            owner=owner,
            command=_command(_json(self.path / "environment.json").get("command")),
            metrics=metrics,
            answers=tuple(self._answers),
            lines=_lines(start.get("lines")),
            alarms=alarms_of(run),
        )


def runs_at(folder: Path) -> list[Path]:
    """The run folders in or at `folder`, also one of which nothing is there yet but the process that has begun it.
    Raises `RunFolderError`."""
    try:
        return find_runs(folder)
    except RunFolderError:
        if folder.is_dir() and lock.holder(folder) is not None:
            return []
        raise


def _state(path: Path, owner: Owner | None, step: int, total: int | None, logged: bool) -> State:
    if owner is not None:
        if not logged or not step:
            return "starting"
        return "finishing" if step == total else "training"
    done = _json(path / closing.FILE).get("steps")
    return "finished" if isinstance(done, int) and done >= step else "stopped"


def _objects(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_step(row.get("step")):
            yield row


def _prompt(row: dict[str, Any]) -> bool:
    turns = row.get("prompt")
    return isinstance(turns, list) and bool(turns) and all(isinstance(t, dict) and "content" in t for t in turns)


def _json(path: Path) -> dict[str, Any]:
    """An object; empty where there is none, or none yet."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(found: object) -> dict[str, str]:
    """Those with a label."""
    pairs = found if isinstance(found, list) else []
    return {str(pair[0]): str(pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2 and pair[0]}


def _command(key: object) -> TrainingCommand | None:
    try:
        return named_command(key) if isinstance(key, str) else None
    except KeyError:  # of another version
        return None


def _silence(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
