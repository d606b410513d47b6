"""Whether a gap in reward means the probability that Bradley-Terry says: P(better wins) = sigmoid(gap)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from assent.measures.estimates import Estimate, undefined
from assent.statistics import Interval, mean_interval, proportion_interval

BINS = 10
FOLDS = 5
SIMULATIONS = 400


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like confidence: its mean, and the share that is right (half for a tie)."""

    confidence: float
    right: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """`ece` with the 95 % range that a perfectly calibrated model has on as many pairs (`chance`, the range as its
    bounds, its mean as its value); `brier` and `nll` of sigmoid(gap), and the `temperature` that fits best.
    `fitted_nll` and `fitted_ece` are those of sigmoid(gap / T), T fitted on other prompts."""

    ece: Estimate
    chance: Estimate
    bins: tuple[Bin, ...]
    brier: Interval
    nll: Interval
    temperature: Estimate
    fitted_nll: Interval
    fitted_ece: Estimate


def calibration(gap: np.ndarray, prompt: np.ndarray, *, bins: int = BINS, seed: int = 0) -> Calibration:
    """Of `gap = reward(better) - reward(worse)` [M]; pairs without one (NaN) are left out and counted in `nll`.

    A model that says sigmoid(gap) is sure of its own order by sigmoid(|gap|), and right where gap > 0 (half so at 0):
    that is what the bins compare (Guo et al., arXiv 1706.04599), `bins` of them with equally many pairs each."""
    there = ~np.isnan(gap)
    kept, labels = gap[there], prompt[there]
    clusters = prompt.tolist()
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        nll = mean_interval(np.logaddexp(0, -gap), clusters, seed=seed)
        brier = mean_interval(sigmoid(-gap) ** 2, clusters, seed=seed)
    if not len(kept):
        nothing = undefined("no pair with two rewards")
        return Calibration(nothing, nothing, (), brier, nll, nothing, nll, nothing)
    sure, right = confidence(kept)
    cuts = equal_mass(sure, bins)
    fitted = _fitted(kept, labels, seed)
    if fitted is None:
        after, after_ece = mean_interval(np.full(len(gap), np.nan)), undefined("no temperature fits on every fold")
    else:
        after = mean_interval(np.logaddexp(0, -fitted), labels.tolist(), seed=seed)
        scaled, order = confidence(fitted)
        after_ece = Estimate(ece(scaled, order, equal_mass(scaled, bins)), n=len(fitted))
    return Calibration(
        Estimate(ece(sure, right, cuts), n=len(kept)),
        chance_ece(sure, cuts, seed=seed),
        tuple(
            Bin(float(sure[rows].mean()), proportion_interval(float(right[rows].sum()), len(rows)))
            for rows in _rows(cuts)
        ),
        brier,
        nll,
        temperature(kept, labels),
        after,
        after_ece,
    )


