"""Reward models from pairs: relatives of Bradley-Terry that know ties, and what is added to either."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._shapes import check_shapes

# ---- ties


def rao_kupper(
    chosen: Tensor,
    rejected: Tensor,
    share: Tensor,
    tie: Tensor,
    weight: Tensor | None = None,
    *,
    theta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Preferences and ties where a gap below a threshold is not seen (Rao and Kupper 1967, JASA 62:194-204).

        d = chosen - rejected,  eta = log theta
        P(chosen) = sigmoid(d - eta),  P(rejected) = sigmoid(-d - eta),  P(tie) = (theta^2 - 1) P(chosen) P(rejected)
        loss = -weight * (c * log P(chosen) + r * log P(rejected) + tie * log P(tie))
        c = share * (1 - label_smoothing) + r0 * label_smoothing,  r likewise,  with r0 = 1 - share - tie

    At theta = 1 there are no ties, and it would be Bradley-Terry; two equal responses tie with probability
    (theta - 1) / (theta + 1).

    chosen, rejected  [M]  scores of the two responses of each pair
    share, tie        [M]  shares of the votes that prefer `chosen`, and that say it is a tie
    weight            [M]  how much a pair counts; None: 1
    theta                  > 1
    label_smoothing        share of the preferences (not of the ties) that is taken to be flipped

    Returns [M]. Raises ValueError when the shapes differ or theta is not above 1.
    """
    eta = math.log(_above("rao_kupper", "theta", theta, 1))

    def outcomes(gap: Tensor) -> Outcomes:
        wins, loses = F.logsigmoid(gap - eta), F.logsigmoid(-gap - eta)
        return wins, loses, math.log(theta**2 - 1) + wins + loses

    return _of_votes("rao_kupper", outcomes, chosen, rejected, share, tie, weight, label_smoothing)


def davidson(
    chosen: Tensor,
    rejected: Tensor,
    share: Tensor,
    tie: Tensor,
    weight: Tensor | None = None,
    *,
    nu: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Preferences and ties where a tie is as likely as the geometric mean of both preferences (Davidson 1970, JASA
    65:317-328).

        d = chosen - rejected,  z = exp(d / 2) + exp(-d / 2) + nu
        P(chosen) = exp(d / 2) / z,  P(rejected) = exp(-d / 2) / z,  P(tie) = nu / z
        loss = -weight * (c * log P(chosen) + r * log P(rejected) + tie * log P(tie))
        c = share * (1 - label_smoothing) + r0 * label_smoothing,  r likewise,  with r0 = 1 - share - tie

    At nu = 0 there are no ties, and it would be Bradley-Terry; two equal responses tie with probability nu / (2 + nu).

    chosen, rejected  [M]  scores of the two responses of each pair
    share, tie        [M]  shares of the votes that prefer `chosen`, and that say it is a tie
    weight            [M]  how much a pair counts; None: 1
    nu                     > 0
    label_smoothing        share of the preferences (not of the ties) that is taken to be flipped

    Returns [M]. Raises ValueError when the shapes differ or nu is not above 0.
    """
    level = math.log(_above("davidson", "nu", nu, 0))

    def outcomes(gap: Tensor) -> Outcomes:
        half = gap / 2
        tied = torch.full_like(half, level)
        z = torch.logsumexp(torch.stack([half, -half, tied]), 0)
        return half - z, -half - z, tied - z

    return _of_votes("davidson", outcomes, chosen, rejected, share, tie, weight, label_smoothing)


Outcomes = tuple[Tensor, Tensor, Tensor]
"""Log-probabilities that `chosen` is preferred, that `rejected` is, and of a tie: [M] each."""


def _of_votes(
    function: str,
    outcomes: Callable[[Tensor], Outcomes],
    chosen: Tensor,
    rejected: Tensor,
    share: Tensor,
    tie: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Cross-entropy of the votes with what the gap in score says of them. Raises ValueError when the shapes differ."""
    check_shapes(function, "M", chosen=chosen, rejected=rejected, share=share, tie=tie, weight=weight)
    wins, loses, tied = outcomes(chosen - rejected)
    other = 1 - share - tie
    c = share * (1 - label_smoothing) + other * label_smoothing
    r = other * (1 - label_smoothing) + share * label_smoothing
    losses = -(c * wins + r * loses + tie * tied)
    return losses if weight is None else weight * losses


def _above(function: str, name: str, value: float, least: int) -> float:
    if not value > least:
        raise ValueError(f"{function}: expected {name} > {least}, at {least} there are no ties; got {value}.")
    return value


# ---- what is added to a loss of pairs


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """What holds the mean reward of a prompt's responses at 0, which a loss of gaps leaves open (arXiv 2312.09244).

        loss = (chosen + rejected)^2

    chosen, rejected  [M]  scores of the two responses of each pair

    Returns [M]. Raises ValueError when the shapes differ.
    """
    check_shapes("centring", "M", chosen=chosen, rejected=rejected)
    return (chosen + rejected).square()


def likelihood_regulariser(policy_chosen: Tensor, *, beta: float) -> Tensor:
    """GRM's term without a reference: hidden states that a reward is read from stay fit to write the chosen response
    (arXiv 2406.10216; with a reference its term is `dpo`).

        loss = -log sigmoid(beta * policy_chosen)

    policy_chosen  [M]  log-probs of the whole chosen responses (sums over their tokens)
    beta                how soon a likely response is likely enough

    Returns [M]. Raises ValueError when it is no vector.
    """
    check_shapes("likelihood_regulariser", "M", policy_chosen=policy_chosen)
    return -F.logsigmoid(beta * policy_chosen)


def choice_kl(chosen: Tensor, rejected: Tensor, old_chosen: Tensor, old_rejected: Tensor) -> Tensor:
    """How far a reward model's choices have moved from those of an older one: the KL divergence of the two
    Bradley-Terry probabilities (arXiv 2311.08045 holds a reward model so to the choices of people, of which only one a
    pair is known; those of a model are known as probabilities).

        p = sigmoid(old_chosen - old_rejected),  q = sigmoid(chosen - rejected)
        loss = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))

    Its gradient by chosen is q - p; which answer was preferred does not matter.

    chosen, rejected          [M]  scores of the two responses of each pair
    old_chosen, old_rejected  [M]  those of the older model, constants

    Returns [M], at least 0. Raises ValueError when the shapes differ.
    """
    check_shapes("choice_kl", "M", chosen=chosen, rejected=rejected, old_chosen=old_chosen, old_rejected=old_rejected)
    gap, old = chosen - rejected, old_chosen - old_rejected
    either = torch.sigmoid(old) * (F.logsigmoid(old) - F.logsigmoid(gap))
    other = torch.sigmoid(-old) * (F.logsigmoid(-old) - F.logsigmoid(-gap))
    return either + other
