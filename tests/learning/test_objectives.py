"""Every objective of the table learns, on one of three seeds, through the production algorithm and train loop.

Objectives whose theory says what they converge to come at least 90 % of the way from the reference there, measured by
the KL divergence: for DPO and its like that is the share of regret closed. All others must bring the policy's expected
gold reward, exact by enumeration, at least `RISE` of the way from the reference's to that of the KL-regularised optimum
at `BETA`; with the labels turned round it falls as clearly, so that nothing but what the labels say brings it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from assent.config import OBJECTIVES, DataConfig, OptimConfig, preference_config
from assent.data.tree import TokenTree
from assent.lab.enumerable import distance_closed, f_optimum, normalised, optimum, win_rates

from .turns import in_turns

BETA = 2.0
RISE = 0.3
TO_OPTIMUM = {"steps": 240, "optim": OptimConfig(lr=1e-2, beta2=0.95)}
A_LITTLE = {"steps": 60, "optim": OptimConfig(lr=4e-3, beta2=0.95)}


class Known(NamedTuple):
    """An objective, the feedback it learns from, and log pi [X, Y] of what it converges to in a setting."""

    objective: str
    loss: Mapping[str, Any]
    feedback: str
    best: Callable[[Any], Tensor]


def kl_optimum(s: Any) -> Tensor:
    return optimum(s.ref, s.rewards, BETA)


def preferred_optimum(s: Any) -> Tensor:
    """IPO (arXiv 2310.12036) and SPPO (2405.00675) on independent draws from pi_ref, with P the probability of being
    preferred to a draw and h the log-ratio log(pi/pi_ref).

    A pair asks IPO for h_i - h_j = +-1 / (2 beta), on average for (p(i before j) - 1/2) / beta; the least squares fit
    of these by differences is h = P / beta + a constant of the prompt. So pi = pi_ref exp(P / beta) / Z.
    SPPO asks for h = (P - 1/2) / beta itself. Of that, exp(h) does not quite add up to 1, so its least squares fit
    among policies differs from the same pi a little: it closes at least 99 % of the way there.
    """
    return optimum(s.ref, win_rates(s.rewards, s.ref), 0.5)


def f_dpo(divergence: str, beta: float) -> Known:
    """Bradley-Terry holds for beta f'(pi/pi_ref), so that is the reward but for a constant."""
    loss = {"beta": beta, "divergence": divergence, "divergence_alpha": 0.5}
    return Known("f-dpo", loss, "pairs", lambda s: f_optimum(s.ref, s.rewards, beta, divergence))


def per_token_optimum(s: Any) -> Tensor:
    """LN-DPO: beta h / length = reward + a constant."""
    least, most = s.rewards.amin(dim=1, keepdim=True), s.rewards.amax(dim=1, keepdim=True)
    return normalised(lambda level: s.ref + s.lengths * (s.rewards - level) / 4.0, least, most)


KNOWN = {
    "dpo": Known("dpo", {"beta": BETA}, "pairs", kl_optimum),
    # the weights of a pair do not depend on which one was chosen: DPO's optimum
    "wpo": Known("wpo", {"beta": BETA}, "pairs", kl_optimum),
    "robust-dpo": Known("robust-dpo", {"beta": BETA, "label_smoothing": 0.2}, "flipped_pairs", kl_optimum),
    "ipo": Known("ipo", {"beta": 0.5}, "own_pairs", preferred_optimum),
    "sppo": Known("sppo", {"beta": 0.5}, "own_pairs", preferred_optimum),
    "f-dpo forward_kl": f_dpo("forward_kl", 6.0),
    "f-dpo js": f_dpo("js", 8.0),
    "f-dpo alpha": f_dpo("alpha", 4.0),
    # Bradley-Terry holds for beta h + length_penalty * length
    "r-dpo": Known(
        "r-dpo",
        {"beta": BETA, "length_penalty": 4.0},
        "pairs",
        lambda s: optimum(s.ref, s.rewards - 4.0 * s.lengths, BETA),
    ),
    "ln-dpo": Known("ln-dpo", {"beta": 4.0}, "pairs", per_token_optimum),
    # Bradley-Terry holds for beta log pi: a uniform reference
    "reference-free-dpo": Known(
        "reference-free-dpo", {"beta": 4.0}, "pairs", lambda s: torch.log_softmax(s.rewards / 4.0, dim=1)
    ),
    # Plackett-Luce holds for beta h
    "pl-dpo": Known("pl-dpo", {"beta": BETA}, "rankings", kl_optimum),
    # beta h and rating / temperature have the same softmax over every set of responses: h = r / (beta temperature) + a
    # constant (arXiv 2402.05369)
    "infonca": Known("infonca", {"beta": 0.5, "temperature": 4.0}, "ratings", kl_optimum),
    # sigmoid(beta h) is the probability that a response comes from the softmax of the ratings and not from pi_ref, so
    # with many draws beta h = r / temperature - log E_ref exp(r / temperature): a policy's log-ratio for beta = 1
    "nca": Known("nca", {"beta": 1.0, "temperature": BETA}, "own_ratings", kl_optimum),
}

