from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from assent import statistics
from assent.errors import UserError
from assent.statistics import (
    Interval,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    prompts_needed,
    proportion_interval,
    win_rate,
)


def test_mean_interval_agrees_with_scipy_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=80)
    ours = mean_interval(values, seed=3)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(5))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)
    assert (ours.n, ours.missing) == (80, 0)


def test_mean_interval_is_reproducible_and_seeded():
    values = np.random.default_rng(0).normal(size=30)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4) != mean_interval(values, seed=5)


def test_wider_confidence_gives_a_wider_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, confidence=0.99).half_width > 1.2 * mean_interval(values, confidence=0.9).half_width


def test_missing_values_are_excluded_and_counted_never_zero():
    ours = mean_interval([4.0, None, 6.0, math.nan, 5.0])
    assert (ours.mean, ours.n, ours.missing) == (5.0, 3, 2)
    assert ours.low >= 4.0
    assert ours == Interval(ours.mean, ours.low, ours.high, 3, 2)
    clean = mean_interval([4.0, 6.0, 5.0])
    assert (ours.low, ours.high) == (clean.low, clean.high)


def test_degenerate_samples():
    empty = mean_interval([None, None])
    assert math.isnan(empty.mean) and math.isnan(empty.low) and (empty.n, empty.missing) == (0, 2)
    one = mean_interval([3.0])
    assert one.mean == 3.0 and math.isnan(one.low) and math.isnan(one.high)
    same = mean_interval([2.0] * 9)
    assert (same.mean, same.low, same.high) == (2.0, 2.0, 2.0)


def test_infinite_score_and_wrong_lengths_are_refused():
    with pytest.raises(UserError, match="index 1"):
        mean_interval([1.0, math.inf])
    with pytest.raises(UserError, match="Got 1 for 2"):
        mean_interval([1.0, 2.0], clusters=["a"])
    with pytest.raises(UserError, match="same length"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="Got 1 for 2"):
        win_rate([1.0, 2.0], [1.0, 2.0], clusters=["a"])
    with pytest.raises(UserError, match="successes"):
        proportion_interval(3, 2)


def test_clusters_of_one_change_nothing_and_copies_add_no_evidence():
    values = list(np.random.default_rng(2).normal(size=40))
    plain = mean_interval(values)
    assert mean_interval(values, clusters=list(range(40))) == plain
    # Every value four times: as independent values the interval halves, as clusters it must not move.
    copies = mean_interval(values * 4, clusters=list(range(40)) * 4)
    assert copies.low == pytest.approx(plain.low) and copies.high == pytest.approx(plain.high)
    assert mean_interval(values * 4).half_width == pytest.approx(plain.half_width / 2, rel=0.15)


def test_uneven_clusters_weigh_answers_not_clusters():
    assert mean_interval([1.0, 1.0, 1.0, 5.0], clusters="aaab").mean == 2.0


def _coverage(monkeypatch: pytest.MonkeyPatch, draw, truth: float) -> float:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    hits = 0
    for sim in range(500):
        interval = draw(np.random.default_rng(sim))
        hits += interval.low <= truth <= interval.high
    return hits / 500


def test_coverage_of_independent_values(monkeypatch: pytest.MonkeyPatch):
    covered = _coverage(monkeypatch, lambda rng: mean_interval(rng.gamma(2.0, size=100)), truth=2.0)
    assert 0.92 <= covered <= 0.98


def test_coverage_of_clustered_values(monkeypatch: pytest.MonkeyPatch):
    clusters = list(np.repeat(np.arange(80), 3))

    def values(rng: np.random.Generator) -> np.ndarray:
        return np.repeat(rng.normal(size=80), 3) + 0.3 * rng.normal(size=240)

    assert 0.92 <= _coverage(monkeypatch, lambda rng: mean_interval(values(rng), clusters), truth=0.0) <= 0.98
    # The same data taken for independent covers far less: the clusters are what makes it right.
    assert _coverage(monkeypatch, lambda rng: mean_interval(values(rng)), truth=0.0) < 0.85


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (417, 1000)])
def test_proportion_interval_is_wilsons(successes: int, n: int):
    ours = proportion_interval(successes, n)
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.mean == successes / n and ours.low <= ours.mean <= ours.high


def test_proportion_of_nothing_is_unknown():
    assert math.isnan(proportion_interval(0, 0).mean)


def test_paired_difference_has_sign_and_exact_tests():
    a, b = [3.0, 2.0, 5.0, 4.0, 6.0], [1.0, 1.0, 1.0, 1.0, 1.0]
    result = paired_difference(a, b)
    assert result.difference.mean == 3.0
    assert paired_difference(b, a).difference.mean == -3.0
    # All five differences positive: 2 of the 2**5 sign patterns are as extreme.
    assert result.p_permutation == pytest.approx(2 / 32)
    assert result.p_sign == pytest.approx(2 / 32)


def test_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(0)
    base = 10 * rng.normal(size=60)
    result = paired_difference(base + 0.5 + 0.1 * rng.normal(size=60), base)
    assert result.difference.low > 0.4 and result.difference.high < 0.6 and result.p_permutation < 0.001
    assert paired_difference(rng.permutation(base), base).p_permutation > 0.05


def test_paired_difference_leaves_out_half_scored_pairs():
    result = paired_difference([1.0, None, 3.0, 4.0], [0.0, 9.0, math.nan, 1.0])
    assert result.difference.mean == 2.0
    assert (result.difference.n, result.difference.missing) == (2, 2)
    nothing = paired_difference([None], [1.0])
    assert math.isnan(nothing.p_sign) and nothing.difference.n == 0
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_sign == 1.0


