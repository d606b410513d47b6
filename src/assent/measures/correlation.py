"""Rank correlations, plain and with other columns held fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_LEFT = 1e-10
"""Share of a column's variance below which nothing is left of it."""


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] from 1, equal values with the mean of theirs; as scipy's `rankdata`, without its overhead, since
    resampling asks thousands of times."""
    order = np.argsort(values, kind="stable")
    first = np.r_[True, np.diff(values[order]) != 0]
    group = np.cumsum(first) - 1
    ends = np.r_[np.flatnonzero(first), len(values)]
    made = np.empty(len(values))
    made[order] = ((ends[:-1] + 1 + ends[1:]) / 2)[group]
    return made


def spearman(x: np.ndarray, y: np.ndarray, given: Sequence[np.ndarray] = ()) -> float:
    """Spearman's rank correlation of x and y [n]; with `given` the partial one: of what is left of the ranks of x and y
    after least squares on the ranks of the given columns (Kendall 1942; Conover 1999, §5.4).

    NaN where it is not defined: a column is constant, or the given ones leave nothing of it, or n < len(given) + 3."""
    n = len(x)
    if n < len(given) + 3:
        return math.nan
    a, b, *controls = (ranks(column) - (n + 1) / 2 for column in (x, y, *given))
    total = a @ a, b @ b
    for control in _orthogonal(controls):
        a, b = a - (control @ a) * control, b - (control @ b) * control
    left = a @ a, b @ b
    if any(size == 0 or rest <= _LEFT * size for size, rest in zip(total, left, strict=True)):
        return math.nan
    return float(np.clip(a @ b / math.sqrt(left[0] * left[1]), -1.0, 1.0))


def _orthogonal(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """An orthonormal basis of centred columns, those left out that add nothing (Gram and Schmidt, twice each)."""
    basis: list[np.ndarray] = []
    for column in columns:
        rest = column
        for _ in range(2):
            for other in basis:
                rest = rest - (other @ rest) * other
        size = rest @ rest
        if size > _LEFT * (column @ column):
            basis.append(rest / math.sqrt(size))
    return basis


def mirrored(x: np.ndarray) -> np.ndarray:
    """Differences [n] and their opposites [2n]: correlations of these do not depend on which answer of a pair stands
    first."""
    return np.concatenate([x, -x])
