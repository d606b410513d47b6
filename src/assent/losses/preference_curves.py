"""Pairs judged by another curve of the log-ratios than DPO's log-sigmoid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._pairs import log_ratios, logistic
from assent.losses._ratio import bounded_exp
from assent.losses._shapes import check_shapes


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    beta: float,
    length_normalised: bool,
) -> Tensor:
    """Identity preference optimisation: the gap of the log-ratios has a target and stops there (arXiv 2310.12036).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = (chosen - rejected - 1 / (2 * beta))^2

    policy_*, reference_*  [M]  as in `dpo`
    length_*               [M]  trained tokens of each response
    beta                        the paper's tau: smaller asks for a larger gap
    length_normalised           chosen / length_chosen and rejected / length_rejected instead, which the paper's
                                formula does not do and TRL does

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    lengths = {"length_chosen": length_chosen, "length_rejected": length_rejected}
    chosen, rejected = log_ratios("ipo", *logprobs, **lengths)
    if length_normalised:
        chosen, rejected = chosen / length_chosen, rejected / length_rejected
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Hinge on the gap of DPO's implicit rewards (arXiv 2309.06657).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = max(0, 1 - beta * h)

    policy_*, reference_*  [M]  as in `dpo`
    beta                        1 / beta is the gap at which a pair is left alone

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("hinge", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return torch.relu(1 - beta * (chosen - rejected))


def exo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Exact optimisation from pairs: KL from the policy's choice to the smoothed label (arXiv 2402.00856, eq. 16).

        q = sigmoid(beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)))
        loss = q * log(q / (1 - label_smoothing)) + (1 - q) * log((1 - q) / label_smoothing)

    policy_*, reference_*  [M]  as in `dpo`
    beta                        as in `dpo`
    label_smoothing             probability that the label gives the rejected response, between 0 and 1

    Returns [M]. Raises ValueError when the shapes differ or label_smoothing is out of its range.
    """
    chosen, rejected = log_ratios("exo", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    if not 0.0 < label_smoothing < 1.0:
        raise ValueError(f"exo: expected label_smoothing between 0 and 1, both excluded; got {label_smoothing}.")
    logit = beta * (chosen - rejected)
    right = torch.sigmoid(logit) * (F.logsigmoid(logit) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - math.log(label_smoothing))
    return right + wrong


def sppo(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Self-play preference optimisation on hard labels: each log-ratio has its own target (arXiv 2405.00675).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = (chosen - 1 / (2 * beta))^2 + (rejected + 1 / (2 * beta))^2

    policy_*, reference_*  [M]  as in `dpo`
    beta                        the paper's 1 / eta: smaller asks for larger log-ratios

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("sppo", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    target = 1 / (2 * beta)
    return (chosen - target) ** 2 + (rejected + target) ** 2


def apo_zero(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Anchored preference optimisation for chosen responses above the policy's own (arXiv 2408.06266).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)

    policy_*, reference_*  [M]  as in `dpo`
    beta                        scale of the implicit rewards

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("apo_zero", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Anchored preference optimisation for chosen responses below the policy's own: both go down, the rejected one
    further (arXiv 2408.06266).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))

    policy_*, reference_*  [M]  as in `dpo`
    beta                        scale of the implicit rewards

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("apo_down", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    temperature: float,
) -> Tensor:
    """DiscoPOP: a blend, found by search, of the logistic and the exponential loss (arXiv 2406.08414).

        x = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
        share = sigmoid(x / temperature)
        loss = -(1 - share) * log sigmoid(x) + share * exp(-x)

    policy_*, reference_*  [M]  as in `dpo`
    beta                        as in `dpo`
    temperature                 how gradually one loss gives way to the other

    Returns [M]. Below x = -20 the tangent of exp stands in for it. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("discopop", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    x = beta * (chosen - rejected)
    return -torch.sigmoid(-x / temperature) * F.logsigmoid(x) + torch.sigmoid(x / temperature) * bounded_exp(-x)


def aot(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Alignment by optimal transport: every quantile of the policy's gaps above the reference's (arXiv 2406.05882).

        x = beta * (sort(policy_chosen - policy_rejected) - sort(reference_chosen - reference_rejected))
        loss = -(1 - label_smoothing) * log sigmoid(x) - label_smoothing * log sigmoid(-x)

    Pairs depend on one another: give all pairs of an optimiser step at once.

    policy_*, reference_*  [M]  as in `dpo`
    beta                        scale of the gaps
    label_smoothing             as in `dpo`

    Returns [M], one number per quantile, not per pair. Raises ValueError when the shapes differ.
    """
    check_shapes(
        "aot",
        "M",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    policy, reference = policy_chosen - policy_rejected, reference_chosen - reference_rejected
    return logistic(beta * (policy.sort().values - reference.sort().values), label_smoothing)


def aot_unpaired(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Alignment by optimal transport: every quantile of the chosen log-ratios above the rejected ones'
    (arXiv 2406.05882).

        x = beta * (sort(policy_chosen - reference_chosen) - sort(policy_rejected - reference_rejected))
        loss = -(1 - label_smoothing) * log sigmoid(x) - label_smoothing * log sigmoid(-x)

    Who was paired with whom does not matter, but responses depend on one another: give all of an optimiser step at
    once.

    policy_*, reference_*  [M]  as in `dpo`
    beta                        scale of the log-ratios
    label_smoothing             as in `dpo`

    Returns [M], one number per quantile, not per pair. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("aot_unpaired", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return logistic(beta * (chosen.sort().values - rejected.sort().values), label_smoothing)
