"""Linear models of feedback on frozen numbers: ratings from states by ridge regression, pairs from outputs by logistic
regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

ALPHAS = tuple(10.0**power for power in range(-4, 5))
"""The penalties that are tried, from 1e-4 to 1e4."""


@dataclass(frozen=True, slots=True)
class RidgeHeads:
    """Of each of K attributes: weight [K, h] float64, the penalty that was chosen, the R² on the held-out ratings with
    it, and how many ratings there were in all and held out; [K] each."""

    weight: np.ndarray
    alpha: np.ndarray
    r2: np.ndarray
    count: np.ndarray
    held: np.ndarray


def ridge(states: np.ndarray, ratings: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Ridge regression without intercept, for several penalties from one eigendecomposition, in float64.

        w(alpha) = argmin |ratings - states w|² + alpha |w|² = V (L + alpha)^-1 V' states' ratings
        with states' states = V L V'

    states   [n, h]
    ratings  [n]
    alphas   A penalties, each > 0

    Returns [A, h]. Raises ValueError on other shapes and on numbers that are not finite.
    """
    _check("ridge", states, ratings[:, None] if ratings.ndim == 1 else ratings, alphas)
    x, y = states.astype(np.float64), ratings.astype(np.float64)
    return _solve(*_decompose(x), x.T @ y, alphas)


def ridge_heads(
    states: np.ndarray,
    ratings: np.ndarray,
    groups: np.ndarray,
    *,
    alphas: Sequence[float] = ALPHAS,
    held_out: float = 0.2,
    seed: int = 0,
) -> RidgeHeads:
    """One linear head for each attribute, by `ridge` on the responses that were rated for it (arXiv 2406.12845).

    The penalty is the one with the least squared error on the share `held_out` of the attribute's groups (at least
    one), which `seed` draws; with it the head is fitted to all ratings.

    states   [n, h]  frozen states of n responses
    ratings  [n, K]  NaN where nobody rated
    groups   [n]     the prompt that each responds to; its responses are all held out or none of them

    Raises ValueError on other shapes, and where an attribute has ratings in fewer than two groups.
    """
    _check("ridge_heads", states, ratings, alphas)
    if groups.shape != states.shape[:1]:
        raise ValueError(f"ridge_heads: expected groups [n] as states [n, h]; got {groups.shape} and {states.shape}.")
    x = states.astype(np.float64)
    _, group = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(group.max(initial=-1) + 1)[group]
    rated = ~np.isnan(ratings)
    shape = ratings.shape[1]
    found = RidgeHeads(np.zeros((shape, x.shape[1])), *(np.zeros(shape) for _ in range(4)))
    masks: dict[bytes, list[int]] = {}  # attributes that the same responses were rated for share their decompositions
    for k in range(shape):
        masks.setdefault(rated[:, k].tobytes(), []).append(k)
    for attributes in masks.values():
        here = rated[:, attributes[0]]
        places = np.unique(order[here])
        if len(places) < 2:
            raise ValueError(f"ridge_heads: attribute {attributes[0]} has ratings in {len(places)} groups, needs two.")
        test = here & (order < places[max(1, round(held_out * len(places)))])
        _fit(found, x, ratings.astype(np.float64), attributes, here & ~test, test, alphas)
    return found


def pair_weights(gaps: np.ndarray, *, penalty: float = 1e-6, iterations: int = 100) -> np.ndarray:
    """The fixed weights that explain pairs best: Bradley-Terry on a weighted sum of outputs, by Newton's method in
    float64.

        w = argmin mean_m -log sigmoid(gaps_m w) + penalty / 2 |w|²

    gaps     [M, K]  outputs of the chosen answer minus those of the rejected one
    penalty          keeps the weights finite where one direction tells all pairs apart

    Returns [K]. Raises ValueError on other shapes and on numbers that are not finite.
    """
    if gaps.ndim != 2 or not gaps.size or not np.isfinite(gaps).all() or penalty <= 0:
        raise ValueError(f"pair_weights: expected finite gaps [M, K] and a penalty > 0; got {gaps.shape}, {penalty:g}.")
    x = gaps.astype(np.float64)

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -x @ w).mean() + penalty / 2 * w @ w)

    w = np.zeros(x.shape[1])
    for _ in range(iterations):
        wrong = expit(-x @ w)
        slope = penalty * w - x.T @ wrong / len(x)
        if np.abs(slope).max() < 1e-10:
            break
        curve = (x * (wrong * (1.0 - wrong))[:, None]).T @ x / len(x) + penalty * np.eye(len(w))
        step, now = np.linalg.solve(curve, slope), loss(w)
        while loss(w - step) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
    return w


def _fit(
    found: RidgeHeads,
    x: np.ndarray,
    y: np.ndarray,
    attributes: Sequence[int],
    train: np.ndarray,
    test: np.ndarray,
    alphas: Sequence[float],
) -> None:
    """Fills in `found` for attributes that have ratings at `train` [n] and `test` [n]."""
    part, whole = _decompose(x[train]), _decompose(x[train | test])
    for k in attributes:
        errors = y[test, k] - _solve(*part, x[train].T @ y[train, k], alphas) @ x[test].T  # [A, test]
        loss = (errors**2).mean(1)
        best = int(loss.argmin())
        alpha = alphas[best]
        found.weight[k] = _solve(*whole, x[train | test].T @ y[train | test, k], [alpha])[0]
        found.alpha[k] = alpha
        spread = float(y[test, k].var())
        found.r2[k] = 1.0 - loss[best] / spread if spread > 0 else np.nan
        found.count[k], found.held[k] = (train | test).sum(), test.sum()


def _decompose(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [h] and eigenvectors [h, h] of x'x."""
    values, vectors = np.linalg.eigh(x.T @ x)
    return values.clip(min=0.0), vectors


def _solve(values: np.ndarray, vectors: np.ndarray, xy: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """The weights [A, h] for x'y [h]."""
    return ((vectors.T @ xy) / (values + np.asarray(alphas, np.float64)[:, None])) @ vectors.T


def _check(function: str, states: np.ndarray, ratings: np.ndarray, alphas: Sequence[float]) -> None:
    if states.ndim != 2 or ratings.ndim != 2 or len(states) != len(ratings):
        raise ValueError(f"{function}: expected states [n, h] and ratings [n, K]; got {states.shape}, {ratings.shape}.")
    if not np.isfinite(states).all() or np.isinf(ratings).any() or (function == "ridge" and np.isnan(ratings).any()):
        raise ValueError(f"{function}: states and ratings must be finite.")
    if not all(alpha > 0 for alpha in alphas) or not alphas:
        raise ValueError(f"{function}: expected penalties > 0; got {list(alphas)}.")
