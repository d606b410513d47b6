"""The losses of direct alignment: each against its paper's formula in plain Python, numbers known without a computer,
what they share with one another, and which way they push."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from assent.losses import (
    LOSSES,
    aot,
    aot_unpaired,
    apo_down,
    asymmetric_dpo,
    chosen_nll,
    cpo,
    dpo,
    exo,
    f_dpo,
    infonca,
    ipo,
    kto,
    ld_dpo,
    nca,
    normalised_dpo,
    odpo,
    orpo,
    plackett_luce,
    r_dpo,
    reference_free_dpo,
    robust_dpo,
    rpo,
    simpo,
    tdpo,
    wpo,
)

LN2 = math.log(2.0)
INF = math.inf
BETA = 0.3


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def close(got: Tensor, expected: Tensor | list[float] | float) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.detach(), wanted.expand_as(got).detach(), atol=1e-9, rtol=1e-9)


# --- slow references: one pair or response at a time, probabilities instead of log-probs ------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(x: float, flipped: float = 0.0) -> float:
    """-log sigmoid(x), with a share of the labels flipped."""
    right = max(-x, 0.0) + math.log1p(math.exp(-abs(x)))
    return (1 - flipped) * right + flipped * (right + x)


def ratio(policy: float, reference: float) -> float:
    return math.exp(policy) / math.exp(reference)


def chosen(v: SimpleNamespace) -> float:
    return math.log(ratio(v.policy_chosen, v.reference_chosen))


def rejected(v: SimpleNamespace) -> float:
    return math.log(ratio(v.policy_rejected, v.reference_rejected))


def gap(v: SimpleNamespace) -> float:
    return chosen(v) - rejected(v)


def divergence_gap(derivative: Callable[[float, float], float]) -> Callable[[SimpleNamespace], float]:
    def formula(v: SimpleNamespace) -> float:
        u, w = ratio(v.policy_chosen, v.reference_chosen), ratio(v.policy_rejected, v.reference_rejected)
        return bce(v.beta * (derivative(u, v.divergence_alpha) - derivative(w, v.divergence_alpha)))

    return formula


def ld_gap(v: SimpleNamespace) -> float:
    # the paper's modified likelihood: p(first tokens) * p(other tokens)^tail_weight
    def modified(whole: float, shared: float) -> float:
        return math.exp(shared) * math.exp(whole - shared) ** v.tail_weight

    up = modified(v.policy_chosen, v.policy_chosen_shared) / modified(v.reference_chosen, v.reference_chosen_shared)
    down = modified(v.policy_rejected, v.policy_rejected_shared)
    down /= modified(v.reference_rejected, v.reference_rejected_shared)
    return math.log(up) - math.log(down)


def odds(logprob: float, length: float) -> float:
    p = math.exp(logprob / length)
    return p / (1 - p)


def exo_divergence(v: SimpleNamespace) -> float:
    up = ratio(v.policy_chosen, v.reference_chosen) ** v.beta
    down = ratio(v.policy_rejected, v.reference_rejected) ** v.beta
    policy, label = [up / (up + down), down / (up + down)], [1 - v.label_smoothing, v.label_smoothing]
    return sum(p * math.log(p / q) for p, q in zip(policy, label, strict=True))


def discopop_blend(v: SimpleNamespace) -> float:
    x = v.beta * gap(v)
    share = sigmoid(x / v.temperature)
    return (1 - share) * bce(x) + share * math.exp(-x)


def per_token(v: SimpleNamespace) -> float:
    return v.policy_chosen / v.length_chosen - v.policy_rejected / v.length_rejected


def nll(v: SimpleNamespace) -> float:
    return -v.policy_chosen / v.length_chosen


def kto_value(v: SimpleNamespace) -> float:
    reward = math.log(ratio(v.policy, v.reference))
    if v.desirable:
        return v.desirable_weight - v.desirable_weight * sigmoid(v.beta * (reward - v.kl))
    return v.undesirable_weight - v.undesirable_weight * sigmoid(v.beta * (v.kl - reward))


def bco_classifier(v: SimpleNamespace) -> float:
    probability = sigmoid(v.beta * math.log(ratio(v.policy, v.reference)) - v.shift)
    return -math.log(probability if v.desirable else 1 - probability)


def anchored(v: SimpleNamespace) -> float:
    probability = sigmoid(v.beta * math.log(ratio(v.policy, v.reference)))
    return 1 - probability if v.desirable else probability


Formula = Callable[[SimpleNamespace], float]
FORMULAS: list[tuple[str, dict[str, Any], Formula]] = [
    ("dpo", {}, lambda v: bce(v.beta * gap(v))),
    ("dpo", {"label_smoothing": 0.2}, lambda v: bce(v.beta * gap(v), 0.2)),
    (
        "robust_dpo",
        {"label_smoothing": 0.2},
        lambda v: (0.8 * bce(v.beta * gap(v)) - 0.2 * bce(-v.beta * gap(v))) / (1 - 0.4),
    ),
    ("asymmetric_dpo", {"beta_rejected": 0.7}, lambda v: bce(v.beta * chosen(v) - 0.7 * rejected(v))),
    ("dpop", {"penalty": 5.0}, lambda v: bce(v.beta * (gap(v) - 5 * max(0.0, v.reference_chosen - v.policy_chosen)))),
    ("rpo", {"sft_weight": 0.6}, lambda v: bce(v.beta * gap(v)) + 0.6 * nll(v)),
    ("odpo", {"offset": "log", "offset_scale": 0.7}, lambda v: bce(v.beta * gap(v) - 0.7 * math.log(v.margin))),
    ("odpo", {"offset": "linear", "offset_scale": 0.7}, lambda v: bce(v.beta * gap(v) - 0.7 * v.margin)),
    ("f_dpo", {"divergence": "reverse_kl", "divergence_alpha": 0.4}, divergence_gap(lambda u, a: math.log(u) + 1)),
    ("f_dpo", {"divergence": "forward_kl", "divergence_alpha": 0.4}, divergence_gap(lambda u, a: -1 / u)),
    ("f_dpo", {"divergence": "js", "divergence_alpha": 0.4}, divergence_gap(lambda u, a: math.log(2 * u / (1 + u)))),
    ("f_dpo", {"divergence": "alpha", "divergence_alpha": 0.4}, divergence_gap(lambda u, a: (1 - u**-a) / a)),
    (
        "tdpo",
        {"kl_weight": 0.6},
        lambda v: bce(v.beta * gap(v) - 0.6 * (v.beta * v.kl_rejected - v.beta * v.kl_chosen)),
    ),
    ("wpo", {}, lambda v: v.weight_chosen * v.weight_rejected * bce(v.beta * gap(v))),
    (
        "normalised_dpo",
        {},
        lambda v: bce(v.beta * (chosen(v) / v.length_chosen - rejected(v) / v.length_rejected)),
    ),
    (
        "r_dpo",
        {"length_penalty": 0.2},
        lambda v: bce(v.beta * chosen(v) + 0.2 * v.length_chosen - v.beta * rejected(v) - 0.2 * v.length_rejected),
    ),
    ("ld_dpo", {"tail_weight": 0.4}, lambda v: bce(v.beta * ld_gap(v))),
    ("ipo", {"length_normalised": False}, lambda v: (gap(v) - 0.5 / v.beta) ** 2),
    (
        "ipo",
        {"length_normalised": True},
        lambda v: (chosen(v) / v.length_chosen - rejected(v) / v.length_rejected - 0.5 / v.beta) ** 2,
    ),
    ("hinge", {}, lambda v: max(0.0, 1 - v.beta * gap(v))),
    ("exo", {"label_smoothing": 0.1}, exo_divergence),
    ("sppo", {}, lambda v: (chosen(v) - 0.5 / v.beta) ** 2 + (rejected(v) + 0.5 / v.beta) ** 2),
    ("apo_zero", {}, lambda v: 1 - sigmoid(v.beta * chosen(v)) + sigmoid(v.beta * rejected(v))),
    ("apo_down", {}, lambda v: sigmoid(v.beta * chosen(v)) + 1 - sigmoid(v.beta * gap(v))),
    ("discopop", {"temperature": 0.5}, discopop_blend),
    ("reference_free_dpo", {}, lambda v: bce(v.beta * (v.policy_chosen - v.policy_rejected))),
    (
        "slic",
        {"delta": 0.8, "sft_weight": 0.2, "beta": None},
        lambda v: max(0.0, 0.8 - v.policy_chosen + v.policy_rejected) - 0.2 * v.policy_chosen,
    ),
    ("rrhf", {"sft_weight": 0.7, "beta": None}, lambda v: max(0.0, -per_token(v)) - 0.7 * v.policy_chosen),
    ("cpo", {"sft_weight": 0.7}, lambda v: bce(v.beta * (v.policy_chosen - v.policy_rejected)) + 0.7 * nll(v)),
    (
        "cpo",
        {"sft_weight": 0.7, "label_smoothing": 0.2},
        lambda v: bce(v.beta * (v.policy_chosen - v.policy_rejected), 0.2) + 0.7 * nll(v),
    ),
    (
        "orpo",
        {"odds_weight": 0.4, "beta": None},
        lambda v: (
            nll(v)
            + 0.4 * bce(math.log(odds(v.policy_chosen, v.length_chosen) / odds(v.policy_rejected, v.length_rejected)))
        ),
    ),
    ("simpo", {"gamma": 0.9}, lambda v: bce(v.beta * per_token(v) - 0.9)),
    (
        "simpo",
        {"gamma": 0.9, "length_normalised": False},
        lambda v: bce(v.beta * (v.policy_chosen - v.policy_rejected) - 0.9),
    ),
    ("chosen_nll", {"beta": None}, nll),
    ("kto", {"desirable_weight": 1.3, "undesirable_weight": 0.8}, kto_value),
    ("bco", {}, bco_classifier),
    ("apo_zero_unpaired", {}, anchored),
]


def draw(name: str, items: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of a loss by the names of its parameters."""
    generator = torch.Generator().manual_seed(seed)
    code = LOSSES[name].__code__
    inputs = {}
    for parameter in code.co_varnames[: code.co_argcount]:
        share = torch.rand(items, generator=generator, dtype=torch.float64)
        if parameter.startswith("length"):
            inputs[parameter] = (1 + 9 * share).floor()
        elif parameter == "desirable":
            inputs[parameter] = (share > 0.5).double()
        elif parameter.startswith(("weight", "margin", "kl")):
            inputs[parameter] = share + 0.05
        else:
            inputs[parameter] = -6 * share
    return inputs


