"""Gold reward against the distance that a policy has gone from its start: the laws of over-optimisation, their peak,
and the Pareto front of reward and KL.

The distance is d = sqrt(KL), nats. RL spends much more of it than best-of-n for the same gold, and the KL of best-of-n
is itself only bounded (arXiv 2401.01879): two methods never belong on one unmarked axis of KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from assent.errors import UserError
from assent.measures.estimates import Estimate, undefined

Law = Literal["best-of-n", "rl"]
FEW = 4
"""Points from which two coefficients and their spread are fitted."""


def _best_of_n(d: np.ndarray) -> np.ndarray:
    return np.column_stack([d, -d * d])


def _rl(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.column_stack([d, -np.where(d > 0, d * np.log(d), 0.0)])


TERMS: dict[Law, Callable[[np.ndarray], np.ndarray]] = {"best-of-n": _best_of_n, "rl": _rl}
"""Law -> what α and β multiply, [n, 2]."""
FORMULAS: dict[Law, str] = {"best-of-n": "d (α - β d)", "rl": "d (α - β log d)"}


@dataclass(frozen=True, slots=True)
class Fit:
    """gold(d) - gold(0) = d (α - β d) for best-of-n, d (α - β log d) for RL (Gao et al., arXiv 2210.10760). `peak` is
    the distance from which more optimisation takes gold away, with Fieller's interval; `best` the gold gained there;
    `spread` the standard deviation of the points about the law; `furthest` the largest distance among them: a peak
    beyond it is extrapolated."""

    law: Law
    alpha: Estimate
    beta: Estimate
    peak: Estimate
    best: Estimate
    spread: float
    furthest: float

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """The law's gold gain at distances [n]."""
        assert self.alpha.value is not None and self.beta.value is not None, "no law was fitted"
        return TERMS[self.law](np.asarray(distance, np.float64)) @ np.array([self.alpha.value, self.beta.value])


def fit(law: Law, distance: np.ndarray, gain: np.ndarray, *, confidence: float = 0.95) -> Fit:
    """By least squares from the distances sqrt(KL) [n], taken for exact, and the gold gained over the start: the means
    [n], or the gains of P prompts [P, n]. Points whose distance or mean is NaN are left out, and so are prompts that
    lack a point. The start itself, where both are 0 by definition, is no point.

    Intervals are Student's: of means with n - 2 degrees of freedom from their scatter about the law, which takes points
    for independent (means of several seeds are); of prompts with P - 1 from the spread of the prompts' own
    coefficients, as points that share prompts need it: how far other prompts would move the law, not another run.
    Raises `UserError` for negative distances."""
    d, rows = np.asarray(distance, np.float64), np.atleast_2d(np.asarray(gain, np.float64))
    there = ~(np.isnan(d) | np.isnan(rows).all(axis=0))
    d, rows = d[there], rows[:, there]
    rows = rows[~np.isnan(rows).any(axis=1)]
    by_prompt = np.ndim(gain) == 2
    if (d < 0).any():
        raise UserError(f"a distance sqrt(KL) is at least 0. Got {d.min():g}")
    x, (prompts, n) = TERMS[law](d), rows.shape
    size = prompts if by_prompt else n
    if problem := _too_little(x, prompts, by_prompt):
        return unfitted(law, problem, size, float(d.max(initial=0.0)))
    inverse = np.linalg.inv(x.T @ x)
    each = rows @ x @ inverse  # [P, 2], or [1, 2] of the means
    theta = each.mean(axis=0)
    rest = rows.mean(axis=0) - x @ theta
    spread = math.sqrt(float(rest @ rest) / (n - 2))
    covariance = np.cov(each.T) / prompts if by_prompt else spread**2 * inverse
    t = float(stats.t.ppf(0.5 + confidence / 2, prompts - 1 if by_prompt else n - 2))
    alpha, beta = (
        Estimate(float(value), float(value - t * error), float(value + t * error), size)
        for value, error in zip(theta, np.sqrt(np.diag(covariance)), strict=True)
    )
    peak = _peak(law, theta, covariance, t, size)
    best = undefined(peak.problem, size) if peak.value is None else _best(law, theta, covariance, t, peak.value, size)
    return Fit(law, alpha, beta, peak, best, spread, float(d.max()))


def unfitted(law: Law, problem: str, n: int = 0, furthest: float = 0.0) -> Fit:
    """No law, and why."""
    nothing = undefined(problem, n)
    return Fit(law, nothing, nothing, nothing, nothing, math.nan, furthest)


def _too_little(x: np.ndarray, prompts: int, by_prompt: bool) -> str:
    """Why no law can be fitted to points whose terms are `x` [n, 2]; "" where one can."""
    if len(x) < FEW or np.linalg.matrix_rank(x) < 2:
        return f"a law needs {FEW} points at two or more distances above 0"
    return "fewer than two prompts have all points" if by_prompt and prompts < 2 else ""


def _peak(law: Law, theta: np.ndarray, covariance: np.ndarray, t: float, n: int) -> Estimate:
    """d = α / 2β, or exp(α / β - 1): a function of α / β, whose interval is Fieller's (1954): the ratios r for which
    α - r β is not told apart from 0."""
    alpha, beta = map(float, theta)
    if beta <= 0 or (law == "best-of-n" and alpha <= 0):
        return undefined("it rises all the way" if beta <= 0 else "it falls from the start", n)
    a = beta * beta - t * t * covariance[1, 1]
    b = alpha * beta - t * t * covariance[0, 1]
    c = alpha * alpha - t * t * covariance[0, 0]
    place = _place(law, alpha / beta)
    if a <= 0:  # β is not told apart from 0: whether there is a peak at all is open
        return Estimate(place, n=n)
    root = math.sqrt(max(0.0, b * b - a * c))
    low, high = (_place(law, (b + sign * root) / a) for sign in (-1, 1))
    return Estimate(place, max(0.0, low), high, n)


def _place(law: Law, ratio: float) -> float:
    return ratio / 2 if law == "best-of-n" else math.exp(min(700.0, ratio - 1))


def _best(law: Law, theta: np.ndarray, covariance: np.ndarray, t: float, peak: float, n: int) -> Estimate:
    """The law's value at its peak, α²/4β or β d; its slope in the coefficients is what they multiply there, since the
    law is level in d (delta method)."""
    terms = TERMS[law](np.array([peak]))[0]
    value, size = float(terms @ theta), math.sqrt(float(terms @ covariance @ terms))
    return Estimate(value, value - t * size, value + t * size, n)


def pareto(kl: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """[n] bool: the points with which no other one can compete: none has as much reward or more for as little KL or
    less, and is better in one of them. Points with NaN are none; equal points are all of them."""
    front = np.zeros(len(kl), bool)
    there = np.flatnonzero(~(np.isnan(kl) | np.isnan(reward)))
    highest = -math.inf
    order = there[np.lexsort((-reward[there], kl[there]))]
    last: tuple[float, float] | None = None
    for row in order:
        point = float(kl[row]), float(reward[row])
        front[row] = point[1] > highest or point == last
        if front[row]:
            highest, last = point[1], point
    return front
