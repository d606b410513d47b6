"""What one optimiser step of an online method minimises: a sum of terms over the tokens of its micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from assent.algorithms.online.coefficients import Coefficients
from assent.algorithms.online.comparison import comparison_loss
from assent.algorithms.online.method import PENALTY, OnlineMethod
from assent.algorithms.online.models import Forward, Models
from assent.algorithms.online.samples import KL_ANCHOR, TEACHER
from assent.algorithms.preference.step_loss import Requirement
from assent.config.online import OnlineConfig
from assent.data.packing import Counts
from assent.data.tree import TreeBatch
from assent.losses import clipped_value, kl_estimate, mismatch_weights, ratio_diagnostics, reinforce, token_weights
from assent.models.policy import Policy, TokenScores
from assent.rollout.rollout import Fields
from assent.train.loop import Loss

Terms = dict[str, tuple[Tensor | float, float]]
"""Metrics as (sum, count)."""


def forward(
    batch: TreeBatch, models: Models, method: OnlineMethod, coefficients: Coefficients, config: OnlineConfig
) -> Forward:
    """What the models say of a micro-batch, with gradients, as far as the loss needs it."""
    temperature, kl, held_to = config.sampling.temperature, config.kl, models.anchor
    if coefficients.warming and models.critic is not None:  # the policy is not trained: nothing of it is needed
        nothing = torch.zeros_like(batch.label, dtype=torch.float32)
        return Forward(TokenScores(nothing, nothing, nothing, nothing), models.critic.scalars(batch, batch.source))
    anchor, needs = None, frozenset() if method.comparison is None else method.comparison.needs
    in_loss = kl.coef > 0 and kl.place == "loss" and kl.estimator == "full" and not coefficients.warming
    if held_to is not None and (in_loss or Requirement.ANCHOR in needs):
        anchor = held_to.anchor(batch, temperature)
    distilled = method.distilled if method.distilled is not None and method.distilled.in_loss else None
    scores = models.forward(
        batch,
        temperature,
        entropy=method.reads_entropy or Fields.of(batch).old is None,
        anchor=anchor,
        direction="forward" if Requirement.ANCHOR in needs else "reverse",
        collision=Requirement.COLLISION in needs,
        teacher=models.teacher_of(batch, distilled),
        head_only=coefficients.warming,
    )
    return Forward(scores, models.values(batch, scores) if models.has_critic else None)


def step_loss(
    batch: TreeBatch,
    passed: Forward,
    method: OnlineMethod,
    coefficients: Coefficients,
    config: OnlineConfig,
    counts: Counts,
) -> Loss:
    """The loss of one micro-batch, `passed` through the models, of a step with these global `counts`:

        sum over tokens of weight * (policy loss + kl_coef * KL - entropy_coef * entropy + distill_coef * divergence)
        +  value_coef * value loss

    with the KL and the divergence from a teacher only where they belong in the loss, and a policy gradient at
    `given.coef` in place of the policy loss where a token is a demonstration's (none where demonstrations are there to
    be distilled on). While the coefficients are warming, the value loss alone. Where answers are compared, the loss of
    these comparisons."""
    fields = Fields.of(batch)
    total = torch.zeros((), device=batch.tokens.device)
    metrics: Terms = {}
    if not coefficients.warming:
        tokens = Tokens.of(fields, passed.scores, batch)
        if method.comparison is not None:
            total, metrics = comparison_loss(batch, passed.scores, fields, method.comparison, counts)
            metrics["mismatch"] = tokens.mean((tokens.old - tokens.sampler).abs())
        else:
            losses, metrics = token_losses(tokens, method, coefficients, config)
            weights = token_weights(
                batch.tokens_by_response(),
                batch.response,
                reduction=method.reduction,
                num_tokens=counts.tokens,
                num_responses=counts.responses,
                max_length=config.sampling.max_new_tokens,
            )
            total = (weights * losses).sum()
        metrics |= diagnostics(tokens, method)
        if fields.old is None:
            metrics |= first_sight(tokens, {"kl": fields.reference, KL_ANCHOR: fields.anchor}, batch)
    if method.critic is not None:
        assert passed.values is not None and fields.values is not None and fields.returns is not None
        errors = clipped_value(passed.values, fields.values, fields.returns, clip=method.critic.clip)
        total = total + method.critic.coef * errors.sum() / counts.tokens
        metrics["value_loss"] = (errors.sum(), len(errors))
    return Loss(total, metrics)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a micro-batch, [N] each: under the trained policy (`scores`), under the policy before the step
    (`old`), under the one that ratios are taken to (`base`, the old one or PPO-EWMA's average), under the engine that
    sampled them (`sampler`), under what the KL counts from (`anchor`). `sampled` is 0 in demonstrations, where there
    are any, else 1. `advantages` are 0 where answers are compared."""

    scores: TokenScores
    old: Tensor
    base: Tensor
    sampler: Tensor
    sampled: Tensor
    advantages: Tensor
    anchor: Tensor | None
    response: Tensor
    demonstrations: bool

    @classmethod
    def of(cls, fields: Fields, scores: TokenScores, batch: TreeBatch) -> Tokens:
        """`fields.old` None: this is the one step on a rollout, so the policy is still the one that sampled."""
        assert fields.sampler is not None
        old = scores.logprobs.detach() if fields.old is None else fields.old
        sampled = torch.ones_like(old) if fields.sampled is None else fields.sampled
        return cls(
            scores=scores,
            old=old,
            base=old if fields.ewma is None else fields.ewma,
            sampler=torch.where(sampled > 0, fields.sampler, old),
            sampled=sampled,
            advantages=torch.zeros_like(old) if fields.advantages is None else fields.advantages,
            anchor=fields.reference if fields.anchor is None else fields.anchor,
            response=batch.response,
            demonstrations=fields.sampled is not None,
        )

    def mean(self, values: Tensor) -> tuple[Tensor, float]:
        """(sum, count) of what the policy sampled."""
        return (values * self.sampled).sum(), float(self.sampled.sum())

    def mean_by_response(self, values: Tensor) -> tuple[Tensor, float]:
        """(sum, count) of the means over each response, whoever wrote it."""
        size = torch.bincount(self.response)
        return (values / size[self.response]).sum(), float((size > 0).sum())