@pytest.mark.parametrize(
    ("name", "options", "formula"), FORMULAS, ids=[f"{name} {options}" for name, options, _ in FORMULAS]
)
@pytest.mark.parametrize("beta", [0.05, 0.4, 2.0])
def test_the_formula_of_the_paper(name: str, options: dict[str, Any], formula: Formula, beta: float):
    options = {"beta": beta, **options}
    options = {key: value for key, value in options.items() if value is not None}
    inputs = draw(name, 40, seed=int(100 * beta))
    rows = zip(*(value.tolist() for value in inputs.values()), strict=True)
    expected = [formula(SimpleNamespace(**dict(zip(inputs, row, strict=True)), **options)) for row in rows]
    close(LOSSES[name](**inputs, **options), expected)
    assert len({round(x, 6) for x in expected}) > 10


def test_every_preference_loss_has_a_formula_here():
    here = {name for name, _, _ in FORMULAS} | {"aot", "aot_unpaired", "plackett_luce", "nca", "infonca"}
    others = {"cross_entropy", "clipped_value", "kl_estimate"}
    others |= {name for name, loss in LOSSES.items() if "reward" in loss.__module__ or loss.__module__.endswith("odin")}
    others |= {"ppo_clip", "ppo_penalty", "reinforce", "cpi", "gspo", "cispo"}
    assert here == set(LOSSES) - others


