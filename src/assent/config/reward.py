"""Options of reward modelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.base import RunConfig


@dataclass(frozen=True)
class RewardSection:
    """How the reward model reads and compares answers."""

    readout: Literal["last", "mean"] = "last"
    """last compares the scores at the last tokens; mean compares token by token over the whole response."""
    margin: bool = False
    """Ask for a score gap of at least the pair's strength."""


@dataclass(frozen=True)
class RewardConfig(RunConfig):
    """Reward model from pairs (Bradley-Terry)."""

    reward: RewardSection = field(default_factory=RewardSection)
