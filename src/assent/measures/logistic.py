"""Logistic regression on preferences: weighted, with targets anywhere in 0 to 1, with an L1 or L2 penalty."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

STEPS = 100
"""Newton steps at most; where there is a minimum, about ten are needed."""
SMALL = 1e-13
"""Gain of a step, relative to what is minimised, with which it is the last: the next would gain its square."""


def fit(
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    l1: float = 0.0,
    l2: float | np.ndarray = 0.0,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """The coefficients θ [D] that minimise

        sum_i w_i (log(1 + exp(x_i θ)) - y_i x_i θ) + l1 |θ|_1 + 1/2 sum_d l2_d θ_d²

    for x [n, D], y [n] in 0 to 1 and weights [n], by Newton's method, with coordinate descent for the L1 part. There is
    no intercept but a column of ones. `start` is where to begin: of many like fits the first one's coefficients.
    scikit-learn's C is 1 / l1 or 1 / l2. With l1 = l2 = 0 there is no minimum where x separates y:
    give it a small l2."""
    weights = np.ones(len(y)) if weight is None else weight
    ridge = np.broadcast_to(np.asarray(l2, np.float64), (x.shape[1],))
    theta = np.zeros(x.shape[1]) if start is None else start
    value = _objective(theta, x, y, weights, l1, ridge)
    diagonal = np.diag_indices(x.shape[1])
    for _ in range(STEPS):
        chance = expit(x @ theta)
        gradient = x.T @ (weights * (chance - y)) + ridge * theta
        hessian = (x.T * (weights * chance * (1 - chance))) @ x
        hessian[diagonal] += ridge + 1e-12 * np.trace(hessian)
        step = _lasso_step(theta, gradient, hessian, l1) if l1 else -np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-8:
            after = _objective(theta + size * step, x, y, weights, l1, ridge)
            if after <= value:
                break
            size /= 2
        else:
            return theta
        gained, value, theta = value - after, after, theta + size * step
        if gained <= SMALL * (1 + abs(value)):
            break
    return theta


def _objective(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, weights: np.ndarray, l1: float, ridge: np.ndarray
) -> float:
    logit = x @ theta
    penalty = l1 * np.abs(theta).sum() + 0.5 * ridge @ (theta * theta)
    return float(weights @ (np.logaddexp(0, logit) - y * logit) + penalty)


def _lasso_step(theta: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, l1: float) -> np.ndarray:
    """The step that minimises the quadratic model with the penalty, one coordinate after the other."""
    step = np.zeros_like(theta)
    diagonal = np.maximum(np.diag(hessian), 1e-12)
    for _ in range(1000):
        largest = 0.0
        for d in range(len(theta)):
            now = theta[d] + step[d]
            aim = now - (gradient[d] + hessian[d] @ step) / diagonal[d]
            new = np.sign(aim) * max(0.0, abs(aim) - l1 / diagonal[d])
            step[d] += new - now
            largest = max(largest, abs(new - now))
        if largest <= 1e-13 * (1 + np.abs(theta).max()):
            break
    return step
