"""Reward models whose outputs are weighed by a gate on the prompt (ArmoRM, arXiv 2406.12845; `assent.models.gate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from assent.data.tree import TreeBatch
from assent.models.gate import Gate, GateRule, prompt_positions, shares
from assent.models.policy import ScoreModel
from assent.models.reward_head import Scored


class GatedScoreModel(ScoreModel):
    """A reward model with a gate over its outputs. Its `rule` says what they are called; the gate alone says what each
    is worth, unless `reweigh` gives them weights."""

    def __init__(self, model: PreTrainedModel, *, gate: Gate, gate_rule: GateRule, **options: Any) -> None:
        """`options` are those of `ScoreModel`."""
        super().__init__(model, **options)
        self.gate = gate
        self.gate_rule = gate_rule
        self.gated = True

    @property
    def heads(self) -> list[nn.Module]:
        return [*super().heads, self.gate]

    def rewards(self, batch: TreeBatch) -> Scored:
        if not self.gated:
            return super().rewards(batch)
        prompts = prompt_positions(batch, self.gate_rule.pattern)
        read, states = self(batch, torch.cat([batch.last, prompts]), states=True)
        outputs, prompt = read[: batch.num_responses], states[batch.num_responses :]
        parts = shares(outputs, self.gate(prompt), self.gate.transform)
        return Scored(parts.sum(-1), outputs, parts)

    def require_reward(self, who: str) -> None:
        if not self.gated:
            super().require_reward(who)

    def reweigh(self, weights: Mapping[str, float], flag: str = "--rewards.output_weights") -> None:
        super().reweigh(weights, flag)
        self.gated = False

    def set_transform(self, matrix: Sequence[Sequence[float]], verbosity: str | None) -> None:
        """From now on M is `matrix` [K, K], which takes the output `verbosity` out of the others (None: nothing)."""
        self.gate_rule = replace(self.gate_rule, transform=tuple(map(tuple, matrix)), verbosity=verbosity)
        self.gate.transform.copy_(torch.tensor(self.gate_rule.transform))