@pytest.mark.parametrize("flipped", [0.0, 0.2])
def test_aot_compares_sorted_gaps(flipped: float):
    inputs = draw("aot", 15, seed=1)
    pc, pr, rc, rr = (value.tolist() for value in inputs.values())
    options = {"beta": BETA, "label_smoothing": flipped}
    policy = sorted(c - r for c, r in zip(pc, pr, strict=True))
    reference = sorted(c - r for c, r in zip(rc, rr, strict=True))
    close(aot(**inputs, **options), [bce(BETA * (p - r), flipped) for p, r in zip(policy, reference, strict=True)])
    up = sorted(p - r for p, r in zip(pc, rc, strict=True))
    down = sorted(p - r for p, r in zip(pr, rr, strict=True))
    close(aot_unpaired(**inputs, **options), [bce(BETA * (u - d), flipped) for u, d in zip(up, down, strict=True)])


# --- rankings and ratings ---------------------------------------------------------------------------------------------

PROMPT = torch.tensor([2, 2, 2, 2, 5, 7, 7, 7, 9, 9])
LEVEL = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 3.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
RATING = torch.tensor([1.0, 4.0, -INF, 1.0, 0.5, -2.0, 2.0, -INF, 3.0, 3.0], dtype=torch.float64)


def answers(seed: int) -> tuple[Tensor, Tensor]:
    policy, reference = -5 * torch.rand(2, len(PROMPT), generator=torch.Generator().manual_seed(seed)).double()
    return policy, reference


