"""Actively chosen pairs where the optimum is known: a linear reward, and Bradley-Terry labels of pairs of answers.

Reward models are logistic regressions on bootstrap samples of the labels. Most pairs of the pool say little: they
differ in a few common features. At equal budgets, pairs that the models disagree about teach more than pairs by
chance."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from assent.people.curate.pairs import worth_of

FEATURES, POOL, START, ROUNDS, STEP, MODELS = 24, 1500, 40, 8, 20, 5


def learnt(gaps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    both = np.concatenate([gaps, -gaps]), np.concatenate([labels, ~labels])  # the order of two answers says nothing
    return LogisticRegression(C=3.0, fit_intercept=False, max_iter=200).fit(*both).coef_[0]


def accuracy(how: str, seed: int) -> float:
    """Of the reward that is learnt from START labels by chance and ROUNDS * STEP chosen ones, on pairs that differ in
    all features alike."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=FEATURES)
    scales = np.where(np.arange(FEATURES) < 6, 1.0, 0.0)
    gaps = rng.normal(size=(POOL, FEATURES)) * scales
    rare = rng.random(POOL) < 0.15
    gaps[rare] = rng.normal(size=(int(rare.sum()), FEATURES))
    labels = rng.random(POOL) < 1 / (1 + np.exp(-2 * gaps @ truth))
    taken = list(range(START))
    for _ in range(ROUNDS):
        left = np.setdiff1d(np.arange(POOL), taken)
        if how == "random":
            taken += rng.choice(left, STEP, replace=False).tolist()
            continue
        members = [learnt(gaps[own], labels[own]) for own in rng.choice(taken, (MODELS, len(taken)))]
        rewards = gaps[left] @ np.array(members).T
        worth = np.array([worth_of(how.removeprefix("least "), own) for own in rewards])
        order = np.argsort(worth if how.startswith("least") else -worth, kind="stable")
        taken += left[order[:STEP]].tolist()
    held = rng.normal(size=(4000, FEATURES))
    return float((np.sign(held @ learnt(gaps[taken], labels[taken])) == np.sign(held @ truth)).mean())


def test_pairs_that_models_disagree_about_teach_more():
    ways = ("random", "disagreement", "margin", "least disagreement")
    found = {how: np.array([accuracy(how, seed) for seed in (0, 1, 2)]) for how in ways}
    assert (found["disagreement"] > found["random"] + 0.03).all(), found
    assert (found["disagreement"] > found["least disagreement"] + 0.05).all(), found
    assert found["margin"].mean() > found["random"].mean(), found
