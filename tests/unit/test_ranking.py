"""Bradley–Terry and Elo: scikit-learn's logistic regression, closed forms, coverage, and what has no strength."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from assent.measures import ranking
from assent.measures.answers import Answers, Prompts
from assent.measures.ranking import Comparisons, bradley_terry, elo, strengths
from assent.measures.shapes import Duels

NAMES = ("a", "b", "c", "d")
THETA = np.array([0.9, 0.3, -0.2, -1.0])


def played(rng: np.random.Generator, prompts: int = 60, theta: np.ndarray = THETA) -> Comparisons:
    """Each pair once on each prompt; a prompt favours some of the policies, so its comparisons go together."""
    rows = []
    for prompt in range(prompts):
        own = theta + rng.normal(0, 0.5, len(theta))
        for i, j in itertools.combinations(range(len(theta)), 2):
            rows.append((i, j, float(rng.random() < expit(own[i] - own[j])), prompt))
    first, second, outcome, prompt = map(np.array, zip(*rows, strict=True))
    return Comparisons(first, second, outcome, prompt)


def test_strengths_are_those_of_scikit_learns_logistic_regression():
    found = played(np.random.default_rng(0))
    design = np.zeros((len(found.outcome), 4))
    design[np.arange(len(design)), found.first], design[np.arange(len(design)), found.second] = 1, -1
    model = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(design, found.outcome)
    expected = model.coef_[0] - model.coef_[0].mean()
    ours = bradley_terry(NAMES, found, resamples=0)
    assert [each.value for each in ours] == pytest.approx(expected, abs=1e-5)
    anchored = bradley_terry(NAMES, found, anchor=3, resamples=0)
    assert [each.value for each in anchored] == pytest.approx(expected - expected[3], abs=1e-5)
    assert [each.n for each in ours] == [180] * 4


def test_two_policies_have_the_log_odds_and_ties_are_half_wins():
    found = Comparisons(np.zeros(8, int), np.ones(8, int), np.r_[np.ones(5), np.zeros(1), [0.5, 0.5]], np.arange(8))
    one, other = bradley_terry(("a", "b"), found, anchor=1, resamples=0)
    assert one.value == pytest.approx(math.log(6 / 2)) and other.value == 0
    weighted = Comparisons(np.zeros(2, int), np.ones(2, int), np.array([1.0, 0.0]), np.arange(2), np.array([3.0, 1.0]))
    assert bradley_terry(("a", "b"), weighted, anchor=1, resamples=0)[0].value == pytest.approx(math.log(3))
    # 400 points are ten wins for one loss.
    assert elo(one, base=0).value == pytest.approx(400 * math.log10(3))


def test_turning_every_outcome_round_turns_the_ranking_round():
    found = played(np.random.default_rng(1))
    turned = Comparisons(found.first, found.second, 1 - found.outcome, found.prompt)
    there, back = (bradley_terry(NAMES, each, resamples=0) for each in (found, turned))
    assert [each.value for each in there] == pytest.approx([-each.value for each in back], abs=1e-6)


def test_who_won_all_or_is_apart_has_no_strength_and_is_named():
    #        a beats all; b, c, d beat each other in a ring; e and f only know each other; g only loses to b
    wins = np.zeros((7, 7))
    wins[0, 1] = wins[0, 2] = 3
    wins[1, 2] = wins[2, 3] = wins[3, 1] = 2
    wins[4, 5] = wins[5, 4] = 1
    wins[1, 6] = 2
    theta = strengths(wins)
    assert theta[0] == math.inf and theta[6] == -math.inf and np.isnan(theta[4:6]).all()
    assert theta[1:4] == pytest.approx([0, 0, 0], abs=1e-6)
    anchored = strengths(wins, anchor=4)
    assert anchored[4:6] == pytest.approx([0, 0], abs=1e-6) and np.isnan(anchored[[0, 1, 2, 3, 6]]).all()
    first, second = np.nonzero(wins)
    found = Comparisons(first, second, np.ones(len(first)), np.arange(len(first)), wins[first, second])
    said = bradley_terry(tuple("abcdefg"), found, resamples=50)
    assert said[0].value is None and "never lost" in said[0].problem and "b, c, d" in said[0].problem
    assert said[6].value is None and "never won" in said[6].problem
    assert said[4].value is None and "no chain" in said[4].problem
    assert elo(said[0]).problem == said[0].problem and elo(said[0]).value is None


def test_one_lost_comparison_bounds_a_strength_below_only():
    """Of 30 comparisons one is lost: a third of the draws have none of it, and so no finite strength."""
    found = Comparisons(np.zeros(30, int), np.ones(30, int), np.r_[np.ones(29), 0.0], np.arange(30))
    one, _ = bradley_terry(("a", "b"), found, anchor=1)
    assert one.value == pytest.approx(math.log(29)) and one.low is not None and one.low > 1 and one.high is None


def test_intervals_cover_and_need_the_prompts():
    """A prompt's comparisons go together: the interval must be wider than that of as many single comparisons."""
    hits = 0
    large = played(np.random.default_rng(99), prompts=4000)
    truth = [each.value for each in bradley_terry(NAMES, large, resamples=0)]
    for sim in range(40):
        found = played(np.random.default_rng([3, sim]), prompts=60)
        hits += sum(
            each.low <= value <= each.high
            for each, value in zip(bradley_terry(NAMES, found, resamples=150, seed=sim), truth, strict=True)
        )
    assert 0.92 <= hits / 160 <= 0.98


def test_nothing_compared_is_said():
    nothing = np.zeros(0, np.int64)
    said = bradley_terry(("a", "b"), Comparisons(nothing, nothing, np.zeros(0), nothing))
    assert said[0].value == 0 and said[0].low is None and said[1].value is None and "no chain" in said[1].problem


def test_the_row_ranks_duels_without_their_failures():
    prompts = Prompts(("",) * 40, ("",) * 40, ((),) * 40, ("",) * 40)
    answers = [Answers(name, prompts, np.arange(40), ("x",) * 40) for name in "abc"]
    pairs = np.repeat(np.arange(40)[:, None], 2, 1)
    outcome = np.r_[np.ones(27), np.zeros(9), np.full(4, math.nan)]
    reasons = ("",) * 36 + ("unreadable",) * 4
    duels = {
        (i, j): Duels("judge", answers[i], answers[j], pairs, outcome, reasons)
        for i, j in itertools.combinations(range(3), 2)
    }
    found = ranking.ROWS[0].of(("a", "b", "c"), duels)
    assert found[0].value > found[1].value > found[2].value and found[1].value == pytest.approx(1000, abs=1e-3)
    assert sum(each.value for each in found) == pytest.approx(3000)
    assert [each.n for each in found] == [72, 72, 72]
