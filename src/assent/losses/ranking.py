"""Direct alignment from several ranked or rated responses to a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._peers import peers_of, ranking_surprise, surprise
from assent.losses._shapes import check_shapes


def plackett_luce(policy: Tensor, reference: Tensor, level: Tensor, prompt: Tensor, *, beta: float) -> Tensor:
    """DPO on rankings: each response is chosen among itself and those below it (arXiv 2305.18290, appendix A.3).

        s = beta * (policy - reference)
        loss[i] = log(exp(s[i]) + sum of exp(s[j]) over j with prompt[j] = prompt[i], level[j] > level[i]) - s[i]

    Tied responses are not compared. The last ones of a prompt have loss 0; two ranked responses together have DPO's.

    policy, reference  [S]  log-probs of whole responses (sums over their tokens)
    level              [S]  place in the ranking: 0 is best, equal is tied
    prompt             [S]  which prompt each response belongs to, never decreasing
    beta                    as in `dpo`

    Returns [S]. Raises ValueError when the shapes differ or `prompt` decreases.
    """
    name = "plackett_luce"
    check_shapes(name, "S", policy=policy, reference=reference, level=level, prompt=prompt)
    return ranking_surprise(name, beta * (policy - reference), level, prompt)


def nca(
    policy: Tensor, reference: Tensor, rating: Tensor, prompt: Tensor, *, beta: float, temperature: float
) -> Tensor:
    """Noise contrastive alignment: rated responses against those of the reference, each for itself (arXiv 2402.05369).

        s = beta * (policy - reference)
        w = softmax(rating / temperature) within each prompt of K responses
        loss = -w * log sigmoid(s) - log sigmoid(-s) / K

    policy, reference  [S]  log-probs of whole responses (sums over their tokens)
    rating             [S]  how good each response is; -inf: never the best, w = 0
    prompt             [S]  which prompt each response belongs to, never decreasing
    beta                    scale of the log-ratios
    temperature             of the softmax; towards 0 only the best response of a prompt has weight

    Returns [S]. Raises ValueError when the shapes differ, `prompt` decreases, or a prompt has no finite rating.
    """
    check_shapes("nca", "S", policy=policy, reference=reference, rating=rating, prompt=prompt)
    peers, present = peers_of("nca", prompt)
    weight = _softmax("nca", rating / temperature, prompt, peers, present)
    s = beta * (policy - reference)
    return -weight * F.logsigmoid(s) - F.logsigmoid(-s) / present.sum(dim=1)


def infonca(
    policy: Tensor, reference: Tensor, rating: Tensor, prompt: Tensor, *, beta: float, temperature: float
) -> Tensor:
    """InfoNCA: cross-entropy between ratings and implicit rewards as distributions over a prompt's responses
    (arXiv 2402.05369).

        s = beta * (policy - reference)
        w = softmax(rating / temperature) within each prompt
        loss = -w * log softmax(s) within each prompt

    policy, reference  [S]  log-probs of whole responses (sums over their tokens)
    rating             [S]  how good each response is; -inf: never the best, w = 0
    prompt             [S]  which prompt each response belongs to, never decreasing
    beta                    scale of the log-ratios
    temperature             of the ratings; towards 0 only the best response of a prompt has weight

    Returns [S]. Raises ValueError when the shapes differ, `prompt` decreases, or a prompt has no finite rating.
    """
    check_shapes("infonca", "S", policy=policy, reference=reference, rating=rating, prompt=prompt)
    peers, present = peers_of("infonca", prompt)
    weight = _softmax("infonca", rating / temperature, prompt, peers, present)
    return weight * surprise(beta * (policy - reference), peers, present)


def _softmax(function: str, scores: Tensor, prompt: Tensor, peers: Tensor, present: Tensor) -> Tensor:
    """Each response's share of exp(scores) in its prompt; 0 where the score is -inf."""
    rows = scores[peers].masked_fill(~present, -torch.inf)
    hopeless = ~rows.amax(dim=1).isfinite()
    if bool(hopeless.any()):
        raise ValueError(
            f"{function}: expected ratings that are finite or -inf, one of them finite in every prompt; got"
            f" {scores[prompt == prompt[hopeless][0]].tolist()} in prompt {prompt[hopeless][0].item()}."
        )
    return torch.exp(scores - rows.logsumexp(dim=1))
