"""Returns, advantages and the weights of tokens: numbers derived by hand and slow references in float64."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assent.losses import (
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

NAN = math.nan


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- per token -------------------------------------------------------------------------------------------------------


def gae_by_loop(rewards: Tensor, values: Tensor, response: Tensor, gamma: float, lam: float) -> Tensor:
    out = [0.0] * len(rewards)
    for t in reversed(range(len(rewards))):
        inside = t + 1 < len(rewards) and response[t + 1] == response[t]
        next_value, following = (values[t + 1].item(), out[t + 1]) if inside else (0.0, 0.0)
        delta = rewards[t].item() + gamma * next_value - values[t].item()
        out[t] = delta + gamma * lam * following
    return torch.tensor(out, dtype=torch.float64)


def test_gae_known_numbers():
    rewards, values, response = vector(0, 0, 1), vector(0.5, 0.6, 0.7), torch.tensor([4, 4, 4])
    torch.testing.assert_close(gae(rewards, values, response, gamma=0.9, lam=0.5), vector(0.11425, 0.165, 0.3))
    # lambda 1: all that is still to come, minus the value; lambda 0: one step
    torch.testing.assert_close(gae(rewards, values, response, gamma=1.0, lam=1.0), vector(0.5, 0.4, 0.3))
    torch.testing.assert_close(gae(rewards, values, response, gamma=1.0, lam=0.0), vector(0.1, 0.1, 0.3))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_gae_equals_a_loop(lengths: list[int], gamma: float, lam: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
    response = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    expected = gae_by_loop(rewards, values, response, gamma, lam)
    torch.testing.assert_close(gae(rewards, values, response, gamma=gamma, lam=lam), expected)
    in_float32 = gae(rewards.float(), values.float(), response, gamma=gamma, lam=lam)
    torch.testing.assert_close(in_float32, expected.float(), atol=1e-4, rtol=1e-5)


def test_gae_of_long_responses():
    lengths = torch.tensor([700, 1, 1025])
    response, total = torch.repeat_interleave(lengths), int(lengths.sum())
    rewards, values = torch.randn(2, total, dtype=torch.float64)
    expected = gae_by_loop(rewards, values, response, 1.0, 0.98)
    torch.testing.assert_close(gae(rewards, values, response, gamma=1.0, lam=0.98), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_gae_with_steps_is_n_step_returns_less_the_value(steps: int):
    """lam 1: n rewards, discounted, and the value after them where the response goes on that long."""
    draw = torch.Generator().manual_seed(5)
    rewards, values = torch.randn(2, 20, dtype=torch.float64, generator=draw)
    response = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 12, 7]))
    expected = []
    for t in range(20):
        mine = [k for k in range(t, 20) if response[k] == response[t]]
        told = sum(0.9**i * float(rewards[k]) for i, k in enumerate(mine[:steps]))
        after = 0.9**steps * float(values[mine[steps]]) if len(mine) > steps else 0.0
        expected.append(told + after - float(values[t]))
    got = gae(rewards, values, response, gamma=0.9, lam=1.0, steps=steps)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_gae_needs_a_step():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="steps of at least 1; got 0"):
        gae(one, one, torch.zeros(1, dtype=torch.int64), gamma=1.0, lam=1.0, steps=0)


def test_gae_episodes_do_not_see_each_other():
    rewards, values, response = vector(0, 0, math.nan), vector(0.5, 0.6, 0.7), torch.tensor([0, 0, 1])
    advantages = gae(rewards, values, response, gamma=1.0, lam=0.95)
    assert torch.isfinite(advantages[:2]).all() and torch.isnan(advantages[2])


def test_whiten_gives_mean_0_and_variance_1():
    x = 3.0 + 2.0 * torch.randn(50, dtype=torch.float64)
    white = whiten(x)
    torch.testing.assert_close(white.mean().item(), 0.0, atol=1e-12, rtol=0)
    torch.testing.assert_close(white.var(correction=0).item(), 1.0)
    torch.testing.assert_close(whiten(x, shift_mean=False), white + x.mean())
    assert whiten(torch.full((4,), 2.5)).tolist() == [0, 0, 0, 0]
    assert whiten(torch.full((4,), 2.5), shift_mean=False).tolist() == [2.5, 2.5, 2.5, 2.5]


def test_whiten_with_statistics_from_elsewhere():
    x = vector(1.0, 3.0)
    torch.testing.assert_close(whiten(x, mean=torch.tensor(2.0), var=torch.tensor(0.25)), vector(-2.0, 2.0))
    torch.testing.assert_close(
        whiten(x, mean=torch.tensor(2.0), var=torch.tensor(0.25), shift_mean=False), vector(0.0, 4.0)
    )
    with pytest.raises(ValueError, match="both `mean` and `var`"):
        whiten(x, mean=torch.tensor(2.0))


def test_discounted_returns_known_numbers():
    rewards, response = vector(1, 2, 3, 4, 5), torch.tensor([0, 0, 0, 4, 4])
    assert discounted_returns(rewards, response, gamma=1.0).tolist() == [6, 5, 3, 9, 5]
    assert discounted_returns(rewards, response, gamma=0.5).tolist() == [2.75, 3.5, 3, 6.5, 5]
    assert discounted_returns(rewards, response, gamma=0.0).tolist() == rewards.tolist()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=6), gamma=st.sampled_from([0.9, 1.0]), seed=st.integers(0, 1000))
def test_discounted_returns_equal_a_loop(lengths: list[int], gamma: float, seed: int):
    rewards = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    response = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    expected = []
    for part in rewards.split(lengths) if lengths else ():
        expected += [sum(gamma**k * r for k, r in enumerate(part[t:].tolist())) for t in range(len(part))]
    returns = discounted_returns(rewards, response, gamma=gamma)
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=torch.float64))


def test_reinforce_plus_plus_is_returns_whitened_over_the_step():
    """Outcome reward at the last token, KL at each, gamma 1: sum of what is to come, normalised over all tokens."""
    kl, response = vector(0.1, 0.2, 0.3, 0.4), torch.tensor([0, 0, 1, 1])
    rewards = -0.5 * kl + vector(0, 1, 0, -1)
    advantages = whiten(discounted_returns(rewards, response, gamma=1.0))
    to_come = [1 - 0.15, 1 - 0.1, -1 - 0.35, -1 - 0.2]
    mean, std = statistics.fmean(to_come), statistics.pstdev(to_come)
    torch.testing.assert_close(advantages, vector(*[(x - mean) / std for x in to_come]))


# --- per response ----------------------------------------------------------------------------------------------------


def test_group_advantages_known_numbers():
    rewards, prompt = vector(1, 2, 3, 10, 10), torch.tensor([0, 0, 0, 5, 5])
    torch.testing.assert_close(group_advantages(rewards, prompt, scale="none"), vector(-1, 0, 1, 0, 0))
    # the sample's standard deviation of 1, 2, 3 is 1, that of all five is sqrt(19.7)
    torch.testing.assert_close(
        group_advantages(rewards, prompt, scale="group"), vector(-1 / 1.0001, 0, 1 / 1.0001, 0, 0)
    )
    whole = 1 / (math.sqrt(19.7) + 0.5)
    torch.testing.assert_close(
        group_advantages(rewards, prompt, scale="batch", epsilon=0.5), vector(-whole, 0, whole, 0, 0)
    )


def test_leave_one_out_known_numbers():
    rewards, prompt = vector(1, 2, 6, 3, 5), torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(leave_one_out(rewards, prompt), vector(-3, -1.5, 4.5, -2, 2))


def test_greedy_baseline_known_numbers():
    rewards, greedy = vector(1, 4, -2), vector(3, 3, -2.5)
    torch.testing.assert_close(greedy_baseline(rewards, greedy), vector(-2, 1, 0.5))
    with pytest.raises(ValueError, match=r"greedy_baseline: .*rewards \[3\], greedy \[2\]"):
        greedy_baseline(rewards, greedy[:2])


def test_unscored_and_lone_answers_have_no_advantage_and_no_influence():
    rewards, prompt = vector(1, NAN, 3, NAN, NAN, 4, 5, NAN), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    torch.testing.assert_close(leave_one_out(rewards, prompt), vector(-2, 0, 2, 0, 0, 0, 0, 0))
    spread = {"none": 1.0, "group": statistics.stdev([1, 3]) + 1e-4, "batch": statistics.stdev([1, 3, 4, 5]) + 1e-4}
    for scale in SCALES:
        expected = vector(-1 / spread[scale], 0, 1 / spread[scale], 0, 0, 0, 0, 0)
        torch.testing.assert_close(group_advantages(rewards, prompt, scale=scale), expected)


def test_nothing_scored_gives_zeros():
    for prompt in (torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])):
        rewards = torch.full((3,), NAN)
        assert leave_one_out(rewards, prompt).tolist() == [0, 0, 0]
        for scale in SCALES:
            assert group_advantages(rewards, prompt, scale=scale).tolist() == [0, 0, 0]
    for scale in SCALES:
        assert group_advantages(torch.tensor([7.0]), torch.tensor([3]), scale=scale).tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(st.one_of(st.none(), st.integers(-8, 8)), min_size=1, max_size=6), max_size=6),
    scale=st.sampled_from(SCALES),
)
def test_advantages_of_groups_equal_a_loop(groups: list[list[int | None]], scale: str):
    every = [r for group in groups for r in group if r is not None]
    batch_std = statistics.stdev(every) if len(every) > 1 else 0.0
    against_mean, against_others = [], []
    for group in groups:
        scored = [r for r in group if r is not None]
        group_std = statistics.stdev(scored) if len(scored) > 1 else 0.0
        divisor = {"group": group_std + 0.01, "batch": batch_std + 0.01, "none": 1.0}[scale]
        for reward in group:
            known = reward is not None and len(scored) > 1
            against_mean.append((reward - statistics.fmean(scored)) / divisor if known else 0.0)
            against_others.append(reward - (sum(scored) - reward) / (len(scored) - 1) if known else 0.0)
    rewards = vector(*[NAN if r is None else float(r) for group in groups for r in group])
    prompt = 2 * torch.repeat_interleave(torch.tensor([len(group) for group in groups], dtype=torch.int64))
    torch.testing.assert_close(group_advantages(rewards, prompt, scale=scale, epsilon=0.01), vector(*against_mean))
    torch.testing.assert_close(leave_one_out(rewards, prompt), vector(*against_others))


def test_wrong_groups_are_refused():
    rewards = torch.zeros(3)
    for function in (leave_one_out, lambda r, p: group_advantages(r, p, scale="group")):
        with pytest.raises(ValueError, match=r"rewards \[3\], prompt \[2\]"):
            function(rewards, torch.zeros(2, dtype=torch.int64))
        with pytest.raises(ValueError, match="`prompt` must not decrease"):
            function(rewards, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="group, batch, none; got 'std'"):
        group_advantages(rewards, torch.zeros(3, dtype=torch.int64), scale="std")


# --- weights of tokens -----------------------------------------------------------------------------------------------


def test_token_weights_known_numbers():
    lengths, response = torch.tensor([1, 4]), torch.tensor([0, 1, 1, 1, 1])
    counts = {"num_tokens": 10, "num_responses": 3}
    torch.testing.assert_close(token_weights(lengths, response, reduction="token", **counts), torch.full((5,), 0.1))
    torch.testing.assert_close(
        token_weights(lengths, response, reduction="response", **counts), torch.tensor([1 / 3] + [1 / 12] * 4)
    )
    torch.testing.assert_close(
        token_weights(lengths, response, reduction="fixed", max_length=8, **counts), torch.full((5,), 1 / 24)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_micro_batches_add_up_to_the_step(reduction: str):
    sizes = [3, 1, 8, 2, 6]
    losses = torch.randn(sum(sizes), dtype=torch.float64).split(sizes)
    expected = {
        "token": sum(float(part.sum()) for part in losses) / 20,
        "response": statistics.fmean(float(part.mean()) for part in losses),
        "fixed": statistics.fmean(float(part.sum()) for part in losses) / 9,
    }[reduction]
    for micro_batches in ([[0, 1, 2, 3, 4]], [[0, 1], [2, 3, 4]], [[4], [2], [0, 1, 3]]):
        total = 0.0
        for members in micro_batches:
            lengths = torch.tensor([sizes[i] for i in members])
            response = torch.repeat_interleave(lengths)
            weights = token_weights(
                lengths.double(), response, reduction=reduction, num_tokens=20, num_responses=5, max_length=9
            )
            total += float((weights * torch.cat([losses[i] for i in members])).sum())
        assert total == pytest.approx(expected)


def test_wrong_weights_are_refused():
    lengths, response, counts = torch.tensor([2.0, 1.0]), torch.tensor([0, 0, 1]), {"num_tokens": 3, "num_responses": 2}
    with pytest.raises(ValueError, match="token, response, fixed; got 'mean'"):
        token_weights(lengths, response, reduction="mean", **counts)
    with pytest.raises(ValueError, match="`max_length`"):
        token_weights(lengths, response, reduction="fixed", **counts)
    with pytest.raises(ValueError, match=r"responses 0 \.\.\. 0, .* got 1"):
        token_weights(lengths[:1], response, reduction="token", **counts)
    with pytest.raises(ValueError, match="must not decrease"):
        token_weights(lengths, response.flip(0), reduction="token", **counts)
    with pytest.raises(ValueError, match=r"lengths \[2, 1\]"):
        token_weights(lengths[:, None], response, reduction="token", **counts)
