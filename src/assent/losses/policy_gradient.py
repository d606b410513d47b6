"""Policy losses for reinforcement learning."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from assent.losses._ratio import bounded_exp
from assent.losses._shapes import check_shapes
from assent.losses.kl import kl_estimate


def ppo_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """PPO's clipped policy loss: the worse of the plain and the clipped objective (arXiv 1707.06347).

        ratio = exp(logprobs - old_logprobs)
        loss  = -min(ratio * advantages, clamp(ratio, 1 - clip, 1 + clip) * advantages)

    logprobs      [N]  log-probs of the sampled tokens under the trained policy
    old_logprobs  [N]  the same under the policy that sampled them
    advantages    [N]
    clip               how far the ratio may move from 1 and still gain

    Returns [N]. Past ratio e^20 the tangent of exp stands in for exp, so loss and gradient stay finite. Raises
    ValueError when the shapes differ.
    """
    check_shapes("ppo_clip", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = bounded_exp(logprobs - old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


class RatioDiagnostics(NamedTuple):
    """How far the policy has moved from the one that sampled, per token, without gradients."""

    ratio: Tensor
    """[N] probability now / probability when sampled."""
    clipped: Tensor
    """[N] 1 where the clip holds, so that the token has no gradient; else 0. Its mean is the clip fraction."""
    approx_kl: Tensor
    """[N] k3 estimate of KL(old || new), in nats, never negative."""


@torch.no_grad()
def ratio_diagnostics(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float) -> RatioDiagnostics:
    """What PPO watches beside its loss; arguments and errors as for `ppo_clip`.

    clipped   = 1 where clamp(ratio, 1 - clip, 1 + clip) * advantages < ratio * advantages, else 0
    approx_kl = ratio - 1 - log ratio          (joschu.net/blog/kl-approx.html)
    """
    check_shapes("ratio_diagnostics", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = bounded_exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip) * advantages < ratio * advantages
    # The tokens come from the old policy, so it takes the place of kl_estimate's first argument.
    approx_kl = kl_estimate(old_logprobs, logprobs, estimator="k3")
    return RatioDiagnostics(ratio, clipped.to(logprobs.dtype), approx_kl)
