"""Proximal policy optimisation with four models: policy and critic are trained, reward model and reference are frozen.

One rollout of `train.batch_size` prompts is scored, given advantages, and then trained on for `ppo.epochs` passes of
`ppo.minibatches` optimiser steps each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.job import Job, job
from assent.algorithms.rollouts import (
    Fields,
    annotate,
    attach,
    collect,
    pack_state,
    response_field,
    response_lengths,
    token_field,
    unpack_state,
)
from assent.algorithms.run import Evaluation, RunResult, run
from assent.config import ModelConfig, PPOConfig
from assent.data.chat import Chat
from assent.data.packing import Counts, Window, order, window
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import prompt_view
from assent.errors import NonFiniteError
from assent.losses import clipped_value, explained_variance, gae, kl_estimate, ppo_clip, ratio_diagnostics, whiten
from assent.models.loading import load_tokenizer
from assent.models.policy import Policy, ScoreModel
from assent.rewards.model import ModelReward
from assent.rewards.source import RewardSource
from assent.rollout.torch_engine import TorchEngine
from assent.statistics import mean_interval
from assent.train.distributed import unsharded
from assent.train.loop import Loss

EVAL_SEED = 1 << 40
"""Evaluations sample with a seed of their own, the same each time."""
SHOWN = 4
"""Prompts of each rollout that are written to samples.jsonl."""


@dataclass(frozen=True, slots=True)
class Models:
    """PPO's models. `reference` None means: the policy without its adapters."""

    policy: Policy
    critic: ScoreModel
    reference: Policy | None
    reward: RewardSource

    @property
    def flat(self) -> bool:
        """Whether some model cannot share prompts."""
        return not (self.policy.tree and self.critic.tree and (self.reference is None or self.reference.tree))


