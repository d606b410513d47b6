"""Direct alignment from pairs: DPO, and what other papers put inside or beside its log-sigmoid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from assent.losses._pairs import log_ratios, logistic
from assent.losses._ratio import bounded_exp


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation: Bradley-Terry on implicit rewards (arXiv 2305.18290).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = -(1 - label_smoothing) * log sigmoid(beta * h) - label_smoothing * log sigmoid(-beta * h)

    policy_*     [M]  log-probs of whole responses under the trained policy
    reference_*  [M]  the same under the frozen reference
    beta              strength of the pull towards the reference
    label_smoothing   share of the pairs believed to be flipped; above 0 this is cDPO, lowest at a finite h

    Returns [M]; ln 2 where policy and reference agree. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("dpo", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return logistic(beta * (chosen - rejected), label_smoothing)


def robust_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """DPO whose expectation over randomly flipped labels is DPO on the true ones (arXiv 2403.00409).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = (-(1 - e) * log sigmoid(beta * h) + e * log sigmoid(-beta * h)) / (1 - 2 * e),   e = label_smoothing

    policy_*, reference_*  [M]  as in `dpo`
    beta                        as in `dpo`
    label_smoothing             share of the pairs that are flipped, in [0, 1/2)

    Returns [M]; a single pair can be negative. Raises ValueError when the shapes differ or label_smoothing is out of
    its range.
    """
    chosen, rejected = log_ratios("robust_dpo", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"robust_dpo: expected label_smoothing from 0 to below 0.5; got {label_smoothing}.")
    h = chosen - rejected
    clean, flipped = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def asymmetric_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    beta_rejected: float,
) -> Tensor:
    """DPO with its own beta for rejected responses: a smaller one pushes them down less (after arXiv 2305.18290).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = -log sigmoid(beta * chosen - beta_rejected * rejected)

    policy_*, reference_*  [M]  as in `dpo`
    beta, beta_rejected         scale of the implicit reward of chosen and of rejected responses

    Returns [M]. Raises ValueError when the shapes differ.
    """
    name = "asymmetric_dpo"
    chosen, rejected = log_ratios(name, policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -F.logsigmoid(beta * chosen - beta_rejected * rejected)


def dpop(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    penalty: float,
) -> Tensor:
    """DPO-Positive: chosen responses that fall below their reference count against the pair (arXiv 2402.13228).

        chosen = policy_chosen - reference_chosen,   rejected = policy_rejected - reference_rejected
        loss = -log sigmoid(beta * (chosen - rejected - penalty * max(0, -chosen)))

    policy_*, reference_*  [M]  as in `dpo`
    beta                        as in `dpo`
    penalty                     weight of that fall

    Returns [M]. Raises ValueError when the shapes differ.
    """
    chosen, rejected = log_ratios("dpop", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -F.logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))


def rpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    length_chosen: Tensor,
    *,
    beta: float,
    sft_weight: float,
) -> Tensor:
    """DPO beside the chosen response's likelihood (arXiv 2404.19733, whose alpha weights the DPO term instead).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = -log sigmoid(beta * h) - sft_weight * policy_chosen / length_chosen

    policy_*, reference_*  [M]  as in `dpo`
    length_chosen          [M]  trained tokens of each chosen response
    beta                        as in `dpo`
    sft_weight                  weight of the likelihood, which is per token

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    chosen, rejected = log_ratios("rpo", *logprobs, length_chosen=length_chosen)
    return -F.logsigmoid(beta * (chosen - rejected)) - sft_weight * policy_chosen / length_chosen


def odpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    margin: Tensor,
    *,
    beta: float,
    offset: str,
    offset_scale: float,
) -> Tensor:
    """DPO that asks for a larger gap of rewards where the preference is stronger (arXiv 2402.10571).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = -log sigmoid(beta * h - offset_scale * f(margin))
        f(margin) = log(margin) or margin

    policy_*, reference_*  [M]  as in `dpo`
    margin                 [M]  strength of each preference, > 0
    beta                        as in `dpo`
    offset                      "log" or "linear": which f
    offset_scale                factor of f

    Returns [M]. Raises ValueError when the shapes differ, a margin is not above 0 or the offset is unknown.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    chosen, rejected = log_ratios("odpo", *logprobs, margin=margin)
    if offset not in ("log", "linear"):
        raise ValueError(f"odpo: expected an offset among log, linear; got {offset!r}.")
    if not bool(torch.all(margin > 0)):
        raise ValueError(f"odpo: expected margins above 0; got {margin[~(margin > 0)][0].item()}.")
    gap = margin.log() if offset == "log" else margin
    return -F.logsigmoid(beta * (chosen - rejected) - offset_scale * gap)


def f_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    divergence: str,
    divergence_alpha: float,
) -> Tensor:
    """DPO for a reward that is regularised by another f-divergence (arXiv 2309.16240).

        u = exp(policy - reference)
        loss = -log sigmoid(beta * (f'(u_chosen) - f'(u_rejected)))
        reverse_kl  f'(u) = log u             forward_kl  f'(u) = -1 / u
        js          f'(u) = log(2u / (1 + u)) alpha       f'(u) = (1 - u^-a) / a,   a = divergence_alpha

    policy_*, reference_*  [M]  as in `dpo`
    beta                        strength of the pull towards the reference
    divergence                  reverse_kl (which is DPO), forward_kl, js or alpha
    divergence_alpha            of the alpha divergence, between 0 (reverse KL) and 1 (forward KL); else not read

    Returns [M]. Where u^-1 or u^-a exceeds e^20 its tangent stands in for it. Raises ValueError when the shapes differ,
    the divergence is unknown or its alpha is out of range.
    """
    chosen, rejected = log_ratios("f_dpo", policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    gap = _f_prime(chosen, divergence, divergence_alpha) - _f_prime(rejected, divergence, divergence_alpha)
    return -F.logsigmoid(beta * gap)


def _f_prime(log_u: Tensor, divergence: str, alpha: float) -> Tensor:
    if divergence == "reverse_kl":
        return log_u
    if divergence == "forward_kl":
        return -bounded_exp(-log_u)
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_u)
    if divergence == "alpha":
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"f_dpo: expected divergence_alpha between 0 and 1, both excluded; got {alpha}.")
        return (1 - bounded_exp(-alpha * log_u)) / alpha
    raise ValueError(f"f_dpo: expected a divergence among reverse_kl, forward_kl, js, alpha; got {divergence!r}.")


def tdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    kl_chosen: Tensor,
    kl_rejected: Tensor,
    *,
    beta: float,
    kl_weight: float,
) -> Tensor:
    """Token-level DPO (TDPO2): holds the two responses' divergence from the reference together (arXiv 2404.11999).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = -log sigmoid(beta * (h - kl_weight * (kl_rejected - stopgrad(kl_chosen))))

    policy_*, reference_*  [M]  as in `dpo`
    kl_*                   [M]  KL(reference || policy) over the vocabulary, summed over the response's positions
    beta                        as in `dpo`
    kl_weight                   weight of the difference in KL

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    chosen, rejected = log_ratios("tdpo", *logprobs, kl_chosen=kl_chosen, kl_rejected=kl_rejected)
    return -F.logsigmoid(beta * (chosen - rejected - kl_weight * (kl_rejected - kl_chosen.detach())))


def wpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    weight_chosen: Tensor,
    weight_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """DPO in which a pair counts as much as the policy itself would have written it (arXiv 2406.11827).

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        loss = -weight_chosen * weight_rejected * log sigmoid(beta * h)

    policy_*, reference_*  [M]  as in `dpo`
    weight_*               [M]  how likely each response is under the policy, in (0, 1]; constants
    beta                        as in `dpo`

    Returns [M]. Raises ValueError when the shapes differ.
    """
    logprobs = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    weights = {"weight_chosen": weight_chosen, "weight_rejected": weight_rejected}
    chosen, rejected = log_ratios("wpo", *logprobs, **weights)
    return -weight_chosen * weight_rejected * F.logsigmoid(beta * (chosen - rejected))
