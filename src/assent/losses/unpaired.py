"""Direct alignment from responses that are each labelled good or bad, without pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._shapes import check_shapes


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Kahneman-Tversky optimisation: what each response gains or loses against the policy's drift (arXiv 2402.01306).

        desirable    loss = desirable_weight * (1 - sigmoid(beta * (policy - reference - kl)))
        undesirable  loss = undesirable_weight * (1 - sigmoid(beta * (kl - (policy - reference))))

    policy, reference                     [S]  log-probs of whole responses (sums over their tokens)
    desirable                             [S]  1 desirable, 0 undesirable
    kl                                    [S]  the point of reference: how far the policy is from the reference, >= 0,
                                               a constant
    beta                                       scale of the log-ratios
    desirable_weight, undesirable_weight       weight of each kind

    Returns [S]. Raises ValueError when the shapes differ.
    """
    check_shapes("kto", "S", policy=policy, reference=reference, desirable=desirable, kl=kl)
    gain = beta * (policy - reference - kl)
    return torch.where(
        desirable.bool(), desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    )


def bco(policy: Tensor, reference: Tensor, desirable: Tensor, shift: Tensor, *, beta: float) -> Tensor:
    """Binary classifier optimisation: tell desirable from undesirable responses by their reward (arXiv 2404.04656).

        x = beta * (policy - reference) - shift
        desirable    loss = -log sigmoid(x)
        undesirable  loss = -log sigmoid(-x)

    The paper's density-ratio weights, for desirable and undesirable responses to different prompts, are not included.

    policy, reference  [S]  log-probs of whole responses (sums over their tokens)
    desirable          [S]  1 desirable, 0 undesirable
    shift              [S]  where the reward changes sign: the mean reward so far, a constant
    beta                    scale of the log-ratios

    Returns [S]. Raises ValueError when the shapes differ.
    """
    check_shapes("bco", "S", policy=policy, reference=reference, desirable=desirable, shift=shift)
    x = beta * (policy - reference) - shift
    return -F.logsigmoid(torch.where(desirable.bool(), x, -x))


def apo_zero_unpaired(policy: Tensor, reference: Tensor, desirable: Tensor, *, beta: float) -> Tensor:
    """`apo_zero` on single responses: desirable ones go up, undesirable ones down (arXiv 2408.06266).

        desirable    loss = 1 - sigmoid(beta * (policy - reference))
        undesirable  loss = sigmoid(beta * (policy - reference))

    policy, reference  [S]  log-probs of whole responses (sums over their tokens)
    desirable          [S]  1 desirable, 0 undesirable
    beta                    scale of the log-ratios

    Returns [S]. Raises ValueError when the shapes differ.
    """
    check_shapes("apo_zero_unpaired", "S", policy=policy, reference=reference, desirable=desirable)
    reward = beta * (policy - reference)
    return torch.sigmoid(torch.where(desirable.bool(), -reward, reward))
