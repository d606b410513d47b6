"""What the losses of pairs share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from assent.losses._shapes import check_shapes


def log_ratios(
    function: str,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    **others: Tensor,
) -> tuple[Tensor, Tensor]:
    """`policy - reference` of the chosen and of the rejected responses, after the shapes of all tensors were checked.

    Each response is compared with its own reference first: those two sums are close, so float32 loses least there.
    """
    check_shapes(
        function,
        "M",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        **others,
    )
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def logistic(logit: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of `sigmoid(logit)` when a share `label_smoothing` of the labels is taken to be flipped."""
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)
