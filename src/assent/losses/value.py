"""Losses and measures of a critic."""

from __future__ import annotations

import torch
from torch import Tensor

from assent.losses._shapes import check_shapes


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Squared error of the critic, the worse of the plain value and the one held near its rollout value
    (arXiv 1707.06347; the clip is that of the authors' code, 2006.05990).

        near = clamp(values, old_values - clip, old_values + clip)
        loss = 0.5 * max((values - returns)^2, (near - returns)^2)

    values      [N]  the critic now
    old_values  [N]  the critic at rollout
    returns     [N]  advantages + old_values
    clip             range around old_values; 0 turns it off: 0.5 * (values - returns)^2

    Returns [N]. Raises ValueError when the shapes differ.
    """
    check_shapes("clipped_value", "N", values=values, old_values=old_values, returns=returns)
    plain = (values - returns) ** 2
    if clip == 0:
        return 0.5 * plain
    near = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum(plain, (near - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Share of the returns' variance that the critic explains.

        1 - Var[returns - values] / Var[returns]

    1: perfect; 0: no better than a constant; below 0: worse than one; NaN where the returns do not vary.

    values, returns  [N]

    Returns a scalar. Raises ValueError when the shapes differ.
    """
    check_shapes("explained_variance", "N", values=values, returns=returns)
    variance = returns.var(correction=0)
    explained = 1.0 - (returns - values).var(correction=0) / variance
    return torch.where(variance > 0, explained, torch.nan)
