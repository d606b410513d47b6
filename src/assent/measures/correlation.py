"""Rank correlations, plain and with other columns held fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

_LEFT = 1e-10
"""Share of a column's variance below which nothing is left of it."""


def spearman(x: np.ndarray, y: np.ndarray, given: Sequence[np.ndarray] = ()) -> float:
    """Spearman's rank correlation of x and y [n]; with `given` the partial one: of what is left of the ranks of x and y
    after least squares on the ranks of the given columns (Kendall 1942; Conover 1999, §5.4).

    NaN where it is not defined: a column is constant, or the given ones leave nothing of it, or n < len(given) + 3."""
    if len(x) < len(given) + 3:
        return math.nan
    controls = np.column_stack([np.ones(len(x)), *(rankdata(column) for column in given)])
    left = []
    for column in (rankdata(x), rankdata(y)):
        residual = column - controls @ np.linalg.lstsq(controls, column, rcond=None)[0]
        total = float(((column - column.mean()) ** 2).sum())
        if total == 0 or float((residual**2).sum()) <= _LEFT * total:
            return math.nan
        left.append(residual)
    a, b = left
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def mirrored(x: np.ndarray) -> np.ndarray:
    """Differences [n] and their opposites [2n]: correlations of these do not depend on which answer of a pair stands
    first."""
    return np.concatenate([x, -x])
