"""Evaluations that a run remembers (of its start, its best step and its end), and what has changed between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assent.statistics import Interval, ratio_interval


@dataclass(frozen=True, slots=True)
class Each:
    """A held-out metric of every example: its mean is sum(sums) / sum(counts), [P] each. An example that has no value
    has the count 0."""

    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, found: Mapping[int, tuple[float, float]], number: int) -> Each:
        """From (sum, count) by the example's position among `number`."""
        sums, counts = np.zeros((2, number))
        for position, (total, count) in found.items():
            sums[position], counts[position] = total, count
        return cls(sums, counts)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out metrics (names under "eval/"), rows for samples.jsonl, and the followed metric of every example."""

    metrics: dict[str, float]
    samples: list[dict[str, object]] = field(default_factory=list)
    each: Each | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """An evaluation of the weights of `step`."""

    step: int
    metrics: Mapping[str, float]
    each: Each | None = None

    def state_dict(self) -> dict[str, Any]:
        each = None if self.each is None else {"sums": self.each.sums, "counts": self.each.counts}
        return {"step": self.step, "metrics": dict(self.metrics), "each": each}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Measured:
        each = state["each"]
        return cls(state["step"], state["metrics"], None if each is None else Each(each["sums"], each["counts"]))


def change(start: Measured, end: Measured) -> Interval | None:
    """By how much the followed metric has risen, with its 95 % interval. The same examples are compared one by one;
    those without a value on either side are left out. None where the two cannot be paired."""
    first, last = start.each, end.each
    if first is None or last is None or len(first.counts) != len(last.counts):
        return None
    there = (first.counts > 0) & (last.counts > 0)
    if not np.array_equal(first.counts[there], last.counts[there]):
        return None
    return ratio_interval(np.where(there, last.sums - first.sums, 0.0), np.where(there, first.counts, 0.0))
