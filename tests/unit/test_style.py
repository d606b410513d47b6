"""Style control: scikit-learn's logistic regression on z-scored features, coverage, and what it exposes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from assent.measures import style
from assent.measures.answers import Answers, Prompts
from assent.measures.ranking import Comparisons
from assent.measures.shapes import Duels


def compared(seed: int, size: int = 300, strength: float = 0.0, effect: float = 1.5) -> tuple[Comparisons, np.ndarray]:
    """A policy that writes more, against a baseline; style alone wins, `strength` aside."""
    rng = np.random.default_rng(seed)
    features = rng.normal([0.8, 0.2, 0.0, 0.3], [1.0, 0.5, 0.3, 0.2], (size, 4))
    logit = strength + features @ [effect, 0.3, 0.0, -0.2]
    won = (rng.random(size) < expit(logit)).astype(float)
    zeros = np.zeros(size, np.int64)
    return Comparisons(zeros, zeros + 1, won, np.arange(size) // 2), features


def test_it_is_scikit_learns_regression_on_scaled_features():
    found, features = compared(0)
    ours = style.controlled(found, features, 2, anchor=1, resamples=0)
    scaled = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(C=1e3, fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(np.column_stack([np.ones(300), features / features.std(0)]), found.outcome)
    assert ours.rates[0].value == pytest.approx(expit(model.coef_[0][0]), abs=1e-5)
    assert [each.value for each in ours.effects.values()] == pytest.approx(model.coef_[0][1:], abs=1e-5)
    # Centred features, as Arena-Hard has them, ask at the mean difference instead.
    centred = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10, max_iter=10_000)
    centred.fit(np.column_stack([np.ones(300), scaled]), found.outcome)
    assert ours.average[0].value == pytest.approx(expit(centred.coef_[0][0]), abs=1e-3)
    assert ours.rates[1].value == 0.5 and ours.average[1].value == 0.5
    assert found.outcome.mean() > 0.6 and ours.rates[0].value < 0.5 < ours.average[0].value - 0.1


def test_who_stands_first_does_not_matter():
    found, features = compared(1)
    turned = Comparisons(found.second, found.first, 1 - found.outcome, found.prompt)
    one = style.controlled(found, features, 2, anchor=1, resamples=0)
    other = style.controlled(turned, -features, 2, anchor=1, resamples=0)
    assert other.rates[0].value == pytest.approx(one.rates[0].value, abs=1e-9)


def test_the_interval_covers():
    truth, hits = expit(0.5), 0
    for sim in range(60):
        found, features = compared(1000 + sim, size=200, strength=0.5, effect=1.0)
        rate = style.controlled(found, features, 2, anchor=1, resamples=100, seed=sim).rates[0]
        hits += rate.low <= truth <= rate.high
    assert 0.9 <= hits / 60 <= 1.0


def test_a_weight_of_three_is_three_comparisons():
    found, features = compared(2, size=60)
    weight = np.where(np.arange(60) % 4 == 0, 3.0, 1.0)
    heavy = Comparisons(found.first, found.second, found.outcome, found.prompt, weight)
    rows = np.repeat(np.arange(60), weight.astype(int))
    copies = Comparisons(found.first[rows], found.second[rows], found.outcome[rows], found.prompt[rows])
    spread = features / features.std(0)  # the same scale for both
    ours = style.controlled(heavy, spread, 2, anchor=1, resamples=0)
    scale = spread[rows].std(0)
    theirs = style.controlled(copies, spread[rows], 2, anchor=1, resamples=0)
    assert ours.rates[0].value == pytest.approx(theirs.rates[0].value, abs=1e-3)
    effects = [each.value for each in theirs.effects.values()] / scale
    assert [each.value for each in ours.effects.values()] == pytest.approx(effects, abs=1e-2)


def test_differences_by_hand():
    found = style.differences(["# a b", "one two"], ["a b c", ""])
    # words: "#", "a", "b" against three; one heading in three words
    density = 1 / 4
    assert found[0].tolist() == [0, density / (density + 1), 0, 0]
    assert found[1].tolist() == [1, 0, 0, 0]
    assert style.differences([""], [""]).tolist() == [[0, 0, 0, 0]]


def test_who_is_apart_has_no_rate_and_too_little_is_said():
    found, features = compared(3, size=40)
    said = style.controlled(found, features, 3, anchor=1, resamples=0).rates
    assert said[2].value is None and "no chain" in said[2].problem and said[0].value is not None
    few = Comparisons(found.first[:5], found.second[:5], found.outcome[:5], found.prompt[:5])
    assert "fewer than 20" in style.controlled(few, features[:5], 2, anchor=1).rates[0].problem
    flat = style.controlled(found, np.zeros((40, 4)), 2, anchor=1, resamples=0)
    assert flat.effects["bold"].problem == "it never differs"
    assert flat.rates[0].value == pytest.approx(found.outcome.mean(), abs=1e-3)


def test_the_row_exposes_a_judge_that_loves_lists():
    rng = np.random.default_rng(4)
    size = 200
    blank = ("",) * size
    prompts = Prompts(blank, blank, ((),) * size, blank)
    listed = rng.random(size) < 0.7
    texts = tuple("- one\n- two\n- three" if each else "one two three" for each in listed)
    ours = Answers("ours", prompts, np.arange(size), texts)
    theirs = Answers("theirs", prompts, np.arange(size), ("one two three",) * size)
    outcome = (rng.random(size) < np.where(listed, 0.9, 0.5)).astype(float)
    outcome[:3] = np.nan
    pairs = np.repeat(np.arange(size)[:, None], 2, 1)
    duels = Duels("judge", ours, theirs, pairs, outcome, ("unread",) * 3 + ("",) * (size - 3))
    found = style.ROWS[0].of(duels)
    assert np.nanmean(outcome) > 0.7 and found.low < 0.5 < found.high and found.n == 197
