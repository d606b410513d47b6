"""Rewards on their way to credit: reward - baseline, scaled, clipped, less penalties, in that order."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from assent.algorithms.rollouts import response_field
from assent.algorithms.shaping import Shaper

from assent.config import ShapingConfig
from assent.data.tree import Branch, TokenTree

LONGEST = 10


def rollout(*groups: list[tuple[float, int, bool]]) -> list[TokenTree]:
    """A tree for each prompt, from (reward, length, whether it ended) of its answers."""
    return [
        TokenTree(
            np.array([1]),
            tuple(Branch(np.zeros(length, np.int64), np.ones(length, bool)) for _, length, _ in group),
            per_response={
                "reward": np.array([reward for reward, _, _ in group], np.float32),
                "finished": np.array([ended for _, _, ended in group], np.float32),
            },
        )
        for group in groups
    ]


FIRST = rollout([(2.0, 4, True), (-1.0, 10, False), (0.5, 9, True)], [(7.0, 7, True), (3.0, 1, True)])
SECOND = rollout([(-6.0, 8, False)], [(1.0, 6, True), (1.5, 10, True)])
BASELINES = (np.array([0.5, 4.0]), np.array([-2.0, 1.0]))


def by_hand(config: ShapingConfig, rewards: list[list[float]], trees: list[TokenTree]) -> list[float]:
    """The shaped rewards of the last rollout of `rewards` (baselines taken off), in plain Python."""
    known = [value for one in (rewards if config.normalise == "running" else rewards[-1:]) for value in one]
    mean = sum(known) / len(known)
    spread = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
    shaped = []
    lengths = [len(branch) for tree in trees for branch in tree.branches]
    for value, length, ended in zip(rewards[-1], lengths, response_field(trees, "finished"), strict=True):
        if config.normalise != "none":
            value = (value - mean) / spread
        if config.clip is not None:
            value = max(-config.clip, min(config.clip, value))
        if not ended:
            value -= config.missing_eos_penalty
        over = config.overlong * LONGEST
        if over and length > LONGEST - over:
            value -= min(1.0, (length - (LONGEST - over)) / over)
        shaped.append(value)
    return shaped


OPTIONS = list(product(("none", "running", "batch"), (None, 0.8), (0.0, 0.7), (0.0, 0.4)))


@pytest.mark.parametrize(("normalise", "clip", "missing", "overlong"), OPTIONS)
def test_equals_a_loop(normalise: str, clip: float | None, missing: float, overlong: float):
    config = ShapingConfig(normalise=normalise, clip=clip, missing_eos_penalty=missing, overlong=overlong)
    shaper, rewards = Shaper(config, LONGEST), []
    for trees, baseline in zip((FIRST, SECOND), BASELINES, strict=True):
        shaper.learn(trees, baseline)
        shaped = shaper.shape(trees, baseline)
        rewards.append(
            [float(r) - b for tree, b in zip(trees, baseline, strict=True) for r in tree.per_response["reward"]]
        )
        assert response_field(shaped, "shaped") == pytest.approx(by_hand(config, rewards, trees), abs=1e-6)
        for before, after in zip(trees, shaped, strict=True):
            assert after.per_response["reward"] is before.per_response["reward"], "the reward itself stays"
            assert len(after.per_response["shaped"]) == len(after.branches)


def test_penalties_are_not_scaled_or_clipped():
    config = ShapingConfig(normalise="batch", clip=1.0, missing_eos_penalty=3.0, overlong=0.2)
    shaper, trees = Shaper(config, LONGEST), rollout([(0.0, 10, False), (10.0, 1, True)])
    shaper.learn(trees, np.zeros(1))
    assert response_field(shaper.shape(trees, np.zeros(1)), "shaped").tolist() == [-5.0, 1.0]


def test_a_share_of_less_than_a_token_is_no_penalty():
    shaper = Shaper(ShapingConfig(overlong=0.04), LONGEST)
    assert response_field(shaper.shape(FIRST, np.zeros(2)), "shaped").tolist() == [2.0, -1.0, 0.5, 7.0, 3.0]


def test_only_learning_moves_the_moments():
    """Greedy answers are shaped as the others are, and not learned from."""
    shaper = Shaper(ShapingConfig(normalise="running"), LONGEST)
    shaper.learn(FIRST, BASELINES[0])
    before = shaper.state_dict()
    shaper.shape(SECOND, BASELINES[1])
    assert shaper.state_dict() == before and before["count"] == 5
    shaper.learn(SECOND, BASELINES[1])
    assert shaper.state_dict()["count"] == 8


def test_nothing_is_learned_where_nothing_is_scaled():
    shaper = Shaper(ShapingConfig(), LONGEST)
    shaper.learn(FIRST, BASELINES[0])
    assert shaper.state_dict()["count"] == 0


def test_a_batch_is_scaled_by_itself_alone():
    shaper = Shaper(ShapingConfig(normalise="batch"), LONGEST)
    for trees in (FIRST, SECOND):
        shaper.learn(trees, np.zeros(2))
        shaped = response_field(shaper.shape(trees, np.zeros(2)), "shaped").astype(float)
        assert shaped.mean() == pytest.approx(0, abs=1e-6) and shaped.var() == pytest.approx(1, abs=1e-5)


def test_a_loaded_state_scales_alike():
    straight = Shaper(ShapingConfig(normalise="running"), LONGEST)
    straight.learn(FIRST, BASELINES[0])
    resumed = Shaper(ShapingConfig(normalise="running"), LONGEST)
    resumed.load_state_dict(straight.state_dict())
    fields = []
    for shaper in (straight, resumed):
        shaper.learn(SECOND, BASELINES[1])
        fields.append(response_field(shaper.shape(SECOND, BASELINES[1]), "shaped").tolist())
    assert fields[0] == fields[1]
