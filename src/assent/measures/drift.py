"""An alarm for a run whose policy drifts away: its lengths, repetition, refusals, entropy, variety, KL and held-out
reward, each watched by a sequential test with a stated rate of false alarms.

A run is healthy while each series stays within a slack of its start (or, for the held-out reward, of the best that it
had). The noise is that between neighbouring points of the start. A cumulative sum (CUSUM, Page 1954) of how far beyond
the slack each point lies, in units of that noise, raises the alarm where it passes a threshold; the threshold is where
the sums of healthy series of independent normal points pass it in `rate` of the runs at most, all series together, the
uncertainty of the start included (simulated, seeded). Neighbouring points that go together more than that raise more.

What it costs: a series must leave its bounds by more than its noise for some points. In simulated runs of 60 points
whose held-out reward falls from its best by one noise a point, the alarm comes 10 points after the turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from assent.errors import UserError
from assent.measures.diversity import distinct, repetition
from assent.measures.refusal import label, unreadable

START = 10
"""Points of a healthy start."""
RATE = 0.05
"""Chance that a healthy run raises any alarm."""
ALLOWANCE = 1.0
"""Noise that a point must lie beyond the slack to add to the sum: shifts of twice that are found quickest."""
CLIP = 8.0
"""Noise that one point can add at most: no single outlier is an alarm."""
OF_BEST = 2.0
"""The same of a series that is kept to its best level: the highest of many levels is high by chance already."""
WINDOW = 10
"""Points whose median is a level that the held-out reward had; as many as the start, where that is shorter."""
SIMULATIONS = 4000
CHUNK = 200_000
"""Simulated points that are in memory at once."""
_NORMAL = math.sqrt(math.pi) / 2  # of the mean |difference| of two normal numbers: their standard deviation


@dataclass(frozen=True, slots=True)
class Watch:
    """What is watched of a series. `slack` is how far it may go, of its start's level where `relative`, else in its own
    unit; `best`: from the best level that it had instead of the start. Where the series `of` are there, it may go
    `share` of their product at the start instead."""

    series: str
    side: Literal["up", "down"]
    slack: float
    relative: bool = False
    best: bool = False
    share: float = 0.0
    of: tuple[str, ...] = ()


WATCHES: tuple[Watch, ...] = (
    Watch("length", "up", 1.0, relative=True),
    Watch("length", "down", 0.5, relative=True),
    Watch("repetition", "up", 0.1),
    Watch("refusal", "up", 0.1),
    Watch("entropy", "down", 0.5, relative=True),
    Watch("distinct", "down", 0.5, relative=True),
    Watch("kl", "up", 20.0, share=0.125, of=("entropy", "length")),
    Watch("held_out", "down", 0.0, best=True),
)
"""What a healthy run keeps to, by default: answers up to twice and down to half as long as in the beginning, a tenth
more repeated 4-grams and refusals, half the entropy, half the distinct n-grams, a KL of an eighth of the entropy that
an answer had (20 nats where that is not known), and a held-out reward that does not fall from its best."""

MEANING: Mapping[str, str] = {
    "length": "Answers are no longer as long as they were.",
    "repetition": "Answers repeat themselves.",
    "refusal": "More answers refuse.",
    "entropy": "The policy is about to say one thing only.",
    "distinct": "Answers become alike.",
    "kl": "The policy is far from its reference.",
    "held_out": "What the policy is trained by still rewards it; what it is not trained by does not.",
}
"""Series -> what it means that its alarm was raised."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """The first point (its place in the series) at which a watch raised the alarm, and what it saw: the level of the
    points that did it, and the one that was to be kept to."""

    watch: Watch
    point: int
    level: float
    bound: float

    def __str__(self) -> str:
        return f"{self.said} at point {self.point + 1}"

    @property
    def said(self) -> str:
        """What it saw."""
        gone = "risen above" if self.watch.side == "up" else "fallen below"
        since = "the best that it had" if self.watch.best else "its start"
        slack = f"{100 * self.watch.slack:.0f} %" if self.watch.relative else f"{self.watch.slack:.3g}"
        limit = f"{self.bound:.4g} ({slack} from {since})" if self.watch.slack else f"{self.bound:.4g} ({since})"
        return f"{self.watch.series} has {gone} {limit}: {self.level:.4g}"


def alarms(
    series: Mapping[str, np.ndarray],
    *,
    horizon: int,
    watches: Sequence[Watch] = WATCHES,
    start: int = START,
    rate: float = RATE,
) -> tuple[Alarm, ...]:
    """The alarms of a run so far, earliest first; at most one of each watch.

    series    name -> its points so far [n], NaN where there is none; a series that is missing is not watched
    horizon   points that the whole run will have, for which `rate` holds: the same at every call of one run

    The same points give the same alarms however many follow. Raises `UserError` for a start of fewer than 5 points, a
    horizon that is no longer than it, and more points than the horizon."""
    if not 5 <= start < horizon:
        raise UserError(f"an alarm needs a start of 5 points or more and a longer horizon. Got {start} of {horizon}")
    used = [_scaled(watch, series, start) for watch in watches if watch.series in series]
    raised = []
    for watch in used:
        every = np.asarray(series[watch.series], np.float64)
        if len(every) > horizon:
            raise UserError(f"{watch.series} has {len(every)} points, more than the horizon of {horizon}")
        places = np.flatnonzero(np.isfinite(every))
        points = every[places]
        if len(points) <= start:
            continue
        sums, bounds = _sums(points[None], watch, start)
        over = np.flatnonzero(sums[0] > _threshold(start, horizon, rate / len(used), watch.best))
        if len(over):
            first = int(over[0])
            since = 1 + max((n for n in range(first) if sums[0, n] == 0), default=start - 1)
            level, bound = float(points[since : first + 1].mean()), float(bounds[0, first])
            raised.append(Alarm(watch, int(places[first]), level, bound))
    return tuple(sorted(raised, key=lambda alarm: alarm.point))


# ---- series


def of_texts(texts: Sequence[str]) -> dict[str, float]:
    """The series of how some answers read: mean repetition of 4-grams, share of refusals, distinct-2. NaN where none
    can be told."""
    repeated = [value for text in texts if not math.isnan(value := repetition(text))]
    refused = [label(text) == "refusal" for text in texts if not unreadable(text)]
    every = np.arange(len(texts))
    return {
        "repetition": float(np.mean(repeated)) if repeated else math.nan,
        "refusal": float(np.mean(refused)) if refused else math.nan,
        "distinct": distinct(texts, every, 2)(every) if len(texts) else math.nan,
    }


# ---- alarms


def _scaled(watch: Watch, series: Mapping[str, np.ndarray], start: int) -> Watch:
    """The watch with the slack that the series `of` give, where all are there."""
    found = [np.asarray(series[name], np.float64) for name in watch.of if name in series]
    if not watch.of or len(found) < len(watch.of):
        return watch
    product = np.prod(np.stack(found), axis=0)
    known = product[np.isfinite(product)][:start]
    return replace(watch, slack=watch.share * float(np.median(known))) if len(known) == start else watch


def _sums(points: np.ndarray, watch: Watch, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The cumulative sums of each run and the levels that it was to keep to, [R, n] each, of points [R, n]."""
    sign = 1.0 if watch.side == "up" else -1.0
    turned = sign * points
    first = turned[:, :start]
    centre = np.median(first, axis=1)
    noise = np.abs(np.diff(first, axis=1)).mean(axis=1) * _NORMAL
    slack = watch.slack * np.abs(centre) if watch.relative else np.full(len(points), watch.slack)
    # A start without noise (no repetition at all) would make the first change infinitely surprising.
    noise = np.maximum(noise, np.maximum(slack / 10, 1e-3 * np.abs(centre) + 1e-12))
    allowance = OF_BEST if watch.best else ALLOWANCE
    level = _lowest(turned, min(WINDOW, start)) if watch.best else np.broadcast_to(centre[:, None], turned.shape)
    beyond = (turned - level - slack[:, None]) / noise[:, None]
    added = np.cumsum(np.minimum(beyond[:, start:], CLIP) - allowance, axis=1)
    sums = np.zeros_like(turned)
    sums[:, start:] = added - np.minimum.accumulate(np.minimum(added, 0.0), axis=1)
    return sums, sign * (level + slack[:, None])


def _lowest(turned: np.ndarray, window: int) -> np.ndarray:
    """The best level before each point, [R, n]: the lowest median of `window` neighbours among the points before it."""
    windows = np.lib.stride_tricks.sliding_window_view(turned, window, axis=1)
    lowest = np.minimum.accumulate(np.median(windows, axis=2), axis=1)
    level = np.empty_like(turned)
    level[:, :window] = lowest[:, :1]
    level[:, window:] = lowest[:, : turned.shape[1] - window]
    return level


@lru_cache(maxsize=64)
def _threshold(start: int, horizon: int, rate: float, best: bool) -> float:
    """What the sum of a healthy series passes in `rate` of the runs."""
    rng, watch, highest = np.random.default_rng(0), Watch("", "up", 0.0, best=best), []
    for runs in _portions(SIMULATIONS, max(1, CHUNK // horizon)):
        sums, _ = _sums(rng.normal(size=(runs, horizon)), watch, start)
        highest.append(sums.max(axis=1))
    return float(np.quantile(np.concatenate(highest), 1 - rate))


def _portions(total: int, size: int) -> list[int]:
    return [min(size, total - begun) for begun in range(0, total, size)]
