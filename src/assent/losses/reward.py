"""Reward models from pairs, and from ratings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._shapes import check_shapes, check_sorted


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each preference under Bradley-Terry (arXiv 2203.02155; the margin: 2307.09288).

        loss = -log sigmoid(chosen - rejected - margin)

    chosen, rejected  [M]  scores of the two responses of each pair
    margin            [M]  score gap that a pair asks for; None: 0

    Returns [M]. Raises ValueError when the shapes differ.
    """
    check_shapes("bradley_terry", "M", chosen=chosen, rejected=rejected, margin=margin)
    gap = chosen - rejected
    return -F.logsigmoid(gap if margin is None else gap - margin)


def bradley_terry_tokens(
    token_scores: Tensor, response: Tensor, pairs: Tensor, num_responses: int, margin: Tensor | None = None
) -> Tensor:
    """Bradley-Terry at every position of the two responses, averaged over the positions of a pair.

        loss[m] = mean over t of -log sigmoid(s_c[t] - s_r[t] - margin[m]),   t = 0 ... max(len_c, len_r) - 1

    s_c and s_r are the token scores of the chosen and the rejected response of pair m. The shorter one keeps its last
    score, the one that is read when the model is used, so nothing depends on padding.

    token_scores   [N]     score at each response token
    response       [N]     which response each token belongs to, never decreasing
    pairs          [M, 2]  responses (chosen, rejected)
    num_responses          S; responses are numbered 0 ... S - 1
    margin         [M]     score gap that a pair asks for; None: 0

    Returns [M]. Raises ValueError when shapes differ, `response` decreases, or a pair names a response that has no
    tokens.
    """
    name = "bradley_terry_tokens"
    check_shapes(name, "N", token_scores=token_scores, response=response)
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{name}: expected pairs [M, 2]; got pairs {list(pairs.shape)}.")
    check_shapes(name, "M", chosen=pairs[:, 0], margin=margin)
    check_sorted(name, response)
    outside = (pairs < 0) | (pairs >= num_responses)
    if bool(torch.any(outside)):
        raise ValueError(
            f"{name}: expected responses 0 ... {num_responses - 1} in pairs; got {pairs[outside][0].item()}."
        )

    # start and length of both responses of each pair, [M, 2]
    ids = torch.arange(num_responses, device=response.device)
    start = torch.searchsorted(response, ids)[pairs]
    length = torch.searchsorted(response, ids, right=True)[pairs] - start
    if bool(torch.any(length == 0)):
        raise ValueError(f"{name}: no token scores for response {pairs[length == 0][0].item()}, which is in a pair.")

    # one row for each compared position: its pair, and the tokens that face each other
    span = length.amax(dim=1)
    pair = torch.repeat_interleave(span)
    position = torch.arange(len(pair), device=pair.device) - (span.cumsum(0) - span)[pair]
    token = start[pair] + torch.minimum(position[:, None], length[pair] - 1)
    gap = token_scores[token[:, 0]] - token_scores[token[:, 1]]
    loss = -F.logsigmoid(gap if margin is None else gap - margin[pair])
    return loss.new_zeros(len(pairs)).index_add(0, pair, loss) / span


MISSING = -100.0
"""What files write for an attribute that nobody rated; NaN says the same."""


def rated(rating: Tensor) -> Tensor:
    """Which ratings somebody gave: bool, of the same shape."""
    return ~(rating.isnan() | (rating == MISSING))


def attribute_regression(output: Tensor, rating: Tensor) -> Tensor:
    """Squared error of each rated attribute (SteerLM, arXiv 2310.05344; HelpSteer2, 2406.08673). Its sum is to be
    divided by the number of ratings in the whole step.

        loss = mask * (output - rating)^2,    mask = rating is neither NaN nor -100

    output  [E]  what the head gives: one entry for each response and attribute
    rating  [E]  what annotators gave

    Returns [E]. Raises ValueError when the shapes differ.
    """
    check_shapes("attribute_regression", "E", output=output, rating=rating)
    return torch.where(rated(rating), output - rating, 0.0).square()