def token_losses(
    tokens: Tokens, method: OnlineMethod, coefficients: Coefficients, config: OnlineConfig
) -> tuple[Tensor, Terms]:
    """The loss of each token, [N], and its parts."""
    losses = policy_losses(tokens, method, coefficients)
    divergence, distilled = tokens.scores.divergence, method.distilled
    if divergence is not None and not tokens.advantages.any():
        losses = losses.detach()  # its gradient is 0, and would cost what the divergence's does
    metrics: Terms = {"policy_loss": tokens.mean(losses)}
    metrics["mismatch"] = tokens.mean((tokens.old - tokens.sampler).abs())
    if config.rollout.correction > 0:
        importance = mismatch_weights(tokens.old, tokens.sampler, limit=config.rollout.correction)
        losses = losses * importance
        metrics["importance"] = tokens.mean(importance)
    if tokens.demonstrations:
        weight = config.given.coef if config.given.source != "none" else 0.0
        demonstrated = weight * reinforce(tokens.scores.logprobs, tokens.advantages)
        losses = torch.where(tokens.sampled > 0, losses, demonstrated)
    if coefficients.kl > 0 and config.kl.place == "loss":
        drift = tokens.scores.kl
        if config.kl.estimator != "full":
            assert tokens.anchor is not None
            drift = kl_estimate(tokens.scores.logprobs, tokens.anchor, estimator=config.kl.estimator)
        losses = losses + coefficients.kl * tokens.sampled * drift
        metrics["kl_loss"] = tokens.mean(drift)
    if method.entropy > 0:
        losses = losses - method.entropy * tokens.scores.entropy
        metrics["entropy_now"] = (tokens.scores.entropy.sum(), len(losses))
    if divergence is not None and distilled is not None and distilled.in_loss:
        losses = losses + distilled.coef * divergence.loss
        metrics["distill_loss"] = (divergence.loss.sum(), len(losses))
        metrics |= {name: tokens.mean_by_response(getattr(divergence, part)) for part, name in TEACHER.items()}
    return losses, metrics


def policy_losses(tokens: Tokens, method: OnlineMethod, coefficients: Coefficients) -> Tensor:
    """The method's policy loss of each token, [N]. Where the ratio is taken to another policy than the one that
    sampled, the ratio of these two stands before it (PPO-EWMA's decoupled objective)."""
    options = {PENALTY: coefficients.penalty} if method.penalised else {}
    losses = method.loss(
        {
            "logprobs": tokens.scores.logprobs,
            "old_logprobs": tokens.base,
            "advantages": tokens.advantages,
            "response": tokens.response,
            "sampler_logprobs": tokens.sampler,
            "reference_logprobs": tokens.anchor,
            "entropy": tokens.scores.entropy,
        },
        **options,
    )
    return losses if tokens.base is tokens.old else losses * torch.exp(tokens.base - tokens.old)


def diagnostics(tokens: Tokens, method: OnlineMethod) -> Terms:
    """KL from the policy that sampled, importance ratio, and the share that the clip holds."""
    logprobs, advantages = tokens.scores.logprobs, tokens.advantages
    response = tokens.response if method.by_response else None
    ratios = ratio_diagnostics(logprobs, tokens.old, advantages, response, **method.clips)
    held = ratios
    if tokens.base is not tokens.old:
        held = ratio_diagnostics(logprobs, tokens.base, advantages, response, **method.clips)
    sums = {"clip_fraction": held.clipped, "approx_kl": ratios.approx_kl, "ratio": ratios.ratio}
    return {name: tokens.mean(values) for name, values in sums.items()}


def first_sight(tokens: Tokens, others: Mapping[str, Tensor | None], batch: TreeBatch) -> Terms:
    """What a rollout tells of the policy, where its one step is the first to compute it."""
    metrics: Terms = {"entropy": tokens.mean(tokens.scores.entropy.detach())}
    responses = float((batch.sum_by_response(tokens.sampled) > 0).sum())
    for name, logprobs in others.items():
        if logprobs is not None:
            drift = (tokens.scores.logprobs.detach() - logprobs) * tokens.sampled
            metrics[name] = (drift.sum(), responses)
    return metrics


def mixed_loss(batch: TreeBatch, policy: Policy, weight: float) -> Loss:
    """The negative log-likelihood of pretraining or demonstration data that are mixed in (arXiv 2203.02155): `weight`
    for each token."""
    logprobs = policy(batch).logprobs
    return Loss(-(weight * logprobs).sum(), {"ptx_nll": (-logprobs.sum(), len(logprobs))})
