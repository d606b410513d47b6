"""Direct alignment from pairs without a reference model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._pairs import logistic
from assent.losses._shapes import check_shapes

MAX_LOGPROB = -1e-6


def reference_free_dpo(policy_chosen: Tensor, policy_rejected: Tensor, *, beta: float) -> Tensor:
    """DPO with a reference that finds all responses equally likely (after arXiv 2305.18290).

        loss = -log sigmoid(beta * (policy_chosen - policy_rejected))

    policy_*  [M]  log-probs of whole responses under the trained policy
    beta           scale of the reward

    Returns [M]. Raises ValueError when the shapes differ.
    """
    check_shapes("reference_free_dpo", "M", policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    return -F.logsigmoid(beta * (policy_chosen - policy_rejected))


def slic(policy_chosen: Tensor, policy_rejected: Tensor, *, delta: float, sft_weight: float) -> Tensor:
    """Sequence likelihood calibration: a hinge on log-probs, beside the likelihood (arXiv 2305.10425).

        loss = max(0, delta - policy_chosen + policy_rejected) - sft_weight * policy_chosen

    policy_*    [M]  log-probs of whole responses under the trained policy
    delta            gap of the log-probs at which a pair is left alone
    sft_weight       weight of the chosen response's likelihood

    Returns [M]. Raises ValueError when the shapes differ.
    """
    check_shapes("slic", "M", policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    return torch.relu(delta - policy_chosen + policy_rejected) - sft_weight * policy_chosen


def rrhf(
    policy_chosen: Tensor, policy_rejected: Tensor, length_chosen: Tensor, length_rejected: Tensor, *, sft_weight: float
) -> Tensor:
    """Rank responses: a hinge on log-probs per token, beside the likelihood (arXiv 2304.05302).

        loss = max(0, policy_rejected / length_rejected - policy_chosen / length_chosen) - sft_weight * policy_chosen

    policy_*    [M]  log-probs of whole responses under the trained policy
    length_*    [M]  trained tokens of each response
    sft_weight       weight of the chosen response's likelihood, which is not per token

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = _per_token("rrhf", policy_chosen, policy_rejected, length_chosen, length_rejected)
    return torch.relu(rejected - chosen) - sft_weight * policy_chosen


def cpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    length_chosen: Tensor,
    *,
    beta: float,
    sft_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Contrastive preference optimisation: DPO without reference, beside the likelihood (arXiv 2401.08417).

        x = beta * (policy_chosen - policy_rejected)
        loss = -(1 - label_smoothing) * log sigmoid(x) - label_smoothing * log sigmoid(-x)
               - sft_weight * policy_chosen / length_chosen

    policy_*       [M]  log-probs of whole responses under the trained policy
    length_chosen  [M]  trained tokens of each chosen response
    beta                scale of the reward
    sft_weight          weight of the likelihood, which is per token
    label_smoothing     share of the pairs believed to be flipped

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    check_shapes("cpo", "M", **logprobs, length_chosen=length_chosen)
    contrast = logistic(beta * (policy_chosen - policy_rejected), label_smoothing)
    return contrast - sft_weight * policy_chosen / length_chosen


def orpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    odds_weight: float,
) -> Tensor:
    """Odds ratio preference optimisation: the likelihood, beside the odds of the two responses (arXiv 2403.07691).

        p = exp(policy / length),   odds = p / (1 - p)
        loss = -policy_chosen / length_chosen - odds_weight * log sigmoid(log(odds_chosen / odds_rejected))

    policy_*     [M]  log-probs of whole responses under the trained policy
    length_*     [M]  trained tokens of each response
    odds_weight       weight of the second term

    Returns [M]. Where p is within 1e-6 of 1, 1 - p is taken as 1e-6: the odds stay finite. Raises ValueError when the
    shapes differ.
    """
    chosen, rejected = _per_token("orpo", policy_chosen, policy_rejected, length_chosen, length_rejected)
    log_odds_ratio = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - odds_weight * F.logsigmoid(log_odds_ratio)


def simpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    beta: float,
    gamma: float,
    length_normalised: bool = True,
) -> Tensor:
    """Simple preference optimisation: log-probs per token as reward, with a margin (arXiv 2405.14734).

        loss = -log sigmoid(beta * (policy_chosen / length_chosen - policy_rejected / length_rejected) - gamma)

    policy_*           [M]  log-probs of whole responses under the trained policy
    length_*           [M]  trained tokens of each response
    beta                    scale of the reward
    gamma                   gap of the rewards that is asked for
    length_normalised       False: the reward is the log-prob of the whole response

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = _per_token("simpo", policy_chosen, policy_rejected, length_chosen, length_rejected)
    if not length_normalised:
        chosen, rejected = policy_chosen, policy_rejected
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def chosen_nll(policy_chosen: Tensor, length_chosen: Tensor) -> Tensor:
    """Negative log-likelihood per token of the chosen response, to stand beside a loss of pairs (arXiv 2404.19733).

        loss = -policy_chosen / length_chosen

    policy_chosen  [M]  log-probs of whole responses under the trained policy
    length_chosen  [M]  trained tokens of each

    Returns [M]. Raises ValueError when the shapes differ.
    """
    check_shapes("chosen_nll", "M", policy_chosen=policy_chosen, length_chosen=length_chosen)
    return -policy_chosen / length_chosen


def _per_token(
    function: str, policy_chosen: Tensor, policy_rejected: Tensor, length_chosen: Tensor, length_rejected: Tensor
) -> tuple[Tensor, Tensor]:
    check_shapes(
        function,
        "M",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        length_chosen=length_chosen,
        length_rejected=length_rejected,
    )
    return policy_chosen / length_chosen, policy_rejected / length_rejected


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, by whichever form loses no digits. A response known by heart has x = 0, where it
    would be -inf: x is held at `MAX_LOGPROB`."""
    x = x.clamp(max=MAX_LOGPROB)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
