"""PPO for continuous control (arXiv 1707.06347) with the loss functions of `assent.losses`, for many runs at once.

Every objective of the paper's Table 1 and every seed of it is one row of a stack of networks. A run's loss touches its
own row only and Adam works on each number by itself, so a run in the stack is the run that it would be alone.

Letters: R runs, N steps of each run in a segment, B of a minibatch, O and A numbers in an observation and an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from control.networks import ActorCritics, gaussian_kl, gaussian_logprob
from control.rollout import Experience, Segment
from torch import Tensor

from assent.errors import NonFiniteError
from assent.losses import adaptive_penalty, clipped_value, cpi, gae, ppo_clip, whiten


@dataclass(frozen=True)
class Setting:
    """One row of the paper's Table 1."""

    name: str
    paper: float
    """The paper's average normalised score."""
    clip: float | None = None
    """The clip of `ppo_clip`; None: `cpi`."""
    beta: float = 0.0
    """Weight of KL(old || new); with a target, the first."""
    target: float | None = None
    """The KL that `adaptive_penalty` aims at; None: beta is fixed."""


SETTINGS = (
    Setting("no clipping or penalty", -0.39),
    Setting("clipping, 0.1", 0.76, clip=0.1),
    Setting("clipping, 0.2", 0.82, clip=0.2),
    Setting("clipping, 0.3", 0.70, clip=0.3),
    Setting("adaptive KL, 0.003", 0.68, beta=1.0, target=0.003),
    Setting("adaptive KL, 0.01", 0.74, beta=1.0, target=0.01),
    Setting("adaptive KL, 0.03", 0.71, beta=1.0, target=0.03),
    Setting("fixed KL, 0.3", 0.62, beta=0.3),
    Setting("fixed KL, 1", 0.71, beta=1.0),
    Setting("fixed KL, 3", 0.72, beta=3.0),
    Setting("fixed KL, 10", 0.69, beta=10.0),
)


@dataclass(frozen=True)
class Hyperparameters:
    """Table 3 of the paper; Adam's epsilon is that of its code."""

    horizon: int = 2048
    epochs: int = 10
    minibatch: int = 64
    learning_rate: float = 3e-4
    epsilon: float = 1e-5
    gamma: float = 0.99
    lam: float = 0.95


