"""What one optimiser step of an online method minimises: policy loss, KL, critic's loss, and what is mixed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from assent.algorithms.models import Models
from assent.algorithms.rollouts import GIVEN
from assent.data.packing import Counts
from assent.data.tree import TreeBatch
from assent.losses import (
    LOSSES,
    clipped_value,
    inputs_of,
    kl_estimate,
    mismatch_weights,
    ratio_diagnostics,
    reinforce,
    token_weights,
)
from assent.methods import METHODS
from assent.models.policy import TokenScores
from assent.online import CriticConfig, OnlineConfig, method_of
from assent.train.loop import Loss

CLIPS = ("clip", "clip_high", "dual_clip")
OBJECTIVES = {"clip": "ppo_clip", "none": "cpi", "penalty": "ppo_penalty"}
"""PPO's losses by `loss.objective`."""
PTX = "ptx"
"""Per-token field of mixed-in data: the weight of each token."""
PROXIMAL = "proximal"
"""Per-token field: log-probs under the averaged policy, where ratios are taken to that."""

Sums = dict[str, tuple[Tensor | float, float]]


class Surrogate:
    """`kl_coef` and `penalty` are the weights as they are now; while `warming`, the critic learns alone."""

    def __init__(self, models: Models, config: OnlineConfig) -> None:
        self.models, self.config = models, config
        self.row = METHODS[method_of(config)]
        self.options: Mapping[str, Any] = vars(config.loss)  # type: ignore[attr-defined]
        self.critic: CriticConfig | None = getattr(config, "critic", None)
        self.loss_name = OBJECTIVES[self.options["objective"]] if "objective" in self.options else self.row.loss
        self.kl_coef = config.kl.coef
        self.penalty = float(self.options.get("penalty", 0.0))
        self.warming = False

    def __call__(self, batch: TreeBatch, counts: Counts) -> Loss:
        if PTX in batch.per_token:
            return self._mixed_in(batch)
        kept = self.models.kept.pop(batch.keys, None)
        scores, values = (self._scores(batch), None) if kept is None else kept
        total = torch.zeros((), device=batch.tokens.device)
        metrics: Sums = {}
        if not self.warming:
            unseen = "old" not in batch.per_token
            if unseen:  # the one step of a rollout: the policy is still the one that sampled
                batch = replace(batch, per_token={**batch.per_token, "old": scores.logprobs.detach()})
            total, metrics = self._policy(batch, scores, counts)
            metrics |= _first_sight(batch, scores) if unseen else {}
        if self.critic is not None:
            values = self.models.values(batch, scores) if values is None else values
            losses = clipped_value(values, batch.per_token["values"], batch.per_token["returns"], clip=self.critic.clip)
            total = total + self.critic.coef * losses.sum() / counts.tokens
            metrics["value_loss"] = (losses.sum(), len(losses))
        return Loss(total, metrics)

    def _scores(self, batch: TreeBatch) -> TokenScores:
        temperature, kl, reference = self.config.sampling.temperature, self.config.kl, self.models.reference
        shared = self.models.policy.value_head is not None
        if self.warming and not shared:  # the policy is not trained: nothing of it is needed
            nothing = torch.zeros_like(batch.label, dtype=torch.float32)
            return TokenScores(nothing, nothing, nothing, nothing)
        anchor = None
        if reference is not None and kl.place == "loss" and kl.estimator == "full" and not self.warming:
            anchor = reference.anchor(batch, temperature)
        return self.models.policy(
            batch,
            temperature,
            entropy=self.options["entropy"] > 0 or "old" not in batch.per_token,
            anchor=anchor,
            direction="reverse",
            head_only=self.warming,
        )

    def _policy(self, batch: TreeBatch, scores: TokenScores, counts: Counts) -> tuple[Tensor, Sums]:
        token, options = batch.per_token, self.options
        weights = token_weights(
            batch.tokens_by_response(),
            batch.response,
            reduction=options["reduction"],
            num_tokens=counts.tokens,
            num_responses=counts.responses,
            max_length=self.config.sampling.max_new_tokens,
        )
        sampled = 1 - token[GIVEN] if GIVEN in token else torch.ones_like(weights)
        losses = self._losses(batch, scores.logprobs)
        number = float(sampled.sum())
        metrics: Sums = {"policy_loss": ((losses * sampled).sum(), number)}
        sampler = torch.where(sampled > 0, token["sampler"], token["old"])
        metrics["mismatch"] = ((token["old"] - sampler).abs().sum(), number)
        limit = self.config.rollout.correction
        if limit > 0:
            importance = mismatch_weights(token["old"], sampler, limit=limit)
            losses = losses * importance
            metrics["importance"] = ((importance * sampled).sum(), number)
        if GIVEN in token:
            losses = torch.where(
                sampled > 0, losses, self.config.given.coef * reinforce(scores.logprobs, token["advantages"])
            )
        if self.kl_coef > 0 and self.config.kl.place == "loss":
            drift = scores.kl
            if self.config.kl.estimator != "full":
                drift = kl_estimate(scores.logprobs, token["reference"], estimator=self.config.kl.estimator)
            losses = losses + self.kl_coef * sampled * drift
            metrics["kl_loss"] = ((sampled * drift).sum(), number)
        if options["entropy"] > 0:
            losses = losses - options["entropy"] * scores.entropy
            metrics["entropy_now"] = (scores.entropy.sum(), len(losses))
        return (weights * losses).sum(), metrics | self._moved(batch, scores.logprobs, sampled)

    def _losses(self, batch: TreeBatch, logprobs: Tensor) -> Tensor:
        """The policy loss of each token, [N]. Where the ratio is taken to another policy than the one that sampled, the
        ratio of these two stands before it (PPO-EWMA's decoupled objective)."""
        old, function = batch.per_token["old"], LOSSES[self.loss_name]
        base = batch.per_token.get(PROXIMAL, old)
        given = {
            "logprobs": logprobs,
            "old_logprobs": base,
            "advantages": batch.per_token["advantages"],
            "response": batch.response,
        }
        options = {"penalty": self.penalty} if self.loss_name == "ppo_penalty" else self._clips()
        losses = function(**{name: given[name] for name in inputs_of(function)}, **options)
        return losses if base is old else losses * torch.exp(base - old)

    def _clips(self) -> dict[str, Any]:
        """The options of the policy loss that bound its ratio."""
        if self.loss_name == "cpi":
            return {}
        return {name: self.options[name] for name in CLIPS if name in self.options}

    def _moved(self, batch: TreeBatch, logprobs: Tensor, sampled: Tensor) -> Sums:
        """How far the policy has moved from the one that sampled, and what the clip holds."""
        clips = {"clip": float("inf")} | (self._clips() if self.loss_name != "ppo_penalty" else {})
        response = batch.response if self.loss_name == "gspo" else None
        old, advantages = batch.per_token["old"], batch.per_token["advantages"]
        base = batch.per_token.get(PROXIMAL, old)
        moved = ratio_diagnostics(logprobs, old, advantages, response, **clips)
        held = moved if base is old else ratio_diagnostics(logprobs, base, advantages, response, **clips)
        sums = {"clip_fraction": held.clipped, "approx_kl": moved.approx_kl, "ratio": moved.ratio}
        return {name: ((values * sampled).sum(), float(sampled.sum())) for name, values in sums.items()}

    def _mixed_in(self, batch: TreeBatch) -> Loss:
        """The likelihood of pretraining or demonstration data."""
        logprobs = self.models.policy(batch).logprobs
        return Loss(-(batch.per_token[PTX] * logprobs).sum(), {"ptx_nll": (-logprobs.sum(), len(logprobs))})


def _first_sight(batch: TreeBatch, scores: TokenScores) -> Sums:
    """What a rollout tells of the policy, where its one step is the first to compute it."""
    sampled = 1 - batch.per_token[GIVEN] if GIVEN in batch.per_token else torch.ones_like(scores.entropy)
    metrics: Sums = {"entropy": ((scores.entropy.detach() * sampled).sum(), float(sampled.sum()))}
    if "reference" in batch.per_token:
        drift = (scores.logprobs.detach() - batch.per_token["reference"]) * sampled
        metrics["kl"] = (drift.sum(), float((batch.sum_by_response(sampled) > 0).sum()))
    return metrics
