"""Measures of reward models against known numbers and independent computations."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy import optimize, stats

from assent.measures.accuracy import accuracy, by_label, length_classes, strength_bins
from assent.measures.best_of import best_of_n, best_weights, expected_best, kl_bound
from assent.measures.calibration import (
    calibration,
    chance_ece,
    confidence,
    ece,
    equal_mass,
    folds,
    sigmoid,
    temperature,
)
from assent.measures.correlation import mirrored, ranks, spearman
from assent.measures.disagreement import auroc, disagreement
from assent.measures.estimates import estimate
from assent.statistics import proportion_interval

NAN = math.nan


def alone(n: int) -> np.ndarray:
    """Every row has a prompt of its own."""
    return np.arange(n)


# ---- intervals


def test_an_interval_draws_whole_prompts():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=60), 8)  # eight copies of each prompt's number are one piece of evidence
    prompt = np.repeat(np.arange(60), 8)
    found = estimate(lambda rows: float(values[rows].mean()), prompt, resamples=2000)
    error = values[::8].std(ddof=1) / math.sqrt(60)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    naive = estimate(lambda rows: float(values[rows].mean()), alone(480), resamples=2000)
    assert (naive.high - naive.low) < 0.5 * (found.high - found.low)


def test_prompts_of_different_sizes_are_drawn_with_all_their_rows():
    prompt = np.array([7, 7, 7, 2, 5, 5])
    drawn = []
    estimate(lambda rows: drawn.append(rows) or 1.0, prompt, resamples=50)
    for rows in drawn[1:]:
        sizes = {7: 3, 2: 1, 5: 2}
        for label, size in sizes.items():
            assert (prompt[rows] == label).sum() % size == 0
            own = np.flatnonzero(prompt == label)
            assert all((rows == row).sum() == (rows == own[0]).sum() for row in own)


def test_what_is_not_defined_is_said():
    nothing = estimate(lambda rows: NAN, alone(4), problem="because")
    assert (nothing.value, nothing.low, nothing.problem, nothing.n) == (None, None, "because", 4)
    one = estimate(lambda rows: 2.0, np.zeros(5))
    assert (one.value, one.low, one.high) == (2.0, None, None)


# ---- accuracy


def test_a_tie_is_not_right_and_an_unscored_pair_is_left_out():
    gap = np.array([1.0, 0.0, -1.0, 2.0, NAN])
    found = accuracy(gap, alone(5))
    wilson = proportion_interval(2, 4)
    assert (found.right.mean, found.right.n, found.right.missing, found.ties) == (0.5, 4, 1, 1)
    assert (found.right.low, found.right.high) == (wilson.low, wilson.high)
    assert found.by_prompt.mean == 0.5 and found.by_prompt.missing == 1


def test_pairs_of_one_prompt_are_worth_fewer():
    gap = np.tile([1.0, 1.0, -1.0], 20)
    many = accuracy(np.repeat(gap, 5), np.repeat(np.arange(60), 5))
    few = accuracy(gap, alone(60))
    assert many.right.mean == few.right.mean
    assert many.right.half_width == pytest.approx(few.right.half_width, rel=0.02)


def test_parts_of_the_pairs():
    gap = np.array([1.0, -1.0, 2.0, 3.0, NAN])
    found = by_label(gap, alone(5), ["a", "a", "b", "", "b"])
    assert {name: (part.right.mean, part.right.n, part.right.missing) for name, part in found.items()} == {
        "a": (0.5, 2, 0),
        "b": (1.0, 1, 1),
    }


def test_strengths_are_parts_by_themselves_or_quantiles():
    assert strength_bins(np.array([2.0, 1.0, NAN, 1.0])) == ["2", "1", "", "1"]
    bins = strength_bins(np.arange(100.0), bins=4)
    assert [bins.count(name) for name in dict.fromkeys(bins)] == [25, 25, 25, 25]
    assert bins[0] == "0 to 24.8" and bins[99] == "74.2 to 99"
    assert length_classes(np.array([1, 2, 3]), np.array([2, 2, 1])) == ["shorter", "as long", "longer"]


# ---- calibration


def simulated(n: int, heat: float, seed: int) -> np.ndarray:
    """Gaps whose better answer wins with probability sigmoid(gap / heat): a model of that temperature."""
    rng = np.random.default_rng(seed)
    size = 2 * np.abs(rng.normal(size=n))
    return np.where(rng.random(n) < 1 / (1 + np.exp(-size / heat)), size, -size)


@pytest.mark.parametrize("heat", [1.0, 2.5, 0.5])
def test_the_temperature_of_a_known_simulator_is_found(heat):
    found = temperature(simulated(4000, heat, 1), alone(4000))
    assert found.low < heat < found.high
    assert found.high - found.low < 0.35 * heat


def test_the_temperature_is_the_least_of_the_likelihood_and_has_its_coverage():
    gap = 3.0 * simulated(300, 1.3, 2)
    best = optimize.minimize_scalar(
        lambda a: np.mean(np.log1p(np.exp(-a * gap))), bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-10}
    )
    assert temperature(gap, alone(300)).value == pytest.approx(1 / best.x, rel=1e-6)
    hits = 0
    for seed in range(200):
        found = temperature(simulated(200, 1.0, 100 + seed), alone(200))
        hits += found.low < 1.0 and (found.high is None or 1.0 < found.high)
    assert 180 <= hits <= 199


def test_a_temperature_does_not_depend_on_the_unit_of_rewards():
    gap = simulated(200, 1.0, 3)
    assert temperature(1e6 * gap, alone(200)).value == pytest.approx(1e6 * temperature(gap, alone(200)).value)
    assert temperature(1e-6 * gap, alone(200)).value == pytest.approx(1e-6 * temperature(gap, alone(200)).value)


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        ([1.0, 2.0], "no pair is wrong"),
        ([-1.0, 0.5], "no better than guessing"),
        ([0.0, 0.0], "equal"),
        ([], "no pair"),
    ],
)
def test_where_there_is_no_temperature_it_is_said(gap, says):
    found = temperature(np.array(gap), alone(len(gap)))
    assert found.value is None and says in found.problem


def test_copies_of_a_pair_do_not_narrow_the_temperature():
    gap = simulated(200, 1.0, 4)
    once = temperature(gap, alone(200))
    copied = temperature(np.repeat(gap, 9), np.repeat(alone(200), 9))
    assert copied.value == pytest.approx(once.value)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_the_calibration_error_of_a_hand_made_case():
    sure = np.array([0.6, 0.6, 0.9, 0.9])
    right = np.array([1.0, 0.0, 1.0, 1.0])
    bin_of = equal_mass(sure, 2)
    assert bin_of.tolist() == [0, 0, 1, 1]
    assert ece(sure, right, bin_of) == pytest.approx(0.5 * abs(0.5 - 0.6) + 0.5 * abs(1.0 - 0.9))
    assert equal_mass(np.full(7, 0.5), 10).tolist() == [0] * 7
    order = np.random.default_rng(0).permutation(4)
    assert ece(sure[order], right[order], equal_mass(sure[order], 2)) == pytest.approx(0.1)


def test_a_calibrated_simulator_is_within_what_chance_gives_and_a_hot_one_is_not():
    inside = 0
    for seed in range(20):
        sure, right = confidence(simulated(800, 1.0, seed))
        bin_of = equal_mass(sure, 10)
        inside += ece(sure, right, bin_of) <= chance_ece(sure, bin_of, simulations=200).high
    assert inside >= 17  # 97.5 % of them
    fair = calibration(simulated(400, 1.0, 1), alone(400))
    assert fair.ece.value <= fair.chance.high and fair.temperature.low < 1 < fair.temperature.high
    hot = calibration(simulated(400, 3.0, 0), alone(400))
    assert hot.ece.value > hot.chance.high
    assert hot.fitted_ece.value < 0.5 * hot.ece.value and hot.fitted_nll.mean < hot.nll.mean


def test_brier_nll_and_bins():
    gap = np.array([math.log(3), -math.log(3), 0.0, NAN])
    found = calibration(gap, alone(4), bins=1)
    assert found.brier.mean == pytest.approx((0.25**2 + 0.75**2 + 0.5**2) / 3)
    assert found.nll.mean == pytest.approx(-(math.log(0.75) + math.log(0.25) + math.log(0.5)) / 3)
    assert (found.nll.n, found.nll.missing) == (3, 1)
    (only,) = found.bins
    assert only.confidence == pytest.approx((0.75 + 0.75 + 0.5) / 3) and only.right.mean == 0.5  # the tie is half right
    sure, right = confidence(gap[:3])
    assert right.tolist() == [1.0, 0.0, 0.5] and sure.tolist() == pytest.approx([0.75, 0.75, 0.5])


def test_no_scored_pair_and_extreme_gaps():
    nothing = calibration(np.array([NAN]), alone(1))
    assert nothing.ece.value is None and nothing.bins == () and nothing.nll.missing == 1
    assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]
    extreme = calibration(np.array([1e5, -1e5, 2e5, 3e5]), alone(4))
    assert math.isfinite(extreme.nll.mean) and extreme.temperature.value > 1e4


def test_folds_keep_prompts_together_and_are_of_like_size():
    prompt = np.repeat(np.arange(50), 3)
    fold = folds(prompt)
    assert all(len(set(fold[prompt == number])) == 1 for number in range(50))
    assert np.bincount(fold).tolist() == [30] * 5


def test_chance_is_simulated_from_the_confidence_itself():
    sure = np.full(1000, 0.8)
    found = chance_ece(sure, np.zeros(1000, int), simulations=2000)
    # one bin: |mean - 0.8| of a binomial, whose mean is sqrt(2 p (1 - p) / (pi n))
    assert found.value == pytest.approx(math.sqrt(2 * 0.16 / (math.pi * 1000)), rel=0.05)
    assert found.high == pytest.approx(stats.norm.ppf(0.9875) * math.sqrt(0.16 / 1000), rel=0.1)


# ---- correlations


def test_spearman_agrees_with_scipy_and_partial_with_the_formula():
    rng = np.random.default_rng(0)
    z = rng.normal(size=200)
    x, y = z + rng.normal(size=200), np.round(z + rng.normal(size=200))
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    r = {
        (a, b): stats.spearmanr(u, v).statistic for (a, u), (b, v) in combinations({"x": x, "y": y, "z": z}.items(), 2)
    }
    partial = (r["x", "y"] - r["x", "z"] * r["y", "z"]) / math.sqrt((1 - r["x", "z"] ** 2) * (1 - r["y", "z"] ** 2))
    assert spearman(x, y, [z]) == pytest.approx(partial)
    assert spearman(-x, y, [z]) == pytest.approx(-partial)


def test_ranks_are_those_of_scipy():
    values = np.random.default_rng(0).integers(0, 9, size=60).astype(float)
    assert ranks(values).tolist() == stats.rankdata(values).tolist() and ranks(np.zeros(0)).tolist() == []


def test_partial_correlation_with_two_columns_is_that_of_the_inverse_matrix():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4))
    ranks = np.column_stack([stats.rankdata(column) for column in base.T])
    precision = np.linalg.inv(np.corrcoef(ranks.T))
    expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
    assert spearman(base[:, 0], base[:, 1], [base[:, 2], base[:, 3]]) == pytest.approx(expected)


def test_a_correlation_that_is_not_defined_is_nan():
    x = np.arange(5.0)
    assert math.isnan(spearman(x, np.ones(5)))
    assert math.isnan(spearman(x, x[::-1], [x]))  # nothing is left of x
    assert math.isnan(spearman(x[:2], x[:2]))


def test_which_answer_stands_first_changes_nothing():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=50), rng.normal(size=50)
    turned = np.where(rng.random(50) < 0.5, -1.0, 1.0)
    assert spearman(mirrored(x), mirrored(y)) == pytest.approx(spearman(mirrored(turned * x), mirrored(turned * y)))


# ---- best of n


def brute_force(reward: np.ndarray, worth: np.ndarray, n: int) -> float:
    """The mean over all draws of n without replacement, and over all orders in which equal rewards may be resolved."""
    found = []
    for drawn in combinations(range(len(reward)), n):
        top = max(reward[list(drawn)])
        found.append(np.mean([worth[i] for i in drawn if reward[i] == top]))
    return float(np.mean(found))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_best_of_n_is_the_mean_over_all_draws(n):
    rng = np.random.default_rng(n)
    reward, worth = rng.normal(size=6), rng.normal(size=6)
    assert expected_best(reward, worth, n) == pytest.approx(brute_force(reward, worth, n))
    assert best_weights(6, n).sum() == pytest.approx(1.0)


def test_equal_rewards_are_equally_likely_to_be_kept():
    reward, worth = np.array([1.0, 1.0, 0.0]), np.array([4.0, 0.0, 9.0])
    assert expected_best(reward, worth, 3) == pytest.approx(2.0)
    for order in permutations(range(3)):
        at = list(order)
        assert expected_best(reward[at], worth[at], 2) == pytest.approx(brute_force(reward, worth, 2))


def test_best_of_n_is_unbiased_over_samples():
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(4000, 8))
    found = np.mean([expected_best(row, row, 4) for row in draws])
    assert found == pytest.approx(1.0294, abs=0.02)  # the mean of the greatest of four normal numbers


def test_the_curve_counts_prompts_and_takes_gains_over_the_same_ones():
    reward = np.array([0.0, 1.0, 2.0, 3.0, 5.0, 4.0, NAN])
    gold = np.array([0.0, 1.0, 2.0, 3.0, 10.0, 20.0, 7.0])
    points = best_of_n(reward, gold, np.array([0, 0, 0, 0, 1, 1, 1]))
    assert [(point.n, point.prompts) for point in points] == [(1, 2), (2, 2)]  # one prompt has four
    assert points[0].kl == 0 and points[0].gold_gain.mean == 0
    first = brute_force(reward[:4], gold[:4], 2) - 1.5
    assert points[1].gold_gain.mean == pytest.approx((first + 10.0 - 15.0) / 2)
    one = best_of_n(reward[:4], gold[:4], np.zeros(4))
    assert [point.n for point in one] == [1, 2, 4]
    assert one[2].gold.mean == 3.0 and one[2].gold_gain.mean == pytest.approx(1.5)
    assert best_of_n(reward[:1], gold[:1], np.zeros(1)) == ()


def test_the_bound_on_kl():
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    # with a continuous reward the KL of the best of n is exactly that: E[log n u^(n - 1)] for u ~ n u^(n - 1)
    u = (np.arange(200000) + 0.5) / 200000
    density = 4 * u**3
    assert np.mean(density * np.log(density)) == pytest.approx(kl_bound(4), abs=1e-4)


# ---- ensembles


def test_auroc_of_a_hand_made_case():
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert auroc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert math.isnan(auroc(np.array([1.0]), np.array([True])))


def test_members_that_disagree_where_they_are_wrong_are_found():
    rng = np.random.default_rng(0)
    truth = rng.normal(1.0, 1.0, size=600)
    hard = np.abs(truth) < 0.7
    members = truth + rng.normal(size=(4, 600)) * np.where(hard, 2.0, 0.2)
    members *= np.array([[1.0], [10.0], [0.1], [3.0]])  # scales differ
    found = disagreement((members / members.std(axis=1, keepdims=True)).mean(axis=0), members, alone(600))
    assert found.auroc.low > 0.6
    assert len(found.members) == 4 and 0 < found.split.mean < 1
    blind = disagreement(truth, truth + 0.3 * rng.normal(size=(4, 600)), alone(600))
    assert blind.auroc.low < 0.55


def test_an_ensemble_that_is_never_wrong_or_says_nothing():
    assert "no pair" in disagreement(np.ones(3), np.ones((2, 3)), alone(3)).auroc.problem
    flat = disagreement(np.array([1.0, -1.0]), np.array([[0.0, 0.0], [1.0, -1.0]]), alone(2))
    assert "same reward" in flat.auroc.problem