def groups() -> list[list[int]]:
    return [[i for i, p in enumerate(PROMPT.tolist()) if p == prompt] for prompt in (2, 5, 7, 9)]


@pytest.mark.parametrize("seed", [0, 1])
def test_plackett_luce_is_a_product_of_choices(seed: int):
    policy, reference = answers(seed)
    worth = [ratio(p, r) ** BETA for p, r in zip(policy.tolist(), reference.tolist(), strict=True)]
    expected = [0.0] * len(worth)
    for members in groups():
        for i in members:
            left = worth[i] + sum(worth[j] for j in members if LEVEL[j] > LEVEL[i])
            expected[i] = -math.log(worth[i] / left)
    loss = plackett_luce(policy, reference, LEVEL, PROMPT, beta=BETA)
    close(loss, expected)
    assert loss[[2, 4, 5, 8, 9]].tolist() == [0, 0, 0, 0, 0] and (loss[[0, 1, 3, 6, 7]] > 0).all()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_nca_and_infonca_are_sums_over_a_prompt(temperature: float):
    policy, reference = answers(3)
    reward = [BETA * math.log(ratio(p, r)) for p, r in zip(policy.tolist(), reference.tolist(), strict=True)]
    noise, best = [0.0] * len(reward), [0.0] * len(reward)
    for members in groups():
        for i in members:
            weight = math.exp(RATING[i] / temperature) / sum(math.exp(RATING[j] / temperature) for j in members)
            share = math.exp(reward[i]) / sum(math.exp(reward[j]) for j in members)
            noise[i] = -weight * math.log(sigmoid(reward[i])) - math.log(sigmoid(-reward[i])) / len(members)
            best[i] = -weight * math.log(share)
    options = {"beta": BETA, "temperature": temperature}
    close(nca(policy, reference, RATING, PROMPT, **options), noise)
    close(infonca(policy, reference, RATING, PROMPT, **options), best)


def test_gradients_pass_by_responses_that_cannot_be_the_best():
    policy, reference = answers(0)
    for function, feedback in ((plackett_luce, LEVEL), (nca, RATING), (infonca, RATING)):
        options = {} if function is plackett_luce else {"temperature": 1.0}
        leaf = policy.clone().requires_grad_()
        function(leaf, reference, feedback, PROMPT, beta=BETA, **options).sum().backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad[1] < 0 < leaf.grad[2]  # the best of its prompt goes up, the worst down
        assert leaf.grad[6] < 0 and (function is nca or leaf.grad[4] == 0)  # a lone response says nothing


def test_the_two_of_a_pair_have_the_loss_of_dpo():
    inputs = draw("dpo", 6, seed=2)
    policy = torch.stack([inputs["policy_chosen"], inputs["policy_rejected"]], dim=1).flatten()
    reference = torch.stack([inputs["reference_chosen"], inputs["reference_rejected"]], dim=1).flatten()
    prompt, level = torch.arange(6).repeat_interleave(2), torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(6)
    rating = torch.tensor([0.0, -INF], dtype=torch.float64).repeat(6)
    expected = dpo(**inputs, beta=BETA)
    close(plackett_luce(policy, reference, level, prompt, beta=BETA).view(6, 2).sum(1), expected)
    close(infonca(policy, reference, rating, prompt, beta=BETA, temperature=0.7).view(6, 2).sum(1), expected)
    # NCA's own form for a pair: the chosen response against noise, and both as noise
    up, down = (BETA * (policy - reference)).view(6, 2).T.tolist()
    pairs = [bce(u) + 0.5 * bce(-u) + 0.5 * bce(-d) for u, d in zip(up, down, strict=True)]
    close(nca(policy, reference, rating, prompt, beta=BETA, temperature=0.7).view(6, 2).sum(1), pairs)


# --- known numbers ----------------------------------------------------------------------------------------------------

