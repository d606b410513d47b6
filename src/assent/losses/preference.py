"""Direct alignment from pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from assent.losses._shapes import check_shapes


def implicit_reward(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """The reward, up to a constant of the prompt, for which `policy` is the KL-regularised optimum (arXiv 2305.18290).

        reward = beta * (policy - reference)

    policy, reference  [S]  log-probs of whole responses (sums over their tokens)

    Returns [S]. Raises ValueError when the shapes differ.
    """
    check_shapes("implicit_reward", "S", policy=policy, reference=reference)
    return beta * (policy - reference)


def dpo(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Direct preference optimisation: Bradley-Terry on implicit rewards (arXiv 2305.18290).

        loss = -log sigmoid(beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)))

    policy_*     [M]  log-probs of whole responses under the trained policy
    reference_*  [M]  the same under the frozen reference
    beta              strength of the pull towards the reference

    Returns [M]; ln 2 where policy and reference agree. Raises ValueError when the shapes differ.
    """
    check_shapes(
        "dpo",
        "M",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    # Each response is compared with its own reference first: those two sums are close, so float32 loses least there.
    chosen = implicit_reward(policy_chosen, reference_chosen, beta=beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta=beta)
    return -F.logsigmoid(chosen - rejected)