def test_win_rate_counts_ties_half_and_reports_them():
    result = win_rate([2.0, 1.0, 0.0, 5.0, None], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.rate.mean == 2.5 / 4
    assert (result.rate.n, result.rate.missing) == (4, 1)
    wilson = proportion_interval(2.5, 4)
    assert (result.rate.low, result.rate.high) == pytest.approx((wilson.low, wilson.high))


def test_win_rate_of_all_wins_has_an_honest_lower_bound():
    result = win_rate([1.0] * 20, [0.0] * 20)
    assert result.rate.mean == result.rate.high == 1.0
    assert result.rate.low == pytest.approx(0.8389, abs=1e-3)  # Wilson, 20 of 20
    assert win_rate([], []).rate.n == 0


def test_win_rate_copies_add_no_evidence():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=50) + 0.5, rng.normal(size=50)
    plain = win_rate(a, b)
    copies = win_rate(np.tile(a, 5), np.tile(b, 5), clusters=list(range(50)) * 5)
    assert copies.rate.half_width == pytest.approx(plain.rate.half_width, rel=0.02)
    assert win_rate(np.tile(a, 5), np.tile(b, 5)).rate.half_width < 0.5 * plain.rate.half_width
    every = win_rate([1.0] * 20, [0.0] * 20, clusters=list(range(4)) * 5)
    assert every.rate.low == pytest.approx(proportion_interval(4, 4).low)


def test_paired_tests_flip_whole_clusters():
    # Three answers to each of five prompts, all better: 2 of the 2**5 flips of prompts are as extreme, not 2 of 2**15.
    clusters = list(np.repeat(np.arange(5), 3))
    result = paired_difference(np.arange(15.0) + 1, np.arange(15.0), clusters)
    assert result.difference.mean == 1.0
    assert result.p_permutation == pytest.approx(2 / 32) and result.p_sign == pytest.approx(2 / 32)
    alone = paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0], list("abc")) == alone


def test_permutation_agrees_with_scipy_and_keeps_its_level():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=10), rng.normal(size=10)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert paired_difference(a, b).p_permutation == pytest.approx(theirs)
    false_alarms = 0
    for sim in range(200):
        rng = np.random.default_rng(sim)
        false_alarms += paired_difference(rng.normal(size=8), rng.normal(size=8)).p_permutation <= 0.05
    assert false_alarms / 200 <= 0.09


def test_mcnemar_is_the_exact_binomial_test():
    a = [1] * 9 + [0] * 2 + [1] * 30 + [0] * 9 + [None]
    b = [0] * 9 + [1] * 2 + [1] * 30 + [0] * 9 + [1]
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b) == (9, 2)
    # 2 * (C(11, 0) + C(11, 1) + C(11, 2)) / 2**11
    assert result.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert result.p == pytest.approx(stats.binomtest(9, 11).pvalue) and mcnemar(b, a).p == result.p
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    with pytest.raises(UserError, match="Got 0.5 and 1"):
        mcnemar([0.5], [1])


def test_holm_is_the_step_down_of_bonferroni():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1.0, 1.0) and holm([]) == ()
    with_gap = holm([0.01, math.nan, 0.02])
    assert (with_gap[0], with_gap[2]) == (0.02, 0.02) and math.isnan(with_gap[1])
    with pytest.raises(UserError, match="between 0 and 1"):
        holm([1.2])
    # The chance of any false rejection among ten true hypotheses stays at the level.
    rng = np.random.default_rng(1)
    wrong = sum(min(holm(list(rng.random(10)))) <= 0.05 for _ in range(1000)) / 1000
    assert 0.03 < wrong < 0.07 < sum(rng.random(10).min() <= 0.05 for _ in range(1000)) / 1000


def test_prompts_needed_gives_the_width_that_was_asked_for():
    rng = np.random.default_rng(5)
    now = mean_interval((rng.random(500) < 0.5).astype(float)).half_width
    needed = prompts_needed(now, 500, 0.05)
    assert needed == pytest.approx(384, rel=0.02)  # 1.96² 0.25 / 0.05²
    assert needed is not None
    assert mean_interval((rng.random(needed) < 0.5).astype(float)).half_width == pytest.approx(0.05, rel=0.05)
    assert prompts_needed(0.2, 65, 0.1) == 260 and prompts_needed(0.2, 65, 0.4) == 17  # a wider one needs fewer
    assert prompts_needed(math.nan, 9, 0.1) is None and prompts_needed(0.0, 9, 0.1) is None
    assert prompts_needed(0.2, 1, 0.1) is None
    with pytest.raises(UserError, match="half width"):
        prompts_needed(0.2, 9, 0)


def test_coverage_of_shares_and_win_rates():
    for p, n in ((0.03, 60), (0.5, 40), (0.9, 100)):
        chance = stats.binom(n, p).pmf(np.arange(n + 1))  # all outcomes, exactly
        inside = [interval.low <= p <= interval.high for interval in (proportion_interval(k, n) for k in range(n + 1))]
        assert 0.92 <= chance[inside].sum() <= 0.98
    hits = 0
    clusters = list(np.repeat(np.arange(50), 4))
    for sim in range(300):
        rng = np.random.default_rng([7, sim])
        chance = np.repeat(stats.beta(2, 1.2).rvs(50, random_state=rng), 4)  # prompts differ: mean 0.625
        rate = win_rate((rng.random(200) < chance).astype(float), np.full(200, 0.5), clusters).rate
        hits += rate.low <= 0.625 <= rate.high
    assert 0.92 <= hits / 300 <= 0.98