START: list[tuple[str, dict[str, Any], float]] = [
    ("dpo", {}, LN2),
    ("dpo", {"label_smoothing": 0.3}, LN2),
    ("robust_dpo", {"label_smoothing": 0.3}, LN2),
    ("asymmetric_dpo", {"beta_rejected": 0.1}, LN2),
    ("dpop", {"penalty": 5.0}, LN2),
    ("f_dpo", {"divergence": "forward_kl", "divergence_alpha": 0.5}, LN2),
    ("f_dpo", {"divergence": "js", "divergence_alpha": 0.5}, LN2),
    ("f_dpo", {"divergence": "alpha", "divergence_alpha": 0.5}, LN2),
    ("normalised_dpo", {}, LN2),
    ("ipo", {"length_normalised": False}, 1 / (4 * BETA**2)),
    ("ipo", {"length_normalised": True}, 1 / (4 * BETA**2)),
    ("hinge", {}, 1.0),
    ("exo", {"label_smoothing": 0.1}, -LN2 - 0.5 * math.log(0.9) - 0.5 * math.log(0.1)),
    ("sppo", {}, 1 / (2 * BETA**2)),
    ("apo_zero", {}, 1.0),
    ("apo_down", {}, 1.0),
    ("discopop", {"temperature": 0.05}, 0.5 * LN2 + 0.5),
    ("aot", {}, LN2),
    ("aot_unpaired", {}, LN2),
    ("apo_zero_unpaired", {}, 0.5),
]


@pytest.mark.parametrize(("name", "options", "number"), START, ids=[f"{name} {options}" for name, options, _ in START])
def test_where_policy_and_reference_agree(name: str, options: dict[str, Any], number: float):
    inputs = draw(name, 7, seed=5)
    start = {key: inputs[key.replace("reference", "policy")] for key in inputs}
    close(LOSSES[name](**start, beta=BETA, **options), number)


def test_unpaired_start():
    policy, desirable = -5 * torch.rand(4, dtype=torch.float64), torch.tensor([1.0, 0.0, 1.0, 0.0])
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.8}
    close(kto(policy, policy, desirable, torch.zeros(4), beta=BETA, **weights), [0.75, 0.4, 0.75, 0.4])