class Training:
    """All settings with all seeds on one task.

    make      a new environment with gymnasium's interface
    settings  objectives to compare
    seeds     each setting has a run with each of them; runs of one seed start alike and draw the same noise
    """

    def __init__(
        self,
        make: Callable[[], Any],
        settings: Sequence[Setting],
        seeds: Sequence[int],
        hyperparameters: Hyperparameters = Hyperparameters(),
    ):
        self.hp = hyperparameters
        self.runs = [(setting, seed) for setting in settings for seed in seeds]
        self.generators = [torch.Generator().manual_seed(seed) for _, seed in self.runs]
        self.experience = Experience(make, [seed for _, seed in self.runs], self.generators)
        env = self.experience.environments[0]
        self.networks = ActorCritics(env.observation_space.shape[0], env.action_space.shape[0], self.generators)
        self.optimizer = torch.optim.Adam(
            self.networks.parameters(), lr=self.hp.learning_rate, eps=self.hp.epsilon, fused=True
        )
        self.beta = torch.tensor([setting.beta for setting, _ in self.runs])
        self.kl: list[list[float]] = [[] for _ in self.runs]
        """Of each run, KL(old || new) of every segment's update, in nats."""

    def segment(self) -> None:
        """Collects a segment, trains on it, and moves the adaptive penalties. Raises NonFiniteError, naming the run,
        when a parameter is no longer a finite number."""
        with torch.no_grad():
            segment = self.experience.collect(self.hp.horizon, self.networks.mean, self.networks.log_std)
            old_mean, old_log_std = self.networks.mean(segment.observations), self.networks.log_std.clone()
            old_values = self.networks.values(segment.observations)
            bootstrap = self.networks.values(segment.following)
            logprobs = gaussian_logprob(segment.actions, old_mean, old_log_std)
        advantages = credit(segment, old_values, bootstrap, self.hp.gamma, self.hp.lam)
        returns = advantages + old_values
        advantages = torch.stack([whiten(one) for one in advantages])
        data = (segment.observations, segment.actions, old_mean, logprobs, advantages, old_values, returns)
        for _ in range(self.hp.epochs):
            order = torch.stack([torch.randperm(self.hp.horizon, generator=one) for one in self.generators])
            rows = torch.arange(len(order))[:, None]
            shuffled = [x[rows, order] for x in data]
            for batch in zip(*(x.split(self.hp.minibatch, dim=1) for x in shuffled)):
                self.optimizer.zero_grad()
                # The mean over a run's minibatch, the sum over runs: each run's gradient is that of its own loss.
                self._loss(*batch, old_log_std=old_log_std).mean(1).sum().backward()
                self.optimizer.step()
        self._check()
        self._move_penalties(segment.observations, old_mean, old_log_std)
        self.experience.take_in()

    def _loss(
        self,
        observations: Tensor,
        actions: Tensor,
        old_mean: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        old_values: Tensor,
        returns: Tensor,
        *,
        old_log_std: Tensor,
    ) -> Tensor:
        """Policy and value loss of each step of a minibatch, [R, B]."""
        mean, log_std = self.networks.mean(observations), self.networks.log_std
        logprobs = gaussian_logprob(actions, mean, log_std)
        surrogate = policy_loss([setting for setting, _ in self.runs], logprobs, old_logprobs, advantages)
        penalty = self.beta[:, None] * gaussian_kl(old_mean, old_log_std, mean, log_std)
        values = self.networks.values(observations)
        value = clipped_value(values.flatten(), old_values.flatten(), returns.flatten(), clip=0.0)
        return surrogate + penalty + value.view_as(surrogate)

    @torch.no_grad()
    def _move_penalties(self, observations: Tensor, old_mean: Tensor, old_log_std: Tensor) -> None:
        kl = gaussian_kl(old_mean, old_log_std, self.networks.mean(observations), self.networks.log_std).mean(1)
        for run, (setting, _) in enumerate(self.runs):
            self.kl[run].append(kl[run].item())
            if setting.target is not None:
                self.beta[run] = adaptive_penalty(self.beta[run].item(), kl[run].item(), target=setting.target)

    def _check(self) -> None:
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in self.networks.parameters()]).all(0)
        for run in (~finite).nonzero().flatten().tolist():
            setting, seed = self.runs[run]
            raise NonFiniteError(
                f"{setting.name}, seed {seed}: a parameter is not finite after {self.experience.steps:,} steps."
            )


def policy_loss(settings: Sequence[Setting], logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """What each run's setting makes of its ratios, before any penalty: [R, B] for one setting per run, `settings`."""
    parts, start = [], 0
    for clip, members in groupby(settings, key=lambda setting: setting.clip):
        rows = slice(start, start + len(list(members)))
        start = rows.stop
        flat = (x[rows].flatten() for x in (logprobs, old_logprobs, advantages))
        loss = cpi(*flat) if clip is None else ppo_clip(*flat, clip=clip)
        parts.append(loss.view(-1, logprobs.shape[1]))
    return torch.cat(parts)


def credit(segment: Segment, values: Tensor, bootstrap: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages [R, N] by `gae`, each episode (or what a segment has of it) standing for a response.

    `gae` takes the value after the last step to be 0, which is right where an episode is over. Where it was only cut,
    gamma * bootstrap joins the last reward: the same delta[T] = rewards[T] + gamma * V(s[T + 1]) - values[T].

    values     [R, N]  the critic's, of the states acted in
    bootstrap  [R, N]  the critic's, of the states after; read only where the segment was cut
    """
    rewards = segment.rewards + gamma * torch.where(segment.cut, bootstrap, 0.0)
    ends = segment.ends.flatten().long()
    return gae(rewards.flatten(), values.flatten(), ends.cumsum(0) - ends, gamma=gamma, lam=lam).view_as(values)
