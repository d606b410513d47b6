"""Rewards made fit for training: scaled by what was seen so far, and lowered for answers that run too long."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from assent.losses._shapes import check_shapes


class RunningMoments:
    """Mean and variance of all rewards seen so far, in float64, merged batch by batch (Chan, Golub & LeVeque, 1983).

        mean'    = mean + (m - mean) * n / (count + n)
        squares' = squares + q + (m - mean)^2 * count * n / (count + n)

    for a batch of n rewards with mean m and sum of squared deviations q. NaN means unscored and is left out.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    @property
    def variance(self) -> float:
        """The population's; 0 before anything was seen."""
        return self.squares / max(self.count, 1)

    def update(self, rewards: Tensor) -> None:
        """Takes in rewards [S] of all ranks. Raises ValueError when they are no vector or one is infinite; nothing is
        taken in then."""
        check_shapes("RunningMoments", "S", rewards=rewards)
        scored = rewards.detach().to("cpu", torch.float64)
        scored = scored[~scored.isnan()]
        if bool(scored.isinf().any()):
            raise ValueError("RunningMoments: expected finite rewards, or NaN for unscored; got an infinite one.")
        if not len(scored):
            return
        mean, total = scored.mean().item(), self.count + len(scored)
        gap = mean - self.mean
        self.squares += ((scored - mean) ** 2).sum().item() + gap**2 * self.count * len(scored) / total
        self.mean += gap * len(scored) / total
        self.count = total

    def normalise(self, rewards: Tensor) -> Tensor:
        """`(rewards - mean) / sqrt(variance)`, any shape; only shifted while the variance is 0. NaN stays NaN."""
        return (rewards - self.mean) / self.deviation

    @property
    def deviation(self) -> float:
        """What `normalise` divides by."""
        return math.sqrt(self.variance) or 1.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])


def overlong_penalty(lengths: Tensor, *, limit: int, buffer: int) -> Tensor:
    """DAPO's soft punishment for answers that come close to the limit: added to their reward (arXiv 2503.14476).

        penalty = clamp((limit - buffer - lengths) / buffer, -1, 0)

    lengths  [S]  tokens of each response
    limit         length from which the penalty is -1
    buffer        how far below the limit it begins

    Returns [S]. Raises ValueError when `lengths` is no vector or `buffer` is not within 1 ... limit.
    """
    check_shapes("overlong_penalty", "S", lengths=lengths)
    if not 1 <= buffer <= limit:
        raise ValueError(f"overlong_penalty: expected a buffer of 1 ... {limit} tokens, the limit; got {buffer}.")
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)
