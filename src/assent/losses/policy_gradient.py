"""Policy losses for reinforcement learning."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from assent.losses._ratio import bounded_exp
from assent.losses._shapes import check_shapes, check_sorted
from assent.losses.kl import kl_estimate


def reinforce(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """The policy gradient as a loss: right for tokens that the trained policy itself sampled (arXiv 2402.14740).

        loss = -logprobs * advantages

    logprobs    [N]  log-probs of the sampled tokens under the trained policy
    advantages  [N]

    Returns [N]. Raises ValueError when the shapes differ.
    """
    check_shapes("reinforce", "N", logprobs=logprobs, advantages=advantages)
    return -logprobs * advantages


def cpi(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """The surrogate of conservative policy iteration: PPO's objective before it is clipped (arXiv 1707.06347).

        ratio = exp(logprobs - old_logprobs)
        loss  = -ratio * advantages

    logprobs      [N]  log-probs of the sampled tokens under the trained policy
    old_logprobs  [N]  the same under the policy that sampled them
    advantages    [N]

    Returns [N]. Past ratio e^20 the tangent of exp stands in for exp. Raises ValueError when the shapes differ.
    """
    check_shapes("cpi", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    return -bounded_exp(logprobs - old_logprobs) * advantages


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped policy loss: the worse of the plain and the clipped objective (arXiv 1707.06347).

        ratio = exp(logprobs - old_logprobs)
        loss  = -min(ratio * advantages, clamp(ratio, 1 - clip, 1 + clip_high) * advantages)
        loss  = min(loss, dual_clip * |advantages|)          with dual_clip

    logprobs      [N]  log-probs of the sampled tokens under the trained policy
    old_logprobs  [N]  the same under the policy that sampled them
    advantages    [N]
    clip               how far the ratio may move from 1 and still gain
    clip_high          the same upwards, when wider or narrower than downwards (arXiv 2503.14476); None: `clip`
    dual_clip          ratio, above 1 + clip_high, past which a bad token is let go (arXiv 1912.09729); None: never

    Returns [N]. Past ratio e^20 the tangent of exp stands in for exp, so loss and gradient stay finite. Raises
    ValueError when the shapes differ.
    """
    check_shapes("ppo_clip", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    loss = _clipped_loss(bounded_exp(logprobs - old_logprobs), advantages, clip, clip_high)
    # Where advantages >= 0 the loss is never above 0, so this holds bad tokens only.
    return loss if dual_clip is None else torch.minimum(loss, dual_clip * advantages.abs())


def ppo_penalty(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, penalty: float) -> Tensor:
    """PPO's other objective: the plain surrogate with a penalty on KL(old || new) (arXiv 1707.06347, section 4).

        ratio = exp(logprobs - old_logprobs)
        loss  = -ratio * advantages + penalty * (ratio - 1 - log ratio)

    The old policy sampled the tokens, so the last term has the value and the gradient of that KL in expectation.

    logprobs      [N]  log-probs of the sampled tokens under the trained policy
    old_logprobs  [N]  the same under the policy that sampled them
    advantages    [N]
    penalty            weight of the KL, in nats per token; `adaptive_penalty` moves it

    Returns [N]. Past ratio e^20 the tangent of exp stands in for exp. Raises ValueError when the shapes differ.
    """
    check_shapes("ppo_penalty", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    policy_kl = kl_estimate(old_logprobs, logprobs, estimator="k3")
    return cpi(logprobs, old_logprobs, advantages) + penalty * policy_kl


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
) -> Tensor:
    """Group sequence policy optimisation: PPO's loss with one ratio for a whole response (arXiv 2507.18071).

        ratio = exp(mean of logprobs - old_logprobs over the response's tokens), the same for each of them
        loss  = -min(ratio * advantages, clamp(ratio, 1 - clip, 1 + clip_high) * advantages)

    logprobs      [N]  log-probs of the sampled tokens under the trained policy
    old_logprobs  [N]  the same under the policy that sampled them
    advantages    [N]  of a token; the paper gives all tokens of a response the same
    response      [N]  which response each token belongs to, never decreasing
    clip               how far the ratio may move from 1 and still gain; a mean moves far less than a single token does
    clip_high          the same upwards; None: `clip`

    Returns [N]; the paper's loss is its mean over each response, then over responses. Past ratio e^20 the tangent of
    exp stands in for exp. Raises ValueError when the shapes differ or `response` decreases.
    """
    check_shapes("gspo", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, response=response)
    log_ratio = _response_mean("gspo", logprobs - old_logprobs, response)
    return _clipped_loss(bounded_exp(log_ratio), advantages, clip, clip_high)


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_high: float) -> Tensor:
    """REINFORCE with a bounded importance weight: no token loses its gradient, however far it moved (arXiv 2506.13585).

        weight = min(exp(logprobs - old_logprobs), 1 + clip_high), a constant
        loss   = -weight * advantages * logprobs

    logprobs      [N]  log-probs of the sampled tokens under the trained policy
    old_logprobs  [N]  the same under the policy that sampled them
    advantages    [N]
    clip_high          the bound is 1 + clip_high, as in the paper; where the bound itself is quoted (ScaleRL's 5,
                       arXiv 2510.13786) this is one less

    Returns [N]. Raises ValueError when the shapes differ.
    """
    check_shapes("cispo", "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    weight = _truncated_ratio(logprobs, old_logprobs, 1.0 + clip_high)
    return -weight * advantages * logprobs


def mismatch_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, *, limit: float) -> Tensor:
    """Importance weights for tokens that the engine sampled with slightly other probabilities than the trainer's
    (arXiv 1802.01561). Factors of a policy loss.

        weight = min(exp(old_logprobs - sampler_logprobs), limit), a constant

    old_logprobs      [N]  log-probs of the sampled tokens by the trainer, with the weights that sampled them
    sampler_logprobs  [N]  the same as the engine gave them
    limit                  the most that a token may count for

    Returns [N], without gradients. Raises ValueError when the shapes differ.
    """
    check_shapes("mismatch_weights", "N", old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs)
    return _truncated_ratio(old_logprobs, sampler_logprobs, limit)


