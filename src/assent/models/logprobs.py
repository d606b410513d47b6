"""Log-probabilities (and entropies) of trained tokens straight from hidden states, in chunks of rows: the [N, V]
logits never exist, forward or backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits alive at a time: 16 MB in fp32, which stays in a processor's last cache."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy of each prediction (without `entropy`: zeros, a third cheaper).

        z = scale * cap(hidden @ weight.T + bias),   cap(x) = softcap * tanh(x / softcap)  (identity without softcap)
        logprob_n = z_n[target_n] - logsumexp(z_n),  entropy_n = logsumexp(z_n) - sum_v softmax(z_n)_v z_n,v

    hidden [N, h], weight [V, h], targets [N] int64, bias [V] -> ([N], [N]) in fp32 (fp64 for fp64 input). Matrix
    products run in `dtype` (default: hidden's own), statistics in fp32. Gradients are exact for hidden, weight, bias.
    Raises ValueError on shapes that do not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)}; expected [N, h], [V, h]"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be [{hidden.shape[0]}]. Got {tuple(targets.shape)}")
    return _TokenLogprobs.apply(hidden, weight, bias, targets, scale, softcap, dtype or hidden.dtype, entropy)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    z = hidden @ weight.T
    z = z if z.dtype == torch.float64 else z.float()
    if bias is not None:
        z += bias
    if softcap is not None:
        z = z.div_(softcap).tanh_().mul_(softcap)
    return z if scale == 1.0 else z.mul_(scale)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        stats = torch.float64 if dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(hidden), dtype=stats, device=hidden.device)
        entropy, lse = torch.zeros_like(logprobs), torch.empty_like(logprobs)
        cast_weight = weight.to(dtype)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            z = _logits(hidden[part].to(dtype), cast_weight, bias, scale, softcap)
            logp = z.log_softmax(-1)
            picked = targets[part, None]
            logprobs[part] = logp.gather(1, picked).squeeze(1)
            lse[part] = z.gather(1, picked).squeeze(1) - logprobs[part]
            if with_entropy:
                entropy[part] = -logp.exp().mul_(logp).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.options = (scale, softcap, dtype, rows, with_entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        scale, softcap, dtype, rows, with_entropy = ctx.options
        grad_logprobs, grad_entropy = grads
        entropy_used = with_entropy and bool((grad_entropy != 0).any())
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        cast_weight = weight.to(dtype)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            cast_hidden = hidden[part].to(dtype)
            z = _logits(cast_hidden, cast_weight, bias, scale, softcap)
            grad_z = _grad_logits(
                z, targets[part], lse[part], grad_logprobs[part], entropy[part], grad_entropy[part], entropy_used
            )
            if softcap is not None:  # z = scale * softcap * tanh(.), so dz/dx = scale * (1 - tanh^2)
                grad_z *= 1 - (z / (scale * softcap)) ** 2
            if scale != 1.0:
                grad_z *= scale
            if grad_bias is not None:
                grad_bias += grad_z.sum(0)
            grad_z = grad_z.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_z @ cast_weight
            if grad_weight is not None:
                grad_weight += grad_z.T @ cast_hidden
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _grad_logits(
    z: Tensor,
    targets: Tensor,
    lse: Tensor,
    grad_logprobs: Tensor,
    entropy: Tensor,
    grad_entropy: Tensor,
    entropy_used: bool,
) -> Tensor:
    """d/dz of sum_n grad_logprobs_n * logprob_n + grad_entropy_n * entropy_n:
    grad_logprobs * (onehot - p) - grad_entropy * p * (log p + entropy)."""
    logp = z - lse[:, None]
    weight = -grad_logprobs[:, None]
    if entropy_used:
        weight = weight - grad_entropy[:, None] * (logp + entropy[:, None])
    grad_z = logp.exp_() if not entropy_used else logp.exp()
    grad_z = grad_z.mul_(weight)
    grad_z.scatter_add_(1, targets[:, None], grad_logprobs[:, None])
    return grad_z
