"""What becomes of rewards between their source and the credit that tokens get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from assent.algorithms.rollouts import attach, response_field, response_lengths
from assent.config import ShapingConfig
from assent.data.tree import TokenTree
from assent.losses import RunningMoments, overlong_penalty


class Shaper:
    """reward - baseline, scaled, clipped, less penalties. Its state is the moments of all rewards so far."""

    def __init__(self, config: ShapingConfig, max_length: int) -> None:
        self.config, self.max_length = config, max_length
        self.moments = RunningMoments()

    def learn(self, trees: Sequence[TokenTree], baseline: np.ndarray) -> None:
        """Takes in the rewards of a rollout, which `shape` then scales by; `baseline` [P] of their prompts."""
        if self.config.normalise == "batch":
            self.moments = RunningMoments()
        if self.config.normalise != "none":
            self.moments.update(torch.from_numpy(_centred(trees, baseline)))

    def shape(self, trees: Sequence[TokenTree], baseline: np.ndarray) -> list[TokenTree]:
        """The trees with `shaped` for each response."""
        config = self.config
        reward = torch.from_numpy(_centred(trees, baseline))
        if config.normalise != "none":
            reward = self.moments.normalise(reward)
        if config.clip is not None:
            reward = reward.clamp(-config.clip, config.clip)
        reward = reward - config.missing_eos_penalty * (1 - torch.from_numpy(response_field(trees, "finished")))
        buffer = round(config.overlong * self.max_length)
        if buffer >= 1:
            lengths = torch.from_numpy(response_lengths(trees))
            reward = reward + overlong_penalty(lengths, limit=self.max_length, buffer=buffer)
        cuts = np.cumsum([len(tree.branches) for tree in trees])[:-1]
        parts = np.split(reward.float().numpy(), cuts)
        return [attach(tree, {}, {"shaped": part}) for tree, part in zip(trees, parts, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments.load_state_dict(state)


def _centred(trees: Sequence[TokenTree], baseline: np.ndarray) -> np.ndarray:
    """Rewards less the baseline of their prompt, [S] float64."""
    sizes = [len(tree.branches) for tree in trees]
    return response_field(trees, "reward").astype(np.float64) - np.repeat(baseline, sizes)
