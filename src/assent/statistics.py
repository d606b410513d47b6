"""Means, shares, differences and win rates, each with its interval and the count of values that could not be had.

A missing value (None or NaN: an answer nobody could score) is left out and counted, never taken for 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from assent.errors import UserError

Values = Sequence[float | None] | np.ndarray

RESAMPLES = 4000
"""Bootstrap resamples: the bounds then move by about 1 % of the interval's width from seed to seed."""
FLIPS = 9999
"""Random signs of the permutation test."""
_CHUNK = 2_000_000  # numbers held at once while resampling


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence bounds, from `n` values; `missing` more had no value.

    Without any value all three numbers are NaN; with too few for an interval the bounds are.
    """

    mean: float
    low: float
    high: float
    n: int
    missing: int = 0

    @property
    def half_width(self) -> float:
        """Half the distance between the bounds: the number behind "±"."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over pairs, with two tests of "no difference" that assume no distribution."""

    difference: Interval
    p_permutation: float
    """Two-sided sign-flip permutation test of the mean; exact up to 13 pairs, then from 9,999 random flips."""
    p_sign: float
    """Two-sided exact sign test: only who was better counts, ties are left out."""


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons that a wins, a tie counting half, and the three counts behind it."""

    rate: Interval
    wins: int
    ties: int
    losses: int


def mean_interval(
    values: Values, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of `values` with a bias-corrected accelerated (BCa) bootstrap interval.

    With `clusters` (one label a value, for example the prompt that it answers) whole clusters are resampled, so that
    several answers to one prompt do not pass for independent evidence: mean = sum_c sums_c / sum_c counts_c over the
    clusters c. Values that are all the same give an interval of width 0, fewer than two clusters give no bounds.
    Raises `UserError` on an infinite value or on cluster labels of another length. Efron & Tibshirani, 1993, ch. 14.
    """
    numbers = _floats(values)
    if clusters is not None and len(clusters) != len(numbers):
        raise UserError(f"mean_interval needs one cluster label for each value. Got {len(clusters)} for {len(numbers)}")
    present = ~np.isnan(numbers)
    labels = range(len(numbers)) if clusters is None else clusters
    sums, counts = _by_cluster(numbers[present], [label for label, keep in zip(labels, present, strict=True) if keep])
    missing = int((~present).sum())
    return replace(ratio_interval(sums, counts, confidence, seed), n=int(present.sum()), missing=missing)


def ratio_interval(sums: np.ndarray, counts: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Interval:
    """sum(sums) / sum(counts) with a BCa bootstrap interval that resamples the `n` clusters [C]; see `mean_interval`.
    A cluster of count 0 is left out and counted as missing."""
    there = counts > 0
    sums, counts, missing = sums[there], counts[there], int((~there).sum())
    n = len(sums)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing)
    mean = float(sums.sum() / counts.sum())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n, missing)
    # A bootstrap of constant clusters has no spread and BCa would divide by it.
    if np.ptp(sums / counts) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, n, missing)

    low, high = _bca(sums, counts, (1 - confidence) / 2, seed)
    return Interval(mean, low, high, n, missing)


