"""How far annotators agree: Krippendorff's alpha, the kappas of Cohen and Fleiss, Gwet's AC1 and AC2, and Kendall's W.

Ratings are [I, A]: item, annotator; NaN where an annotator has not rated an item. Every coefficient is 1 where all
agree and about 0 where they agree as chance would. They differ in what chance is.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.stats import rankdata

Scale = Literal["nominal", "ordinal", "interval"]


def agreement(ratings: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Observed agreement p_o: over items with two ratings or more, the mean share of pairs of annotators that agree
    (with `weights` [C, C], the mean weight of their two ratings; 1 on the diagonal)."""
    counts = _counts(ratings)
    return _observed(counts, np.eye(counts.shape[1]) if weights is None else weights)


def krippendorff(ratings: np.ndarray, scale: Scale = "nominal") -> float:
    """Krippendorff's alpha = 1 - D_o / D_e (Krippendorff 2011): observed disagreement over that of the same values
    dealt out at random, with δ² = 1[v ≠ w] (nominal), (v - w)² (interval), or the squared number of values between two
    ranks, their own counting half (ordinal). Chance: all annotators draw from one pool of values, without replacement.
    NaN where there is only one value."""
    values, counts = _values(ratings), _counts(ratings)
    counts = counts[counts.sum(1) >= 2]
    each = counts.sum(1, keepdims=True)
    coincidence = ((counts[:, :, None] * counts[:, None, :]) / (each[:, :, None] - 1)).sum(0)
    coincidence -= np.diag((counts / (each - 1)).sum(0))
    total = coincidence.sum(1)
    distance = _distance(values, total, scale)
    n = total.sum()
    expected = float((np.outer(total, total) * distance).sum() / (n - 1)) if n > 1 else 0.0
    return 1 - float((coincidence * distance).sum()) / expected if expected > 0 else math.nan


def _distance(values: np.ndarray, total: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "nominal":
        return 1.0 - np.eye(len(values))
    place = values if scale == "interval" else np.cumsum(total) - total / 2
    squared: np.ndarray = (place[:, None] - place[None, :]) ** 2
    return squared


def cohen(ratings: np.ndarray, quadratic: bool = False) -> float:
    """Cohen's kappa of two annotators, κ = (p_o - p_e) / (1 - p_e), over the items that both rated; `quadratic` weighs
    with 1 - (v - w)² / range² (Cohen 1968). Chance: each annotator draws from their own values. For more than two
    annotators, the mean over all pairs (Light's kappa). NaN where both use one value only."""
    pairs = [
        _cohen(ratings[:, [one, other]], quadratic)
        for one in range(ratings.shape[1])
        for other in range(one + 1, ratings.shape[1])
    ]
    defined = [value for value in pairs if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _cohen(two: np.ndarray, quadratic: bool) -> float:
    both = two[~np.isnan(two).any(axis=1)]
    if not len(both):
        return math.nan
    values = np.unique(both)
    codes = np.searchsorted(values, both)
    table = np.zeros((len(values), len(values)))
    np.add.at(table, (codes[:, 0], codes[:, 1]), 1 / len(both))
    weights = quadratic_weights(values) if quadratic else np.eye(len(values))
    chance = float((np.outer(table.sum(1), table.sum(0)) * weights).sum())
    return (float((table * weights).sum()) - chance) / (1 - chance) if chance < 1 - 1e-12 else math.nan


def fleiss(ratings: np.ndarray) -> float:
    """Fleiss' kappa (1971), over the items with two ratings or more: κ = (p_o - p_e) / (1 - p_e), p_e = Σ_c π_c², π
    the shares of all ratings. Chance: all annotators draw from one pool. Defined for equally many ratings of each item;
    with others, items count alike in p_o and ratings in π."""
    counts = _counts(ratings)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return math.nan
    share = counts.sum(0) / counts.sum()
    chance = float(share @ share)
    return (_observed(counts, np.eye(len(share))) - chance) / (1 - chance) if chance < 1 - 1e-12 else math.nan


def gwet(ratings: np.ndarray, quadratic: bool = False, values: np.ndarray | None = None) -> float:
    """Gwet's AC1 (2008), with `quadratic` weights AC2 (2014): AC = (p_o - p_e) / (1 - p_e) with

        p_e = Σ_vw weight[v, w] / (C (C - 1)) · Σ_c π_c (1 - π_c),  π_c the mean over items of the share that says c

    Chance: only doubtful items are guessed, so that one frequent value does not make agreement look like chance. With
    one value only p_e is 0 and AC is 1. `values` [C] are all that could be given; default: those that were."""
    values = _values(ratings) if values is None else values
    counts = _counts(ratings, values)
    counts = counts[counts.sum(1) >= 1]
    if not (counts.sum(1) >= 2).any():
        return math.nan
    if len(values) < 2:
        return 1.0
    weights = quadratic_weights(values) if quadratic else np.eye(len(values))
    share = (counts / counts.sum(1, keepdims=True)).mean(0)
    chance = float(weights.sum() / (len(values) * (len(values) - 1)) * (share * (1 - share)).sum())
    return (_observed(counts, weights) - chance) / (1 - chance)


def kendall_w(ratings: np.ndarray) -> float:
    """Kendall's coefficient of concordance, corrected for ties, of m annotators that rated (or ranked) the same n
    items:

        W = (12 Σ_i R_i² - 3 m² n (n + 1)²) / (m² n (n² - 1) - m Σ_a T_a),  T_a = Σ over a's ties of t of (t³ - t)

    with R_i the sum of item i's ranks. Items that not all have rated are left out. NaN where nothing is ranked."""
    whole = ratings[~np.isnan(ratings).any(axis=1)]
    n, m = whole.shape
    if n < 2 or m < 2:
        return math.nan
    ranks = np.column_stack([rankdata(column) for column in whole.T])
    sizes = np.concatenate([np.unique(column, return_counts=True)[1] for column in whole.T]).astype(np.float64)
    ties = float((sizes**3 - sizes).sum())
    below = m**2 * n * (n**2 - 1) - m * ties
    sums = ranks.sum(1)
    return float((12 * (sums @ sums) - 3 * m**2 * n * (n + 1) ** 2) / below) if below > 0 else math.nan


def quadratic_weights(values: np.ndarray) -> np.ndarray:
    """[C, C]: 1 - (v - w)² / range²."""
    spread = float(np.ptp(values)) or 1.0
    weights: np.ndarray = 1 - ((values[:, None] - values[None, :]) / spread) ** 2
    return weights


def largest_share(ratings: np.ndarray) -> float:
    """The share of the most frequent value among all ratings."""
    counts = _counts(ratings).sum(0)
    return float(counts.max() / counts.sum()) if counts.sum() else math.nan


def _values(ratings: np.ndarray) -> np.ndarray:
    return np.unique(ratings[~np.isnan(ratings)])


def _counts(ratings: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """[I, C]: how many gave each value; default: those that were given."""
    values = _values(ratings) if values is None else values
    counts: np.ndarray = (ratings[:, :, None] == values[None, None, :]).sum(1).astype(np.float64)
    return counts


def _observed(counts: np.ndarray, weights: np.ndarray) -> float:
    each = counts.sum(1)
    counts, each = counts[each >= 2], each[each >= 2]
    if not len(each):
        return math.nan
    agreed = (counts * (counts @ weights - 1)).sum(1) / (each * (each - 1))
    return float(agreed.mean())
