"""Networks of many independent runs in one stack, so that all of them share every Python step.

Letters: R runs, B states of each run, O numbers in an observation, A numbers in an action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

HIDDEN = (64, 64)
"""Widths of the hidden layers (arXiv 1707.06347, section 6.1)."""


class StackedMLP(nn.Module):
    """R multilayer perceptrons with tanh units and the same shape; no number passes from one run to another.

    Each starts as in the paper's code (openai/baselines, `normc`): normal weights whose columns have norm 1, in the
    last layer `last`, and biases 0, drawn from the run's own generator.
    """

    def __init__(self, sizes: Sequence[int], generators: Sequence[torch.Generator], *, last: float):
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:])):
            drawn = torch.stack([torch.randn(fan_in, fan_out, generator=generator) for generator in generators])
            norm = last if layer == len(sizes) - 2 else 1.0
            self.weights.append(nn.Parameter(drawn * norm / drawn.norm(dim=1, keepdim=True)))
            self.biases.append(nn.Parameter(torch.zeros(len(generators), 1, fan_out)))

    def forward(self, x: Tensor) -> Tensor:
        """[R, B, sizes[0]] → [R, B, sizes[-1]]."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, torch.tanh(x) if layer else x, weight)
        return x


class ActorCritics(nn.Module):
    """The policy N(mean(x), exp(log_std)^2), its log_std the same in all states, and a separate value network."""

    def __init__(self, observation: int, action: int, generators: Sequence[torch.Generator]):
        super().__init__()
        self.mean = StackedMLP((observation, *HIDDEN, action), generators, last=0.01)
        self.log_std = nn.Parameter(torch.zeros(len(generators), 1, action))
        self.critic = StackedMLP((observation, *HIDDEN, 1), generators, last=1.0)

    def values(self, x: Tensor) -> Tensor:
        """[R, B, O] → [R, B]."""
        return self.critic(x).squeeze(-1)


def gaussian_logprob(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of actions under a diagonal Gaussian, in nats: [R, B, A], [R, B, A], [R, 1, A] → [R, B].

    sum_A of -((actions - mean) / exp(log_std))^2 / 2 - log_std - log(2 pi) / 2
    """
    z = (actions - mean) * torch.exp(-log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(old || new) of diagonal Gaussians, in nats: means [R, B, A], log_stds [R, 1, A] → [R, B].

    sum_A of log_std - old_log_std + (exp(2 old_log_std) + (old_mean - mean)^2) / (2 exp(2 log_std)) - 1/2
    """
    spread = torch.exp(2.0 * (old_log_std - log_std))
    moved = ((old_mean - mean) * torch.exp(-log_std)) ** 2
    return (log_std - old_log_std + 0.5 * (spread + moved) - 0.5).sum(-1)
