"""The front of a loop: models between two, each by its KL from the first and by its rewards."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assent.evaluate.plots import COLORS
from assent.evaluate.results import KL, LENGTH, REWARD, UNFINISHED, PolicyResult, PolicyTable
from assent.statistics import Interval

TABLE, CSV, FIGURE = "front.json", "front.csv", "front.svg"


@dataclass(frozen=True)
class Point:
    """A model of the front: its share of the way, where it lies, and its numbers by measure."""

    eta: float
    name: str
    path: str
    numbers: Mapping[str, Interval]


@dataclass(frozen=True)
class Front:
    """Its models by rising share of the way; `prompts` is how many they answered."""

    points: Sequence[Point]
    prompts: int

    @property
    def rewards(self) -> list[str]:
        return [key for key in self.points[0].numbers if key.startswith(REWARD)]

    def json(self) -> str:
        rows = [
            {"eta": p.eta, "name": p.name, "model": p.path} | {key: _plain(found) for key, found in p.numbers.items()}
            for p in self.points
        ]
        return json.dumps({"prompts": self.prompts, "front": rows}, indent=1, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        text = io.StringIO()
        parts = ("value", "low", "high", "missing")
        keys = list(self.points[0].numbers)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["eta", "name", "model", *(f"{key} {part}" for key in keys for part in parts)])
        for p in self.points:
            found = [_plain(p.numbers[key]) for key in keys]
            writer.writerow([p.eta, p.name, p.path, *(each[part] for each in found for part in parts)])
        return text.getvalue()

    def lines(self) -> list[str]:
        """The front in words, a line for each model."""
        return [
            f"eta {p.eta:g}: KL {_said(p.numbers[KL])}, "
            + ", ".join(f"{key.removeprefix(REWARD)} {_said(p.numbers[key])}" for key in self.rewards)
            for p in self.points
        ]

    def svg(self) -> str:
        """Each reward by KL, with intervals."""
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
            drawing = Figure(figsize=(3.6 * max(1, len(self.rewards)), 2.9), layout="constrained")
            for axes, key in zip(drawing.subplots(1, len(self.rewards), squeeze=False)[0], self.rewards, strict=True):
                self._panel(axes, key)
            text = io.StringIO()
            drawing.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
        return text.getvalue()

    def _panel(self, axes: Axes, key: str) -> None:
        there = [p for p in self.points if p.numbers[KL].n and p.numbers[key].n]
        x, y = ([p.numbers[name] for p in there] for name in (KL, key))
        axes.errorbar(
            [each.mean for each in x], [each.mean for each in y], xerr=_bars(x), yerr=_bars(y),
            color=COLORS[0], marker="o", markersize=4, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
        for p in there:
            place = p.numbers[KL].mean, p.numbers[key].mean
            axes.annotate(f"η {p.eta:g}", place, textcoords="offset points", xytext=(4, -9), fontsize=7)
        axes.set_xlabel("KL from the start, nats per answer")
        axes.set_ylabel(key.removeprefix(REWARD))
        axes.spines[["top", "right"]].set_visible(False)


def front_of(table: PolicyTable, etas: Mapping[str, float]) -> Front:
    """The front in an evaluation, whose policies are `etas` by name."""
    points = [_point(policy, etas[policy.name]) for policy in table.policies]
    return Front(sorted(points, key=lambda point: point.eta), table.prompts)


def _point(policy: PolicyResult, eta: float) -> Point:
    keys = [KL, *(key for key in policy.numbers if key.startswith(REWARD)), LENGTH, UNFINISHED]
    model = PurePath(policy.path)
    shown = f"front/{model.name}" if eta > 0 else policy.path
    return Point(eta, policy.name, shown, {key: policy.interval(key) for key in keys})


def _plain(found: Interval) -> dict[str, float | int | None]:
    known = {"value": found.mean, "low": found.low, "high": found.high}
    return {name: value if value == value else None for name, value in known.items()} | {"missing": found.missing}


def _said(found: Interval) -> str:
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _bars(found: Sequence[Interval]) -> list[list[float]]:
    """How far intervals reach to both sides; nothing where there is none."""
    ends = [(max(0.0, each.mean - each.low), max(0.0, each.high - each.mean)) for each in found]
    return [[end[side] if end[side] == end[side] else 0.0 for end in ends] for side in (0, 1)]
