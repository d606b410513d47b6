"""Judges of the assistant world, whose faults are known: what asking in both orders finds out and takes away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from assent.config import JudgeConfig, RemoteConfig
from assent.data.records import Example, Origin
from assent.lab.annotators import Annotator
from assent.lab.answers import ANSWER_STYLES, HARMFUL_STYLES
from assent.lab.judges import GoldJudge, conversation
from assent.lab.world import AssistantWorld
from assent.rewards.group import Group
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.folder import Place
from assent.rewards.judge.source import conversation as as_shown

SEEDS = (0, 1, 2)
PAIRS = 120
BIASED = Annotator("biased", temperature=0.6, position_bias=2.0)
FAIR = Annotator("fair", temperature=0.6)


def groups_of(world: AssistantWorld, seed: int) -> tuple[list[Group], np.ndarray]:
    """Pairs of answers of different styles, and the gold reward of either."""
    rng = np.random.default_rng(seed)
    groups, golds = [], []
    while len(groups) < PAIRS:
        prompt = world.draw_prompt(rng)
        styles = [*(ANSWER_STYLES if world.lookup(prompt).fact else HARMFUL_STYLES)]
        texts = tuple(world.respond(prompt, styles[rng.integers(len(styles))], rng) for _ in range(2))
        own = [world.gold(prompt, text).reward for text in texts]
        if abs(own[0] - own[1]) > 0.2:
            example = Example(prompt, origin=Origin("world", len(groups)))
            groups.append(Group(example, texts, (True, True), (1, 1)))
            golds.append(own)
    return groups, np.array(golds)


def judged(judge: GoldJudge, groups: list[Group], folder: Path, **options: object):
    config = JudgeConfig(**{"cache": str(folder), **options})  # type: ignore[arg-type]
    return judge_reward(f"openai={judge.url}", "judge", config, RemoteConfig(), Place(torch.device("cpu"))).score(
        groups
    )


def agreement(rewards: np.ndarray, golds: np.ndarray) -> float:
    """Share of the pairs with two different rewards in which the better answer has the higher."""
    gaps = rewards.reshape(-1, 2) @ [1, -1]
    counted = ~np.isnan(gaps) & (gaps != 0)
    return float(np.mean(np.sign(gaps[counted]) == np.sign(golds @ [1, -1])[counted]))


@pytest.mark.parametrize("seed", SEEDS)
def test_both_orders_find_a_position_bias_and_take_it_away(seed: int, tmp_path: Path) -> None:
    world = AssistantWorld(seed)
    groups, golds = groups_of(world, seed)
    with GoldJudge(world, BIASED, seed=seed) as judge:
        scores = judged(judge, groups, tmp_path / "biased")
        soft = judged(judge, groups, tmp_path / "soft", prompt="pairwise-letter", soft=True)
        alone = np.array(
            [[judge.preference(group.example.prompt, [*group.texts[::step]]) for step in (1, -1)] for group in groups]
        )
    assert judge.asked == 4 * PAIRS
    # what one order alone says, A first: the first answer is preferred far more often than it is better
    better = float(np.mean(golds[:, 0] > golds[:, 1]))
    first = float(np.mean(scores.metrics["first_shown_wins"]))
    assert np.mean(alone[:, 0] > 0.5) > better + 0.1 and first > 0.6
    # the number beside it is the share of pairs whose two orders agree
    consistency = float(np.mean(scores.metrics["consistency"]))
    expected = float(np.mean(alone[:, 0] * (1 - alone[:, 1]) + (1 - alone[:, 0]) * alone[:, 1]))
    assert abs(consistency - expected) < 4 * np.sqrt(0.25 / PAIRS) and consistency < 0.9
    assert sum(scores.failures.values()) == 2 * round((1 - consistency) * PAIRS)
    # both orders together: no taste for what comes first is left, and the verdicts that count are better
    one_order = agreement(np.stack([alone[:, 0], 1 - alone[:, 0]], 1).ravel(), golds)
    assert agreement(scores.values, golds) > one_order + 0.03
    assert agreement(soft.values, golds) > one_order + 0.03 and agreement(soft.values, golds) > 0.98
    wins = soft.values.reshape(-1, 2)[:, 0] > 0.5
    assert abs(np.mean(wins) - better) < 0.03
    with GoldJudge(world, FAIR, seed=seed) as judge:
        fair = judged(judge, groups, tmp_path / "fair")
    assert np.mean(fair.metrics["consistency"]) > consistency + 0.05
    assert abs(np.mean(fair.metrics["first_shown_wins"]) - 0.5) < 0.06


def test_errors_and_refusals_are_seen(tmp_path: Path) -> None:
    world = AssistantWorld(3)
    groups, golds = groups_of(world, 3)
    with GoldJudge(world, Annotator("hasty", temperature=0.6, careless=0.4), unreadable=0.2, seed=3) as judge:
        scores = judged(judge, groups, tmp_path / "once")
        again = judged(judge, groups, tmp_path / "again", attempts=4, temperature=1.0)
    unreadable = np.mean(scores.metrics["unreadable"])
    assert abs(unreadable - 0.2) < 0.07
    # of a pair both orders are needed: 1 - 0.8^2 have no verdict, and are not the same as contradictions
    assert abs(scores.failures["no verdict"] / (2 * PAIRS) - 0.36) < 0.12
    assert np.mean(scores.metrics["consistency"]) < 0.8
    assert np.mean(again.metrics["unreadable"]) < 0.02 and np.mean(again.metrics["asked_again"]) > 0.15
    assert agreement(again.values, golds) > 0.85


def test_single_answers_follow_gold(tmp_path: Path) -> None:
    world = AssistantWorld(4)
    groups, golds = groups_of(world, 4)
    with GoldJudge(world, Annotator("sure", temperature=0.05), seed=4) as judge:
        ratings = judged(judge, groups, tmp_path / "cache", prompt="rating")
        attributes = judged(judge, groups, tmp_path / "cache", prompt="attributes")
    assert not ratings.failures and agreement(ratings.values, golds) > 0.95
    assert not attributes.failures and agreement(attributes.values, golds) > 0.9
    np.testing.assert_allclose(attributes.values, golds.ravel(), atol=1.2)


def test_conversations_are_read_as_they_are_shown() -> None:
    world, rng = AssistantWorld(0), np.random.default_rng(0)
    for _ in range(50):
        prompt = world.draw_prompt(rng)
        assert conversation(as_shown(prompt)) == prompt
