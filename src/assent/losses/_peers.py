"""What the losses of several responses to one prompt share."""

from __future__ import annotations

import torch
from torch import Tensor


def peers_of(function: str, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The responses of the same prompt: `peers` [S, K], row i those beside response i and itself, where K is the most
    that a prompt has; `present` [S, K] is False in places that a smaller prompt leaves empty."""
    if bool(torch.any(prompt[1:] < prompt[:-1])):
        raise ValueError(f"{function}: `prompt` must not decrease: the responses of one prompt stand side by side.")
    _, group, counts = torch.unique_consecutive(prompt, return_inverse=True, return_counts=True)
    first, count = (counts.cumsum(0) - counts)[group][:, None], counts[group][:, None]
    place = torch.arange(max(counts.tolist(), default=1), device=prompt.device)
    return first + torch.minimum(place, count - 1), place < count


def surprise(scores: Tensor, peers: Tensor, rivals: Tensor) -> Tensor:
    """-log of each response's share of exp(scores) among the `rivals` [S, K] of its peers, itself one of them."""
    gaps = scores[peers] - scores[:, None]
    return gaps.masked_fill(~rivals, -torch.inf).logsumexp(dim=1)


def ranking_surprise(function: str, scores: Tensor, level: Tensor, prompt: Tensor) -> Tensor:
    """Plackett-Luce: -log of each response's share among itself and those of lower levels of its prompt, [S]."""
    peers, present = peers_of(function, prompt)
    itself = peers == torch.arange(len(prompt), device=prompt.device)[:, None]
    below = level[peers] > level[:, None]
    return surprise(scores, peers, present & (itself | below))
