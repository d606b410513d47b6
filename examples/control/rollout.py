"""Experience of many independent runs: each has an environment, a source of noise and statistics of its own.

Letters: R runs, N steps of each run in a segment, O numbers in an observation, A numbers in an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLIP = 5.0
"""Normalised observations are held within this range, as in the paper's code."""


@dataclass(frozen=True)
class Segment:
    """What every run met in N steps; observations are normalised."""

    observations: Tensor
    """[R, N, O]"""
    actions: Tensor
    """[R, N, A]"""
    rewards: Tensor
    """[R, N]"""
    ends: Tensor
    """[R, N] bool: the last step of an episode, or of the segment."""
    cut: Tensor
    """[R, N] bool: the ends after which the episode could have gone on: a time limit, or the end of the segment."""
    following: Tensor
    """[R, N, O] the observation after a step in `cut`; elsewhere 0."""


class Normaliser:
    """Running mean and deviation of each run's observations, in float64. They start as 0 and 1, weigh as much as a
    hundredth of an observation, and a variance counts as 0.01 at least (openai/baselines, `RunningMeanStd`)."""

    def __init__(self, runs: int, size: int):
        self.count = 1e-2
        self.sum = np.zeros((runs, size))
        self.squares = np.full((runs, size), 1e-2)

    def update(self, observations: np.ndarray) -> None:
        """Takes in [R, N, O]."""
        self.count += observations.shape[1]
        self.sum += observations.sum(1)
        self.squares += (observations**2).sum(1)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """[R, O] → [R, O], within `CLIP`."""
        mean = self.sum / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-2))
        return np.clip((observations - mean) / std, -CLIP, CLIP)


class Experience:
    """The environments of all runs, stepped together.

    make         a new environment with gymnasium's interface
    seeds        [R] seed of each run's environment
    generators   [R] source of each run's action noise
    """

    def __init__(self, make: Callable[[], Any], seeds: Sequence[int], generators: Sequence[torch.Generator]):
        self.environments = [make() for _ in seeds]
        self.generators = generators
        self.steps = 0
        self.episodes: list[list[tuple[int, float]]] = [[] for _ in seeds]
        """Of each run, every finished episode: the step it ended at, and its total reward."""
        self._now = np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.environments, seeds)])
        self._total = np.zeros(len(seeds))
        self.normaliser = Normaliser(*self._now.shape)

    def collect(self, length: int, mean: Callable[[Tensor], Tensor], log_std: Tensor) -> Segment:
        """`length` further steps of each run with actions from N(mean(observations), exp(log_std)^2).

        The statistics of observations stay as they are until the segment has been trained on (`take_in`), so that its
        first gradient is taken at the very policy that acted.
        """
        runs, size = self._now.shape
        self._raw = np.zeros((runs, length, size))
        observations, following = np.zeros_like(self._raw), np.zeros_like(self._raw)
        rewards, ends, cut = np.zeros((runs, length)), np.zeros((runs, length), bool), np.zeros((runs, length), bool)
        noise = torch.stack([torch.randn(length, log_std.shape[-1], generator=one) for one in self.generators])
        actions, std = torch.zeros_like(noise), log_std.exp()
        for t in range(length):
            self._raw[:, t] = self._now
            observations[:, t] = self.normaliser(self._now)
            x = torch.from_numpy(observations[:, t, None]).to(noise.dtype)
            actions[:, t, None] = mean(x) + std * noise[:, t, None]
            self.steps += 1
            reached, rewards[:, t], ends[:, t], cut[:, t] = self._step(actions[:, t].double().numpy())
            if t == length - 1:
                cut[:, t] |= ~ends[:, t]
                ends[:, t] = True
            if cut[:, t].any():
                following[:, t] = np.where(cut[:, t, None], self.normaliser(reached), 0.0)
        tensors = [torch.from_numpy(array) for array in (observations, rewards, ends, cut, following)]
        seen, paid, ends_, cut_, after = (x.to(noise.dtype) if x.is_floating_point() else x for x in tensors)
        return Segment(seen, actions, paid, ends_, cut_, after)

    def take_in(self) -> None:
        """Adds the last segment's observations to the statistics."""
        self.normaliser.update(self._raw)

    def _step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of every run: observations reached [R, O]; rewards, episode over, over by a time limit, all [R].

        Actions go to the environment as they were drawn: MuJoCo limits the force, and the task's cost of large actions
        is paid in full, as in the paper's time."""
        reached = np.zeros_like(self._now)
        rewards, over, limit = np.zeros(len(reached)), np.zeros(len(reached), bool), np.zeros(len(reached), bool)
        for run, env in enumerate(self.environments):
            reached[run], rewards[run], terminated, truncated, _ = env.step(actions[run])
            over[run], limit[run] = terminated or truncated, truncated and not terminated
            self._total[run] += rewards[run]
            self._now[run] = reached[run]
            if over[run]:
                self.episodes[run].append((self.steps, float(self._total[run])))
                self._total[run] = 0.0
                self._now[run] = env.reset()[0]
        return reached, rewards, over, limit
