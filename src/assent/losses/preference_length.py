"""DPO that takes the lengths of the two responses into account."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from assent.losses._pairs import log_ratios


def normalised_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Length-normalised DPO: log-ratios per token (arXiv 2411.15124).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = -log sigmoid(beta * (chosen / length_chosen - rejected / length_rejected))

    policy_*, reference_*  [M]  as in `dpo`
    length_*               [M]  trained tokens of each response
    beta                        as in `dpo`, but per token: larger by about a response's length

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    lengths = {"length_chosen": length_chosen, "length_rejected": length_rejected}
    chosen, rejected = log_ratios("normalised_dpo", *logprobs, **lengths)
    return -F.logsigmoid(beta * (chosen / length_chosen - rejected / length_rejected))


def r_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    beta: float,
    length_penalty: float,
) -> Tensor:
    """DPO for a reward from which every token takes `length_penalty` (arXiv 2403.19159).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = -log sigmoid(beta * h + length_penalty * (length_chosen - length_rejected))

    The optimum of the penalised reward has reward = beta * (policy - reference) + length_penalty * length + constant:
    a chosen response that is longer explains its preference by length, and moves the policy less.

    policy_*, reference_*  [M]  as in `dpo`
    length_*               [M]  trained tokens of each response
    beta                        as in `dpo`
    length_penalty              price of a token in units of the reward

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    lengths = {"length_chosen": length_chosen, "length_rejected": length_rejected}
    chosen, rejected = log_ratios("r_dpo", *logprobs, **lengths)
    return -F.logsigmoid(beta * (chosen - rejected) + length_penalty * (length_chosen - length_rejected))


def ld_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    policy_chosen_shared: Tensor,
    policy_rejected_shared: Tensor,
    reference_chosen_shared: Tensor,
    reference_rejected_shared: Tensor,
    *,
    beta: float,
    tail_weight: float,
) -> Tensor:
    """Length-desensitised DPO: tokens beyond the length that both responses share count less (arXiv 2409.06411).

        ratio = shared + tail_weight * (whole - shared)          of policy - reference, chosen and rejected
        loss = -log sigmoid(beta * (ratio_chosen - ratio_rejected))

    policy_*, reference_*                [M]  as in `dpo`: whole
    policy_*_shared, reference_*_shared  [M]  the same sums over only the first tokens, as many as the shorter response
                                              of the pair has
    beta                                      as in `dpo`
    tail_weight                               weight of the other tokens, 0 to 1; 1 is DPO

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios(
        "ld_dpo",
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        policy_chosen_shared=policy_chosen_shared,
        policy_rejected_shared=policy_rejected_shared,
        reference_chosen_shared=reference_chosen_shared,
        reference_rejected_shared=reference_rejected_shared,
    )
    shared_chosen = policy_chosen_shared - reference_chosen_shared
    shared_rejected = policy_rejected_shared - reference_rejected_shared
    ratio_chosen = shared_chosen + tail_weight * (chosen - shared_chosen)
    ratio_rejected = shared_rejected + tail_weight * (rejected - shared_rejected)
    return -F.logsigmoid(beta * (ratio_chosen - ratio_rejected))
