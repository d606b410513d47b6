"""Probability ratios that cannot overflow."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """`exp(log_ratio)`, continued along its tangent past `MAX_LOG_RATIO`.

        exp(min(x, b)) * (1 + max(x - b, 0)),   x = log_ratio, b = MAX_LOG_RATIO

    Equal to exp for every ratio below e^20. Above, exp would soon be inf, and its gradient 0 * inf = NaN even where a
    clip ignores it; cutting the ratio off instead would give the worst tokens no gradient at all. The tangent is
    finite and keeps pulling the right way. Any shape.
    """
    return torch.exp(log_ratio.clamp(max=MAX_LOG_RATIO)) * (1.0 + torch.relu(log_ratio - MAX_LOG_RATIO))
