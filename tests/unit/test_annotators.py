"""Who is right when annotators disagree: models of annotators beside crowd-kit's, HelpSteer2's rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import MACE, DawidSkene, MajorityVote

from assent.measures.annotators import Choices, Labels, dawid_skene, decided, mace, majority, skilled_bradley_terry
from assent.measures.closest import averaged, helpsteer2, needs_more

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ACCURACY = np.array([0.95, 0.9, 0.9, 0.8, 0.7, 0.6, 0.4, 0.34])


def crowd(seed: int, items: int = 200, classes: int = 3) -> tuple[Labels, np.ndarray, pd.DataFrame]:
    """Eight annotators of known accuracy, the last of whom always says 0; five of them look at each item."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, items)
    rows = []
    for item in range(items):
        for who in rng.choice(8, 5, replace=False):
            right = rng.random() < ACCURACY[who]
            rows.append((item, who, 0 if who == 7 else truth[item] if right else rng.integers(0, classes)))
    rows.sort(key=lambda row: (row[2], row[1]))  # crowd-kit numbers labels and workers as they come
    item, who, label = map(np.array, zip(*rows, strict=True))
    frame = pd.DataFrame({"task": item, "worker": who, "label": label})
    return Labels(item, who, label, items, 8, classes), truth, frame


def test_majority_is_crowd_kits_and_ties_are_undecided():
    labels, _, frame = crowd(0)
    shares = MajorityVote().fit(frame).probas_.loc[range(200), range(3)].to_numpy()
    np.testing.assert_allclose(majority(labels).posterior, shares)
    two = Labels(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0, 1, 1]), 3, 2, 2)
    found = majority(two)
    assert found.label.tolist() == [-1, 1, -1] and np.isnan(found.posterior[2]).all()
    assert decided(np.array([[0.2, 0.8], [np.nan, np.nan], [0.5, 0.5]])).tolist() == [1, -1, -1]