def test_group_start_is_the_number_of_answers_left():
    policy, prompt = -5 * torch.rand(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    loss = plackett_luce(policy, policy, torch.tensor([0.0, 1.0, 2.0, 3.0]), prompt, beta=BETA)
    close(loss, [math.log(4), math.log(3), math.log(2), 0.0])
    rating = torch.zeros(4, dtype=torch.float64)
    close(infonca(policy, policy, rating, prompt, beta=BETA, temperature=1.0), math.log(4) / 4)
    close(nca(policy, policy, rating, prompt, beta=BETA, temperature=1.0), LN2 / 2)


# --- what the losses share --------------------------------------------------------------------------------------------


def test_variants_that_vary_nothing_are_dpo():
    inputs = draw("dpo", 30, seed=6)
    ones, zeros, lengths = torch.ones(30).double(), torch.zeros(30).double(), draw("rrhf", 30, seed=7)
    lengths = {key: lengths[key] for key in ("length_chosen", "length_rejected")}
    shared = {f"{key}_shared": -torch.rand(30, dtype=torch.float64) for key in inputs}
    expected = dpo(**inputs, beta=BETA)
    close(robust_dpo(**inputs, beta=BETA, label_smoothing=0.0), expected)
    close(asymmetric_dpo(**inputs, beta=BETA, beta_rejected=BETA), expected)
    close(LOSSES["dpop"](**inputs, beta=BETA, penalty=0.0), expected)
    close(rpo(**inputs, length_chosen=ones, beta=BETA, sft_weight=0.0), expected)
    close(odpo(**inputs, margin=ones, beta=BETA, offset="log", offset_scale=0.7), expected)
    close(odpo(**inputs, margin=ones, beta=BETA, offset="linear", offset_scale=0.0), expected)
    close(f_dpo(**inputs, beta=BETA, divergence="reverse_kl", divergence_alpha=0.5), expected)
    close(tdpo(**inputs, kl_chosen=zeros, kl_rejected=zeros, beta=BETA, kl_weight=0.5), expected)
    close(wpo(**inputs, weight_chosen=ones, weight_rejected=ones, beta=BETA), expected)
    close(normalised_dpo(**inputs, length_chosen=ones, length_rejected=ones, beta=BETA), expected)
    close(r_dpo(**inputs, **lengths, beta=BETA, length_penalty=0.0), expected)
    close(ld_dpo(**inputs, **shared, beta=BETA, tail_weight=1.0), expected)
    whole = {key: inputs[key.removesuffix("_shared")] for key in shared}
    close(ld_dpo(**inputs, **whole, beta=BETA, tail_weight=0.3), expected)


def test_without_a_reference():
    pc, pr, lc, lr = draw("rrhf", 30, seed=8).values()
    expected = reference_free_dpo(pc, pr, beta=BETA)
    close(dpo(pc, pr, torch.zeros_like(pc), torch.zeros_like(pr), beta=BETA), expected)
    close(cpo(pc, pr, lc, beta=BETA, sft_weight=0.5), expected + 0.5 * chosen_nll(pc, lc))
    close(simpo(pc, pr, lc, lr, beta=BETA, gamma=0.0, length_normalised=False), expected)


def test_alpha_divergence_goes_from_reverse_to_forward_kl():
    inputs = draw("dpo", 30, seed=9)

    def by(divergence: str, alpha: float) -> Tensor:
        return f_dpo(**inputs, beta=BETA, divergence=divergence, divergence_alpha=alpha)

    torch.testing.assert_close(by("alpha", 1e-6), by("reverse_kl", 0.5), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by("alpha", 1 - 1e-6), by("forward_kl", 0.5), atol=1e-4, rtol=1e-4)


def test_robust_dpo_is_dpo_on_average_over_flips():
    pc, pr, rc, rr = draw("dpo", 30, seed=10).values()
    right, flipped = (
        robust_dpo(*inputs, beta=BETA, label_smoothing=0.2) for inputs in ((pc, pr, rc, rr), (pr, pc, rr, rc))
    )
    close(0.8 * right + 0.2 * flipped, dpo(pc, pr, rc, rr, beta=BETA))


def test_ipo_and_sppo_have_their_targets():
    zero, target = vector(0.0), vector(1 / (2 * BETA))
    ones = vector(1.0)
    close(ipo(target, zero, zero, zero, ones, ones, beta=BETA, length_normalised=False), 0.0)
    close(LOSSES["sppo"](target, -target, zero, zero, beta=BETA), 0.0)


# --- which way they push ----------------------------------------------------------------------------------------------

PAIRED = [(name, options) for name, options, _ in FORMULAS if "policy" not in draw(name, 1, 0) and name != "apo_down"]


@pytest.mark.parametrize(("name", "options"), PAIRED, ids=[f"{name} {options}" for name, options in PAIRED])
def test_the_chosen_goes_up_and_the_rejected_does_not(name: str, options: dict[str, Any]):
    """At the start of training, where policy and reference are nearly the same."""
    inputs = draw(name, 25, seed=11)
    for key in inputs:
        if key.startswith("reference"):
            inputs[key] = inputs[key.replace("reference", "policy")] + 0.01
    leaves = [inputs[key].requires_grad_() for key in ("policy_chosen", "policy_rejected") if key in inputs]
    options = {key: value for key, value in {"beta": BETA, **options}.items() if value is not None}
    loss = LOSSES[name](**inputs, **options).sum()
    up, *down = torch.autograd.grad(loss, leaves)
    assert (up < 0).all()
    assert all((gradient >= 0).all() and gradient.sum() > 0 for gradient in down)


def test_apo_down_lowers_both_and_the_rejected_further():
    pc, pr, zero = vector(0.5), vector(-2.0), vector(0.0)
    apo_down(pc, pr, zero, zero, beta=1.0).sum().backward()
    assert 0 < pc.grad.item() < 0.25
    assert pr.grad.item() > 0


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_desirable_responses_go_up(name: str):
    inputs = draw(name, 30, seed=12)
    options = {"desirable_weight": 1.3, "undesirable_weight": 0.8} if name == "kto" else {}
    (gradient,) = torch.autograd.grad(
        LOSSES[name](**{**inputs, "policy": inputs["policy"].requires_grad_()}, beta=BETA, **options).sum(),
        inputs["policy"],
    )
    good = inputs["desirable"].bool()
    assert good.any() and not good.all() and (gradient[good] < 0).all() and (gradient[~good] > 0).all()


def test_tdpo_holds_back_only_the_rejected_divergence():
    kl_chosen, kl_rejected = vector(0.5, 0.1), vector(0.2, 0.9)
    logprobs = [vector(-3.0, -4.0) for _ in range(4)]
    tdpo(*logprobs, kl_chosen, kl_rejected, beta=BETA, kl_weight=0.5).sum().backward()
    assert kl_chosen.grad is None and (kl_rejected.grad > 0).all()


def test_r_dpo_learns_less_from_a_longer_chosen_response():
    logprobs = [vector(-3.0, -3.0) for _ in range(4)]
    r_dpo(*logprobs, vector(9.0, 3.0), vector(3.0, 9.0), beta=BETA, length_penalty=0.1).sum().backward()
    assert abs(logprobs[0].grad[0]) < abs(logprobs[0].grad[1])


def test_dpop_answers_a_fall_of_the_chosen_response():
    # the same gap of ratios; the second chosen response fell below its reference
    pc, pr, reference = vector(1.0, -1.0), vector(0.0, -2.0), vector(0.0, 0.0)
    loss = LOSSES["dpop"](pc, pr, reference, reference, beta=1.0, penalty=2.0)
    close(loss, [bce(1.0), bce(-1.0)])


# --- odds, and inputs that cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_keeps_the_odds_of_sure_and_of_hopeless_responses(dtype: torch.dtype):
    chosen_logprobs, rejected_logprobs = [-1e-4, -0.69, -0.70, -60.0], [-2.0, -1e-4, -40.0, -1e-4]
    expected = []
    for c, r in zip(chosen_logprobs, rejected_logprobs, strict=True):
        x = (c - math.log(-math.expm1(c))) - (r - math.log(-math.expm1(r)))
        expected.append(-c + max(-x, 0.0) + math.log1p(math.exp(-abs(x))))
    pc, pr = torch.tensor(chosen_logprobs, dtype=dtype), torch.tensor(rejected_logprobs, dtype=dtype)
    loss = orpo(pc, pr, torch.ones(4, dtype=dtype), torch.ones(4, dtype=dtype), odds_weight=1.0)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=dtype), rtol=1e-5, atol=1e-6)