RAISING: dict[str, dict[str, Any]] = {
    "cdpo": {},
    "hinge": {},
    "slic": {"sft_weight": 1.0},  # without reference its hinge draws all responses together, likely or not
    "rrhf": {},
    "cpo": {},
    "orpo": {},
    "ld-dpo": {},
    "simpo": {},
    "dpop": {"penalty": 1.0},  # every response is sometimes the chosen one here: a large penalty forbids any change
    "asymmetric-dpo": {},
    "rpo": {},
    "odpo": {},
    "tr-dpo": {},  # its optimum moves with the reference
    "tdpo": {},
    "apo-zero": {},
    "apo-down": {"beta": 4.0},
    "exo": {},
    "aot": {},
    "aot-unpaired": {},
    "discopop": {"temperature": 0.5},  # at 0.05 its slope is the wrong way round for margins from -2.4 to 1.4 nats
    "kto": {},
    "bco": {},
    "apo-zero-unpaired": {},
}
"""Objectives without a known optimum, with the options that are not at their defaults."""


def train(setting: Any, objective: str, trees: list[TokenTree], steps: int, optim: OptimConfig, **loss: Any) -> Tensor:
    """Log-probs [X, Y] after `steps` steps of one tree for each prompt."""
    config = preference_config(objective, model=setting.model, data=DataConfig("unused"), out="unused", loss=loss)
    return setting.train_preference(config, trees, steps, optim)


def test_every_objective_is_tested() -> None:
    known = {case.objective for case in KNOWN.values()}
    assert known | set(RAISING) == set(OBJECTIVES) and not known & set(RAISING)


@in_turns(KNOWN)
def test_reaches_its_optimum(setting, name: str) -> None:
    case = KNOWN[name]
    logp = train(setting, case.objective, getattr(setting, case.feedback), **TO_OPTIMUM, **case.loss)
    closed = distance_closed(logp, setting.ref, case.best(setting))
    print(f"{name}, seed {setting.seed}: {closed:.3f} closed")
    assert closed >= 0.9
    if case.objective == "f-dpo":  # these optima are not far from DPO's, and it is they that are reached
        plain = optimum(setting.ref, setting.rewards, case.loss["beta"])
        assert distance_closed(logp, plain, case.best(setting)) > 0


def test_plain_dpo_follows_flipped_labels(setting) -> None:
    logp = train(setting, "dpo", setting.flipped_pairs, **TO_OPTIMUM, beta=BETA)
    closed = distance_closed(logp, setting.ref, kl_optimum(setting))
    print(f"dpo on flipped labels, seed {setting.seed}: {closed:.3f} closed")
    assert closed < 0.85


def rise(setting: Any, objective: str, trees: list[TokenTree], what: str = "") -> float:
    """Share of the way from the reference's gold reward to the KL-regularised optimum's."""
    logp = train(setting, objective, trees, **A_LITTLE, **RAISING.get(objective, {}))
    start = setting.gold(setting.ref)
    gain, best = setting.gold(logp) - start, setting.gold(kl_optimum(setting)) - start
    print(f"{objective}{what}, seed {setting.seed}: gold {start:+.3f} {gain:+.3f}, {gain / best:.2f} of the way")
    return gain / best


def feedback_for(setting: Any, objective: str) -> list[TokenTree]:
    if OBJECTIVES[objective].feedback == "binary":
        return setting.labels
    if objective == "apo-down":  # for answers worse than the model's own: the others gain what these lose
        return setting.poor_pairs
    if objective == "odpo":  # a response against itself has no strength
        return [replace(t, pairs=tuple(pair for pair in t.pairs if pair[2] > 0)) for t in setting.own_pairs]
    return setting.own_pairs


@in_turns(RAISING)
def test_raises_the_gold_reward(setting, name: str) -> None:
    assert rise(setting, name, feedback_for(setting, name)) >= RISE


def test_kto_learns_from_rare_desirable_answers(setting) -> None:
    rng = np.random.default_rng(setting.seed)
    trees = []
    for tree in setting.labels:
        label = tree.per_response["label"]
        keep = (label == 0) | (rng.random(len(label)) < 0.1)
        branches = tuple(branch for branch, kept in zip(tree.branches, keep, strict=True) if kept)
        trees.append(replace(tree, branches=branches, per_response={"label": label[keep]}))
    assert rise(setting, "kto", trees, " 1:10") >= RISE


def test_turned_round_the_gold_reward_falls(setting) -> None:
    pairs = [replace(t, pairs=tuple((r, c, gap) for c, r, gap in t.pairs)) for t in setting.own_pairs]
    assert rise(setting, "dpo", pairs, " turned round") < -RISE
    labels = [replace(t, per_response={"label": 1 - t.per_response["label"]}) for t in setting.labels]
    assert rise(setting, "kto", labels, " turned round") < -RISE
