"""Reward models from several ranked responses to a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._peers import peers_of, ranking_surprise, surprise
from assent.losses._shapes import check_shapes


def best_of_k(scores: Tensor, level: Tensor, prompt: Tensor) -> Tensor:
    """The best response of a prompt as a choice among its K responses (arXiv 1909.08593, K = 4).

        loss[i] = (log(exp(s[i]) + sum of exp(s[j]) over j below) - s[i]) / best   where level[i] is the best
        loss[i] = 0                                                                elsewhere

    `below` are the responses of the prompt that are not among its best, of which there are `best`. With one best
    response the sum over a prompt is -log softmax(s) at it; several are not compared with each other, and each is
    chosen over the rest. Two responses together have Bradley-Terry's loss.

    scores  [S]  score of each response
    level   [S]  place in the ranking: 0 is best, equal is tied
    prompt  [S]  which prompt each response belongs to, never decreasing

    Returns [S]. Raises ValueError when the shapes differ or `prompt` decreases.
    """
    check_shapes("best_of_k", "S", scores=scores, level=level, prompt=prompt)
    peers, present = peers_of("best_of_k", prompt)
    levels = level[peers]  # an empty place repeats a response of the prompt
    best = levels.amin(dim=1, keepdim=True)
    itself = peers == torch.arange(len(prompt), device=prompt.device)[:, None]
    number = (present & (levels == best)).sum(dim=1)
    losses = surprise(scores, peers, present & (itself | (levels > best)))
    return (level == best[:, 0]) * losses / number


def k_wise(scores: Tensor, level: Tensor, prompt: Tensor) -> Tensor:
    """Bradley-Terry on all pairs of different levels of a prompt, which counts once (InstructGPT, arXiv 2203.02155: the
    weight of a pair is 1 / (K choose 2)).

        loss[i] = sum of -log sigmoid(s[i] - s[j]) over j with prompt[j] = prompt[i], level[j] > level[i], / pairs

    `pairs` is the number of such (i, j) of the prompt: (K choose 2) where no two responses tie. Tied responses are not
    compared; a prompt of one level has loss 0.

    scores  [S]  score of each response
    level   [S]  place in the ranking: 0 is best, equal is tied
    prompt  [S]  which prompt each response belongs to, never decreasing

    Returns [S]. Raises ValueError when the shapes differ or `prompt` decreases.
    """
    check_shapes("k_wise", "S", scores=scores, level=level, prompt=prompt)
    peers, present = peers_of("k_wise", prompt)
    below = present & (level[peers] > level[:, None])
    beaten = below.sum(dim=1)
    pairs = torch.where(present, beaten[peers], 0).sum(dim=1)
    losses = -F.logsigmoid(scores[:, None] - scores[peers])
    return torch.where(below, losses, 0).sum(dim=1) / pairs.clamp(min=1)


def plackett_luce_scores(scores: Tensor, level: Tensor, prompt: Tensor) -> Tensor:
    """Plackett-Luce on scores: each response is chosen among itself and those below it (Plackett 1975; for rewards:
    arXiv 2301.11270).

        loss[i] = log(exp(s[i]) + sum of exp(s[j]) over j with prompt[j] = prompt[i], level[j] > level[i]) - s[i]

    A partial order is a ranking of levels: tied responses are not compared. The last ones of a prompt have loss 0; two
    ranked responses together have Bradley-Terry's.

    scores  [S]  score of each response
    level   [S]  place in the ranking: 0 is best, equal is tied
    prompt  [S]  which prompt each response belongs to, never decreasing

    Returns [S]. Raises ValueError when the shapes differ or `prompt` decreases.
    """
    name = "plackett_luce_scores"
    check_shapes(name, "S", scores=scores, level=level, prompt=prompt)
    return ranking_surprise(name, scores, level, prompt)


def ordered_pairs(level: Tensor, prompt: Tensor) -> Tensor:
    """The pairs (better, worse) of every prompt's responses of different levels, [M, 2], in the order of `better`.

    level   [S]  place in the ranking: 0 is best, equal is tied
    prompt  [S]  which prompt each response belongs to, never decreasing

    Raises ValueError when the shapes differ or `prompt` decreases."""
    check_shapes("ordered_pairs", "S", level=level, prompt=prompt)
    peers, present = peers_of("ordered_pairs", prompt)
    better, place = (present & (level[peers] > level[:, None])).nonzero().unbind(1)
    return torch.stack([better, peers[better, place]], 1)