def _bca(sums: np.ndarray, counts: np.ndarray, alpha: float, seed: int) -> tuple[float, float]:
    """The bounds of scipy.stats.bootstrap(method="BCa") for sum(sums) / sum(counts), with its draws; but leaving one
    cluster out takes a difference, not a sum over the others, so that time grows with the number of clusters and not
    with its square. NaN where all draws lie on one side of the ratio."""
    n, rng = len(sums), np.random.default_rng(seed)
    even = bool((counts == counts[0]).all())
    draws = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, max(1, _CHUNK // n)):
        part = draws[start : start + max(1, _CHUNK // n)]
        index = rng.integers(0, n, (len(part), n))
        part[:] = sums[index].sum(axis=1) / (n * counts[0] if even else counts[index].sum(axis=1))
    ratio = sums.sum() / counts.sum()
    shift = special.ndtri(((draws < ratio).sum() + (draws <= ratio).sum()) / (2 * RESAMPLES))
    without = (sums.sum() - sums) / (counts.sum() - counts)
    influence = (n - 1) * (without.mean() - without)
    speed = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    far = shift + np.array([special.ndtri(alpha), -special.ndtri(alpha)])
    levels = special.ndtr(shift + far / (1 - speed * far))
    if np.isnan(levels).any():
        return math.nan, math.nan
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def proportion_interval(successes: float, n: float, confidence: float = 0.95, missing: int = 0) -> Interval:
    """Share p = successes / n with Wilson's score interval, honest also at 0 and 1.

    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n), z the normal quantile. `successes` may be fractional
    (a tie is half a win) and so may `n` (an effective sample size).
    """
    if n < 0 or not 0 <= successes <= n:
        raise UserError(f"proportion_interval needs 0 <= successes <= n. Got {successes} of {n}")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the bound is exactly 0 or 1; rounding would put it a hair inside or outside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(p, low, high, int(n), missing)


def paired_difference(
    a: Values, b: Values, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Mean of a_i - b_i with a bootstrap interval over the pairs, a permutation test and a sign test.

    With `clusters` (one label a pair, for example its prompt) the interval draws whole clusters and the tests flip
    them: several answers to one prompt are one piece of evidence. A pair with a missing side is left out and counted.
    Raises `UserError` when the lengths differ.
    """
    left, right = _paired(a, b)
    difference = mean_interval(left - right, clusters, confidence, seed)
    present = ~np.isnan(left - right)
    left, right = left[present], right[present]
    if clusters is not None:
        labels = [label for label, keep in zip(clusters, present, strict=True) if keep]
        left, right = (_by_cluster(side, labels)[0] for side in (left, right))
    if len(left) < 2:
        return PairedDifference(difference, math.nan, math.nan)
    wins, losses = int((left > right).sum()), int((left < right).sum())
    sign = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return PairedDifference(difference, _sign_flips(left - right, seed), float(sign))


def _sign_flips(differences: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the sum of n differences when each may have either sign, as scipy.stats.permutation_test
    (samples): of all 2^n where that are at most `FLIPS`, else of `FLIPS` random ones.

    Eight signs are one byte: the sums that a byte can give are made once for each eight differences."""
    n = len(differences)
    padded = np.zeros((-(-n // 8), 8))
    padded.ravel()[:n] = differences
    signs = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    sums = padded @ signs.T  # [n / 8, 256]
    exact = 2**n <= FLIPS
    if exact:
        every = np.arange(2**n, dtype="<u4").view(np.uint8).reshape(-1, 4)[:, : len(sums)]
        flipped = sums[np.arange(len(sums)), every].sum(axis=1)
    else:
        rng, flipped = np.random.default_rng(seed), np.empty(FLIPS)
        for start in range(0, FLIPS, max(1, _CHUNK // len(sums))):
            part = flipped[start : start + max(1, _CHUNK // len(sums))]
            drawn = rng.integers(0, 256, (len(part), len(sums)), np.uint8)
            part[:] = sums[np.arange(len(sums)), drawn].sum(axis=1)
    observed = float(differences.sum())
    near = 1e-12 * float(np.abs(differences).sum())  # sums in another order round otherwise
    sides = (flipped <= observed + near).sum(), (flipped >= observed - near).sum()
    more = 0 if exact else 1  # the signs that were observed are one of them
    return min(1.0, 2 * float(min(sides) + more) / (len(flipped) + more))


def win_rate(
    a_scores: Values, b_scores: Values, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> WinRate:
    """Share of comparisons in which a scores above b: (wins + ties / 2) / n, with Wilson's interval.

    Several comparisons of one cluster (prompt) are worth fewer: the interval uses the effective number
    n_eff = p (1 - p) / Var(p), Var(p) estimated between clusters and n_eff kept within [clusters, comparisons].
    A comparison with a missing side is left out and counted in `rate.missing`.
    """
    a, b = _paired(a_scores, b_scores)
    if clusters is not None and len(clusters) != len(a):
        raise UserError(f"win_rate needs one cluster label for each comparison. Got {len(clusters)} for {len(a)}")
    present = ~np.isnan(a - b)
    labels = range(len(a)) if clusters is None else clusters
    labels = [label for label, keep in zip(labels, present, strict=True) if keep]
    missing = int((~present).sum())
    outcome = (np.sign(a[present] - b[present]) + 1) / 2
    wins, ties, losses = (int((outcome == value).sum()) for value in (1.0, 0.5, 0.0))
    rate = replace(share_interval(outcome, labels, confidence), missing=missing)
    return WinRate(rate, wins, ties, losses)


def share_interval(
    values: Values, clusters: Sequence[Hashable] | np.ndarray | None = None, confidence: float = 0.95
) -> Interval:
    """Mean p of values between 0 and 1 (most of them 0 or 1) with Wilson's interval, honest also where all are alike.

    Several values of one cluster (prompt) are worth fewer: the interval uses the effective number
    n_eff = p (1 - p) / Var(p), Var(p) estimated between clusters and n_eff kept within [clusters, values]. A missing
    value is left out and counted. Raises `UserError` for values outside [0, 1]."""
    numbers = _floats(values)
    if clusters is not None and len(clusters) != len(numbers):
        raise UserError(f"share_interval needs one cluster label for each value. Got {len(clusters)}")
    present = ~np.isnan(numbers)
    labels = range(len(numbers)) if clusters is None else clusters
    kept, missing = numbers[present], int((~present).sum())
    if ((kept < 0) | (kept > 1)).any():
        raise UserError(f"share_interval needs values from 0 to 1. Got {kept.min():g} to {kept.max():g}")
    n = len(kept)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing)
    p = float(kept.mean())
    sums, counts = _by_cluster(kept, [label for label, keep in zip(labels, present, strict=True) if keep])
    residual = sums - p * counts
    num_clusters = len(sums)
    variance = float((residual**2).sum()) / n**2 * num_clusters / max(1, num_clusters - 1)
    effective = p * (1 - p) / variance if variance > 0 and 0 < p < 1 else num_clusters
    effective = min(max(effective, num_clusters), n)
    bounds = proportion_interval(min(p, 1.0) * effective, effective, confidence)
    return Interval(p, bounds.low, bounds.high, n, missing)


@dataclass(frozen=True)
class McNemar:
    """`p` of McNemar's exact test, two-sided, and the pairs behind it: those that only a and only b has right."""

    p: float
    only_a: int
    only_b: int


def mcnemar(a: Values, b: Values) -> McNemar:
    """Whether a is right more often than b on the same cases: under "no difference" the number of cases that only a has
    right is binomial among those that one of them has, with chance 1/2 (McNemar 1947, exact). Values are 1 or 0; pairs
    with a missing side are left out. It takes pairs for independent: give one for each prompt. Without a case that
    tells them apart p is 1. Raises `UserError` for other values and unequal lengths."""
    left, right = _paired(a, b)
    present = ~np.isnan(left - right)
    left, right = left[present], right[present]
    if len(wrong := np.flatnonzero(~np.isin(left, (0, 1)) | ~np.isin(right, (0, 1)))):
        raise UserError(f"mcnemar needs 1 (right) and 0 (wrong). Got {left[wrong[0]]:g} and {right[wrong[0]]:g}")
    only_a, only_b = int((left > right).sum()), int((left < right).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(p, only_a, only_b)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p values adjusted for being many (Holm 1979), in the order given: the k-th smallest of m times m - k + 1, never
    below the one before it, at most 1. Rejecting where the adjusted one is below a level keeps the chance of any wrong
    rejection below it, whatever their dependence. NaN (a test that could not be done) stays and counts for nothing."""
    p = np.array(p_values, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    if len(wrong := known[(p[known] < 0) | (p[known] > 1)]):
        raise UserError(f"holm needs p values between 0 and 1. Got {p[wrong[0]]:g}")
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return tuple(float(value) for value in adjusted)


def prompts_needed(half_width: float, prompts: int, within: float) -> int | None:
    """How many prompts would make an interval that is ± half_width with `prompts` of them ± within:

        n = ceil(prompts (half_width / within)²)

    since intervals of means, shares and other statistics narrow with the root of the number of prompts. None where
    nothing is known of the spread: without bounds, with fewer than two prompts, or where all are equal, since rare
    exceptions may exist. Raises `UserError` unless within > 0."""
    if not within > 0:
        raise UserError(f"prompts_needed needs a half width > 0. Got {within:g}")
    if prompts < 2 or not half_width > 0:
        return None
    return max(2, math.ceil(prompts * (half_width / within) ** 2 * (1 - 1e-12)))


def _floats(values: Values) -> np.ndarray:
    numbers = np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        raise UserError(
            f"Scores must be finite, or None where there is none. Got {numbers[infinite[0]]} at index {infinite[0]}"
        )
    return numbers


def _paired(a: Values, b: Values) -> tuple[np.ndarray, np.ndarray]:
    if len(a) != len(b):
        raise UserError(f"Paired scores must have the same length. Got {len(a)} and {len(b)}")
    return _floats(a), _floats(b)


def _by_cluster(numbers: np.ndarray, labels: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of each cluster [C], in order of first appearance."""
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(label, len(index)) for label in labels], dtype=np.int64)
    sums = np.bincount(codes, weights=numbers, minlength=len(index))
    return sums, np.bincount(codes, minlength=len(index)).astype(np.float64)
