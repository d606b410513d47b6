"""How well answers are what they were asked to be: asked against measured values of an attribute."""

from __future__ import annotations

import math

import numpy as np

from assent.statistics import Interval

RESAMPLES = 2000


def correlation(asked: np.ndarray, measured: np.ndarray, prompt: np.ndarray, seed: int = 0) -> Interval:
    """Pearson's correlation of asked and measured values [n], with a bootstrap interval (percentiles, 95 %) that
    resamples the prompts [n], so that answers to one prompt do not pass for independent evidence. A measured NaN is
    left out and counted; NaN where either does not vary.

        r = (n Sxy - Sx Sy) / sqrt((n Sxx - Sx^2) (n Syy - Sy^2))"""
    there = ~np.isnan(measured)
    missing = int((~there).sum())
    x, y = asked[there].astype(np.float64), measured[there].astype(np.float64)
    if len(x) == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing)
    x, y = x - x.mean(), y - y.mean()
    _, group = np.unique(prompt[there], return_inverse=True)
    sums = np.zeros((group.max() + 1, 6))
    np.add.at(sums, group, np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1))
    whole = float(_pearson(sums.sum(0)))
    if len(sums) < 2 or math.isnan(whole):
        return Interval(whole, math.nan, math.nan, len(x), missing)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    low, high = np.nanpercentile(_pearson(drawn @ sums), (2.5, 97.5))
    return Interval(whole, float(low), float(high), len(x), missing)


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Of sums [..., 6] over answers: 1, x, y, x^2, y^2, x y."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (n * xx - x * x) * (n * yy - y * y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, (n * xy - x * y) / np.sqrt(np.maximum(spread, 0)), np.nan)
