"""Policy losses: numbers derived by hand, slow references in float64, and what theory says of their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from assent.losses import cispo, cpi, gspo, mismatch_weights, ppo_clip, ppo_penalty, ratio_diagnostics, reinforce

LN2 = math.log(2.0)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_ppo_takes_the_worse_of_plain_and_clipped():
    # ratios 2, 2, 1/2, 1/2 with advantages +1, -1, +1, -1
    logprobs, old, advantages = vector(LN2, LN2, -LN2, -LN2), vector(0, 0, 0, 0), vector(1, -1, 1, -1)
    loss = ppo_clip(logprobs, old, advantages, clip=0.2)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(-1.2, 2.0, -0.5, 0.8))
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 2.0, -0.5, 0.0], dtype=torch.float64))


def test_ppo_on_policy_is_the_policy_gradient():
    logprobs, advantages = vector(-1.0, -2.0, -0.1), vector(0.7, -1.3, 0.0)
    loss = ppo_clip(logprobs, logprobs.detach().clone(), advantages, clip=0.2)
    loss.sum().backward()
    assert torch.equal(loss, -advantages) and torch.equal(logprobs.grad, -advantages)


def clipped_by_hand(
    log_ratio: float, advantage: float, clip: float, clip_high: float | None = None, dual_clip: float | None = None
) -> tuple[float, float]:
    """The loss, and its derivative by the log ratio."""
    ratio, high = math.exp(log_ratio), clip if clip_high is None else clip_high
    if advantage >= 0:
        return (-ratio * advantage,) * 2 if ratio <= 1 + high else (-(1 + high) * advantage, 0.0)
    if dual_clip is not None and ratio > dual_clip:
        return -dual_clip * advantage, 0.0
    return (-ratio * advantage,) * 2 if ratio >= 1 - clip else (-(1 - clip) * advantage, 0.0)


CLIPS = [{"clip": 0.3}, {"clip": 0.2, "clip_high": 0.5}, {"clip": 0.4, "clip_high": 0.1, "dual_clip": 2.5}]


@pytest.mark.parametrize("clips", CLIPS)
def test_ppo_equals_a_loop(clips: dict[str, float]):
    logprobs, old, advantages = torch.randn(3, 200, dtype=torch.float64)
    rows = zip((logprobs - old).tolist(), advantages.tolist(), strict=True)
    expected = [clipped_by_hand(log_ratio, advantage, **clips) for log_ratio, advantage in rows]
    logprobs.requires_grad_()
    loss = ppo_clip(logprobs, old, advantages, **clips)
    loss.sum().backward()
    torch.testing.assert_close(torch.stack([loss, logprobs.grad], dim=1), torch.tensor(expected, dtype=torch.float64))


def test_ppo_clip_higher_gives_good_tokens_more_room_and_bad_ones_no_less():
    # ratios 1.25, 1.5 for good tokens, 0.9, 0.75 for bad ones
    logprobs, advantages = vector(*map(math.log, (1.25, 1.5, 0.9, 0.75))), vector(1, 1, -1, -1)
    loss = ppo_clip(logprobs, torch.zeros(4), advantages, clip=0.2, clip_high=0.28)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(-1.25, -1.28, 0.9, 0.8))
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.25, 0.0, 0.9, 0.0], dtype=torch.float64))


def test_ppo_dual_clip_bounds_the_loss_of_bad_tokens_only():
    logprobs, advantages = vector(*map(math.log, (2.0, 5.0, 5.0))), vector(-2, -2, 2)
    loss = ppo_clip(logprobs, torch.zeros(3), advantages, clip=0.2, dual_clip=3.0)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(4.0, 6.0, -2.4))
    torch.testing.assert_close(logprobs.grad, torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))


def test_ppo_far_too_likely_bad_token_is_still_pushed_down():
    logprobs = vector(0.0, 0.0)
    loss = ppo_clip(logprobs, vector(-19.0, -50.0), vector(-1.0, -1.0), clip=0.2)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(math.exp(19.0), 31 * math.exp(20.0)))
    torch.testing.assert_close(logprobs.grad, torch.tensor([math.exp(19.0), math.exp(20.0)], dtype=torch.float64))


def test_ratio_diagnostics_known_numbers():
    logprobs = vector(LN2, LN2, -LN2, -LN2, 0.0)
    ratio, clipped, approx_kl = ratio_diagnostics(logprobs, vector(0, 0, 0, 0, 0), vector(1, -1, 1, -1, 1), clip=0.2)
    torch.testing.assert_close(ratio, vector(2, 2, 0.5, 0.5, 1).detach())
    assert clipped.tolist() == [1, 0, 0, 1, 0]
    torch.testing.assert_close(approx_kl, vector(1 - LN2, 1 - LN2, LN2 - 0.5, LN2 - 0.5, 0).detach())
    assert not ratio.requires_grad and not approx_kl.requires_grad


def test_ratio_diagnostics_at_the_edges():
    # far beyond the dual clip: bad, of no account, and so far that exp would overflow
    logprobs, advantages = vector(*map(math.log, (5.0, 5.0)), 5e3), vector(-1, 0, -1)
    ratio, clipped, _ = ratio_diagnostics(logprobs, torch.zeros(3), advantages, clip=0.2, dual_clip=3.0)
    assert clipped.tolist() == [1, 0, 1] and torch.isfinite(ratio).all()


@pytest.mark.parametrize("clips", CLIPS)
def test_clipped_marks_exactly_the_tokens_without_gradient(clips: dict[str, float]):
    logprobs, old, advantages = torch.randn(3, 200, dtype=torch.float64)
    logprobs.requires_grad_()
    ppo_clip(logprobs, old, advantages, **clips).sum().backward()
    clipped = ratio_diagnostics(logprobs, old, advantages, **clips).clipped
    assert torch.equal(clipped == 1, logprobs.grad == 0) and 0 < clipped.mean() < 1


def test_clipped_responses_of_gspo_are_those_without_gradient():
    logprobs, old = torch.randn(2, 200, dtype=torch.float64)
    response, each = torch.arange(200) // 4, torch.randn(50, dtype=torch.float64)
    logprobs.requires_grad_()
    gspo(logprobs, old, each[response], response, clip=0.1, clip_high=0.3).sum().backward()
    ratio, clipped, approx_kl = ratio_diagnostics(logprobs, old, each[response], response, clip=0.1, clip_high=0.3)
    assert torch.equal(clipped == 1, logprobs.grad == 0) and 0 < clipped.mean() < 1
    torch.testing.assert_close(ratio[::4], (logprobs - old).reshape(50, 4).mean(1).exp().detach())
    torch.testing.assert_close(approx_kl, ratio_diagnostics(logprobs, old, old, clip=0.2).approx_kl)


def test_approx_kl_is_the_kl_from_the_old_policy():
    old, new = torch.randn(2, 7, dtype=torch.float64).log_softmax(-1)
    approx_kl = ratio_diagnostics(new, old, torch.ones_like(new), clip=0.2).approx_kl
    torch.testing.assert_close((old.exp() * approx_kl).sum(), (old.exp() * (old - new)).sum())


def test_reinforce_and_cpi_known_numbers():
    logprobs, old, advantages = vector(-1.0, -2.0), vector(-1.0 - LN2, -2.0 + LN2), vector(3.0, -4.0)
    loss = reinforce(logprobs, advantages)
    torch.testing.assert_close(loss, vector(3.0, -8.0))
    assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == [-3.0, 4.0]
    loss = cpi(logprobs, old, advantages)  # ratios 2 and 1/2
    torch.testing.assert_close(loss, vector(-6.0, 2.0))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logprobs)[0], vector(-6.0, 2.0).detach())


def test_ppo_penalty_known_numbers():
    # ratios 2 and 1/2
    logprobs, old, advantages = vector(-1.0, -2.0), vector(-1.0 - LN2, -2.0 + LN2), vector(3.0, -4.0)
    loss = ppo_penalty(logprobs, old, advantages, penalty=10.0)
    torch.testing.assert_close(loss, vector(-6.0 + 10 * (1 - LN2), 2.0 + 10 * (LN2 - 0.5)))
    slopes = torch.autograd.grad(loss.sum(), logprobs)[0]
    torch.testing.assert_close(slopes, vector(-6.0 + 10.0, 2.0 - 5.0).detach())
    assert torch.equal(ppo_penalty(logprobs, old, advantages, penalty=0.0), cpi(logprobs, old, advantages))


def test_ppo_penalty_is_the_kl_from_the_old_policy_in_value_and_gradient():
    """Over a whole vocabulary, weighted by the probability that a token was sampled with."""
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    policy, old = logits.log_softmax(-1), torch.randn(9, dtype=torch.float64).log_softmax(-1)
    exact = 0.7 * (old.exp() * (old - policy)).sum()
    estimate = (old.exp() * ppo_penalty(policy, old, torch.zeros(9, dtype=torch.float64), penalty=0.7)).sum()
    torch.testing.assert_close(estimate, exact)
    wanted = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(estimate, logits)[0], wanted)


def test_gradients_over_a_whole_vocabulary_are_those_of_the_expected_reward():
    """Every token weighted by the probability that it was sampled with: REINFORCE on policy, the others off policy."""
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    policy, rewards = logits.log_softmax(-1), torch.randn(9, dtype=torch.float64)
    old = (logits.detach() + 0.5 * torch.randn(9, dtype=torch.float64)).log_softmax(-1)
    exact = torch.autograd.grad(-(policy.exp() * rewards).sum(), logits, retain_graph=True)[0]
    sampled_now = policy.detach().exp()
    for weight, loss in (
        (sampled_now, reinforce(policy, rewards)),
        (sampled_now, cpi(policy, policy.detach(), rewards)),
        (old.exp(), cpi(policy, old, rewards)),
        (old.exp(), cispo(policy, old, rewards, clip_high=1e6)),
        (old.exp(), mismatch_weights(policy, old, limit=1e6) * reinforce(policy, rewards)),
    ):
        torch.testing.assert_close(torch.autograd.grad((weight * loss).sum(), logits, retain_graph=True)[0], exact)


def test_gspo_known_numbers():
    # mean log ratios LN2 and -LN2: the first good response is clipped, the second pushed up
    logprobs, old = vector(3 * LN2, -LN2, LN2, -LN2), vector(0, 0, 0, 0)
    advantages, response = vector(1, 1, 1, 1), torch.tensor([3, 3, 3, 8])
    loss = gspo(logprobs, old, advantages, response, clip=0.2, clip_high=0.4)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(-1.4, -1.4, -1.4, -0.5))
    torch.testing.assert_close(logprobs.grad, torch.tensor([0, 0, 0, -0.5], dtype=torch.float64))
    loss = gspo(logprobs, old, -advantages, response, clip=0.2)
    torch.testing.assert_close(loss, vector(2.0, 2.0, 2.0, 0.8))
    # each of three losses moves by 2 / 3 with each of the three log-probs
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logprobs)[0], vector(2.0, 2.0, 2.0, 0.0).detach())


def test_gspo_equals_a_loop():
    lengths = [1, 7, 3, 12, 2, 30]
    response = torch.repeat_interleave(torch.tensor(lengths))
    logprobs, old, advantages = torch.randn(3, sum(lengths), dtype=torch.float64)
    losses, slopes = [], []
    for i, length in enumerate(lengths):
        here = (response == i).nonzero().flatten().tolist()
        mean = sum(logprobs[t].item() - old[t].item() for t in here) / length
        parts = [clipped_by_hand(mean, advantages[t].item(), 0.1, 0.2) for t in here]
        losses += [loss for loss, _ in parts]
        slopes += [sum(slope for _, slope in parts) / length] * length
    logprobs.requires_grad_()
    loss = gspo(logprobs, old, advantages, response, clip=0.1, clip_high=0.2)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(logprobs.grad, torch.tensor(slopes, dtype=torch.float64))


def test_gspo_of_single_tokens_is_ppo():
    logprobs, old, advantages = torch.randn(3, 50, dtype=torch.float64)
    torch.testing.assert_close(
        gspo(logprobs, old, advantages, torch.arange(50), clip=0.2), ppo_clip(logprobs, old, advantages, clip=0.2)
    )


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    # ratios 4, 4, 1/2; the bound is 3
    logprobs, old, advantages = vector(-1.0, -2.0, -3.0), vector(-1 - 2 * LN2, -2 - 2 * LN2, -3 + LN2), vector(1, -1, 2)
    loss = cispo(logprobs, old, advantages, clip_high=2.0)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(3.0, -6.0, 3.0))
    torch.testing.assert_close(logprobs.grad, torch.tensor([-3.0, 3.0, -1.0], dtype=torch.float64))
    assert old.grad is None


def test_mismatch_weights_are_truncated_constants():
    old, sampler = vector(LN2, -LN2, 0.0, 9e3), vector(0.0, 0.0, 0.0, -9e3)
    weights = mismatch_weights(old, sampler, limit=1.5)
    torch.testing.assert_close(weights, vector(1.5, 0.5, 1.0, 1.5).detach())
    assert not weights.requires_grad
    with pytest.raises(ValueError, match=r"old_logprobs \[3\], sampler_logprobs \[4\]"):
        mismatch_weights(old[:3], sampler, limit=2.0)


def test_tokens_of_a_response_must_stand_together():
    x, mixed = torch.zeros(3), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="gspo: `response` must not decrease"):
        gspo(x, x, x, mixed, clip=0.2)
    with pytest.raises(ValueError, match="ratio_diagnostics: `response` must not decrease"):
        ratio_diagnostics(x, x, x, mixed, clip=0.2)