class RatioDiagnostics(NamedTuple):
    """The policy beside the one that sampled (KL, ratio, what is clipped), per token, without gradients."""

    ratio: Tensor
    """[N] probability now / probability when sampled; with `response` GSPO's, the same for all tokens of a response."""
    clipped: Tensor
    """[N] 1 where the clip holds, so that the token has no gradient; else 0. Its mean is the clip fraction."""
    approx_kl: Tensor
    """[N] k3 estimate of KL(old || new), in nats, never negative."""


@torch.no_grad()
def ratio_diagnostics(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response: Tensor | None = None,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> RatioDiagnostics:
    """What is watched beside a clipped loss; arguments and errors as for `ppo_clip`, or with `response` for `gspo`.

    clipped   = 1 where clamp(ratio, 1 - clip, 1 + clip_high) * advantages < ratio * advantages, and with dual_clip
                where ratio > dual_clip and advantages < 0; else 0
    approx_kl = ratio - 1 - log ratio, of single tokens          (joschu.net/blog/kl-approx.html)
    """
    name = "ratio_diagnostics"
    check_shapes(name, "N", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, response=response)
    log_ratio = logprobs - old_logprobs
    ratio = bounded_exp(log_ratio if response is None else _response_mean(name, log_ratio, response))
    clipped = _clamp(ratio, clip, clip_high) * advantages < ratio * advantages
    if dual_clip is not None:
        clipped = clipped | ((ratio > dual_clip) & (advantages < 0))
    # The tokens come from the old policy, so it takes the place of kl_estimate's first argument.
    approx_kl = kl_estimate(old_logprobs, logprobs, estimator="k3")
    return RatioDiagnostics(ratio, clipped.to(logprobs.dtype), approx_kl)


def _clipped_loss(ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None) -> Tensor:
    return -torch.minimum(ratio * advantages, _clamp(ratio, clip, clip_high) * advantages)


def _clamp(ratio: Tensor, clip: float, clip_high: float | None) -> Tensor:
    return ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))


@torch.no_grad()
def _truncated_ratio(logprobs: Tensor, old_logprobs: Tensor, limit: float) -> Tensor:
    return torch.exp(logprobs - old_logprobs).clamp(max=limit)


def _response_mean(function: str, values: Tensor, response: Tensor) -> Tensor:
    """The mean over each response, at all of its tokens, [N]."""
    check_sorted(function, response)
    _, number, counts = torch.unique_consecutive(response, return_inverse=True, return_counts=True)
    return (values.new_zeros(len(counts)).index_add(0, number, values) / counts)[number]
