"""Sums and ensembles of reward sources, and the check that every source's numbers go through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from assent.data.records import Example, Message, Origin
from assent.errors import ConfigError, NonFiniteError
from assent.rewards.ensemble import COMBINE, Ensemble
from assent.rewards.group import Group, RewardError, Scores, WeightedSum, checked, in_order


class Given:
    """A source that gives what it was made with."""

    def __init__(self, name: str, *values: float | None) -> None:
        self.name = name
        self.values = values

    def score(self, groups: Sequence[Group]) -> Scores:
        unscored = self.values.count(None)
        return Scores(checked(self.name, groups, self.values), failures={"no answer": unscored} if unscored else {})


def group(*texts: str, row: int = 1) -> Group:
    example = Example((Message("user", "q"),), origin=Origin("rows.jsonl", row))
    return Group(example, texts, (True,) * len(texts), (1,) * len(texts))


GROUPS = [group("a", "b"), group("c", row=2)]


def test_a_sum_weighs_its_sources_and_keeps_their_parts():
    total = WeightedSum("reward", [Given("right", 1, 0, 1), Given("short", -0.5, 0, -1)], [2.0, 0.5])
    scores = total.score(GROUPS)
    assert scores.values.tolist() == [1.75, 0.0, 1.5]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "right": [1.0, 0.0, 1.0],
        "short": [-0.5, 0.0, -1.0],
    }
    assert scores.failures == {} and total.name == "reward"


def test_what_one_part_left_unscored_is_unscored():
    scores = WeightedSum("reward", [Given("right", 1, None, 1), Given("kind", 1, 1, None)], [1.0, -1.0]).score(GROUPS)
    np.testing.assert_array_equal(scores.values, [0.0, np.nan, np.nan])
    np.testing.assert_array_equal(scores.parts["kind"], [1.0, 1.0, np.nan])
    assert scores.failures == {"right: no answer": 1, "kind: no answer": 1}


class Choosy(Given):
    """A source whose None means that it does not judge the answer."""

    def score(self, groups: Sequence[Group]) -> Scores:
        scores = super().score(groups)
        return replace(scores, abstained=np.isnan(scores.values))


def test_an_answer_is_worth_what_those_say_that_judge_it():
    maths, code = Choosy("maths", 1, None, None), Choosy("code", None, 2, None)
    scores = WeightedSum("reward", [maths, code], [1.0, 0.5]).score(GROUPS)
    np.testing.assert_array_equal(scores.values, [1.0, 1.0, np.nan])
    scores = WeightedSum("reward", [maths, code, Given("kind", 1, 1, 1)], [1.0, 0.5, 2.0]).score(GROUPS)
    assert scores.values.tolist() == [3.0, 3.0, 2.0]
    # One that failed is not one that abstains.
    scores = WeightedSum("reward", [maths, Given("kind", None, 1, 1)], [1.0, 1.0]).score(GROUPS)
    np.testing.assert_array_equal(scores.values, [np.nan, 1.0, 1.0])
    # What has no weight judges nothing.
    scores = WeightedSum("reward", [maths, Given("kind", 1, 1, 1)], [1.0, 0.0]).score(GROUPS)
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, np.nan])


@pytest.mark.parametrize("weights", [[10.0, 1.0], [-1e300, 0.0], [1e300, -1e300]])
def test_a_sum_that_float32_cannot_hold_is_named(weights: list[float]):
    total = WeightedSum("--rewards.weights", [Given("a", 1, 1e38, 1), Given("b", 1, 1e38, 1)], weights)
    with pytest.raises(NonFiniteError, match=r"--rewards.weights gave -?\S+ for the answer .* within float32"):
        total.score(GROUPS)


def test_shares_of_the_answers_are_put_in_order():
    one = Scores(np.array([1.0, np.nan]), {}, {"crashed": 1}, None, {"read": [1, 2]}, {"m": [1.0]})
    two = Scores(np.array([np.nan]), {}, {"crashed": 2}, np.array([True]), {"seen": [3]}, {"m": [2.0], "n": [4.0]})
    whole = in_order([one, Scores(np.zeros(0)), two])
    np.testing.assert_array_equal(whole.values, [1.0, np.nan, np.nan])
    assert whole.abstained.tolist() == [False, False, True] and whole.failures == {"crashed": 3}
    assert whole.columns == {"read": [1, 2, None], "seen": [None, None, 3]}
    assert whole.metrics == {"m": [1.0, 2.0], "n": [4.0]}


def test_a_weight_of_zero_only_logs():
    scores = WeightedSum("reward", [Given("right", 1, 2, 3), Given("watched", None, None, 7)], [1.0, 0.0]).score(GROUPS)
    assert scores.values.tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(scores.parts["watched"], [np.nan, np.nan, 7.0])
    assert scores.failures == {"watched: no answer": 2}


def test_sums_of_ensembles_keep_every_name():
    pair = Ensemble("models", [Given("one", 1, 2, 3), Given("two", 3, 2, None)], "min")
    scores = WeightedSum("reward", [pair, Given("right", 1, 1, 1)], [1.0, 1.0]).score(GROUPS)
    np.testing.assert_array_equal(scores.values, [2.0, 3.0, np.nan])
    assert list(scores.parts) == ["models", "models/one", "models/two", "right"]
    np.testing.assert_array_equal(scores.parts["models/two"], [3.0, 2.0, np.nan])
    assert scores.failures == {"models: two: no answer": 1}


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, math.nan], [math.inf, 1.0], []])
def test_wrong_weights(weights: list[float]):
    with pytest.raises(ConfigError, match="expected 2 finite weights, not all of them 0, for one, two; got"):
        WeightedSum("reward", [Given("one", 1), Given("two", 1)], weights)


def test_sources_need_names_of_their_own():
    with pytest.raises(ConfigError, match="got one more than once"):
        WeightedSum("reward", [Given("one", 1), Given("one", 1)], [1.0, 1.0])
    with pytest.raises(ConfigError, match="got one more than once"):
        Ensemble("models", [Given("one", 1), Given("one", 1)])
    with pytest.raises(ConfigError, match="got none"):
        WeightedSum("reward", [], [])


@pytest.mark.parametrize(
    ("combine", "k", "expected"),
    [
        ("mean", 1.0, [2.0, 4.0, 0.0]),
        ("min", 1.0, [1.0, 4.0, -3.0]),
        ("lcb", 0.0, [2.0, 4.0, 0.0]),
        ("lcb", 1.0, [2.0 - math.sqrt(2 / 3), 4.0, -math.sqrt(14 / 3)]),
        ("lcb", 2.0, [2.0 - 2 * math.sqrt(2 / 3), 4.0, -2 * math.sqrt(14 / 3)]),
    ],
)
def test_ensembles(combine: str, k: float, expected: list[float]):
    members = [Given("one", 1, 4, -3), Given("two", 2, 4, 1), Given("three", 3, 4, 2)]
    scores = Ensemble("models", members, combine, k=k).score(GROUPS)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-12, atol=1e-12)
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "one": [1.0, 4.0, -3.0],
        "two": [2.0, 4.0, 1.0],
        "three": [3.0, 4.0, 2.0],
    }


@pytest.mark.parametrize("combine", COMBINE)
def test_what_one_member_left_unscored_is_unscored(combine: str):
    scores = Ensemble("models", [Given("one", 1, None, 3), Given("two", 1, 5, 3)], combine).score(GROUPS)
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, 3.0])
    assert scores.failures == {"one: no answer": 1}


def test_wrong_ensembles():
    one, two = Given("one", 1), Given("two", 1)
    with pytest.raises(ConfigError, match="at least two members; got one alone"):
        Ensemble("models", [one])
    with pytest.raises(ConfigError, match="expected one of mean, min, lcb; got 'max'"):
        Ensemble("models", [one, two], "max")
    for k in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="expected k >= 0; got"):
            Ensemble("models", [one, two], "lcb", k=k)


def test_values_are_checked_against_the_answers_they_are_for():
    values = checked("x", GROUPS, [True, np.float32(0.5), None])
    np.testing.assert_array_equal(values, [1.0, 0.5, np.nan])
    with pytest.raises(RewardError, match="x gave 2 rewards; expected 3"):
        checked("x", GROUPS, [1.0, 2.0])
    with pytest.raises(NonFiniteError, match=r"x gave inf for the answer 'c' to rows\.jsonl:2"):
        checked("x", GROUPS, [1.0, 2.0, math.inf])
    with pytest.raises(NonFiniteError, match=r"x gave nan for the answer 'b' to rows\.jsonl:1"):
        checked("x", GROUPS, [1.0, math.nan, math.inf])
    with pytest.raises(RewardError, match="x gave '1' for the answer 'a'"):
        checked("x", GROUPS, ["1", 2.0, 3.0])
    long = group("y" * 1000)
    with pytest.raises(RewardError) as caught:
        checked("x", [long], [{}])
    assert len(str(caught.value)) < 200


def test_groups_hold_one_entry_for_each_answer():
    three = Group(GROUPS[0].example, ("a", "b", "c"), (True, False, True), (1, 2, 3), ((1,), (2, 2), (3, 3, 3)))
    assert len(three) == 3
    alone = three.alone(1)
    assert (alone.texts, alone.finished, alone.lengths, alone.ids) == (("b",), (False,), (2,), ((2, 2),))
    assert GROUPS[0].alone(1).ids == () and alone.example is three.example
    with pytest.raises(AssertionError):
        Group(GROUPS[0].example, ("a", "b"), (True,), (1, 2))


def test_an_ensemble_that_float32_cannot_hold_is_named():
    members = [Given("one", 3e38, 1, 1), Given("two", -3e38, 1, 1)]
    with pytest.raises(NonFiniteError, match=r"models gave -3e\+76 for the answer 'a' to rows\.jsonl:1"):
        Ensemble("models", members, "lcb", k=1e38).score(GROUPS)


def test_an_ensemble_leaves_out_what_a_member_left_out():
    members = [Given("one", 1, None, 1), Given("two", 3, 1, 1)]
    np.testing.assert_array_equal(Ensemble("models", members).score(GROUPS).values, [2.0, np.nan, 1.0])
