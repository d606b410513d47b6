"""Losses and advantages: pure functions of tensors.

Keyword hyperparameters, shapes checked first, unreduced results (the caller divides a sum by a global count), dtype
kept, nothing changed in place, nothing imported from the rest of assent. Log-probs are in nats; N counts trained
tokens, S responses, M pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from assent.losses.advantages import gae, whiten
from assent.losses.kl import ESTIMATORS, kl_estimate
from assent.losses.policy_gradient import RatioDiagnostics, ppo_clip, ratio_diagnostics
from assent.losses.preference import dpo, implicit_reward
from assent.losses.reward import bradley_terry, bradley_terry_tokens
from assent.losses.sft import cross_entropy
from assent.losses.value import clipped_value, explained_variance

LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "bradley_terry": bradley_terry,
    "bradley_terry_tokens": bradley_terry_tokens,
    "dpo": dpo,
    "ppo_clip": ppo_clip,
    "clipped_value": clipped_value,
    "kl_estimate": kl_estimate,
}
"""Every differentiable loss by name. The contract tests run over this table."""

__all__ = [
    "ESTIMATORS",
    "LOSSES",
    "RatioDiagnostics",
    "bradley_terry",
    "bradley_terry_tokens",
    "clipped_value",
    "cross_entropy",
    "dpo",
    "explained_variance",
    "gae",
    "implicit_reward",
    "kl_estimate",
    "ppo_clip",
    "ratio_diagnostics",
    "whiten",
]
