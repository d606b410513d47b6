"""Divergences of a policy's predictions from a teacher's, exact over the vocabulary and straight from hidden states, in
chunks of rows: the [N, V] logits never exist, forward or backward."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assent.models.logprobs import HeadGradients, HeadRows, check_shapes, log_softmax_


class Divergence(NamedTuple):
    """Of N predictions p and those of a teacher, q, [N] each: `loss` is the generalised Jensen-Shannon divergence, the
    only one with a gradient; `forward` KL(q || p), `reverse` KL(p || q), `agrees` 1 where both find the same token the
    likeliest, else 0."""

    loss: Tensor
    forward: Tensor
    reverse: Tensor
    agrees: Tensor


def token_divergence(
    hidden: Tensor,
    weight: Tensor,
    other_hidden: Tensor,
    other_weight: Tensor,
    *,
    beta: float,
    bias: Tensor | None = None,
    other_bias: Tensor | None = None,
    scale: float = 1.0,
    other_scale: float = 1.0,
    softcap: float | None = None,
    other_softcap: float | None = None,
    dtype: torch.dtype | None = None,
) -> Divergence:
    """Generalised Jensen-Shannon divergence of each prediction p from that of a teacher, q (arXiv 2306.13649).

        p_n = softmax(z_n), z as in `token_logprobs`;   q_n likewise from everything that begins with `other_`
        m = beta * q + (1 - beta) * p
        loss_n = beta * KL(q || m)_n + (1 - beta) * KL(p || m)_n      0 < beta < 1
        loss_n = KL(q || p)_n  at beta 0,   KL(p || q)_n  at beta 1:  its limits over beta and over 1 - beta

    hidden [N, h], weight [V, h], bias [V], other_hidden [N, k], other_weight [V, k], other_bias [V] -> [N] each, in
    fp32 (fp64 for fp64 input). Matrix products run in `dtype` (default: hidden's own), statistics in fp32. Gradients
    are exact for hidden, weight, bias; q is a constant. Raises ValueError on shapes that do not fit, and a beta outside
    of [0, 1].
    """
    check_shapes("hidden", hidden, "weight", weight)
    check_shapes("other_hidden", other_hidden, "other_weight", other_weight)
    if len(hidden) != len(other_hidden) or len(weight) != len(other_weight):
        raise ValueError(
            f"hidden and weight have {len(hidden)} rows and {len(weight)} tokens, other_hidden and other_weight "
            f"{len(other_hidden)} and {len(other_weight)}; expected the same"
        )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1]. Got {beta}")
    dtype = dtype or hidden.dtype
    other = (other_hidden.detach(), other_weight.detach(), None if other_bias is None else other_bias.detach())
    options, other_options = (scale, softcap, dtype), (other_scale, other_softcap, dtype)
    return Divergence(*_TokenDivergence.apply(hidden, weight, bias, *other, options, other_options, beta))


def divergence_of(logp: Tensor, logq: Tensor, beta: float) -> Divergence:
    """The same from log-probs of all tokens, [n, V] each, by torch's own gradients."""
    gap, p, q = logp - logq, logp.exp(), logq.exp()
    forward, reverse = -(q * gap).sum(-1), (p * gap).sum(-1)
    agrees = (logp.argmax(-1) == logq.argmax(-1)).to(logp.dtype)
    if 0 < beta < 1:
        logm = _mixture(logp, logq, beta)
        loss = beta * (q * (logq - logm)).sum(-1) + (1 - beta) * (p * (logp - logm)).sum(-1)
    else:
        loss = reverse if beta else forward
    return Divergence(loss, forward.detach(), reverse.detach(), agrees)


def _mixture(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """log(beta * q + (1 - beta) * p)."""
    return torch.logaddexp(logq + math.log(beta), logp + math.log1p(-beta))


class _TokenDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        other_hidden: Tensor,
        other_weight: Tensor,
        other_bias: Tensor | None,
        options: tuple[Any, ...],
        other_options: tuple[Any, ...],
        beta: float,
    ) -> tuple[Tensor, ...]:
        own, other = (
            HeadRows(hidden, weight, bias, options),
            HeadRows(other_hidden, other_weight, other_bias, other_options),
        )
        found = tuple(own.per_row() for _ in Divergence._fields)
        for part in own.chunks(alive=4):
            logp, logq = log_softmax_(own.logits(part)), log_softmax_(other.logits(part))
            for column, values in zip(found, divergence_of(logp, logq, beta), strict=True):
                column[part] = values
        loss, forward, reverse, agrees = found
        ctx.save_for_backward(hidden, weight, bias, other_hidden, other_weight, other_bias, reverse)
        ctx.options = (options, other_options, beta)
        ctx.mark_non_differentiable(forward, reverse, agrees)
        return loss, forward, reverse, agrees

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d loss / dz = p * (g - sum_v p g) with g = (1 - beta) * (log p - log m), and log p - log q at beta 1; at
        beta 0 it is p - q."""
        hidden, weight, bias, other_hidden, other_weight, other_bias, reverse = ctx.saved_tensors
        options, other_options, beta = ctx.options
        own, other = (
            HeadRows(hidden, weight, bias, options),
            HeadRows(other_hidden, other_weight, other_bias, other_options),
        )
        gradients = HeadGradients(own, (hidden, weight, bias), ctx.needs_input_grad)
        for part in own.chunks(alive=4):
            z = own.logits(part)
            slope = own.slope(z)
            logp, logq = log_softmax_(z), log_softmax_(other.logits(part))
            if beta == 0:
                grad_z = logp.exp_() - logq.exp_()
            elif beta == 1:
                grad_z = (logp - logq).sub_(reverse[part, None]).mul_(logp.exp_())
            else:
                g = (logp - _mixture(logp, logq, beta)).mul_(1 - beta)
                p = logp.exp_()
                grad_z = g.sub_((p * g).sum(-1, keepdim=True)).mul_(p)
            gradients.add(part, slope, grad_z.mul_(grads[0][part, None]))
        return *gradients.sums, None, None, None, None, None, None
