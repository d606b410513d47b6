"""Credit for the tokens of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from assent.losses._shapes import check_shapes, check_sorted


def gae(rewards: Tensor, values: Tensor, response: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation; each response is an episode that ends at its last token (arXiv 1506.02438).

        delta[t]      = rewards[t] + gamma * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * lam * advantages[t + 1]

    with values and advantages 0 after the last token of a response. The critic's targets are `advantages + values`.

    rewards   [N]  reward for each token
    values    [N]  the critic's value of the state before each token
    response  [N]  which response each token belongs to, never decreasing

    Returns [N]. Raises ValueError when shapes differ or `response` decreases.
    """
    check_shapes("gae", "N", rewards=rewards, values=values, response=response)
    check_sorted("gae", response)

    def ahead(x: Tensor, steps: int) -> Tensor:
        """x[t + steps] within the same response, else 0."""
        inside = response[steps:] == response[:-steps]
        return torch.cat([torch.where(inside, x[steps:], 0.0), x.new_zeros(steps)])

    # Doubling: when `advantages` holds the first `steps` terms of sum_k (gamma * lam)^k delta[t + k], one addition
    # brings the next `steps`. log2(N) vector operations, no loop over tokens or responses.
    advantages = rewards - values
    if len(values) > 1:
        advantages = advantages + gamma * ahead(values, 1)
    steps = 1
    while steps < len(values):
        advantages = advantages + (gamma * lam) ** steps * ahead(advantages, steps)
        steps *= 2
    return advantages


def whiten(
    x: Tensor, *, shift_mean: bool = True, mean: Tensor | None = None, var: Tensor | None = None, eps: float = 1e-8
) -> Tensor:
    """Scales to variance 1 and, with `shift_mean`, to mean 0.

        (x - mean) / sqrt(var + eps)   (+ mean without shift_mean)

    x          [N]
    mean, var  []  statistics over all ranks or micro-batches, so that every part is scaled alike; default: those of
                   `x` (population variance)

    Returns [N]; a constant `x` becomes 0 (or stays `mean`). Raises ValueError when `x` is not a vector or only one of
    `mean` and `var` is given.
    """
    check_shapes("whiten", "N", x=x)
    if (mean is None) != (var is None):
        raise ValueError("whiten: give both `mean` and `var`, or neither.")
    if mean is None or var is None:
        mean, var = x.mean(), x.var(correction=0)
    scaled = (x - mean) * torch.rsqrt(var + eps)
    return scaled if shift_mean else scaled + mean
