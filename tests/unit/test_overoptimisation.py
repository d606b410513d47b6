"""The laws of over-optimisation: known coefficients, their peaks, coverage; the Pareto front by a plain search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from assent.errors import UserError
from assent.measures.overoptimisation import fit, pareto

D = np.linspace(0, 8, 17)


def law(name: str, d: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    if name == "best-of-n":
        return d * (alpha - beta * d)
    return np.array([0.0 if x == 0 else x * (alpha - beta * math.log(x)) for x in d])


@pytest.mark.parametrize(("name", "alpha", "beta"), [("best-of-n", 1.2, 0.15), ("rl", 0.9, 0.5)])
def test_exact_points_give_their_law_and_its_peak(name, alpha: float, beta: float):
    found = fit(name, D, law(name, D, alpha, beta))
    assert found.alpha.value == pytest.approx(alpha) and found.beta.value == pytest.approx(beta)
    at = optimize.minimize_scalar(
        lambda d: -law(name, np.array([d]), alpha, beta)[0], bounds=(0.01, 20), method="bounded"
    )
    assert found.peak.value == pytest.approx(at.x, abs=1e-3) and found.best.value == pytest.approx(-at.fun, abs=1e-6)
    assert found(np.array([0.0, 2.0])) == pytest.approx(law(name, np.array([0.0, 2.0]), alpha, beta))
    other = fit("rl" if name == "best-of-n" else "best-of-n", D, law(name, D, alpha, beta))
    assert other.spread > 100 * found.spread and found.furthest == 8  # the forms are told apart


@pytest.mark.parametrize(("name", "alpha", "beta"), [("best-of-n", 1.2, 0.15), ("rl", 0.9, 0.5)])
def test_intervals_cover(name, alpha: float, beta: float):
    peak = alpha / (2 * beta) if name == "best-of-n" else math.exp(alpha / beta - 1)
    truth = {"alpha": alpha, "beta": beta, "peak": peak, "best": float(law(name, np.array([peak]), alpha, beta)[0])}
    hits = dict.fromkeys(truth, 0)
    for sim in range(400):
        rng = np.random.default_rng([11, sim])
        found = fit(name, D, law(name, D, alpha, beta) + rng.normal(0, 0.3, len(D)))
        for key, value in truth.items():
            interval = getattr(found, key)
            hits[key] += interval.low <= value <= interval.high
    assert all(0.92 <= count / 400 <= 0.98 for count in hits.values()), hits


def test_no_peak_is_said():
    rising = fit("best-of-n", D, 0.5 * D + 0.01 * D**2)
    assert rising.peak.value is None and "rises all the way" in rising.peak.problem and rising.best.value is None
    falling = fit("best-of-n", D, -0.5 * D - 0.01 * D**2)
    assert falling.peak.value is None and "falls from the start" in falling.peak.problem
    rng = np.random.default_rng(0)
    unsure = fit("best-of-n", D[:6], 1.0 * D[:6] - 0.01 * D[:6] ** 2 + rng.normal(0, 0.3, 6))
    if unsure.peak.value is not None:
        assert unsure.peak.low is None and unsure.peak.high is None


def test_too_little_is_said_and_missing_points_are_left_out():
    assert "needs 4 points" in fit("rl", D[:3], D[:3]).alpha.problem
    assert "needs 4 points" in fit("rl", np.full(9, 2.0), np.arange(9.0)).alpha.problem
    gain = law("rl", D, 0.9, 0.5)
    gain[3] = math.nan
    found = fit("rl", D, gain)
    assert found.alpha.value == pytest.approx(0.9) and found.alpha.n == 16
    with pytest.raises(UserError, match="at least 0"):
        fit("rl", -D, D)


def test_the_pareto_front_is_that_of_a_plain_search():
    rng = np.random.default_rng(2)
    for _ in range(50):
        kl, reward = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        kl[0] = math.nan
        plain = [
            not math.isnan(kl[i])
            and not any(
                kl[j] <= kl[i] and reward[j] >= reward[i] and (kl[j] < kl[i] or reward[j] > reward[i])
                for j in range(12)
            )
            for i in range(12)
        ]
        assert pareto(kl, reward).tolist() == plain
    assert pareto(np.zeros(0), np.zeros(0)).tolist() == []
