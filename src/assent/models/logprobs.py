"""Log-probabilities, entropies, collisions and divergences of predictions straight from hidden states, in chunks of
rows: the [N, V] logits never exist, forward or backward."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits alive at a time: 16 MB in fp32."""

Direction = Literal["forward", "reverse"]


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
    collision: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, entropy of each prediction (without `entropy`: zeros, a third cheaper), and log
    of the chance that two draws from it agree (without `collision`: zeros).

        z = scale * cap(hidden @ weight.T + bias),   cap(x) = softcap * tanh(x / softcap)  (identity without softcap)
        logprob_n = z_n[target_n] - logsumexp(z_n),  entropy_n = logsumexp(z_n) - sum_v softmax(z_n)_v z_n,v
        collision_n = log sum_v softmax(z_n)_v^2

    hidden [N, h], weight [V, h], targets [N] int64, bias [V] -> ([N], [N], [N]) in fp32 (fp64 for fp64 input). Matrix
    products run in `dtype` (default: hidden's own), statistics in fp32. Gradients are exact for hidden, weight, bias;
    the collision is a constant. Raises ValueError on shapes that do not fit.
    """
    check_shapes("hidden", hidden, "weight", weight)
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be [{hidden.shape[0]}]. Got {tuple(targets.shape)}")
    options = (scale, softcap, dtype or hidden.dtype)
    return _TokenLogprobs.apply(hidden, weight, bias, targets, options, entropy, collision)


def token_kl(
    hidden: Tensor,
    weight: Tensor,
    other_hidden: Tensor,
    other_weight: Tensor,
    *,
    direction: Direction = "forward",
    bias: Tensor | None = None,
    other_bias: Tensor | None = None,
    scale: float = 1.0,
    other_scale: float = 1.0,
    softcap: float | None = None,
    other_softcap: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Divergence over the whole vocabulary between each prediction p and that of another model, q.

        p_n = softmax(z_n), z as in `token_logprobs`;   q_n likewise from everything that begins with `other_`
        forward: KL(q || p)_n = sum_v q (log q - log p),   reverse: KL(p || q)_n = sum_v p (log p - log q)

    hidden [N, h], weight [V, h], bias [V], other_hidden [N, k], other_weight [V, k], other_bias [V] -> [N] in fp32
    (fp64 for fp64 input). Matrix products run in `dtype` (default: hidden's own), statistics in fp32. Gradients are
    exact for hidden, weight, bias; q is a constant. Raises ValueError on shapes that do not fit, or another direction.
    """
    check_shapes("hidden", hidden, "weight", weight)
    check_shapes("other_hidden", other_hidden, "other_weight", other_weight)
    if hidden.shape[0] != other_hidden.shape[0]:
        raise ValueError(f"hidden has {hidden.shape[0]} rows, other_hidden {other_hidden.shape[0]}; expected the same")
    if weight.shape[0] != other_weight.shape[0]:
        raise ValueError(
            f"weight has {weight.shape[0]} tokens, other_weight {other_weight.shape[0]}; a KL needs one vocabulary"
        )
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse'. Got {direction!r}")
    dtype = dtype or hidden.dtype
    other = (other_hidden.detach(), other_weight.detach(), None if other_bias is None else other_bias.detach())
    options, other_options = (scale, softcap, dtype), (other_scale, other_softcap, dtype)
    return _TokenKL.apply(hidden, weight, bias, *other, options, other_options, direction == "forward")


def check_shapes(hidden_name: str, hidden: Tensor, weight_name: str, weight: Tensor) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{hidden_name} {tuple(hidden.shape)} does not fit {weight_name} {tuple(weight.shape)}; "
            "expected [N, h], [V, h]"
        )


