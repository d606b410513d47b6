"""What of an answer's form a reward follows, and what edits do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from assent.measures.bias import bias, prefers_longer, within
from assent.measures.edits import EDITS, POLITE, edited_texts, repeated, reversed_list, sensitivity, truncated
from assent.measures.judged import Judged
from assent.measures.texts import bold, headings, length, list_items

NAN = math.nan


def test_forms_are_counted():
    text = "# Title\n\nSome **bold words** and __more__, 2 * 3 * 4.\n"
    text += "- one\n- two\n  * three\n1. four\n2) five\n-6 degrees\n"
    assert list_items(text) == 5
    assert headings(text) == 1 and headings("#hashtag\n##  Two") == 1
    assert bold(text) == 2 and bold("a ** b ** c") == 0
    assert length("né") == 2 and length("") == 0


def pairs_of(
    rewards: np.ndarray, lengths: np.ndarray, gold: np.ndarray | None = None, strength: np.ndarray | None = None
) -> Judged:
    """[M, 2] each: the better answer first; texts of so many characters."""
    m = len(rewards)
    return Judged(
        rewards=rewards.reshape(-1),
        prompt=np.repeat(np.arange(m), 2),
        texts=tuple("x" * int(size) for size in lengths.reshape(-1)),
        pairs=np.arange(2 * m).reshape(-1, 2),
        strength=np.full(m, NAN) if strength is None else strength,
        gold=None if gold is None else gold.reshape(-1),
    )


def drawn(seed: int, follow: float, m: int = 300) -> Judged:
    """Rewards = gold + follow * length: labels are of gold, which has nothing to do with length."""
    rng = np.random.default_rng(seed)
    gold, lengths = rng.normal(size=(m, 2)), rng.integers(1, 100, size=(m, 2))
    order = np.argsort(-gold, axis=1)
    gold, lengths = np.take_along_axis(gold, order, 1), np.take_along_axis(lengths, order, 1)
    noise = 0.3 * rng.normal(size=(m, 2))
    return pairs_of(gold + follow * lengths + noise, lengths, gold)


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_that_follows_length_is_told_from_one_that_does_not(seed):
    biased, fair = (bias(drawn(seed, follow), resamples=100) for follow in (0.02, 0.0))
    (length_of,) = (row for row in biased.relations if row.feature == "length")
    assert length_of.given_gold.low > 0.3 and length_of.given_label.low > 0.2
    assert biased.longer.excess.low > 0
    (length_of,) = (row for row in fair.relations if row.feature == "length")
    assert length_of.given_gold.low < 0 < length_of.given_gold.high
    assert abs(fair.longer.excess.value) < 0.25 * biased.longer.excess.value
    assert length_of.given_length is None
    for row in biased.relations[1:]:  # no text has a list, a heading, bold
        assert row.reward.value is None and row.feature in row.reward.problem and row.differs == 0


def test_a_reward_that_follows_length_only_because_gold_does_is_not_accused():
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 100, size=(500, 2))
    gold = lengths + 15.0 * rng.normal(size=(500, 2))
    order = np.argsort(-gold, axis=1)
    gold, lengths = np.take_along_axis(gold, order, 1), np.take_along_axis(lengths, order, 1)
    found = bias(pairs_of(gold + 1e-3 * rng.normal(size=gold.shape), lengths, gold), resamples=100)
    row = found.relations[0]
    assert row.reward.low > 0.5 and row.gold.low > 0.5
    assert row.given_gold.low < 0 < row.given_gold.high


def test_correlations_are_those_of_scipy_whichever_answer_stands_first():
    judged = drawn(7, 0.02, m=60)
    both = judged.gap(judged.rewards), judged.gap(np.array([len(text) for text in judged.texts], float))
    x, y = (np.concatenate([column, -column]) for column in both)
    row = bias(judged, resamples=20).relations[0]
    assert row.reward.value == pytest.approx(stats.spearmanr(x, y).statistic)
    turned = Judged(judged.rewards, judged.prompt, judged.texts, judged.pairs[:, ::-1], judged.strength)
    assert bias(turned, resamples=20).relations[0].reward.value == pytest.approx(row.reward.value)
    assert bias(turned, resamples=20).relations[0].label.value == pytest.approx(-row.label.value)


def test_the_strength_of_labels_counts_where_all_have_one():
    rng = np.random.default_rng(3)
    rewards, lengths = rng.normal(size=(50, 2)), rng.integers(1, 60, size=(50, 2))
    strength = rng.integers(1, 4, size=50).astype(float)
    signs = np.sign(lengths[:, 0] - lengths[:, 1]).astype(float)
    weighted = bias(pairs_of(rewards, lengths, strength=strength), resamples=10).relations[0].label.value
    size = (lengths[:, 0] - lengths[:, 1]).astype(float)
    expected = stats.spearmanr(np.concatenate([strength, -strength]), np.concatenate([size, -size])).statistic
    assert weighted == pytest.approx(expected)
    strength[0] = NAN
    plain = bias(pairs_of(rewards, lengths, strength=strength), resamples=10).relations[0].label.value
    assert plain == pytest.approx(stats.spearmanr(np.repeat([1.0, -1.0], 50), np.concatenate([size, -size])).statistic)
    assert signs.any()


def test_the_longer_answer_in_numbers():
    gap, size = np.array([1.0, -1.0, 0.0, 2.0, 3.0]), np.array([5.0, 5.0, 5.0, -5.0, 0.0])
    found = prefers_longer(gap, size, np.arange(5))
    assert found.reward.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found.label.value == pytest.approx(3 / 4)
    assert found.excess.value == pytest.approx(found.reward.value - 0.75) and found.reward.n == 4
    assert "same length" in prefers_longer(gap, np.zeros(5), np.arange(5)).reward.problem


def test_constant_rewards_are_said():
    found = bias(pairs_of(np.ones((9, 2)), np.arange(18).reshape(9, 2)))
    assert found.relations[0].reward.value is None and "differ in reward" in found.relations[0].reward.problem
    assert found.levels[0].reward.value is None and "equal" in found.levels[0].reward.problem
    assert found.longer.reward.value == 0.5


def test_answers_without_pairs_still_have_levels():
    judged = Judged(
        rewards=np.array([1.0, 2.0, 3.0, 10.0, 11.0, 12.0, NAN]),
        prompt=np.array([0, 0, 0, 1, 1, 1, 1]),
        texts=("a", "bb", "ccc", "a", "bb", "ccc", "x" * 90),
        pairs=np.zeros((0, 2), int),
        strength=np.zeros(0),
    )
    found = bias(judged)
    assert found.levels[0].reward.value == pytest.approx(1.0) and found.levels[0].reward.n == 6
    assert "too few" in found.relations[0].reward.problem and found.longer.reward.problem == "no scored pair"
    assert within(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1])).tolist() == [-1.0, 1.0, 0.0]


# ---- edits


def test_edits_of_texts():
    by_name = {edit.name: edit for edit in EDITS}
    assert by_name["spaces"].apply("One. Two! 3.5 is three.") == "One.  Two!  3.5 is three. "
    assert by_name["newlines"].apply("One.") == "One.\n\n"
    assert by_name["politeness"].apply("Paris.") == POLITE + "Paris."
    assert repeated("Paris. It is big!  ") == "Paris. It is big! It is big!"
    assert repeated("no full stop") is None
    assert reversed_list("Buy:\n- milk\n- eggs\n\nDone") == "Buy:\n- eggs\n- milk\n\nDone"
    assert reversed_list("1. first\n2. second") is None  # the order of numbered items means something
    assert reversed_list("- only") is None
    assert reversed_list("- a\n  - b\n  - c\n- d") == "- a\n  - c\n  - b\n- d"
    assert truncated("one two three four", 0.5) == "one two"
    assert truncated("one two three", 0.62) == "one two"  # cut where a word ends
    assert truncated("word", 0.5) is None and truncated("", 0.9) is None
    assert all(edit.apply("") is None and edit.apply(" \n") is None for edit in EDITS)
    texts, applies = edited_texts(by_name["list order"], ["- a\n- b", "plain"])
    assert texts == ["- b\n- a", "plain"] and applies.tolist() == [True, False]


def test_sensitivity_of_a_hand_made_case():
    edit = EDITS[0]
    rewards = np.array([1.0, 0.0, 2.0, 1.5, NAN, 3.0])
    edited = np.array([0.5, 0.2, 2.0, 2.5, 1.0, NAN])
    applies = np.array([True, True, False, True, True, True])
    pairs = np.array([[0, 1], [2, 3], [4, 5]])
    found = sensitivity(edit, rewards, edited, applies, np.array([0, 0, 1, 1, 2, 2]), pairs, scale=2.0)
    assert found.answers == 3 and found.unscored == 1
    assert found.change.value == pytest.approx((-0.5 + 0.2 + 1.0) / 3 / 2.0)
    assert found.rose.value == pytest.approx(2 / 3)
    # (0 edited against 1), (1 edited against 0), (3 edited against 2): the last turns round
    assert found.flipped.value == pytest.approx(1 / 3)


def test_a_tie_that_is_broken_is_half_a_turn():
    found = sensitivity(
        EDITS[0],
        np.array([1.0, 1.0]),
        np.array([1.1, NAN]),
        np.array([True, False]),
        np.zeros(2, int),
        np.array([[0, 1]]),
        scale=1.0,
    )
    assert found.flipped.value == 0.5


def test_an_edit_that_applies_nowhere_and_constant_rewards():
    none = np.zeros(2, bool)
    pairs, prompt = np.array([[0, 1]]), np.zeros(2, int)
    found = sensitivity(EDITS[0], np.ones(2), np.ones(2), none, prompt, pairs, scale=1.0)
    assert found.answers == 0 and "no scored answer" in found.change.problem
    flat = sensitivity(EDITS[0], np.ones(2), np.ones(2), ~none, prompt, pairs, scale=0.0)
    assert flat.change.value is None and "equal" in flat.change.problem and flat.flipped.value == 0