def test_orpo_of_responses_known_by_heart():
    pc, pr, ones = vector(0.0, -1.0, 0.0), vector(-1.0, 0.0, 0.0), vector(1.0, 1.0, 1.0)
    loss = orpo(pc, pr, ones, ones, odds_weight=1.0)
    loss.sum().backward()
    assert loss.isfinite().all() and loss[0] < loss[2] < loss[1]
    assert (pc.grad < 0).all() and (pr.grad > 0).all() and pr.grad.isfinite().all()


def test_options_out_of_range_are_named():
    pairs = [vector(-1.0) for _ in range(4)]
    with pytest.raises(ValueError, match=r"robust_dpo: .* below 0.5; got 0.5"):
        robust_dpo(*pairs, beta=BETA, label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"exo: .* between 0 and 1.*; got 0.0"):
        exo(*pairs, beta=BETA, label_smoothing=0.0)
    with pytest.raises(ValueError, match="reverse_kl, forward_kl, js, alpha; got 'kl'"):
        f_dpo(*pairs, beta=BETA, divergence="kl", divergence_alpha=0.5)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"divergence_alpha between 0 and 1.*; got {alpha}"):
            f_dpo(*pairs, beta=BETA, divergence="alpha", divergence_alpha=alpha)
    with pytest.raises(ValueError, match="among log, linear; got 'square'"):
        odpo(*pairs, vector(1.0), beta=BETA, offset="square", offset_scale=1.0)
    for margin in (0.0, -2.0, math.nan):
        with pytest.raises(ValueError, match=f"margins above 0; got {margin}"):
            odpo(*pairs, vector(margin), beta=BETA, offset="log", offset_scale=1.0)


def test_groups_out_of_order_or_without_a_rating_are_named():
    policy, reference = answers(0)
    with pytest.raises(ValueError, match="plackett_luce: `prompt` must not decrease"):
        plackett_luce(policy, reference, LEVEL, PROMPT.flip(0), beta=BETA)
    options = {"beta": BETA, "temperature": 1.0}
    for bad in (-INF, INF, math.nan):
        rating = RATING.clone()
        rating[8:] = bad
        with pytest.raises(ValueError, match=rf"nca: .* got \[{bad}, {bad}\] in prompt 9"):
            nca(policy, reference, rating, PROMPT, **options)
    with pytest.raises(ValueError, match="infonca: `prompt` must not decrease"):
        infonca(policy, reference, RATING, PROMPT.flip(0), **options)
