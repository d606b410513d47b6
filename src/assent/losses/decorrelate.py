"""Length taken out of the attributes of a reward: each loses as much of verbosity as makes the two unrelated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

PENALTIES = (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, *(round(0.05 * step, 2) for step in range(4, 20)))
"""The penalties that are tried in turn, from 0 to 0.95."""


@dataclass(frozen=True, slots=True)
class Decorrelation:
    """The transform `matrix` [K, K] (attributes without length = attributes @ matrix), and for each attribute its
    penalty and its rank correlation with verbosity before and after, [K] each. `unmet` are those that stay above the
    limit whatever the penalty. Of verbosity itself nothing is left (penalty 1, correlation after 0)."""

    matrix: np.ndarray
    penalty: np.ndarray
    before: np.ndarray
    after: np.ndarray
    unmet: tuple[int, ...]


def decorrelate(
    outputs: np.ndarray, verbosity: int, *, limit: float = 0.03, penalties: Sequence[float] = PENALTIES
) -> Decorrelation:
    """The smallest penalty for each attribute that makes it rank answers apart from their length (arXiv 2406.12845).

        p_k = min {p in penalties : spearman(r_k - p r_v, r_v) <= limit},   1 where none is small enough
        M   = I;   M[v, k] -= p_k for all k,   p_v = 1

    A negative relation stays: that is no taste for length.

    outputs    [n, K]  attributes r of n answers
    verbosity          v, the attribute that stands for length
    penalties          in rising order

    Raises ValueError on other shapes, fewer than three answers, and attributes that are constant or not finite.
    """
    if outputs.ndim != 2 or len(outputs) < 3 or not 0 <= verbosity < outputs.shape[1]:
        raise ValueError(f"decorrelate: expected at least three rows and column {verbosity}; got {outputs.shape}.")
    r = outputs.astype(np.float64)
    if not np.isfinite(r).all() or (np.ptp(r, axis=0) == 0).any():
        raise ValueError("decorrelate: attributes must be finite and not constant.")
    size = r.shape[1]
    length = _standard_ranks(r[:, verbosity])
    penalty, before, after, unmet = np.ones(size), np.ones(size), np.zeros(size), []
    for k in (k for k in range(size) if k != verbosity):
        relations = []
        for p in penalties:
            relations.append(float(_standard_ranks(r[:, k] - p * r[:, verbosity]) @ length))
            if relations[-1] <= limit:
                penalty[k] = p
                break
        else:
            relations.append(float(_standard_ranks(r[:, k] - r[:, verbosity]) @ length))
            unmet += [k] if relations[-1] > limit else []
        before[k], after[k] = relations[0], relations[-1]
    matrix = np.eye(size)
    matrix[verbosity] -= penalty
    return Decorrelation(matrix, penalty, before, after, tuple(unmet))


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (ties share their mean) as a vector of mean 0 and length 1: products of two are Spearman's correlations."""
    ranks = rankdata(values)
    ranks -= ranks.mean()
    size = np.sqrt(ranks @ ranks)
    return ranks / size if size > 0 else ranks
