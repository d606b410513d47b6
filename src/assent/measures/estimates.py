"""Numbers with their intervals, or the reason why there is none; and intervals of any statistic by drawing prompts
anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
"""Draws of prompts: the bounds then move by about 3 % of the interval's width from seed to seed."""
EQUAL = 1e-9
"""Draws that differ by less are the same number."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % bounds, from `n` values; None, and the `problem` in words, where it is not defined. The
    bounds alone are None where there is too little for them, and `high` alone where there is none above."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    problem: str = ""


def undefined(problem: str, n: int = 0) -> Estimate:
    """No number, and why."""
    return Estimate(None, n=n, problem=problem)


def estimate(
    statistic: Callable[[np.ndarray], float],
    prompt: np.ndarray,
    *,
    problem: str = "too few values",
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`statistic(rows)` of all rows [n], with the percentile interval of its values when whole prompts are drawn anew:
    several answers to one prompt do not pass for independent evidence.

    `statistic` takes indices of rows and gives NaN where it is not defined. Draws in which it is not are left out;
    there are no bounds where these are more than half. Efron & Tibshirani 1993, ch. 13."""
    n = len(prompt)
    value = statistic(np.arange(n)) if n else math.nan
    if math.isnan(value):
        return undefined(problem, n)
    draws = np.array([statistic(rows) for rows in _resampled(prompt, resamples, seed)])
    draws = draws[~np.isnan(draws)]
    if len(draws) < max(1, resamples / 2):
        return Estimate(float(value), n=n)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high), n)


def estimates(
    statistic: Callable[[np.ndarray], np.ndarray],
    items: int,
    *,
    problem: str = "too few values",
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Estimate]:
    """As `estimate`, of several statistics [K] at once, each item a prompt of its own, where they can be told from how
    often each item is drawn: `statistic(weights [items])`.

    Bounds that are the same are left out: what is alike in every draw says nothing about how sure it is."""
    values = statistic(np.ones(items)) if items else np.zeros(0)
    rng = np.random.default_rng(seed)
    draws = np.full((resamples if items > 1 else 0, len(values)), math.nan)
    for row in draws:
        row[:] = statistic(np.bincount(rng.integers(0, items, items), minlength=items).astype(np.float64))
    found = []
    for value, drawn in zip(values.tolist(), draws.T, strict=True):
        there = drawn[~np.isnan(drawn)]
        if math.isnan(value):
            found.append(undefined(problem, items))
        elif len(there) < max(1, resamples / 2) or np.ptp(there) < EQUAL:
            found.append(Estimate(value, n=items))
        else:
            low, high = np.quantile(there, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
            found.append(Estimate(value, low, high, items))
    return found


def _resampled(prompt: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Indices of rows, `resamples` times: those of as many prompts as there are, drawn with replacement. One prompt
    alone gives nothing."""
    _, codes, counts = np.unique(prompt, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return []
    order, starts = np.argsort(codes, kind="stable"), np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        clusters = rng.integers(0, len(counts), len(counts))
        sizes = counts[clusters]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        drawn.append(order[np.repeat(starts[clusters], sizes) + within])
    return drawn