def confidence(gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sigmoid(|gap|), how sure the model is of its own order of a pair [M], and whether that is right: 1, 0, and 0.5
    for a tie."""
    return sigmoid(np.abs(gap)), (np.sign(gap) + 1) / 2


def equal_mass(values: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each value [M], numbered from 0: cut at the quantiles, so that each bin has as many values; equal
    values are in one bin, whatever their number."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(0, len(edges) - 2))
    return np.unique(place, return_inverse=True)[1]


def ece(sure: np.ndarray, right: np.ndarray, bin_of: np.ndarray) -> float:
    """Expected calibration error: sum over bins of n_b / n * |mean(right) - mean(sure)|, all [M] (arXiv 1706.04599)."""
    return float(np.abs(np.bincount(bin_of, weights=right - sure)).sum() / len(sure))


def chance_ece(sure: np.ndarray, bin_of: np.ndarray, *, simulations: int = SIMULATIONS, seed: int = 0) -> Estimate:
    """The calibration error of a model that is right exactly as often as it says, on as many pairs: its mean, and the
    range of 95 % of `simulations` draws right ~ Bernoulli(sure). An error is positive by chance alone; above this
    range it is not chance."""
    rng = np.random.default_rng(seed)
    drawn = [ece(sure, (rng.random(len(sure)) < sure).astype(float), bin_of) for _ in range(simulations)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(np.mean(drawn)), float(low), float(high), len(sure))


def temperature(gap: np.ndarray, prompt: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The T > 0 that minimises mean(-log sigmoid(gap / T)), gap [M]: above 1 the model is too sure of itself, below 1
    not sure enough (arXiv 1706.04599). Found as a = 1 / T by Newton's method: the mean is convex in a, with slope
    -mean(gap * sigmoid(-a gap)) and curvature mean(gap^2 * sigmoid(a gap) * sigmoid(-a gap)).

    The bounds are those of a by the sandwich variance, sum over prompts (sum of slopes)^2 / (sum of curvatures)^2. Not
    defined where all pairs are right (T goes to 0), or no better than guessing (mean(gap) <= 0: T is not positive)."""
    a, problem = _inverse_temperature(gap)
    if a is None:
        return undefined(problem, len(gap))
    wrong = sigmoid(-a * gap)
    curvature = float((gap**2 * wrong * (1 - wrong)).sum())
    _, codes = np.unique(prompt, return_inverse=True)
    slopes = np.bincount(codes, weights=gap * wrong)  # their sum is 0 at the optimum
    clusters = len(slopes)
    if clusters < 2:
        return Estimate(1 / a, n=len(gap))
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    error = math.sqrt(float((slopes**2).sum()) * clusters / (clusters - 1)) / curvature
    low = 1 / (a + z * error)
    high = 1 / (a - z * error) if a > z * error else None
    return Estimate(1 / a, low, high, len(gap))


def _inverse_temperature(gap: np.ndarray, steps: int = 200) -> tuple[float | None, str]:
    """1 / T, or None and why there is no T."""
    if not len(gap):
        return None, "no pair with two rewards"
    if not gap.any():
        return None, "all rewards are equal"
    if float(gap.mean()) <= 0:
        return None, "the rewards tell pairs apart no better than guessing: no positive temperature fits"
    if float(gap.min()) >= 0:
        return None, "no pair is wrong: the smaller the temperature, the better"
    scale = float(np.abs(gap).max())
    x = gap / scale  # so that steps and tolerance do not depend on the rewards' unit

    def slope(a: float) -> float:
        return -float((x * sigmoid(-a * x)).mean())

    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    a = (low + high) / 2
    for _ in range(steps):
        here = slope(a)
        low, high = (a, high) if here < 0 else (low, a)
        wrong = sigmoid(-a * x)
        curvature = float((x**2 * wrong * (1 - wrong)).mean())
        newton = a - here / curvature if curvature > 0 else math.inf
        step = newton if low < newton < high else (low + high) / 2
        if abs(step - a) <= 1e-13 * a:
            break
        a = step
    return a / scale, ""


def folds(prompt: np.ndarray, number: int = FOLDS, seed: int = 0) -> np.ndarray:
    """The fold of each row [M]: whole prompts, drawn by chance."""
    _, codes = np.unique(prompt, return_inverse=True)
    place = np.random.default_rng(seed).permutation(codes.max() + 1 if len(codes) else 0)
    return place[codes] % number


def _fitted(gap: np.ndarray, prompt: np.ndarray, seed: int) -> np.ndarray | None:
    """gap / T [M], with the T that was fitted on the other folds; None where there is none on some."""
    fold = folds(prompt, seed=seed)
    scaled = np.empty_like(gap)
    for number in np.unique(fold):
        a, _ = _inverse_temperature(gap[fold != number])
        if a is None:
            return None
        scaled[fold == number] = a * gap[fold == number]
    return scaled


def _rows(bin_of: np.ndarray) -> Sequence[np.ndarray]:
    return [np.flatnonzero(bin_of == number) for number in range(bin_of.max() + 1)]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), for any x without overflow."""
    return np.exp(-np.logaddexp(0, -x))
