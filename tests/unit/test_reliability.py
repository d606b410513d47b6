"""Coefficients of agreement: worked examples that were published, packages, and plain loops."""

from __future__ import annotations

import csv
import math
from itertools import combinations
from pathlib import Path

import krippendorff as package
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from assent.measures import reliability as r

NAN = math.nan
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: 4 observers, 12 units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T
# Fleiss (1971), as in textbooks: 10 items, 14 raters, 5 categories.
FLEISS = (
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
)  # fmt: skip


def spread(counts: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Counts of values as ratings."""
    return np.array([np.repeat(np.arange(len(row)), row) for row in counts], float)


def random_ratings(seed: int, missing: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, 40)
    ratings = np.clip(truth[:, None] + rng.integers(-1, 2, (40, 4)), 0, 4).astype(float)
    ratings[rng.random(ratings.shape) < missing] = NAN
    return ratings


@pytest.mark.parametrize(("scale", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_krippendorffs_example(scale, value: float):
    assert r.krippendorff(OBSERVERS, scale) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("scale", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_the_packages(scale, seed: int):
    ratings = random_ratings(seed)
    wanted = package.alpha(ratings.T, level_of_measurement=scale)
    assert r.krippendorff(ratings, scale) == pytest.approx(wanted, abs=1e-12)


def test_fleiss_is_that_of_his_example():
    assert r.fleiss(spread(FLEISS)) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("quadratic", [False, True])
def test_cohen_is_scikit_learns(quadratic: bool):
    ratings = random_ratings(1, missing=0.0)
    weights = "quadratic" if quadratic else None
    both = [cohen_kappa_score(ratings[:, i], ratings[:, j], weights=weights) for i, j in combinations(range(4), 2)]
    assert r.cohen(ratings, quadratic) == pytest.approx(np.mean(both), abs=1e-12)
    some = random_ratings(2)[:, :2]
    there = ~np.isnan(some).any(1)
    wanted = cohen_kappa_score(some[there, 0], some[there, 1], weights=weights)
    assert r.cohen(some, quadratic) == pytest.approx(wanted, abs=1e-12)


def test_gwet_is_that_of_his_example():
    """Gwet (2008), table 1: 125 subjects, (+,+) 118, (+,-) 5, (-,+) 2, (-,-) 0: κ is about 0 where AC1 is 0.94."""
    ratings = np.array([[1, 1]] * 118 + [[1, 0]] * 5 + [[0, 1]] * 2, float)
    share = (123 + 120) / 250
    chance = 2 * share * (1 - share)
    assert r.gwet(ratings) == pytest.approx((118 / 125 - chance) / (1 - chance), abs=1e-12)
    assert r.gwet(ratings) == pytest.approx(0.9408, abs=5e-4)
    assert r.cohen(ratings) == pytest.approx(-0.0234, abs=5e-4)
    assert r.agreement(ratings) == pytest.approx(118 / 125)


@pytest.mark.parametrize("quadratic", [False, True])
def test_gwet_by_a_plain_loop(quadratic: bool):
    ratings = random_ratings(3)
    values = sorted({value for row in ratings for value in row if not math.isnan(value)})
    weight = {
        (v, w): (1 - (v - w) ** 2 / (values[-1] - values[0]) ** 2) if quadratic else float(v == w)
        for v in values
        for w in values
    }
    agreed, shares = [], dict.fromkeys(values, 0.0)
    rated = 0
    for row in ratings:
        given = [value for value in row if not math.isnan(value)]
        for value in given:
            shares[value] += 1 / len(given)
        rated += bool(given)
        if len(given) >= 2:
            two = [weight[a, b] for i, a in enumerate(given) for j, b in enumerate(given) if i != j]
            agreed.append(sum(two) / len(two))
    pi = [share / rated for share in shares.values()]
    chance = sum(weight.values()) / (len(values) * (len(values) - 1)) * sum(p * (1 - p) for p in pi)
    observed = sum(agreed) / len(agreed)
    assert r.gwet(ratings, quadratic) == pytest.approx((observed - chance) / (1 - chance), abs=1e-12)


def test_items_with_different_numbers_of_ratings_are_irrcacs():
    """irrCAC 0.4.4 (Gwet's own formulas) on the same 29 items with 2 to 4 ratings."""
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 5, 30)
    ratings = np.clip(truth[:, None] + rng.integers(-1, 2, (30, 4)), 0, 4).astype(float)
    ratings[rng.random(ratings.shape) < 0.3] = NAN
    assert r.gwet(ratings) == pytest.approx(0.19800406, abs=1e-8)
    assert r.gwet(ratings, quadratic=True) == pytest.approx(0.72894288, abs=1e-8)
    assert r.fleiss(ratings) == pytest.approx(0.18482421, abs=1e-8)
    assert r.krippendorff(ratings) == pytest.approx(0.2595326, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_drawing_an_item_twice_is_having_it_twice(seed: int):
    """Each statistic of how often items are drawn is the coefficient of the rows that were drawn."""
    rng = np.random.default_rng(seed)
    ratings = random_ratings(seed, missing=0.4)
    drawn = rng.integers(0, len(ratings), len(ratings))
    weight, rows = np.bincount(drawn, minlength=len(ratings)).astype(float), ratings[drawn]
    table, values = r.Table.of(ratings), np.unique(ratings[~np.isnan(ratings)])
    pairs, shared = r.pairs_sharing(ratings, 1)
    assert len(pairs) == 6 and shared == sum((~np.isnan(ratings[:, two])).all(1).sum() for two in pairs)
    for scale in ("nominal", "ordinal", "interval"):
        assert r.krippendorff_of(table, scale)(weight) == pytest.approx(r.krippendorff(rows, scale), abs=1e-12)
    assert r.agreement_of(table)(weight) == pytest.approx(r.agreement(rows), abs=1e-12)
    assert r.fleiss_of(table)(weight) == pytest.approx(r.fleiss(rows), abs=1e-12)
    for quadratic in (False, True):
        wanted = r.cohen(rows, quadratic), r.gwet(rows, quadratic, values)
        found = r.cohen_of(ratings, pairs, quadratic)(weight), r.gwet_of(table, quadratic)(weight)
        assert found == pytest.approx(wanted, abs=1e-12)
    others = r.with_others(table, 4)(weight)
    for place in range(4):
        same = [row[place] == value for row in rows if not np.isnan(row[place]) for n, value in enumerate(row)
                if n != place and not np.isnan(value)]  # fmt: skip
        assert others[place] == pytest.approx(np.mean(same), abs=1e-12)


def test_agreement_on_what_is_rare():
    """96 of 100 items say 0 twice, 1 says 1 twice, 3 once each: of the five 1s two have a 1 beside them."""
    ratings = np.array([[0, 0]] * 96 + [[1, 1]] + [[1, 0]] * 3, float)
    share, others = r.most_frequent(np.vstack([ratings, [[1, NAN]] * 50]))
    assert (share, others) == pytest.approx((195 / 200, 2 / 5))
    assert math.isnan(r.most_frequent(np.zeros((4, 2)))[1])


def test_kendalls_w_by_friedman():
    """W = χ² / (m (n - 1)) of Friedman's test, which scipy corrects for ties."""
    from scipy.stats import friedmanchisquare

    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 4, (12, 5)).astype(float)
    chi = friedmanchisquare(*ratings).statistic  # one sample an item, annotators are the blocks
    assert r.kendall_w(ratings) == pytest.approx(chi / (5 * 11), abs=1e-12)
    assert r.kendall_w(np.column_stack([np.arange(6.0)] * 3)) == pytest.approx(1.0)


def test_where_there_is_nothing_to_compare():
    lonely = np.array([[1, NAN], [NAN, 2.0]])
    assert all(math.isnan(f(lonely)) for f in (r.krippendorff, r.cohen, r.fleiss, r.gwet, r.agreement, r.kendall_w))
    same = np.ones((5, 3))
    assert all(math.isnan(f(same)) for f in (r.krippendorff, r.cohen, r.fleiss, r.kendall_w))
    assert r.gwet(same) == 1.0 and r.agreement(same) == 1.0


def test_on_xstests_two_annotators_kappa_and_ac1_tell_different_stories(real_data: Path):
    """Where nearly all answers comply, the two agree on 22 or more of 25 answers, and kappa calls it chance."""
    with (real_data / "xstest_completions_mistralinstruct.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes = {name: code for code, name in enumerate(sorted({row["annotation_1"] for row in rows}))}
    ratings = np.array([[codes[row["annotation_1"]], codes[row["annotation_2"]]] for row in rows], float)
    assert r.agreement(ratings) == pytest.approx(439 / 450)
    assert r.cohen(ratings) == pytest.approx(cohen_kappa_score(*ratings.T.astype(int)), abs=1e-12)
    assert r.gwet(ratings) > r.cohen(ratings) > 0.9
