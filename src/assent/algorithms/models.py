"""The models of an online method, and what they say of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from assent.algorithms.references import Reference
from assent.algorithms.rollouts import Fields, annotate
from assent.config import OnlineConfig, keywords
from assent.data.packing import packed_size, plan
from assent.data.tree import TokenTree, TreeBatch
from assent.models.policy import Policy, ScoreModel, TokenScores
from assent.train.distributed import World

Read = tuple[TokenScores, Tensor | None]
"""The policy's scores of a micro-batch, and the values of its critic where there is one."""


@dataclass(frozen=True, slots=True)
class Models:
    """`critic` None: the method has none, or it is a value head of the policy. `reference` None: no KL. `kept` are
    forward passes with their graphs, by the keys of their batch, for the step that is to follow."""

    policy: Policy
    critic: ScoreModel | None
    reference: Reference | None
    kept: dict[tuple[int, ...], Read] = field(default_factory=dict)

    @property
    def tree(self) -> bool:
        """Whether all models can share prompts."""
        return all(model.tree for model in (self.policy, self.critic, self.reference) if model is not None)

    @property
    def has_critic(self) -> bool:
        return self.critic is not None or self.policy.value_head is not None

    def values(self, batch: TreeBatch, scores: TokenScores) -> Tensor:
        """Values of the states before the trained tokens, [N]; `scores` are the policy's of the same batch."""
        if self.critic is not None:
            return self.critic(batch, batch.source)
        assert scores.values is not None
        return scores.values


class Reader:
    """The models as readers of sampled answers, all ranks together."""

    def __init__(self, models: Models, config: OnlineConfig, world: World) -> None:
        self.models, self.config, self.world = models, config, world
        self.options: Mapping[str, Any] = keywords(config.loss)

    @property
    def needs_old(self) -> bool:
        """Whether the policy's own log-probs are needed before the first step on a rollout. Where there is but one, and
        no reward or value depends on them, they are those of the step itself: a forward pass less."""
        section, kl = self.config.rollout, self.config.kl
        in_reward = kl.coef > 0 and (kl.place == "reward" or kl.target is not None)
        several = section.epochs * section.minibatches > 1 or self.options.get("ewma") is not None
        return several or in_reward or self.models.has_critic

    def read(
        self, trees: list[TokenTree], *, policy: bool, critic: bool = False, keep: bool = False
    ) -> list[TokenTree]:
        """The trees with per-token `old` and `entropy` with `policy`, `values` with `critic`, and `reference` and `kl`
        where the method needs them. With `keep` one step follows that reads the same trees with the same weights, in
        the same micro-batches: where each rank has but one, so that its graph fits by itself, the passes are kept for
        that step."""
        models, kl, temperature = self.models, self.config.kl, self.config.sampling.temperature
        models.kept.clear()
        if not policy and models.reference is None:
            return trees
        keep = keep and policy and self._in_one_batch(trees)

        def fields(batch: TreeBatch) -> Fields:
            reference = models.reference
            per_token = {} if reference is None else {"reference": reference.logprobs(batch, temperature)}
            if not policy:
                return Fields(per_token)
            in_reward = kl.place == "reward"
            full = reference is not None and kl.estimator == "full" and (in_reward or keep)
            anchor = reference.anchor(batch, temperature) if full and reference is not None else None
            with torch.set_grad_enabled(keep):
                scores = models.policy(batch, temperature, entropy=True, anchor=anchor, direction="reverse")
                values = models.values(batch, scores) if critic and models.has_critic else None
            if keep:
                models.kept[batch.keys] = scores, values
            per_token |= {"old": scores.logprobs, "entropy": scores.entropy}
            if full and in_reward:
                per_token["kl"] = scores.kl
            if values is not None:
                per_token["values"] = values
            return Fields(per_token)

        micro_tokens = self.config.train.micro_tokens
        return annotate(trees, fields, micro_tokens=micro_tokens, flat=not models.tree, world=self.world)

    def _in_one_batch(self, trees: list[TokenTree]) -> bool:
        """Whether each rank reads its share of the trees in one micro-batch."""
        sizes = [packed_size(tree, flat=not self.models.tree) for tree in trees]
        return len(plan(sizes, micro_tokens=self.config.train.micro_tokens, ranks=self.world.size)[0]) == 1