class HeadRows:
    """An output head on its way through the rows: logits of a chunk, and the gradients that come back from them. All
    chunks use the same memory, which so stays in a processor's last cache."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> None:
        self.hidden, self.bias = hidden, bias
        self.scale, self.softcap, self.dtype = options
        self.weight = weight.to(self.dtype)
        self.stats = torch.float64 if self.dtype == torch.float64 else torch.float32
        self._memory: dict[str, Tensor] = {}

    def chunks(self, alive: int = 1) -> list[slice]:
        """The rows, cut so that `alive` tensors of logits stay within the limit."""
        rows = max(1, CHUNK_ELEMENTS // (alive * self.weight.shape[0]))
        return [slice(start, start + rows) for start in range(0, len(self.hidden), rows)]

    def per_row(self) -> Tensor:
        return torch.zeros(len(self.hidden), dtype=self.stats, device=self.hidden.device)

    def memory(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Room for [rows, V], the same in every call; the first chunk is the largest."""
        if name not in self._memory:
            self._memory[name] = self.weight.new_empty(rows, self.weight.shape[0], dtype=dtype)
        return self._memory[name][:rows]

    def logits(self, part: slice) -> Tensor:
        """z of the rows `part`, until it is asked for others."""
        hidden = self.hidden[part].to(self.dtype)
        product = torch.mm(hidden, self.weight.T, out=self.memory("product", len(hidden), self.dtype))
        z = product if self.dtype == self.stats else self.memory("z", len(hidden), self.stats).copy_(product)
        if self.bias is not None:
            z += self.bias
        if self.softcap is not None:
            z = z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z if self.scale == 1.0 else z.mul_(self.scale)

    def slope(self, z: Tensor) -> Tensor | float:
        """dz / d(hidden @ weight.T + bias)."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (z / (self.scale * self.softcap)) ** 2)  # z = scale * softcap * tanh(.)


class HeadGradients:
    """Gradients of hidden, weight and bias (those that are needed), chunk after chunk."""

    def __init__(self, head: HeadRows, inputs: tuple[Tensor, Tensor, Tensor | None], needed: tuple[bool, ...]) -> None:
        self.head = head
        self.sums = tuple(torch.zeros_like(x) if x is not None and need else None for x, need in zip(inputs, needed))

    def add(self, part: slice, slope: Tensor | float, grad_z: Tensor) -> None:
        """Takes d/dz of the rows `part`, where the head has this slope; overwrites grad_z."""
        head, (hidden, weight, bias) = self.head, self.sums
        if isinstance(slope, Tensor) or slope != 1.0:
            grad_z *= slope
        if bias is not None:
            bias += grad_z.sum(0)
        if head.dtype != grad_z.dtype:
            grad_z = head.memory("product", len(grad_z), head.dtype).copy_(grad_z)
        if hidden is not None:
            hidden[part] = grad_z @ head.weight
        if weight is not None:
            weight += grad_z.T @ head.hidden[part].to(head.dtype)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        options: tuple[Any, ...],
        with_entropy: bool,
        with_collision: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = HeadRows(hidden, weight, bias, options)
        logprobs, entropy, collision, lse = (head.per_row() for _ in range(4))
        for part in head.chunks():
            z = head.logits(part)
            picked = targets[part, None]
            lse[part] = z.gather(1, picked).squeeze(1)
            logp = log_softmax_(z)
            logprobs[part] = logp.gather(1, picked).squeeze(1)
            lse[part] -= logprobs[part]
            if with_entropy:
                p = torch.exp(logp, out=head.memory("p", len(z), head.stats))
                entropy[part] = -p.mul_(logp).sum(-1)
            if with_collision:
                collision[part] = logp.mul_(2).logsumexp(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.options = (options, with_entropy)
        ctx.mark_non_differentiable(collision)
        return logprobs, entropy, collision

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        options, with_entropy = ctx.options
        grad_logprobs, grad_entropy, _ = grads
        entropy_used = with_entropy and bool((grad_entropy != 0).any())
        head = HeadRows(hidden, weight, bias, options)
        gradients = HeadGradients(head, (hidden, weight, bias), ctx.needs_input_grad)
        for part in head.chunks():
            z = head.logits(part)
            slope = head.slope(z)
            grad_z = _grad_logits(
                z, targets[part], lse[part], grad_logprobs[part], entropy[part], grad_entropy[part], entropy_used
            )
            gradients.add(part, slope, grad_z)
        return *gradients.sums, None, None, None, None


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
    grad_logprobs * (onehot - p) - grad_entropy * p * (log p + entropy), in the memory of z."""
    weight = -grad_logprobs[:, None]
    if entropy_used:
        weight = weight - grad_entropy[:, None] * (z - lse[:, None] + entropy[:, None])
    grad_z = torch.softmax(z, -1, out=z).mul_(weight)
    grad_z.scatter_add_(1, targets[:, None], grad_logprobs[:, None])
    return grad_z


def log_softmax_(z: Tensor) -> Tensor:
    """In the memory of z."""
    return torch.log_softmax(z, -1, out=z)


class _TokenKL(torch.autograd.Function):
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
        forward_kl: bool,
    ) -> Tensor:
        own, other = (
            HeadRows(hidden, weight, bias, options),
            HeadRows(other_hidden, other_weight, other_bias, other_options),
        )
        kl = own.per_row()
        for part in own.chunks(alive=2):
            logp, logq = log_softmax_(own.logits(part)), log_softmax_(other.logits(part))
            true, guess = (logq, logp) if forward_kl else (logp, logq)
            kl[part] = (true - guess).mul_(true.exp()).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, other_hidden, other_weight, other_bias, kl)
        ctx.options = (options, other_options, forward_kl)
        return kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """dKL(q || p)/dz = p - q,   dKL(p || q)/dz = p * (log p - log q - KL)."""
        hidden, weight, bias, other_hidden, other_weight, other_bias, kl = ctx.saved_tensors
        options, other_options, forward_kl = ctx.options
        own, other = (
            HeadRows(hidden, weight, bias, options),
            HeadRows(other_hidden, other_weight, other_bias, other_options),
        )
        gradients = HeadGradients(own, (hidden, weight, bias), ctx.needs_input_grad)
        for part in own.chunks(alive=2):
            z = own.logits(part)
            slope = own.slope(z)
            logp, logq = log_softmax_(z), log_softmax_(other.logits(part))
            if forward_kl:
                grad_z = logp.exp_() - logq.exp_()
            else:
                grad_z = (logp - logq).sub_(kl[part, None]).mul_(logp.exp_())
            gradients.add(part, slope, grad_z.mul_(grads[0][part, None]))
        return *gradients.sums, None, None, None, None, None, None
