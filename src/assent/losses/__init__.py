"""Losses and advantages: pure functions of tensors.

Keyword hyperparameters, shapes checked first, unreduced results (the caller divides a sum by a global count), dtype
kept, nothing changed in place, nothing imported from the rest of assent. Log-probs are in nats; N counts trained
tokens, S responses, M pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from assent.losses.advantages import (
    REDUCTIONS,
    SCALES,
    discounted_returns,
    gae,
    greedy_baseline,
    group_advantages,
    leave_one_out,
    token_weights,
    whiten,
)
from assent.losses.comparisons import PREFERENCES, best_and_worst, desirability, win_probability
from assent.losses.controllers import adaptive_kl, adaptive_penalty, rescaled
from assent.losses.kl import KL_ESTIMATORS, kl_estimate
from assent.losses.odin import correlation, odin_length, orthogonality
from assent.losses.policy_gradient import (
    RatioDiagnostics,
    cispo,
    cpi,
    gspo,
    mismatch_weights,
    ppo_clip,
    ppo_penalty,
    ratio_diagnostics,
    reinforce,
)
from assent.losses.preference import (
    asymmetric_dpo,
    dpo,
    dpop,
    f_dpo,
    odpo,
    robust_dpo,
    rpo,
    tdpo,
    wpo,
)
from assent.losses.preference_curves import (
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    discopop,
    exo,
    hinge,
    ipo,
    sppo,
)
from assent.losses.preference_length import ld_dpo, normalised_dpo, r_dpo
from assent.losses.ranking import infonca, nca, plackett_luce
from assent.losses.reference_free import chosen_nll, cpo, orpo, reference_free_dpo, rrhf, simpo, slic
from assent.losses.reward import attribute_regression, bradley_terry, bradley_terry_tokens, rated
from assent.losses.reward_pairs import centring, choice_kl, davidson, likelihood_regulariser, rao_kupper
from assent.losses.reward_ranking import best_of_k, k_wise, ordered_pairs, plackett_luce_scores
from assent.losses.sft import cross_entropy
from assent.losses.shaping import RunningMoments, overlong_penalty
from assent.losses.unpaired import apo_zero_unpaired, bco, kto
from assent.losses.value import clipped_value, explained_variance

LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "bradley_terry": bradley_terry,
    "bradley_terry_tokens": bradley_terry_tokens,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
    "centring": centring,
    "choice_kl": choice_kl,
    "likelihood_regulariser": likelihood_regulariser,
    "best_of_k": best_of_k,
    "k_wise": k_wise,
    "plackett_luce_scores": plackett_luce_scores,
    "odin_length": odin_length,
    "attribute_regression": attribute_regression,
    "dpo": dpo,
    "robust_dpo": robust_dpo,
    "asymmetric_dpo": asymmetric_dpo,
    "dpop": dpop,
    "rpo": rpo,
    "odpo": odpo,
    "f_dpo": f_dpo,
    "tdpo": tdpo,
    "wpo": wpo,
    "normalised_dpo": normalised_dpo,
    "r_dpo": r_dpo,
    "ld_dpo": ld_dpo,
    "ipo": ipo,
    "hinge": hinge,
    "exo": exo,
    "sppo": sppo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "reference_free_dpo": reference_free_dpo,
    "slic": slic,
    "rrhf": rrhf,
    "cpo": cpo,
    "orpo": orpo,
    "simpo": simpo,
    "chosen_nll": chosen_nll,
    "kto": kto,
    "bco": bco,
    "apo_zero_unpaired": apo_zero_unpaired,
    "plackett_luce": plackett_luce,
    "nca": nca,
    "infonca": infonca,
    "reinforce": reinforce,
    "cpi": cpi,
    "ppo_clip": ppo_clip,
    "ppo_penalty": ppo_penalty,
    "gspo": gspo,
    "cispo": cispo,
    "clipped_value": clipped_value,
    "kl_estimate": kl_estimate,
}
"""Every differentiable loss by name. The contract tests run over this table."""

ADVANTAGES: Mapping[str, Callable[..., Tensor]] = {
    "gae": gae,
    "discounted_returns": discounted_returns,
    "group_advantages": group_advantages,
    "leave_one_out": leave_one_out,
    "greedy_baseline": greedy_baseline,
    "best_and_worst": best_and_worst,
    "desirability": desirability,
}
"""Every estimator of advantages by name."""

__all__ = [
    "ADVANTAGES",
    "KL_ESTIMATORS",
    "LOSSES",
    "PREFERENCES",
    "REDUCTIONS",
    "SCALES",
    "RatioDiagnostics",
    "RunningMoments",
    "adaptive_kl",
    "adaptive_penalty",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "asymmetric_dpo",
    "attribute_regression",
    "bco",
    "best_and_worst",
    "best_of_k",
    "bradley_terry",
    "bradley_terry_tokens",
    "centring",
    "choice_kl",
    "chosen_nll",
    "cispo",
    "clipped_value",
    "correlation",
    "cpi",
    "cpo",
    "cross_entropy",
    "davidson",
    "desirability",
    "discopop",
    "discounted_returns",
    "dpo",
    "dpop",
    "exo",
    "explained_variance",
    "f_dpo",
    "gae",
    "greedy_baseline",
    "group_advantages",
    "gspo",
    "hinge",
    "infonca",
    "inputs_of",
    "ipo",
    "k_wise",
    "kl_estimate",
    "kto",
    "ld_dpo",
    "leave_one_out",
    "likelihood_regulariser",
    "mismatch_weights",
    "nca",
    "normalised_dpo",
    "odin_length",
    "odpo",
    "ordered_pairs",
    "orpo",
    "orthogonality",
    "overlong_penalty",
    "plackett_luce",
    "plackett_luce_scores",
    "ppo_clip",
    "ppo_penalty",
    "r_dpo",
    "rao_kupper",
    "rated",
    "ratio_diagnostics",
    "reference_free_dpo",
    "reinforce",
    "rescaled",
    "robust_dpo",
    "rpo",
    "rrhf",
    "simpo",
    "slic",
    "sppo",
    "tdpo",
    "token_weights",
    "whiten",
    "win_probability",
    "wpo",
]
