"""The drift alarm of a run (`assent.measures.drift`): which series it watches, what it says, and that it stops."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from assent.config import AlarmConfig, PolicyRunConfig
from assent.deferred import Deferred
from assent.measures import drift
from assent.outputs import write_text
from assent.train.facts import Line, percent

log = logging.getLogger(__name__)

FILE = "alarms.jsonl"
"""What was raised, in the run folder: {step, series, level, bound, says}."""
OWN = ("repetition", "refusal", "distinct", "held_out")
"""Series that only the alarm measures, under alarm/; the others are what is logged anyway."""
Points = Literal["rollout", "evaluation"]
READ = "Read the newest answers in samples.jsonl. Remedies: "
ADVICE: Mapping[Points, str] = {
    "rollout": READ + "a larger --kl.coef, a smaller --optim.lr, an earlier checkpoint, a better reward.",
    "evaluation": READ
    + "a smaller --optim.lr, fewer steps, an earlier checkpoint; of a preference objective a larger --loss.beta.",
}


@dataclass(frozen=True, slots=True)
class Raised:
    """A row of alarms.jsonl."""

    step: int
    series: str
    level: float
    bound: float
    says: str


def alarm_of(config: PolicyRunConfig, points: Points, horizon: int) -> DriftAlarm | None:
    """The alarm of a run that will have so many points; None where it is turned off. Says where it was asked for and
    the run is too short for it."""
    options = config.alarm
    if not options.rate:
        return None
    alarm = DriftAlarm(options, points, horizon, held_out=options.held_out is not None)
    asked = [flag for flag, given in (("held_out", options.held_out), ("stop", options.stop)) if given]
    if asked and not alarm.on:
        flags = " and ".join(f"--alarm.{flag}" for flag in asked)
        log.warning(f"{flags}: the drift alarm is {alarm.about()[0].text}.")
    return alarm


class DriftAlarm:
    """Each of `points` in a run is a point of all series; `horizon` is how many there will be. `raised` are the alarms
    so far. It changes nothing of the run but whether it goes on."""

    def __init__(self, config: AlarmConfig, points: Points, horizon: int, *, held_out: bool) -> None:
        self.config, self.points, self.horizon = config, points, horizon
        self.watches = tuple(watch for watch in drift.WATCHES if held_out or watch.series != "held_out")
        self.on = 0 < config.rate and config.start < horizon
        self.steps: list[int] = []
        self.series: dict[str, list[float]] = {watch.series: [] for watch in self.watches}
        self.raised: tuple[Raised, ...] = ()
        self._known: set[tuple[str, str]] = set()

    def take(self, step: int, metrics: Mapping[str, float]) -> tuple[Raised, ...]:
        """The metrics of a point; the alarms that it raises. All ranks are given the same."""
        if not self.on:
            return ()
        before = "eval/" if self.points == "evaluation" else ""
        self.steps.append(step)
        for name, values in self.series.items():
            values.append(metrics.get(f"{before}{'alarm/' if name in OWN else ''}{name}", np.nan))
        found = drift.alarms(
            {name: np.array(values) for name, values in self.series.items()},
            horizon=max(self.horizon, len(self.steps)),
            watches=self.watches,
            start=self.config.start,
            rate=self.config.rate,
        )
        new = [alarm for alarm in found if (alarm.watch.series, alarm.watch.side) not in self._known]
        rows = tuple(self._row(step, alarm) for alarm in new)
        self.raised += rows
        self._known |= {(alarm.watch.series, alarm.watch.side) for alarm in new}
        return rows

    def _row(self, step: int, alarm: drift.Alarm) -> Raised:
        says = f"step {step:,}: {alarm.said}. {drift.MEANING[alarm.watch.series]} {ADVICE[self.points]}"
        return Raised(step, alarm.watch.series, alarm.level, alarm.bound, says)

    def about(self) -> list[Line]:
        """For the opening of the run."""
        if not self.config.rate:
            return []
        start, each = self.config.start, f"{self.points}s"
        if not self.on:
            return [Line("Alarm", f"off: the run has {self.horizon} {each}, and {start} are its start (--alarm.start)")]
        names = ", ".join(dict.fromkeys(watch.series.replace("_", "-") for watch in self.watches))
        stops = "; it stops the run" if self.config.stop else ""
        rate = f"raised in {percent(self.config.rate)} of healthy runs at most{stops}"
        return [Line("Alarm", f"{names} of {self.horizon:,} {each}, after the first {start}; {rate}")]

    def write(self, folder: Path) -> None:
        """alarms.jsonl as it stands; none where nothing was raised. On rank 0 only. Raises OutputError."""
        rows = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.raised)
        if rows or (folder / FILE).exists():
            write_text(folder / FILE, rows)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        number = len(self.steps)  # they only grow
        return {
            "points": Deferred(
                lambda: {
                    "steps": self.steps[:number],
                    "series": {name: values[:number] for name, values in self.series.items()},
                }
            ),
            "raised": [asdict(row) for row in self.raised],
            "known": sorted(map(list, self._known)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = list(state["points"]["steps"])
        self.series |= {name: list(values) for name, values in state["points"]["series"].items() if name in self.series}
        self.raised = tuple(Raised(**row) for row in state["raised"])
        self._known = {(name, side) for name, side in state["known"]}
