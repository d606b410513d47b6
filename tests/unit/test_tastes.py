"""What annotators go by beside worth, found among crowds of known tastes; and who is careless."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from assent.measures.habits import careless, habits
from assent.measures.tastes import RIDGE, Comparisons, Taste, _Votes, stand_out, tastes
from assent.statistics import proportion_interval

SKILL = np.array([4, 4, 3, 3, 2, 1, 0, 2, 2.0])
SIDE, LENGTH = np.eye(9)[8] * 2.0, np.eye(9)[7] * 2.5
"""Of nine annotators, in logits: what they make of worth, of the left side (the last), and of length (the one before).
The seventh guesses."""


def votes(seed: int, items: int, each: int, skill=SKILL, side=SIDE, length=LENGTH, worth_goes_with_length: float = 0.0):
    """Comparisons of `each` annotators on every item, and what the others on the item took."""
    rng = np.random.default_rng(seed)
    longer = rng.normal(0, 0.5, items)
    worth = worth_goes_with_length * longer / 0.5 + rng.normal(0, 1, items)
    item = np.repeat(np.arange(items), each)
    who = np.concatenate([rng.permutation(len(skill))[:each] for _ in range(items)])
    turned = rng.random(len(item)) < 0.5
    sign = np.where(turned, -1, 1)
    logits = skill[who] * sign * worth[item] + side[who] + length[who] * sign * longer[item] / 0.5
    left = rng.random(len(item)) < 1 / (1 + np.exp(-logits))
    first = np.where(turned, ~left, left)
    others = (np.bincount(item, first)[item] - first) / (each - 1)
    choices = Comparisons(item, who, left, turned, sign * longer[item], len(skill))
    return choices, np.where(turned, 1 - others, others)


def told(choices: Comparisons, others: np.ndarray) -> tuple[dict[str, float], dict[str, float], set[str]]:
    found = {str(n): each for n, each in enumerate(habits(choices, np.zeros(choices.annotators), others))}
    sides, lengths = (stand_out({n: getattr(h, what) for n, h in found.items()}) for what in ("side", "length"))
    agreements = {name: each.agreement for name, each in found.items()}
    return {n: t.value for n, t in sides.items()}, {n: t.value for n, t in lengths.items()}, careless(agreements)


@pytest.mark.parametrize("goes_with", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("seed", range(2))
def test_what_annotators_go_by(seed: int, goes_with: float):
    """Also where worth itself goes with length, so that everybody seems to go by it."""
    choices, others = votes(seed, 1500, 4, worth_goes_with_length=goes_with)
    sides, lengths, poor = told(choices, others)
    assert sides.keys() == {"8"} and lengths.keys() == {"7"} and poor == {"6"}
    assert sides["8"] == pytest.approx(2.0, abs=0.6) and lengths["7"] == pytest.approx(2.5, abs=1.0)
    (side, length), *_ = tastes(replace(choices, sides_known=False))
    assert np.isnan(side.value) and length.error > 0 and stand_out({"unknown": side}) == {}


def test_annotators_without_a_taste_are_seldom_said_to_have_one():
    """Level 0.01 of anybody in a crowd: of 60 crowds at most a few, also where one in nine goes by length, whom the
    others' votes must not be measured against."""
    sound = np.zeros(9)
    named = Counter[str]()
    for seed in range(30):
        sides, lengths, poor = told(*votes(seed, 200, 3, np.maximum(SKILL, 2), sound, sound))
        named["sound"] += bool(sides or lengths or poor)
        sides, lengths, poor = told(*votes(seed, 200, 3))
        named["faults"] += bool(sides.keys() - {"8"} or lengths.keys() - {"7"} or poor - set("5678"))
        named["found"] += ("8" in sides) + ("7" in lengths) + ("6" in poor)
    assert named["sound"] <= 1 and named["faults"] <= 2 and named["found"] >= 50, named


def test_errors_of_tastes_are_those_of_repeated_draws():
    found = [tastes(votes(seed, 300, 4)[0]) for seed in range(60)]
    side = np.array([[(each[n][0].value, each[n][0].error) for n in range(9)] for each in found])
    spread, said = side[..., 0].std(0), np.median(side[..., 1], 0)
    assert np.all(said < 1.5 * spread) and np.all(said > 0.7 * spread), (spread, said)


def test_tastes_that_stand_out():
    assert stand_out({name: Taste(0.5, 0.1, 1e-6) for name in "ab"}).keys() == {"a", "b"}
    assert stand_out({"a": Taste(0.2, 0.001, 0.0), "b": Taste(0.0, 1.0, 1.0)}) == {}  # sure, but too little to act on
    crowd = {str(n): Taste(0.0, 0.2, 1.0) for n in range(99)}
    assert stand_out({"a": Taste(0.6, 0.2, 0.003), **crowd}) == {}  # one of a hundred
    assert stand_out({"a": Taste(np.nan, np.nan, np.nan)}) == {}
    nobody = Comparisons(*(np.zeros(0, int) for _ in range(5)), annotators=2)
    assert all(np.isnan(taste.value) for two in tastes(nobody) for taste in two)


def test_the_likelihood_ratio_is_one_of_the_whole_likelihood():
    """Against every vote's probability by a fine grid of worth, one annotator's side taken away."""
    choices, _ = votes(1, 150, 4)
    own = _Votes.of(choices)
    theta = own.fitted(np.tile([1.0, 0, 0], (9, 1)), own.share)
    p = own.against_none(theta)[8, 1]
    none = theta.copy()
    none[8, 1] = 0

    def whole(theta: np.ndarray) -> float:
        total = np.zeros((150, 7))
        np.add.at(total, choices.item, own._said(theta))
        return float(np.log((np.exp(total) * np.exp(own.prior)).sum(1)).sum() - RIDGE / 2 * (theta**2).sum())

    def less(two: np.ndarray) -> float:
        none[8, [0, 2]] = two
        return -whole(none)

    ratio = 2 * (whole(theta) + minimize(less, theta[8, [0, 2]]).fun)
    assert p == pytest.approx(stats.chi2.sf(ratio, 1), rel=0.02) and p < 1e-3


def test_of_few_labels_nobody_is_careless():
    """Three of three, and nine of fifteen, are anybody's; half of a hundred where others have 85 % is a coin's."""
    crowd = {str(n): proportion_interval(85, 100) for n in range(9)}
    few = {"three": proportion_interval(3, 3), "nine": proportion_interval(9, 15), "none": proportion_interval(0, 0)}
    bad = {"coin": proportion_interval(52, 100), "sure": proportion_interval(360, 670)}
    assert careless({**crowd, **few, **bad}) == bad.keys()
    assert careless({**crowd, "poor": proportion_interval(130, 200)}) == set()  # poor, but no coin
    coins = {str(n): proportion_interval(100, 200) for n in range(3)}
    assert careless(coins) == set(coins) and careless({}) == set()
