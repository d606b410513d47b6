"""Training where the exact optimum is known: settings of the enumerable world, with feedback of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.online.method import method_with
from assent.algorithms.online.models import Models
from assent.algorithms.online.train import assemble
from assent.algorithms.preference.feedback import balanced
from assent.algorithms.preference.objective import objective_with
from assent.algorithms.preference.step_loss import Requirement, needs_of
from assent.algorithms.preference.train import Preference
from assent.config import ModelConfig, OnlineConfig, OptimConfig, PreferenceConfig, has_reference
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.mismatch import with_mismatched
from assent.data.packing import EpochStream
from assent.data.tree import TokenTree
from assent.distributed import World
from assent.lab.enumerable import EnumerableWorld, TableReward, build_enumerable
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer
from assent.models.policy import Policy
from assent.models.references import FollowingReference, Reference
from assent.rewards.group import GroupReward, Nothing
from assent.train.loop import Algorithm, train_steps
from assent.train.optim import build_optimizer
from assent.train.session import Session

ALONE = World(0, 1, 0, torch.device("cpu"))
MAX_LENGTH = 16
TREES = 100  # of each prompt
SURENESS = 4.0
"""Factor on the rewards of the table: the surer the labels, the fewer are needed to learn what they say."""
FLIPPED = 0.2

Follow = Callable[[int], None]
"""Called with the number of each step that was taken."""


def learn(algorithm: Algorithm, steps: int, optim: OptimConfig, follow: Follow | None = None) -> None:
    """Takes all steps of an algorithm."""
    optimizer = build_optimizer([(module, optim.lr) for module in algorithm.modules.values()], optim)
    for result in train_steps(algorithm, optimizer, optim, ALONE, start=0, total=steps):
        if follow is not None and result is not None:
            follow(result.step)


@dataclass(frozen=True)
class Setting:
    """A world with its reference and feedback of every kind; log-probs and rewards are [X, Y]."""

    world: EnumerableWorld
    model: ModelConfig
    reference: Policy
    seed: int

    def scores(self, policy: Policy) -> Tensor:
        """A policy's log-probs of every response."""
        return self.world.logprobs(lambda batch: policy(batch).logprobs)

    @cached_property
    def ref(self) -> Tensor:
        return self.scores(self.reference)

    @property
    def rewards(self) -> Tensor:
        return self.world.rewards

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(response) for response in self.world.responses], dtype=torch.float64)

    def gold(self, logp: Tensor) -> float:
        """Expected reward of a policy, exactly."""
        return float((logp.exp() * self.rewards).sum(dim=1).mean())

    # ---- feedback

    @property
    def spread(self) -> Tensor:
        """Draws from the square root of pi_ref: rare responses are compared often enough to be learned in little time.
        It suits objectives whose optimum is the same whatever the draws."""
        return torch.log_softmax(self.ref / 2, dim=1)

    @cached_property
    def pairs(self) -> list[TokenTree]:
        return self._feedback("comparisons", self.spread, 512)

    @cached_property
    def own_pairs(self) -> list[TokenTree]:
        return self._feedback("comparisons", self.ref, 512)

    @cached_property
    def flipped_pairs(self) -> list[TokenTree]:
        return self._feedback("comparisons", self.spread, 512, flipped=FLIPPED)

    @cached_property
    def poor_pairs(self) -> list[TokenTree]:
        """Only responses that are worse than the reference's own are compared."""
        mean = (self.ref.exp() * self.rewards).sum(dim=1, keepdim=True)
        poor = self.ref.masked_fill(self.rewards > mean, -torch.inf)
        return self._feedback("comparisons", torch.log_softmax(poor, dim=1), 512)

    @cached_property
    def rankings(self) -> list[TokenTree]:
        return self._feedback("rankings", self.spread, 48)

    @cached_property
    def ratings(self) -> list[TokenTree]:
        return self._feedback("ratings", self.spread, 48)

    @cached_property
    def own_ratings(self) -> list[TokenTree]:
        return self._feedback("ratings", self.ref, 48)

    @cached_property
    def labels(self) -> list[TokenTree]:
        return self._feedback("labels", self.ref, 48)

    def _feedback(self, kind: str, drawn: Tensor, number: int, **options: float) -> list[TokenTree]:
        rng = np.random.default_rng(self.seed)
        make = getattr(self.world, kind)
        return [tree for _ in range(TREES) for tree in make(drawn, number, rng, **options)]

    # ---- training

    def train_preference(
        self,
        config: PreferenceConfig,
        trees: Sequence[TokenTree],
        steps: int,
        optim: OptimConfig,
        follow: Follow | None = None,
    ) -> Tensor:
        """Log-probs [X, Y] of the reference's copy after `steps` steps of one tree for each prompt. Of `config` the
        objective counts."""
        policy = load_policy(self.model, max_length=MAX_LENGTH)
        row, terms = objective_with(config)
        if Requirement.MISMATCHED in needs_of(terms):
            trees = with_mismatched(trees, self.seed, MAX_LENGTH)
        batch = len(self.world.prompts)
        stream = EpochStream(trees, batch_size=batch, micro_tokens=16384, seed=self.seed, flat=False)
        reference = self._reference(policy, row.reference_mode) if row.needs_reference else None
        learn(Preference(policy, reference, stream, row, balanced(terms, trees), ALONE), steps, optim, follow)
        return self.scores(policy)

    def _reference(self, policy: Policy, mode: str | None) -> Reference:
        if mode != "moving":
            return Reference(policy, self.reference)
        copy = load_policy(self.model, max_length=MAX_LENGTH, trainable=False)
        return FollowingReference(policy, copy, rate=0.6, every=20)

    def train_online(
        self,
        config: OnlineConfig,
        steps: int,
        optim: OptimConfig,
        follow: Follow | None = None,
        source: GroupReward | None = None,
        teacher: Policy | None = None,
    ) -> Tensor:
        """Log-probs [X, Y] after `steps` optimiser steps on rollouts of every prompt, by the table's rewards unless
        others are given, or none are named; `teacher` is that of `config`."""
        method = method_with(config)
        tokenizer = load_tokenizer(self.model)
        session = Session(config, ALONE, cast("Any", None), tokenizer, Chat(tokenizer))
        policy = load_policy(self.model, max_length=MAX_LENGTH)
        critic = None
        if method.critic is not None and method.critic.shared:
            policy.add_value_head()
        elif method.critic is not None:
            critic = load_score_model(self.model, tokenizer, max_length=MAX_LENGTH, seed=self.seed, new_head=True)
        reference = Reference(policy, self.reference) if has_reference(config) else None
        examples = load_examples(str(self.world.prompts_file)).examples
        models = Models(policy, critic, reference, teacher=teacher)
        source = source or (TableReward(self.world) if config.rewards.named else Nothing())
        learn(assemble(session, models, source, examples, config, method), steps, optim, follow)
        return self.scores(policy)


def build_setting(out: str | Path, seed: int, prompts: int = 4) -> Setting:
    """Writes a world of so many prompts and five letters into `out`."""
    world = build_enumerable(out, seed=seed, num_prompts=prompts, letters="abcde")
    model = ModelConfig(str(world.model), precision="fp32")
    reference = load_policy(model, max_length=MAX_LENGTH, trainable=False)
    return Setting(replace(world, rewards=SURENESS * world.rewards), model, reference, seed)