def test_dawid_skene_is_crowd_kits():
    labels, _, frame = crowd(0)
    theirs = DawidSkene(n_iter=300, tol=1e-13).fit(frame).probas_.loc[range(200), range(3)].to_numpy()
    np.testing.assert_allclose(dawid_skene(labels, 0.0).posterior, theirs, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_models_know_more_than_votes_and_whom_to_trust(seed: int):
    labels, truth, frame = crowd(seed)
    by_votes, by_skill, by_guess = (float((f(labels).label == truth).mean()) for f in (majority, dawid_skene, mace))
    assert by_skill > by_votes + 0.02 and by_guess > by_votes + 0.02
    theirs = MACE(n_restarts=1, n_iter=60, random_state=0).fit(frame).labels_.loc[range(200)].to_numpy()
    assert (theirs == mace(labels).label).mean() >= 0.97
    for found in (dawid_skene(labels), mace(labels)):
        assert found.accuracy[:3].min() > found.accuracy[4:].max()
    confusion = dawid_skene(labels).confusion
    assert confusion is not None and confusion[7, :, 0].min() > 0.95


def test_maces_end_is_a_fixed_point_by_plain_loops():
    """θ and ξ from the posterior, and the posterior from them, once more, with loops over labels."""
    from scipy.special import digamma

    labels, _, _ = crowd(0, items=80)
    found = mace(labels)
    counts, written = np.zeros((8, 2)), np.zeros((8, 3))
    # The posterior of "guessed" needs θ and ξ themselves: iterate a plain implementation from the posterior's side.
    theta, xi = np.full((8, 2), 0.5), np.full((8, 3), 1 / 3)
    for _ in range(200):
        joint = np.full((80, 3), 1 / 3)
        for i, a, w in zip(labels.item, labels.annotator, labels.label, strict=True):
            for t in range(3):
                joint[i, t] *= theta[a, 0] * (t == w) + theta[a, 1] * xi[a, w]
        posterior = joint / joint.sum(1, keepdims=True)
        counts[:], written[:] = 0, 0
        for i, a, w in zip(labels.item, labels.annotator, labels.label, strict=True):
            guessed = sum(
                posterior[i, t] * theta[a, 1] * xi[a, w] / (theta[a, 0] * (t == w) + theta[a, 1] * xi[a, w])
                for t in range(3)
            )
            counts[a] += (1 - guessed, guessed)
            written[a, w] += guessed
        theta, xi = (np.exp(digamma(c + 0.5) - digamma((c + 0.5).sum(1, keepdims=True))) for c in (counts, written))
    np.testing.assert_allclose(found.posterior, posterior, atol=2e-3)
    np.testing.assert_allclose(found.accuracy, (counts[:, 0] + 0.5) / (counts.sum(1) + 1), atol=2e-3)


def two_answers(seed: int, known: bool) -> Labels:
    """Comparisons with some ties, of annotators with a taste for a side, which is known or not."""
    rng = np.random.default_rng(seed)
    item, who = np.repeat(np.arange(150), 3), np.concatenate([rng.choice(6, 3, replace=False) for _ in range(150)])
    better, turned = rng.integers(0, 2, 150)[item], rng.random(450) < 0.5
    side = np.where(rng.random(450) < np.array([0.05, 0.1, 0.1, 0.2, 0.5, 0.9])[who], 0, better ^ turned)
    label = np.where(rng.random(450) < 0.1, 2, side ^ turned)
    seen = np.where(label == 2, 2, side) if known else None
    return Labels(item, who, label, 150, 6, 3, mirrored=True, seen=seen)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("model", [dawid_skene, mace])
def test_which_answer_stands_first_in_the_file_changes_nothing(model, known: bool):
    labels = two_answers(0, known)
    swapped = (np.random.default_rng(1).random(150) < 0.7)[labels.item]
    label = np.where(swapped & (labels.label != 2), 1 - labels.label, labels.label)
    other = model(replace(labels, label=label))
    flips = np.zeros(150, bool)
    flips[labels.item] = swapped
    expected = np.where(flips[:, None], other.posterior[:, [1, 0, 2]], other.posterior)
    found = model(labels)
    np.testing.assert_allclose(found.posterior, expected, atol=2e-3)
    np.testing.assert_allclose(found.accuracy, other.accuracy, atol=2e-3)


def test_dawid_skene_learns_a_taste_for_a_side():
    found = dawid_skene(two_answers(0, known=True))
    assert found.confusion is not None
    right = found.confusion[:, [0, 1], [0, 1]]
    assert right[5, 0] > 0.8 and right[5, 1] < 0.35  # who takes the left: right where the left is better
    unknown = dawid_skene(two_answers(0, known=False)).confusion
    assert unknown is not None
    np.testing.assert_allclose(unknown, unknown[:, [1, 0, 2]][:, :, [1, 0, 2]], atol=1e-12)


def compared(seed: int, n: int = 3000) -> tuple[Choices, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    strength, skill, side = rng.normal(0, 1.5, 12), np.array([2.0, 1.0, 0.3, -0.8]), np.array([0.0, 1.0, -1.5, 0.0])
    left = rng.integers(0, 12, n)
    right, who = (left + rng.integers(1, 12, n)) % 12, rng.integers(0, 4, n)
    chance = 1 / (1 + np.exp(-(skill[who] * (strength[left] - strength[right]) + side[who])))
    return Choices(left, right, who, (rng.random(n) < chance).astype(float), 12, 4), strength, skill, side


def test_bradley_terry_is_choixs_where_all_annotators_are_alike():
    """choix 0.4.1, ilsr_pairwise, on the same 3,000 comparisons; crowd-kit's stops after two steps of its own. At the
    maximum everybody wins as often as expected."""
    choices, _, _, _ = compared(0)
    found = skilled_bradley_terry(choices, ridge=1e-9, habit=1e8)
    theirs = [0.026, 0.0193, 0.2995, 0.0045, -0.2379, 0.1007, 0.4552, 0.3412, -0.302, -0.6083, -0.2362, 0.1381]
    np.testing.assert_allclose(found.strength - found.strength.mean(), theirs, atol=2e-4)
    np.testing.assert_allclose(found.skill, 1.0, atol=1e-5)
    chance = found.prefers(choices.left, choices.right)
    for thing in range(12):
        left, right = choices.left == thing, choices.right == thing
        wins = choices.outcome[left].sum() + (1 - choices.outcome[right]).sum()
        assert chance[left].sum() + (1 - chance[right]).sum() == pytest.approx(wins, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry_finds_strength_skill_and_side(seed: int):
    choices, strength, skill, side = compared(seed)
    found = skilled_bradley_terry(choices)
    assert np.corrcoef(found.strength, strength)[0, 1] > 0.99
    scale = found.strength.std() / strength.std()
    np.testing.assert_allclose(found.skill * scale, skill, atol=0.45)
    np.testing.assert_allclose(found.side, side, atol=0.3)
    assert found.accuracy[0] > found.accuracy[1] > found.accuracy[2] > 0.5 > found.accuracy[3]
    assert found.prefers(np.array([strength.argmax()]), np.array([strength.argmin()]))[0] > 0.95
    blind = skilled_bradley_terry(choices, sides_known=False)
    assert not blind.side.any() and np.corrcoef(blind.strength, strength)[0, 1] > 0.95


def test_bradley_terrys_gradient_is_that_of_its_loss():
    """Where it ends, no step in any direction is better: with few votes too, ties, and answers that nothing joins."""
    one = np.array([0, 1, 2, 0, 4, 4])
    two = np.array([1, 2, 0, 2, 5, 5])
    choices = Choices(one, two, np.array([0, 1, 0, 1, 0, 1]), np.array([1.0, 0.5, 0.0, 1.0, 1.0, 1.0]), 6, 2)
    found = skilled_bradley_terry(choices)

    def loss(x: np.ndarray) -> float:
        s, side, skill = x[:6], x[6:8], x[8:]
        logit = skill[choices.annotator] * (s[one] - s[two]) + side[choices.annotator]
        said = choices.outcome * np.log1p(np.exp(-logit)) + (1 - choices.outcome) * np.log1p(np.exp(logit))
        return float(said.sum() + 0.05 * (s @ s) + 0.25 * (side @ side + (skill - 1) @ (skill - 1)))

    x = np.concatenate([found.strength, found.side, found.skill])
    steps = np.eye(10) * 1e-4
    slopes = [(loss(x + step) - loss(x - step)) / 2e-4 for step in steps]
    np.testing.assert_allclose(slopes, 0.0, atol=1e-6)
    assert found.strength[3] == 0.0  # nobody compared it


@pytest.mark.parametrize(
    ("values", "kept", "score"),
    [
        ([4, 3, 3], (0, 1, 2), 3.0),
        ([4, 4, 3], (0, 1, 2), 4.0),
        ([4, 0, 3, 4], (0, 2, 3), 4.0),
        ([0, 4, 1, 4, 3], (1, 3, 4), 4.0),
        ([0, 2, 0], (0, 1, 2), 1.0),
        ([0, 1, 2, 3, 4], (0, 1, 2), 1.0),
    ],
)
def test_helpsteer2s_rule(values: list[float], kept: tuple[int, ...], score: float):
    found = helpsteer2([{"helpfulness": value, "verbosity": 4 - value} for value in values], "helpfulness")
    assert found.scores is not None and found.kept == kept
    assert found.scores["helpfulness"] == score
    assert found.scores["verbosity"] == np.floor(np.mean([4 - values[index] for index in kept]) + 0.5)


def test_helpsteer2s_rule_on_every_possible_rating():
    """3, 4 and 5 ratings of 0 to 4 beside the rule in whole numbers: which three are kept, and their rounded mean."""
    for values in (v for count in (3, 4, 5) for v in product(range(5), repeat=count)):
        best = min(
            (max(x) - min(x), 3 * sum(v * v for v in x) - sum(x) ** 2, kept)
            for kept in combinations(range(len(values)), 3)
            for x in [[values[index] for index in kept]]
        )
        found = helpsteer2([{"h": float(value)} for value in values], "h")
        mean = (2 * sum(values[index] for index in best[2]) + 3) // 6
        assert found.kept == best[2]
        assert (None if found.scores is None else found.scores["h"]) == (mean if best[0] <= 2 else None)


def test_helpsteer2s_rule_asks_for_more_and_drops():
    assert [needs_more(values) for values in ([1], [1, 2], [1, 2, 3], [0, 1, 3], [0, 1, 3, 3], [0, 1, 3, 3, 4])] == [
        True, True, False, True, True, False,
    ]  # fmt: skip
    far = helpsteer2([{"h": value} for value in (0, 1, 4, 4)], "h")
    assert far.scores is None and "differ by more than 2" in far.why
    assert helpsteer2([{"h": 1.0}] * 2, "h").scores is None
    assert averaged([{"a": 1.0, "b": 2.0}, {"a": 2.0}, {"a": 6.0}]) == {"a": 3.0, "b": 2.0}
    assert averaged([{"a": 1.0}, {"a": 2.0}, {"a": 6.0}], median=True) == {"a": 2.0}
