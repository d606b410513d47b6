"""What rewards of several answers to a prompt say of which is better: the credit of methods that compare answers."""

from __future__ import annotations

import torch
from torch import Tensor

from assent.losses._shapes import check_shapes

PREFERENCES = ("bradley_terry", "win_rate", "order")
"""How `win_probability` reads two rewards."""
TIES = ("leave_out", "first")
"""What `best_and_worst` makes of a prompt whose rewards are all the same."""
_NEAR = 1e-6  # share of a prompt's range of rewards that rounding of their mean may be


def best_and_worst(rewards: Tensor, prompt: Tensor, *, ties: str = "leave_out") -> Tensor:
    """The pair of a prompt: its best response against its worst (Online DPO, arXiv 2402.04792, of two responses).

        side = 1 at the first response with max(rewards of the prompt),  -1 at the last one with their min,  0 elsewhere

    rewards  [S]  reward of each response
    prompt   [S]  which prompt it answers, never decreasing
    ties          where all are the same: "leave_out", no pair (0 everywhere), or "first", the first against the last

    Returns [S]; a prompt with one response has no pair. Raises ValueError when the shapes differ, `prompt` decreases or
    `ties` is unknown.
    """
    group, low, high = _ranges("best_and_worst", rewards, prompt)
    if ties not in TIES:
        raise ValueError(f"best_and_worst: expected ties among {', '.join(TIES)}; got {ties!r}.")
    place = torch.arange(len(rewards), device=rewards.device)
    first = _extreme(torch.where(rewards == high, place, len(rewards)), group, "amin")
    last = _extreme(torch.where(rewards == low, place, -1), group, "amax")
    paired = (first != last) & ((low < high) if ties == "leave_out" else True)
    side = (place == first).to(rewards.dtype) - (place == last).to(rewards.dtype)
    return torch.where(paired, side, torch.zeros_like(side))


def desirability(rewards: Tensor, prompt: Tensor, *, threshold: float | None = None) -> Tensor:
    """Each response by itself as desirable or not (KTO's labels, arXiv 2402.01306, from rewards).

        side = sign(rewards - level),   level = threshold, or the mean of the prompt's rewards

    rewards    [S]  reward of each response
    prompt     [S]  which prompt it answers, never decreasing
    threshold       None: the mean of the prompt's rewards; at it is who is as near as rounding can be

    Returns [S]: 1, -1, or 0 for neither. Raises ValueError when the shapes differ or `prompt` decreases.
    """
    group, low, high = _ranges("desirability", rewards, prompt)
    if threshold is not None:
        return torch.sign(rewards - threshold)
    number = torch.bincount(group, minlength=1).to(rewards.dtype)
    mean = rewards.new_zeros(len(number)).index_add(0, group, rewards) / number
    gap = rewards - mean[group]
    return torch.where(gap.abs() <= _NEAR * (high - low), torch.zeros_like(gap), torch.sign(gap))


def win_probability(rewards: Tensor, others: Tensor, *, preference: str) -> Tensor:
    """Probability that one response is preferred to another, by their rewards.

        bradley_terry  sigmoid(rewards - others)
        win_rate       (1 + rewards - others) / 2        rewards are win rates against each other
        order          1, 1/2 or 0

    rewards, others  [S]  rewards of the one and of the other
    preference            a name in `PREFERENCES`

    Returns [S]. Raises ValueError when the shapes differ, the preference is unknown, or win rates are further apart
    than 1.
    """
    check_shapes("win_probability", "S", rewards=rewards, others=others)
    gap = rewards - others
    if preference == "bradley_terry":
        return torch.sigmoid(gap)
    if preference == "order":
        return (1 + torch.sign(gap)) / 2
    if preference != "win_rate":
        raise ValueError(f"win_probability: expected a preference among {', '.join(PREFERENCES)}; got {preference!r}.")
    if bool((gap.abs() > 1 + _NEAR).any()):
        raise ValueError(f"win_probability: expected win rates at most 1 apart; got {gap[gap.abs().argmax()].item()}.")
    return (1 + gap) / 2


def _ranges(function: str, rewards: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number of each response's prompt, and the lowest and highest reward there, [S] each."""
    check_shapes(function, "S", rewards=rewards, prompt=prompt)
    if bool(torch.any(prompt[1:] < prompt[:-1])):
        raise ValueError(f"{function}: `prompt` must not decrease: the responses of one prompt stand side by side.")
    group = torch.unique_consecutive(prompt, return_inverse=True)[1]
    return group, _extreme(rewards, group, "amin"), _extreme(rewards, group, "amax")


def _extreme(values: Tensor, group: Tensor, which: str) -> Tensor:
    """The least or greatest value of each one's group, [S]."""
    number = int(group[-1]) + 1 if len(group) else 0
    return values.new_zeros(number).scatter_reduce(0, group, values, which, include_self=False)[group]
