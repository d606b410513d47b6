"""What leads read of statistics: numbers with their intervals, the coefficient to go by, and a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assent.measures.estimates import Estimate
from assent.measures.tastes import Taste
from assent.people.agree import Agreement
from assent.people.store.quality import Point
from assent.statistics import Interval

WIDE, HIGH, LEFT, BELOW, ABOVE = 720, 220, 62, 32, 12
"""A chart's size, and its margins: left, below and above, in its own units."""
STEPS = 4


@dataclass(frozen=True)
class Cell:
    """A number with its interval, of so many values; `text` is empty where there is none."""

    text: str
    bounds: str = ""
    n: int = 0
    why: str = ""


NOTHING = Cell("")


def share_cell(value: Interval | None) -> Cell:
    """A share in per cent."""
    if value is None or not value.n or math.isnan(value.mean):
        return NOTHING
    bounds = "" if math.isnan(value.low) else f"{100 * value.low:.0f} to {100 * value.high:.0f}"
    return Cell(f"{100 * value.mean:.0f} %", bounds, value.n)


def estimate_cell(value: Estimate) -> Cell:
    """A coefficient."""
    if value.value is None:
        return Cell("", why=value.problem)
    bounds = "" if value.low is None or value.high is None else f"{value.low:.2f} to {value.high:.2f}"
    return Cell(f"{value.value:.2f}", bounds, value.n)


def taste_cell(value: Taste, names: Sequence[str]) -> Cell:
    """A taste as how often the preferred side is taken where worth decides nothing."""
    if not value.error > 0 or math.isnan(value.value):
        return NOTHING
    low, middle, high = (1 / (1 + math.exp(-(value.value + k * value.error))) for k in (-1.96, 0, 1.96))
    name = names[0] if middle >= 0.5 else names[1]
    if middle < 0.5:
        low, middle, high = 1 - high, 1 - middle, 1 - low
    return Cell(f"{name} {100 * middle:.0f} %", f"{100 * low:.0f} to {100 * high:.0f}")


@dataclass(frozen=True)
class Question:
    """One question's agreement as a row: `cells` by coefficient; `read` is the one to go by."""

    name: str
    items: int
    cells: Mapping[str, Cell]
    read: str
    notes: tuple[str, ...]
    topics: Mapping[str, Mapping[str, Cell]]


def question_row(found: Agreement) -> Question:
    """Gwet's AC is read where alpha misleads, else alpha."""
    cells = {_short(name): estimate_cell(value) for name, value in found.coefficients.items()}
    misled = any("Gwet" in note for note in found.notes)
    gwet = "AC2" if "AC2" in cells else "AC1"
    topics = {
        name: {_short(key): estimate_cell(value) for key, value in part.items()} for name, part in found.topics.items()
    }
    strong = found.question == "comparison" and found.scale == "ordinal"
    return Question(
        "Comparison, with strengths" if strong else found.question.capitalize(), found.twice, cells,
        gwet if misled else "α",
        tuple(f"{note[:1].upper()}{note[1:]}." for note in found.notes), topics,
    )  # fmt: skip


def _short(name: str) -> str:
    if name.startswith("Krippendorff"):
        return "α"
    return {"observed agreement": "agree", "Fleiss' κ": "Fleiss' κ"}.get(name, name.removeprefix("Gwet's "))


# ---- the chart


@dataclass(frozen=True)
class Mark:
    """A point where it is drawn, with the ends of its interval, and in words."""

    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Chart:
    """Agreement over time, in the chart's own units."""

    marks: tuple[Mark, ...]
    lines: tuple[tuple[float, str], ...]
    """Where a line goes across, and what stands beside it."""
    wide: int = WIDE
    high: int = HIGH
    left: int = LEFT
    bottom: int = HIGH - BELOW

    @property
    def path(self) -> str:
        return " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in self.marks)


def chart_of(points: Sequence[Point]) -> Chart | None:
    """None where there are fewer than two points."""
    if len(points) < 2:
        return None
    lowest = min(point.agreement.low for point in points)
    floor = max(0.0, math.floor(10 * lowest) / 10)
    floor = floor if floor <= 0.8 else 0.8

    def across(share: float) -> float:
        return ABOVE + (HIGH - BELOW - ABOVE) * (1 - (share - floor) / (1 - floor))

    width = WIDE - LEFT - 14
    marks = tuple(
        Mark(
            LEFT + 8 + width * place / (len(points) - 1), across(point.agreement.mean), across(point.agreement.low),
            across(point.agreement.high), "",
        )
        for place, point in enumerate(points)
    )  # fmt: skip
    levels = [floor + (1 - floor) * step / STEPS for step in range(STEPS + 1)]
    return Chart(marks, tuple((across(level), f"{100 * level:.0f} %") for level in levels))
