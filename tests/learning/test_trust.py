"""A bias that annotators have is learnt by a reward model, and stands in its trust report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from assent import distributed
from assent.algorithms.reward.pairs import train_reward
from assent.config import (
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    SourceConfig,
    TrainConfig,
)
from assent.data.formats.native import to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Response
from assent.lab.annotators import Annotator
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.artifacts import preference_examples
from assent.lab.world import AssistantWorld
from assent.measures.best_of import best_of_n
from assent.measures.bias import Relation, bias
from assent.models.init import random_model, train_tokenizer, write_new_model
from assent.rewards.judged import judged
from assent.rewards.outside import open_source

TRAINED, HELD_OUT = 400, 150
BIAS = 0.15
"""What one more word is worth to the annotator, in gold reward."""


def worth(world: AssistantWorld, examples: Sequence[Example]) -> np.ndarray:
    """The gold reward of every answer."""
    return np.array([world.gold(each.prompt, one.text).reward for each in examples for one in each.responses])


def length_of(seed: int, length_bias: float, folder: Path) -> Relation:
    """What the reward of a tiny model has to do with length, trained on the labels of an annotator with that bias."""
    world, rng = AssistantWorld(seed), np.random.default_rng(seed)
    prompts = [world.draw_prompt(rng) for _ in range(TRAINED + HELD_OUT)]
    examples = preference_examples(world, prompts, [Annotator("one", 0.3, length_bias)], rng)
    texts = [turn.content for each in examples for turn in each.prompt]
    tokenizer = train_tokenizer(texts + [one.text for each in examples for one in each.responses], 500)
    size = InitConfig(
        data="", out="", vocab_size=500, hidden_size=16, layers=1, heads=2, kv_heads=2, context=512, seed=seed
    )
    write_new_model(tokenizer, random_model(tokenizer, size), folder / "base")
    (folder / "train.jsonl").write_text("".join(json_line(to_row(each)) for each in examples[:TRAINED]))
    run = train_reward(
        RewardConfig(
            model=ModelConfig(str(folder / "base"), precision="fp32"),
            data=DataConfig(str(folder / "train.jsonl"), max_length=512),
            out=str(folder / "run"),
            optim=OptimConfig(lr=1e-2, schedule="constant"),
            train=TrainConfig(batch_size=16, max_steps=25, threads=1, seed=seed),
        )
    )
    held_out = examples[TRAINED:]
    scores = open_source(SourceConfig((str(run.model),), precision="fp32"), distributed.init()).score(held_out)
    found, _ = judged(held_out, scores, gold=worth(world, held_out))
    return next(row for row in bias(found, resamples=200).relations if row.feature == "length")


@pytest.mark.parametrize("seed", range(3))
def test_a_length_bias_of_the_annotators_stands_in_the_report(seed, tmp_path):
    for name in ("biased", "fair"):
        (tmp_path / name).mkdir()
    biased = length_of(seed, BIAS, tmp_path / "biased")
    assert biased.given_gold.low > 0.1
    fair = length_of(seed, 0.0, tmp_path / "fair")
    assert fair.given_gold.high < biased.given_gold.low
    assert fair.label.value < biased.label.value


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_of_length_gains_less_gold_the_more_one_chooses_by_it(seed):
    world, rng = AssistantWorld(seed), np.random.default_rng(seed)
    examples = []
    for prompt in (world.draw_prompt(rng) for _ in range(60)):
        texts = [world.respond(prompt, draw_style(world.lookup(prompt), COMPARISON_MIX, rng), rng) for _ in range(16)]
        examples.append(Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts)))
    gold = worth(world, examples)
    words = np.array([len(one.text.split()) for each in examples for one in each.responses])
    prompt = np.repeat(np.arange(60), 16)
    fair, biased = (best_of_n(gold + weight * words, gold, prompt) for weight in (0.0, 1.0))
    assert [point.n for point in fair] == [1, 2, 4, 8, 16]
    assert all(a.gold.mean < b.gold.mean for a, b in zip(fair, fair[1:], strict=False))
    assert fair[-1].gold_gain.low > biased[-1].gold_gain.high  # the reward climbs, gold does not
    assert biased[-1].reward_gain.low > biased[1].reward_gain.high
