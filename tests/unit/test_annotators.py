"""Who is right when annotators disagree: models of annotators beside crowd-kit's, HelpSteer2's rule."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import MACE, DawidSkene, MajorityVote
from crowdkit.aggregation.pairwise.noisy_bt import NoisyBradleyTerry
from scipy.special import logit

from assent.measures.annotators import Choices, Labels, dawid_skene, decided, mace, majority, noisy_bradley_terry
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


def comparisons(seed: int, n: int = 1500) -> tuple[Choices, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    strength, skill = rng.normal(0, 1.5, 12), np.array([0.95, 0.9, 0.6, 0.1])
    side = np.array([0.5, 0.5, 0.9, 0.95])
    left = rng.integers(0, 12, n)
    right, who = (left + rng.integers(1, 12, n)) % 12, rng.integers(0, 4, n)
    chance = skill[who] / (1 + np.exp(strength[right] - strength[left])) + (1 - skill[who]) * side[who]
    outcome = (rng.random(n) < chance).astype(float)
    return Choices(left, right, who, outcome, 12, 4), strength, skill, side


def test_bradley_terry_with_annotators_has_crowd_kits_likelihood_and_finds_skill_and_side():
    """crowd-kit's optimiser gets gradients that are one place off, and ends elsewhere: its likelihood is the oracle."""
    choices, strength, skill, side = comparisons(0)
    found = noisy_bradley_terry(choices, ridge=1e-6, habit=1e-6)
    winners = np.where(choices.outcome == 1, choices.left, choices.right)
    rows = np.column_stack([choices.left, choices.right, winners]) + 1

    def theirs(x: np.ndarray) -> float:
        return NoisyBradleyTerry._compute_log_likelihood(x, rows, choices.annotator, 12, 4, 0.0)

    ours = np.concatenate([[0.0], found.strength, logit(found.side), logit(np.clip(found.skill, 1e-9, 1 - 1e-9))])
    best = theirs(ours)
    rng = np.random.default_rng(1)
    assert all(theirs(ours + rng.normal(0, 0.05, len(ours))) > best for _ in range(50))
    close = noisy_bradley_terry(choices)
    assert np.corrcoef(close.strength, strength)[0, 1] > 0.97
    np.testing.assert_allclose(close.skill, skill, atol=0.2)
    assert close.side[3] > 0.85 and close.prefers(np.array([strength.argmax()]), np.array([strength.argmin()]))[0] > 0.8


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


def test_helpsteer2s_rule_asks_for_more_and_drops():
    assert [needs_more(values) for values in ([1], [1, 2], [1, 2, 3], [0, 1, 3], [0, 1, 3, 3], [0, 1, 3, 3, 4])] == [
        True, True, False, True, True, False,
    ]  # fmt: skip
    far = helpsteer2([{"h": value} for value in (0, 1, 4, 4)], "h")
    assert far.scores is None and "differ by more than 2" in far.why
    assert helpsteer2([{"h": 1.0}] * 2, "h").scores is None
    assert averaged([{"a": 1.0, "b": 2.0}, {"a": 2.0}, {"a": 6.0}]) == {"a": 3.0, "b": 2.0}
    assert averaged([{"a": 1.0}, {"a": 2.0}, {"a": 6.0}], median=True) == {"a": 2.0}
