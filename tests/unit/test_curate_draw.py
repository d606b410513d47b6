"""Which prompts are drawn: uniform over topics, the most complex twice as often, a share of several turns."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from assent.errors import DataError
from assent.people.curate.draw import draw, filled, inclusion, largest, most_complex, systematic

SIZES = (400, 30, 90, 5, 200, 60, 12, 150)


def population() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Topics of very different sizes, a fifth of the rows complex, a fourth of several turns."""
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(len(SIZES)), SIZES)
    rng.shuffle(topics)
    return topics, np.where(rng.random(len(topics)) < 0.2, 2.0, 1.0), rng.random(len(topics)) < 0.25


def test_topics_are_uniform_as_far_as_they_go():
    topics, weights, several = population()
    found = draw(topics, weights, several, 160, None, 1)
    counts = np.bincount(topics[found.places])
    # 5 and 12 are all there is; the others share 143
    assert counts[3] == 5 and counts[6] == 12 and len(found.places) == 160 == counts.sum()
    others = np.delete(counts, [3, 6])
    assert chisquare(others).pvalue > 0.9 and others.max() - others.min() <= 1
    by_chance = np.bincount(topics[np.random.default_rng(1).choice(len(topics), 160, replace=False)], minlength=8)
    assert chisquare(np.delete(by_chance, [3, 6])).pvalue < 1e-6  # what it would be without


def test_the_most_complex_have_exactly_twice_the_chance():
    topics, weights, _ = population()
    chances = inclusion(topics, weights, 160)
    assert chances.sum() == pytest.approx(160)
    for topic, size in enumerate(SIZES):
        own, heavy = chances[topics == topic], weights[topics == topic] == 2
        if size > 100:
            np.testing.assert_allclose(own[heavy], 2 * own[~heavy].mean(), rtol=1e-12)
        assert own.max() <= 1 and own.sum() == pytest.approx(min(size, 143 / 6))


def test_rows_are_drawn_with_just_their_chance():
    """Over many seeds, and in each draw the numbers are off by no more than rounding."""
    topics, weights, several = population()
    times = np.zeros(len(topics))
    expected = inclusion(topics, weights, 160)
    heavy = weights == 2
    for seed in range(400):
        found = draw(topics, weights, several, 160, None, seed)
        np.testing.assert_array_equal(found.chances, expected)
        taken = np.zeros(len(topics), bool)
        taken[found.places] = True
        times += taken
        for topic in range(len(SIZES)):
            for kind in (heavy, ~heavy):
                part = (topics == topic) & kind
                assert abs(taken[part].sum() - expected[part].sum()) < 2
    ratio = times[heavy & (topics == 0)].mean() / times[~heavy & (topics == 0)].mean()
    assert ratio == pytest.approx(2, rel=0.08)
    # chances as they should be: squared errors in units of their variance
    loose = (expected > 0) & (expected < 1)
    z = (times[loose] - 400 * expected[loose]) / np.sqrt(400 * expected[loose] * (1 - expected[loose]))
    assert abs(z.mean()) < 0.1 and 0.85 < z.std() < 1.15


def test_the_share_of_several_turns_is_kept():
    topics, weights, several = population()
    found = draw(topics, weights, several, 300, 0.29, 3)
    assert several[found.places].sum() == 87 and len(found.places) == 300
    none = draw(topics, weights, several, 100, 0.0, 3)
    assert not several[none.places].any() and len(none.places) == 100


def test_fewer_than_asked_for_keep_the_share_and_are_said(caplog):
    topics, weights, several = population()
    found = draw(topics, weights, several, 900, 0.9, 3)
    count = int(several.sum())
    assert several[found.places].sum() == count or round(0.9 * (len(found.places) + 1)) > count
    assert several[found.places].mean() == pytest.approx(0.9, abs=0.005)
    assert f"--take 900: fewer are taken, {len(found.places)}: {count} with several turns and" in caplog.text
    caplog.clear()
    assert len(draw(topics, weights, several, None, 0.5, 0).places) == largest(count, len(topics) - count, 0.5, 10**9)
    assert not caplog.text
    assert len(draw(topics, weights, several, 5000, None, 0).places) == len(topics)
    assert f"--take 5000: fewer are taken, {len(topics)}: {len(topics)} are left" in caplog.text
    with pytest.raises(DataError, match="0 prompts with several turns"):
        draw(topics, weights, np.zeros(len(topics), bool), 10, 0.29, 0)


@pytest.mark.parametrize("share", [0.0, 0.29, 0.5, 1.0])
def test_the_largest_total_by_brute_force(share: float):
    for many in range(12):
        for one in range(12):
            fits = [
                n for n in range(1, 25) if round(share * n) <= many and n - round(share * n) <= one
                and (many or not share) and (one or share == 1)
            ]  # fmt: skip
            assert largest(many, one, share, 24) == max(fits, default=0), (many, one)


def test_parts_in_proportion_none_above_its_most():
    np.testing.assert_allclose(filled(np.ones(3), np.array([2.0, 1.0, 1.0]), 1.0), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(filled(np.ones(3), np.array([2.0, 1.0, 1.0]), 2.5), [1.0, 0.75, 0.75])
    np.testing.assert_allclose(filled(np.array([5.0, 1.0]), np.ones(2), 4.0), [3.0, 1.0])
    np.testing.assert_allclose(filled(np.array([5.0, 1.0]), np.ones(2), 9.0), [5.0, 1.0])


def test_certain_rows_are_always_drawn():
    rng = np.random.default_rng(5)
    for _ in range(200):
        chances = np.concatenate([np.ones(7), filled(np.ones(60), rng.random(60) + 0.1, 13.0)])
        topics, weights = rng.integers(0, 5, 67), np.where(rng.random(67) < 0.5, 2.0, 1.0)
        places = systematic(chances, topics, weights, 20, rng)
        assert len(set(places.tolist())) == 20 and set(range(7)) <= set(places.tolist())


def test_the_most_complex_are_whole_levels():
    ratings = [1] * 50 + [2] * 20 + [3] * 18 + [4] * 8 + [5] * 4
    top, start = most_complex([*ratings, None, None], 0.2)
    assert start == 4 and top.sum() == 12 and not top[-2:].any()
    assert most_complex(ratings, 0.3)[1] == 3 and most_complex(ratings, 0.01)[1] == 5
    assert most_complex([3, 3, 3], 0.2) == (pytest.approx(np.zeros(3)), None)
    assert most_complex([3, 3, 4], 1.0)[1] == 4  # all alike would be no most complex
    assert most_complex([None, None], 0.2)[1] is None
    top, _ = most_complex(np.linspace(0, 1, 100).tolist(), 0.2)
    assert top.sum() == 20


def test_equal_seeds_draw_equal_rows():
    topics, weights, several = population()
    draws = [tuple(draw(topics, weights, several, 50, 0.29, seed).places) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] and Counter(draws).most_common(1)[0][1] == 2
