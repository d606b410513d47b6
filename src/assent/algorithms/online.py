"""Learning from rewards of sampled answers: every method of `assent.online`, with or without a critic.

One rollout of `train.batch_size` prompts is scored, given advantages, and then trained on for `rollout.epochs` passes
of `rollout.minibatches` optimiser steps each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.credit import credit, no_signal
from assent.algorithms.features import inputs_of
from assent.algorithms.job import Job, job
from assent.algorithms.rollouts import (
    Fields,
    annotate,
    attach,
    collect,
    describe,
    drift,
    pack_state,
    response_field,
    token_field,
    unpack_state,
)
from assent.algorithms.run import Evaluation, RunResult, run
from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.packing import Counts, Window, order, window
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import prompt_view
from assent.errors import NonFiniteError
from assent.losses import LOSSES, clipped_value, kl_estimate, ratio_diagnostics, token_weights
from assent.models.loading import load_tokenizer
from assent.models.policy import Policy, ScoreModel, TokenScores
from assent.online import METHODS, CriticConfig, OnlineConfig, method_of
from assent.rewards.model import ModelReward
from assent.rewards.source import RewardSource
from assent.rollout.torch_engine import TorchEngine
from assent.statistics import mean_interval
from assent.train.distributed import unsharded
from assent.train.loop import Loss
from assent.train.progress import say

EVAL_SEED = 1 << 40
"""Evaluations sample with a seed of their own, the same each time."""
SHOWN = 4
"""Prompts of each rollout that are written to samples.jsonl."""
ROUNDS = 4
"""Most times that a rollout asks further prompts, where it wants groups with signal."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a method; `critic` None where it has none. `reference` None means: the policy without its adapters,
    or no KL at all."""

    policy: Policy
    critic: ScoreModel | None
    reference: Policy | None
    reward: RewardSource

    @property
    def flat(self) -> bool:
        """Whether some model cannot share prompts."""
        return not all(model.tree for model in (self.policy, self.critic, self.reference) if model is not None)


class Online:
    """The state between optimiser steps is: which rollout, how many prompts it and those before have asked, its buffer,
    and how many of its minibatches are done."""

    def __init__(self, current: Job, models: Models, prompts: Sequence[Example], config: OnlineConfig) -> None:
        self.job = current
        self.models = models
        self.prompts = prompts
        self.prompt_ids = [current.chat.prompt_ids(example.prompt) for example in prompts]
        self.config = config
        self.row = METHODS[method_of(config)]
        self.options: Mapping[str, Any] = vars(config.loss)  # type: ignore[attr-defined]
        self.clips = {name: self.options[name] for name in CLIPS if name in self.options}
        self.modules: dict[str, torch.nn.Module] = {"policy": models.policy}
        if models.critic is not None:
            self.modules["critic"] = models.critic
        self.engine = TorchEngine(models.policy.model, eos_ids=current.chat.eos_ids, precision=models.policy.precision)
        self.rollout = 0
        self.asked = 0
        self.done = 0
        self.buffer: list[TokenTree] = []

    @property
    def rollouts_per_epoch(self) -> int:
        return -(-len(self.prompts) // self.config.train.batch_size)

    @property
    def steps_per_rollout(self) -> int:
        return self.config.rollout.epochs * self.config.rollout.minibatches

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
        epoch, part = divmod(number, self.config.rollout.minibatches)
        shuffled = order(
            len(self.buffer),
            seed=self.config.train.seed,
            epoch=self.rollout * self.config.rollout.epochs + epoch,
            stream=1,
        )
        return [self.buffer[i] for i in np.array_split(shuffled, self.config.rollout.minibatches)[part]]

    def _make_rollout(self) -> tuple[list[TokenTree], dict[str, float], tuple[dict[str, object], ...]]:
        size, dynamic = self.config.train.batch_size, self.options.get("dynamic", False)
        rounds: list[tuple[int, TokenTree]] = []
        for number in range(ROUNDS if dynamic else 1):
            indices = self._next_prompts(size)
            trees = self._answered(indices, self._sampling_seed(number))
            useful = ~no_signal(trees) if dynamic else np.ones(len(trees), bool)
            rounds += [(int(i), tree) for i, tree, keep in zip(indices, trees, useful, strict=True) if keep]
            if len(rounds) >= size:
                break
        if not rounds:
            say(f"rollout {self.rollout + 1}: no group of {ROUNDS * size} had answers of different rewards")
            rounds = [(int(i), tree) for i, tree in zip(indices, trees, strict=True)]
        chosen, trees = [i for i, _ in rounds[:size]], [tree for _, tree in rounds[:size]]
        trees = [replace(tree, key=key) for key, tree in enumerate(trees)]
        trees, metrics = credit(trees, self.config)
        metrics |= describe(trees)
        metrics["mismatch"] = float(np.abs(token_field(trees, "old") - token_field(trees, "sampler")).mean())
        metrics["rollout"], metrics["asked"] = float(self.rollout + 1), float(self.asked)
        samples = self.samples(trees[:SHOWN], [self.prompts[i] for i in chosen[:SHOWN]])
        return trees, metrics, tuple(samples)

    def _answered(self, indices: np.ndarray, seed: int) -> list[TokenTree]:
        """Scored answers to these training prompts; with the reward of the most likely one where that is compared."""
        asked = [self.prompts[i] for i in indices]
        trees = self.sample(indices, self.prompts, self.config.rollout.responses, seed)
        trees = self.score(trees, asked, with_critic=self.models.critic is not None)
        if self.row.advantage != "greedy":
            return trees
        greedy = self.sample(indices, self.prompts, 1, seed, temperature=0.0)
        greedy = self._rewarded(greedy, asked)
        penalty = self.config.rewards.missing_eos_penalty
        return [
            attach(tree, {}, {"baseline": np.full(len(tree.branches), _shaped(best, penalty), np.float32)})
            for tree, best in zip(trees, greedy, strict=True)
        ]

    def _sampling_seed(self, number: int) -> int:
        """A seed for each rollout of each run and each of its rounds; neighbouring run seeds share none."""
        entropy = (self.config.train.seed, self.rollout) + ((number,) if number else ())
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _next_prompts(self, size: int) -> np.ndarray:
        """The next `size` indices from the orders of all epochs one after the other: every rollout is whole."""
        number, first = len(self.prompts), self.asked
        self.asked += size
        epochs = range(first // number, (first + size - 1) // number + 1)
        endless = np.concatenate([order(number, seed=self.config.train.seed, epoch=epoch) for epoch in epochs])
        return endless[first % number :][:size]

    def sample(
        self,
        indices: Sequence[int] | np.ndarray,
        prompts: Sequence[Example],
        n: int,
        seed: int,
        temperature: float | None = None,
    ) -> list[TokenTree]:
        """Responses of the policy as it is now."""
        ids = (
            [self.prompt_ids[i] for i in indices]
            if prompts is self.prompts
            else [self.job.chat.prompt_ids(prompts[i].prompt) for i in indices]
        )
        sampling = self.config.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        with unsharded(self.models.policy):
            return collect(self.engine, ids, n, sampling, seed, self.job.world)

    def score(self, trees: list[TokenTree], prompts: Sequence[Example], *, with_critic: bool) -> list[TokenTree]:
        """Adds per-token `old`, `entropy` (`reference`, `values` where the method needs them), and the `reward`."""
        models, temperature = self.models, self.config.sampling.temperature

        def numbers(batch: TreeBatch) -> Fields:
            scores = models.policy(batch, temperature, entropy=True)
            per_token = {"old": scores.logprobs, "entropy": scores.entropy}
            if self.config.kl.coef > 0:
                per_token["reference"] = self._reference(batch).logprobs
            if with_critic:
                assert models.critic is not None
                per_token["values"] = models.critic(batch, batch.source)
            return Fields(per_token)

        train = self.config.train
        trees = annotate(trees, numbers, micro_tokens=train.micro_tokens, world=self.job.world, flat=models.flat)
        return self._rewarded(trees, prompts)

    def _reference(self, batch: TreeBatch) -> TokenScores:
        models, temperature = self.models, self.config.sampling.temperature
        if models.reference is not None:
            return models.reference(batch, temperature)
        with models.policy.without_adapters():
            return models.policy(batch, temperature)

    def _rewarded(self, trees: list[TokenTree], prompts: Sequence[Example]) -> list[TokenTree]:
        """The trees with the `reward` of each answer."""
        source = self.models.reward
        judged = annotate(
            source.trees(prompts, trees),
            lambda batch: Fields(per_response={"reward": source.score(batch)}),
            micro_tokens=self.config.train.micro_tokens,
            world=self.job.world,
            flat=not source.tree,
        )
        rewards = [tree.per_response["reward"] for tree in judged]
        for example, reward in zip(prompts, rewards, strict=True):
            if not np.isfinite(reward).all():
                raise NonFiniteError(
                    f"rollout {self.rollout + 1}: the reward model gave {reward} for {example.origin}."
                )
        return [attach(tree, {}, {"reward": reward}) for tree, reward in zip(trees, rewards, strict=True)]

    # ---- which loss

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        token, options = batch.per_token, self.options
        scores = self.models.policy(batch, self.config.sampling.temperature)
        weights = token_weights(
            batch.tokens_by_response(),
            batch.response,
            reduction=options["reduction"],
            num_tokens=counts.tokens,
            num_responses=counts.responses,
            max_length=self.config.sampling.max_new_tokens,
        )
        losses = self._policy_loss(scores.logprobs, batch)
        n = len(losses)
        metrics: dict[str, tuple[Tensor | float, float]] = {"policy_loss": (losses.sum(), n)}
        total = (weights * losses).sum()
        if self.config.kl.coef > 0 and self.config.kl.place == "loss":
            drift = kl_estimate(scores.logprobs, token["reference"], estimator=self.config.kl.estimator)
            total = total + self.config.kl.coef * (weights * drift).sum()
            metrics["kl_loss"] = (drift.sum(), n)
        if self.models.critic is not None:
            section: CriticConfig = self.config.critic  # type: ignore[attr-defined]
            values = self.models.critic(batch, batch.source)
            value_loss = clipped_value(values, token["values"], token["returns"], clip=section.clip).sum()
            total = total + value_loss / counts.tokens
            metrics["value_loss"] = (value_loss, n)
        return Loss(total, metrics | self._moved(scores.logprobs, batch))

    def _policy_loss(self, logprobs: Tensor, batch: TreeBatch) -> Tensor:
        function = LOSSES[self.row.loss]
        given = {
            "logprobs": logprobs,
            "old_logprobs": batch.per_token["old"],
            "advantages": batch.per_token["advantages"],
            "response": batch.response,
        }
        return function(**{name: given[name] for name in inputs_of(function)}, **self.clips)

    def _moved(self, logprobs: Tensor, batch: TreeBatch) -> dict[str, tuple[Tensor, float]]:
        """How far the policy has moved from the one that sampled."""
        options = {"clip": float("inf")} | self.clips
        response = batch.response if self.row.loss == "gspo" else None
        old, advantages = batch.per_token["old"], batch.per_token["advantages"]
        moved = ratio_diagnostics(logprobs, old, advantages, response, **options)
        sums = {"clip_fraction": moved.clipped, "approx_kl": moved.approx_kl, "ratio": moved.ratio}
        return {name: (values.sum(), len(values)) for name, values in sums.items()}

    # ---- state, samples, evaluation

    def state_dict(self) -> dict[str, Any]:
        inside = 0 < self.done < self.steps_per_rollout
        rollout = self.rollout + (self.done == self.steps_per_rollout)
        return {
            "rollout": rollout,
            "asked": self.asked,
            "done": self.done if inside else 0,
            "buffer": pack_state(self.buffer) if inside else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rollout, self.asked, self.done = (int(state[name]) for name in ("rollout", "asked", "done"))
        self.buffer = unpack_state(state["buffer"]) if state["buffer"] is not None else []

    def samples(self, trees: Sequence[TokenTree], prompts: Sequence[Example]) -> list[dict[str, object]]:
        """Rows for samples.jsonl."""
        return [
            {
                "prompt": [{"role": message.role, "content": message.content} for message in example.prompt],
                "response": self.job.chat.decode(branch.ids),
                "reward": float(tree.per_response["reward"][i]),
                **drift(branch),
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


CLIPS = ("clip", "clip_high", "dual_clip")
"""Options of policy losses."""


def _shaped(tree: TokenTree, penalty: float) -> float:
    """The reward of the only answer, with its penalty."""
    return float(tree.per_response["reward"][0] - penalty * (1 - tree.per_response["finished"][0]))


def train_online(config: OnlineConfig) -> RunResult:
    """Optimises `config.model` against the reward model `config.rewards.model` on the prompts of `config.data`; the
    result is `config.out`/model, and where there is a critic `config.out`/critic."""
    current = job(config)
    data = current.prepare(prompt_view, reserve=config.sampling.max_new_tokens)
    policy = current.policy()
    own_start = config.model.lora.rank > 0 and config.kl.reference is None
    section: CriticConfig | None = getattr(config, "critic", None)
    models = Models(
        policy=policy,
        critic=None if section is None else _critic(current, config, section),
        reference=None if own_start or config.kl.coef == 0 else current.reference(config.kl.reference),
        reward=_reward(current, config),
    )
    algorithm = Online(current, models, data.train_examples, config)
    steps = algorithm.rollouts_per_epoch * algorithm.steps_per_rollout
    final = {"model": policy} | ({"critic": models.critic} if models.critic is not None else {})
    return run(
        current,
        algorithm,
        total=current.total_steps(steps),
        evaluate=(lambda: algorithm.evaluate(data.eval_examples)) if data.eval_examples else None,
        best=("eval/reward", max),
        final=final,
        learning_rates={"critic": section.lr or config.optim.lr} if section is not None else {},
    )


def _critic(current: Job, config: OnlineConfig, section: CriticConfig) -> ScoreModel:
    if section.start == "reward":
        return current.score_model(config.rewards.model, trainable=True, new_head=False)
    return current.score_model(None if section.start == "policy" else section.start, trainable=True, new_head=True)


def _reward(current: Job, config: OnlineConfig) -> ModelReward:
    path = config.rewards.model
    assert path is not None, "refused by checks"
    own = ModelConfig(path, trust_remote_code=config.model.trust_remote_code)
    chat = Chat(load_tokenizer(own), None)
    scorer = current.score_model(path, trainable=False, new_head=False)
    return ModelReward(scorer, chat, current.chat, config.data.max_length)
