"""What the estimators of advantages promise: a response or prompt gets the same numbers whatever stands beside it,
dtypes are kept, inputs are left alone, wrong shapes are named."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from assent.losses import (
    REDUCTIONS,
    SCALES,
    discounted_returns,
    gae,
    greedy_baseline,
    group_advantages,
    leave_one_out,
    mismatch_weights,
    overlong_penalty,
    ratio_diagnostics,
    token_weights,
    whiten,
)

LENGTHS = [5, 1, 8, 3]


def rollout(order: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rewards, values = torch.randn(2, sum(LENGTHS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    response = torch.repeat_interleave(torch.tensor([LENGTHS[i] for i in order], dtype=torch.int64))
    parts = rewards.split(LENGTHS), values.split(LENGTHS)
    return torch.cat([parts[0][i] for i in order]), torch.cat([parts[1][i] for i in order]), response


def by_response(order: list[int]) -> dict[int, Tensor]:
    advantages = gae(*rollout(order), gamma=0.97, lam=0.9)
    return dict(zip(order, advantages.split([LENGTHS[i] for i in order]), strict=True))


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 0], [1], [0, 1, 2]])
def test_gae_of_any_order_or_subset_of_responses(order: list[int]):
    whole, part = by_response([0, 1, 2, 3]), by_response(order)
    for i in order:
        torch.testing.assert_close(part[i], whole[i])


def test_gae_is_differentiable_keeps_dtype_and_leaves_inputs_alone():
    rewards, values, response = rollout([0, 1, 2, 3])
    before = rewards.clone(), values.clone(), response.clone()
    assert gae(rewards.float(), values.float(), response, gamma=0.97, lam=0.9).dtype == torch.float32
    assert torch.autograd.gradcheck(
        lambda r, v: gae(r, v, response, gamma=0.97, lam=0.9), [rewards.requires_grad_(), values.requires_grad_()]
    )
    torch.testing.assert_close((rewards.detach(), values.detach(), response), before, rtol=0, atol=0)


def test_gae_and_returns_name_wrong_shapes_and_mixed_responses():
    rewards, values, response = rollout([0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"token_rewards \[16\], values \[17\], response \[17\]"):
        gae(rewards[1:], values, response, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="must not decrease"):
        gae(rewards, values, response.flip(0), gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"token_rewards \[16\], response \[17\]"):
        discounted_returns(rewards[1:], response, gamma=1.0)
    with pytest.raises(ValueError, match="discounted_returns: `response` must not decrease"):
        discounted_returns(rewards, response.flip(0), gamma=1.0)


def test_whiten_with_shared_statistics_is_the_same_on_every_part():
    x = torch.randn(20, dtype=torch.float64)
    statistics = {"mean": x.mean(), "var": x.var(correction=0)}
    for shift_mean in (True, False):
        parts = [whiten(part, shift_mean=shift_mean, **statistics) for part in x.split(7)]
        torch.testing.assert_close(torch.cat(parts), whiten(x, shift_mean=shift_mean))
    assert whiten(x.float(), mean=x.mean().float(), var=x.var().float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"x \[20, 1\]"):
        whiten(x[:, None])


def test_empty_rollouts_pass_through():
    empty = torch.zeros(0)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert gae(empty, empty, nothing, gamma=1.0, lam=1.0).shape == (0,)
    assert discounted_returns(empty, nothing, gamma=1.0).shape == (0,)
    assert leave_one_out(empty, nothing).shape == (0,)
    assert greedy_baseline(empty, empty).shape == (0,)
    for scale in SCALES:
        assert group_advantages(empty, nothing, scale=scale).shape == (0,)
    for reduction in REDUCTIONS:
        assert token_weights(empty, nothing, reduction=reduction, **COUNTS).shape == (0,)
    assert mismatch_weights(empty, empty, limit=2.0).shape == (0,)
    assert overlong_penalty(empty, limit=5, buffer=2).shape == (0,)
    assert whiten(empty, mean=torch.tensor(0.0), var=torch.tensor(1.0)).shape == (0,)
    assert ratio_diagnostics(empty, empty, empty, clip=0.2).approx_kl.shape == (0,)


# --- every function of a rollout --------------------------------------------------------------------------------------

COUNTS = {"num_tokens": 17, "num_responses": 4, "max_length": 9}
RESPONSE = torch.repeat_interleave(torch.tensor(LENGTHS))
PROMPT = torch.tensor([0, 0, 2, 2])

# function, its float arguments by length (N tokens or S responses), its integer arguments, its options
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], dict[str, int], dict[str, Tensor], dict[str, Any]]] = {
    "gae": (gae, {"token_rewards": 17, "values": 17}, {"response": RESPONSE}, {"gamma": 0.9, "lam": 0.8}),
    "discounted_returns": (discounted_returns, {"token_rewards": 17}, {"response": RESPONSE}, {"gamma": 0.9}),
    "whiten": (whiten, {"x": 17}, {}, {}),
    "greedy_baseline": (greedy_baseline, {"rewards": 4, "greedy": 4}, {}, {}),
    "leave_one_out": (leave_one_out, {"rewards": 4}, {"prompt": PROMPT}, {}),
    "mismatch_weights": (mismatch_weights, {"old_logprobs": 17, "sampler_logprobs": 17}, {}, {"limit": 2.0}),
    "overlong_penalty": (overlong_penalty, {"lengths": 4}, {}, {"limit": 5, "buffer": 4}),
    **{
        f"group_advantages:{scale}": (group_advantages, {"rewards": 4}, {"prompt": PROMPT}, {"scale": scale})
        for scale in SCALES
    },
    **{
        f"token_weights:{reduction}": (
            token_weights,
            {"lengths": 4},
            {"response": RESPONSE},
            {"reduction": reduction, **COUNTS},
        )
        for reduction in REDUCTIONS
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtype_is_kept_and_inputs_are_left_alone(name: str):
    function, floats, integers, options = FUNCTIONS[name]
    doubles = {key: 1.0 + torch.rand(size, dtype=torch.float64) for key, size in floats.items()}
    before = {key: value.clone() for key, value in doubles.items()}
    exact = function(**doubles, **integers, **options)
    torch.testing.assert_close(doubles, before, rtol=0, atol=0)
    single = function(**{key: value.float() for key, value in doubles.items()}, **integers, **options)
    assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single, exact.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_says_what_the_caller_needs(name: str):
    function, floats, integers, options = FUNCTIONS[name]
    doc = inspect.getdoc(function) or ""
    words = " ".join(doc.split())
    assert "Returns [" in words and "Raises ValueError" in words
    for parameter in {*floats, *integers, *options}:
        assert parameter in doc, parameter


GROUPS = [[1.0, 4.0, 2.5], [0.0], [math.nan, 3.0, 7.0, 7.0], [2.0, 2.0]]


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 0], [1], [0, 2]])
@pytest.mark.parametrize("kind", ["group", "none", "leave one out"])
def test_prompts_do_not_see_each_other(kind: str, order: list[int]):
    def advantages(order: list[int]) -> dict[int, Tensor]:
        sizes = [len(GROUPS[i]) for i in order]
        rewards, prompt = (
            torch.tensor(sum((GROUPS[i] for i in order), [])),
            torch.repeat_interleave(torch.tensor(sizes)),
        )
        each = (
            leave_one_out(rewards, prompt) if kind == "leave one out" else group_advantages(rewards, prompt, scale=kind)
        )
        return dict(zip(order, each.split(sizes), strict=True))

    whole, part = advantages([0, 1, 2, 3]), advantages(order)
    for i in order:
        torch.testing.assert_close(part[i], whole[i])