class PPO:
    """The state between optimiser steps is: which rollout, its buffer, and how many of its minibatches are done."""

    def __init__(self, current: Job, models: Models, prompts: Sequence[Example], config: PPOConfig) -> None:
        self.job = current
        self.models = models
        self.prompts = prompts
        self.prompt_ids = [current.chat.prompt_ids(example.prompt) for example in prompts]
        self.config = config
        self.modules = {"policy": models.policy, "critic": models.critic}
        self.engine = TorchEngine(models.policy.model, eos_ids=current.chat.eos_ids, precision=models.policy.precision)
        self.rollout = 0
        self.done = 0
        self.buffer: list[TokenTree] = []

    @property
    def rollouts_per_epoch(self) -> int:
        return -(-len(self.prompts) // self.config.train.batch_size)

    @property
    def steps_per_rollout(self) -> int:
        return self.config.ppo.epochs * self.config.ppo.minibatches

    # ---- where windows come from

    def windows(self) -> Iterator[Window]:
        while True:
            metrics: dict[str, float] = {}
            samples: tuple[dict[str, object], ...] = ()
            if self.done == 0:
                self.buffer, metrics, samples = self._make_rollout()
            while self.done < self.steps_per_rollout:
                trees = self._minibatch(self.done)
                self.done += 1
                made = window(
                    trees,
                    micro_tokens=self.config.train.micro_tokens,
                    flat=self.models.flat,
                    rank=self.job.world.rank,
                    ranks=self.job.world.size,
                )
                yield replace(made, metrics=metrics, samples=samples)
                metrics, samples = {}, ()
            self.rollout, self.done, self.buffer = self.rollout + 1, 0, []

    def _minibatch(self, number: int) -> list[TokenTree]:
        epoch, part = divmod(number, self.config.ppo.minibatches)
        shuffled = order(
            len(self.buffer),
            seed=self.config.train.seed,
            epoch=self.rollout * self.config.ppo.epochs + epoch,
            stream=1,
        )
        return [self.buffer[i] for i in np.array_split(shuffled, self.config.ppo.minibatches)[part]]

    def _make_rollout(self) -> tuple[list[TokenTree], dict[str, float], tuple[dict[str, object], ...]]:
        indices = self._next_prompts()
        trees = self.sample(indices, self.prompts, self.config.ppo.responses, self._sampling_seed())
        trees = self.score(trees, [self.prompts[i] for i in indices], with_critic=True)
        trees, metrics = self.credit(trees)
        metrics["rollout"] = float(self.rollout + 1)
        samples = self.samples(trees[:SHOWN], [self.prompts[i] for i in indices[:SHOWN]])
        return trees, metrics, tuple(samples)

    def _sampling_seed(self) -> int:
        """A seed for each rollout of each run; neighbouring run seeds share none."""
        entropy = (self.config.train.seed, self.rollout)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _next_prompts(self) -> np.ndarray:
        """`train.batch_size` indices, from the orders of all epochs one after the other: every rollout is whole."""
        number, size = len(self.prompts), self.config.train.batch_size
        first = self.rollout * size
        epochs = range(first // number, (first + size - 1) // number + 1)
        endless = np.concatenate([order(number, seed=self.config.train.seed, epoch=epoch) for epoch in epochs])
        return endless[first % number :][:size]

    def sample(
        self, indices: Sequence[int] | np.ndarray, prompts: Sequence[Example], n: int, seed: int
    ) -> list[TokenTree]:
        """Responses of the policy as it is now."""
        ids = (
            [self.prompt_ids[i] for i in indices]
            if prompts is self.prompts
            else [self.job.chat.prompt_ids(prompts[i].prompt) for i in indices]
        )
        with unsharded(self.models.policy):
            return collect(self.engine, ids, n, self.config.sampling, seed, self.job.world)

    def score(self, trees: list[TokenTree], prompts: Sequence[Example], *, with_critic: bool) -> list[TokenTree]:
        """Adds per-token `old`, `reference`, `entropy` (and `values`), and the reward model's `reward`."""
        models, temperature = self.models, self.config.sampling.temperature

        def numbers(batch: TreeBatch) -> Fields:
            scores = models.policy(batch, temperature, entropy=True)
            if models.reference is not None:
                reference = models.reference(batch, temperature)
            else:
                with models.policy.without_adapters():
                    reference = models.policy(batch, temperature)
            per_token = {"old": scores.logprobs, "entropy": scores.entropy, "reference": reference.logprobs}
            if with_critic:
                per_token["values"] = models.critic(batch, batch.source)
            return Fields(per_token)

        share = partial(annotate, micro_tokens=self.config.train.micro_tokens, world=self.job.world)
        trees = share(trees, numbers, flat=models.flat)
        judged = share(
            models.reward.trees(prompts, trees),
            lambda batch: Fields(per_response={"reward": models.reward.score(batch)}),
            flat=not models.reward.tree,
        )
        rewards = [tree.per_response["reward"] for tree in judged]
        for example, reward in zip(prompts, rewards, strict=True):
            if not np.isfinite(reward).all():
                raise NonFiniteError(
                    f"rollout {self.rollout + 1}: the reward model gave {reward} for {example.origin}."
                )
        return [attach(tree, {}, {"reward": reward}) for tree, reward in zip(trees, rewards, strict=True)]

    # ---- how credit is assigned

    def credit(self, trees: list[TokenTree]) -> tuple[list[TokenTree], dict[str, float]]:
        """Adds per-token `advantages` and `returns`; gives the rollout's metrics."""
        section = self.config.ppo
        old, reference, values = (torch.from_numpy(token_field(trees, name)) for name in ("old", "reference", "values"))
        lengths = torch.from_numpy(response_lengths(trees))
        response = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        finished = torch.from_numpy(response_field(trees, "finished"))
        score = torch.from_numpy(response_field(trees, "reward"))
        rewards = -section.kl_coef * kl_estimate(old, reference, estimator=section.kl_estimator)
        rewards[lengths.cumsum(0) - 1] += score - section.missing_eos_penalty * (1 - finished)
        advantages = gae(rewards, values, response, gamma=section.gamma, lam=section.lam)
        returns = advantages + values
        per_token = {
            "returns": returns,
            "advantages": whiten(advantages) if section.whiten else advantages,
        }
        metrics = describe(trees)
        metrics["explained_variance"] = float(explained_variance(values, returns))
        metrics["mismatch"] = float((old - torch.from_numpy(token_field(trees, "sampler"))).abs().mean())
        return _attach_all(trees, per_token), metrics

    # ---- which loss

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        section, token = self.config.ppo, batch.per_token
        scores = self.models.policy(batch, self.config.sampling.temperature)
        values = self.models.critic(batch, batch.source)
        policy_loss = ppo_clip(scores.logprobs, token["old"], token["advantages"], clip=section.clip).sum()
        value_loss = clipped_value(values, token["values"], token["returns"], clip=section.value_clip).sum()
        moved = ratio_diagnostics(scores.logprobs, token["old"], token["advantages"], clip=section.clip)
        n = len(values)
        return Loss(
            (policy_loss + value_loss) / counts.tokens,
            {
                "policy_loss": (policy_loss, n),
                "value_loss": (value_loss, n),
                "clip_fraction": (moved.clipped.sum(), n),
                "approx_kl": (moved.approx_kl.sum(), n),
                "ratio": (moved.ratio.sum(), n),
            },
        )

    # ---- state, samples, evaluation

    def state_dict(self) -> dict[str, Any]:
        inside = 0 < self.done < self.steps_per_rollout
        rollout = self.rollout + (self.done == self.steps_per_rollout)
        return {
            "rollout": rollout,
            "done": self.done if inside else 0,
            "buffer": pack_state(self.buffer) if inside else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rollout, self.done = int(state["rollout"]), int(state["done"])
        self.buffer = unpack_state(state["buffer"]) if state["buffer"] is not None else []

    def samples(self, trees: Sequence[TokenTree], prompts: Sequence[Example]) -> list[dict[str, object]]:
        """Rows for samples.jsonl."""
        return [
            {
                "prompt": [{"role": message.role, "content": message.content} for message in example.prompt],
                "response": self.job.chat.decode(branch.ids),
                "reward": float(tree.per_response["reward"][i]),
                "kl": float((branch.per_token["old"] - branch.per_token["reference"]).sum()),
                "length": len(branch),
                "finished": bool(tree.per_response["finished"][i]),
            }
            for tree, example in zip(trees, prompts, strict=True)
            for i, branch in enumerate(tree.branches)
        ]

    def evaluate(self, prompts: Sequence[Example]) -> Evaluation:
        """One answer of the policy to each held-out prompt, sampled as in training."""
        trees = self.sample(range(len(prompts)), prompts, 1, EVAL_SEED)
        trees = self.score(trees, prompts, with_critic=False)
        metrics = {f"eval/{name}": value for name, value in describe(trees).items()}
        interval = mean_interval(response_field(trees, "reward").tolist())
        metrics |= {"eval/reward_low": interval.low, "eval/reward_high": interval.high}
        return Evaluation(metrics, self.samples(trees, prompts))


def describe(trees: Sequence[TokenTree]) -> dict[str, float]:
    """What people look at first: reward, KL from the reference (nats per answer), entropy (nats per token), length."""
    lengths = response_lengths(trees)
    starts = np.cumsum(lengths) - lengths
    reward = response_field(trees, "reward")
    drift = token_field(trees, "old") - token_field(trees, "reference")
    return {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std()),
        "kl": float(np.add.reduceat(drift, starts).mean()),
        "entropy": float(token_field(trees, "entropy").mean()),
        "length": float(lengths.mean()),
        "unfinished": float(1 - response_field(trees, "finished").mean()),
    }


def _attach_all(trees: Sequence[TokenTree], per_token: Mapping[str, Tensor]) -> list[TokenTree]:
    sizes = [tree.num_trained for tree in trees]
    split = {name: np.split(values.numpy(), np.cumsum(sizes)[:-1]) for name, values in per_token.items()}
    return [attach(tree, {name: parts[i] for name, parts in split.items()}, {}) for i, tree in enumerate(trees)]


def train_ppo(config: PPOConfig) -> RunResult:
    """Optimises `config.model` against the reward model `config.ppo.reward_model` on the prompts of `config.data`; the
    result is `config.out`/model, and the critic `config.out`/critic."""
    current = job(config)
    data = current.prepare(prompt_view, reserve=config.sampling.max_new_tokens)
    policy = current.policy()
    own_start = config.model.lora.rank > 0 and config.ppo.reference is None
    models = Models(
        policy=policy,
        critic=_critic(current, config),
        reference=None if own_start else current.reference(config.ppo.reference),
        reward=_reward(current, config),
    )
    algorithm = PPO(current, models, data.train_examples, config)
    steps = algorithm.rollouts_per_epoch * algorithm.steps_per_rollout
    return run(
        current,
        algorithm,
        total=current.total_steps(steps),
        evaluate=(lambda: algorithm.evaluate(data.eval_examples)) if data.eval_examples else None,
        best=("eval/reward", max),
        final={"model": policy, "critic": models.critic},
        learning_rates={"critic": config.ppo.value_lr or config.optim.lr},
    )


def _critic(current: Job, config: PPOConfig) -> ScoreModel:
    start = config.ppo.critic
    if start == "reward":
        return current.score_model(config.ppo.reward_model, trainable=True, new_head=False)
    return current.score_model(None if start == "policy" else start, trainable=True, new_head=True)


def _reward(current: Job, config: PPOConfig) -> ModelReward:
    path = config.ppo.reward_model
    own = ModelConfig(path, trust_remote_code=config.model.trust_remote_code)
    chat = Chat(load_tokenizer(own), None)
    scorer = current.score_model(path, trainable=False, new_head=False)
    return ModelReward(scorer, chat, current.chat, config.data.max_length)
