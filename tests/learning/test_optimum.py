"""DPO and PPO against the optimum that the enumerable world computes exactly: at least 90 % of the regret is closed,
on three seeds, through the production algorithms and the production train loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from assent.algorithms.dpo import DPO
from assent.algorithms.job import Job
from assent.algorithms.ppo import PPO, Models
from assent.config import (
    DataConfig,
    DPOSection,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    PPOSection,
    SamplingConfig,
    TrainConfig,
)
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.packing import EpochStream
from assent.data.tree import TokenTree
from assent.lab.enumerable import EnumerableWorld, TableReward, build_enumerable, regret_closed
from assent.models.loading import load_policy, load_score_model, load_tokenizer
from assent.models.policy import Policy
from assent.train.distributed import World
from assent.train.loop import Algorithm, train_steps
from assent.train.optim import build_optimizer

ALONE = World(0, 1, 0, torch.device("cpu"))
BETA = 0.3
SEEDS = (0, 1, 2)


def scores(world: EnumerableWorld, policy: Policy) -> torch.Tensor:
    return world.logprobs(lambda batch: policy(batch).logprobs)


def learn(algorithm: Algorithm, steps: int, optim: OptimConfig) -> None:
    optimizer = build_optimizer([(module, optim.lr) for module in algorithm.modules.values()], optim)
    for _ in train_steps(algorithm, optimizer, optim, ALONE, start=0, total=steps):
        pass


def preferences(world: EnumerableWorld, ref_logp: torch.Tensor, per_tree: int, rng: np.random.Generator) -> TokenTree:
    """One random prompt with all its responses, and `per_tree` comparisons of two different ones drawn from the
    reference, each labelled once by Bradley-Terry on the gold reward."""
    x = int(rng.integers(len(world.prompts)))
    probabilities = ref_logp[x].exp().numpy()
    drawn = rng.choice(len(world.responses), size=(per_tree, 2), p=probabilities / probabilities.sum())
    first, second = drawn[drawn[:, 0] != drawn[:, 1]].T
    rewards = world.rewards[x].numpy()
    wins = rng.random(len(first)) < 1 / (1 + np.exp(rewards[second] - rewards[first]))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    pairs = tuple((int(c), int(r), 0.0) for c, r in zip(chosen, rejected, strict=True))
    return replace(world.trees()[x], pairs=pairs)


@pytest.mark.parametrize("seed", SEEDS)
def test_dpo_reaches_the_optimum(tmp_path: Path, seed: int) -> None:
    world = build_enumerable(tmp_path, seed=seed)
    config = ModelConfig(str(world.model), precision="fp32")
    policy = load_policy(config, max_length=16)
    reference = load_policy(config, max_length=16, trainable=False)
    ref_logp = scores(world, reference)
    rng = np.random.default_rng(seed)
    trees = [preferences(world, ref_logp, 2048, rng) for _ in range(400)]
    stream = EpochStream(trees, batch_size=8, micro_tokens=4096, seed=seed, flat=False)
    algorithm = DPO(policy, reference, stream, DPOSection(beta=BETA))
    learn(algorithm, 300, OptimConfig(lr=1e-2))
    closed = regret_closed(scores(world, policy), ref_logp, world.rewards, BETA)
    print(f"DPO seed {seed}: {closed:.3f}")
    assert closed >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_reaches_the_optimum(tmp_path: Path, seed: int) -> None:
    world = build_enumerable(tmp_path, seed=seed)
    model = ModelConfig(str(world.model), precision="fp32")
    config = PPOConfig(
        model=model,
        data=DataConfig(str(world.prompts_file), max_length=16),
        out="unused",
        train=TrainConfig(batch_size=8, seed=seed),
        ppo=PPOSection(reward_model="the table", responses=64, epochs=4, minibatches=1, kl_coef=BETA, lam=1.0),
        sampling=SamplingConfig(max_new_tokens=world.max_new_tokens, max_batch=512),
    )
    tokenizer = load_tokenizer(model)
    current = Job(config, ALONE, cast("object", None), tokenizer, Chat(tokenizer))  # type: ignore[arg-type]
    policy = load_policy(model, max_length=16)
    reference = load_policy(model, max_length=16, trainable=False)
    critic = load_score_model(model, tokenizer, max_length=16, seed=seed)
    ref_logp = scores(world, reference)
    models = Models(policy, critic, reference, TableReward(world))
    algorithm = PPO(current, models, load_examples(str(world.prompts_file)).examples, config)
    learn(algorithm, 400, OptimConfig(lr=4e-3, schedule="linear"))
    closed = regret_closed(scores(world, policy), ref_logp, world.rewards, BETA)
    print(f"PPO seed {seed}: {closed:.3f}")
    assert closed >= 0.9
