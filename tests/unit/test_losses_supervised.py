"""SFT, reward-model and DPO losses: numbers derived by hand, and slow references in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.losses import bradley_terry, bradley_terry_tokens, cross_entropy, dpo

LN3 = math.log(3.0)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def softplus(x: float) -> float:
    """-log sigmoid(-x), written out."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def test_cross_entropy_is_the_negative_logprob():
    assert cross_entropy(vector(-1.5, 0.0)).tolist() == [1.5, 0.0]


def test_bradley_terry_known_numbers():
    # gap ln 3: sigmoid = 3/4
    loss = bradley_terry(vector(LN3, 0.0, 1.0), vector(0.0, LN3, 1.0))
    torch.testing.assert_close(loss, vector(math.log(4 / 3), math.log(4), math.log(2)))


def test_bradley_terry_margin_is_subtracted_from_the_gap():
    loss = bradley_terry(vector(LN3, LN3, LN3), vector(0.0, 0.0, 0.0), vector(LN3, 2 * LN3, 0.0))
    torch.testing.assert_close(loss, vector(math.log(2), math.log(4), math.log(4 / 3)))


def test_bradley_terry_raises_chosen_and_lowers_rejected():
    chosen, rejected = vector(LN3), vector(0.0)
    bradley_terry(chosen, rejected).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.25) and rejected.grad.item() == pytest.approx(0.25)


def test_token_scores_hold_the_last_score_of_the_shorter_response():
    # responses: [0, ln3], [0], [ln3], [0, 2 ln3]
    scores = vector(0.0, LN3, 0.0, LN3, 0.0, 2 * LN3)
    response = torch.tensor([0, 0, 1, 2, 3, 3])
    loss = bradley_terry_tokens(scores, response, torch.tensor([[0, 1], [2, 3]]), 4)
    torch.testing.assert_close(loss, vector(0.5 * math.log(2 * 4 / 3), 0.5 * math.log(4 / 3 * 4)))
    # the held score of response 1 faces both tokens of response 0, gaps 0 and ln 3
    (grad,) = torch.autograd.grad(loss[0], scores)
    torch.testing.assert_close(grad, torch.tensor([-0.25, -0.125, 0.375, 0, 0, 0], dtype=torch.float64))


def test_token_scores_of_one_token_are_plain_bradley_terry():
    scores, pairs, margin = vector(0.3, -0.2, 1.4), torch.tensor([[2, 0], [0, 1], [1, 2]]), vector(0.5, 0.0, 0.1)
    loss = bradley_terry_tokens(scores, torch.arange(3), pairs, 3, margin)
    torch.testing.assert_close(loss, bradley_terry(scores[pairs[:, 0]], scores[pairs[:, 1]], margin))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=6), seed=st.integers(0, 1000), with_margin=st.booleans()
)
def test_token_scores_equal_a_loop(lengths: list[int], seed: int, with_margin: bool):
    generator = torch.Generator().manual_seed(seed)
    total, count = sum(lengths), len(lengths)
    scores = torch.randn(total, generator=generator, dtype=torch.float64)
    response = torch.repeat_interleave(torch.tensor(lengths))
    pairs = torch.stack([torch.randperm(count, generator=generator)[:2] for _ in range(5)])
    margin = torch.rand(5, generator=generator, dtype=torch.float64) if with_margin else None

    by_response = [part.tolist() for part in scores.split(lengths)]
    expected = []
    for m, (c, r) in enumerate(pairs.tolist()):
        chosen, rejected = by_response[c], by_response[r]
        terms = []
        for t in range(max(len(chosen), len(rejected))):
            gap = chosen[min(t, len(chosen) - 1)] - rejected[min(t, len(rejected) - 1)]
            terms.append(softplus(-(gap - (margin[m].item() if margin is not None else 0.0))))
        expected.append(sum(terms) / len(terms))
    loss = bradley_terry_tokens(scores, response, pairs, count, margin)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_responses_outside_every_pair_do_not_matter():
    scores, response = vector(0.3, -0.2, 9.0, 1.4), torch.tensor([0, 0, 2, 3])
    loss = bradley_terry_tokens(scores, response, torch.tensor([[0, 3]]), 5)
    loss.sum().backward()
    assert scores.grad[2] == 0 and (scores.grad[[0, 1, 3]] != 0).all()


def test_a_pair_needs_tokens_and_known_responses():
    scores, response = vector(0.3, -0.2), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="no token scores for response 1"):
        bradley_terry_tokens(scores, response, torch.tensor([[0, 1]]), 3)
    with pytest.raises(ValueError, match=r"responses 0 \.\.\. 2 in pairs; got 3"):
        bradley_terry_tokens(scores, response, torch.tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match=r"responses 0 \.\.\. 2 in pairs; got -1"):
        bradley_terry_tokens(scores, response, torch.tensor([[-1, 0]]), 3)
    with pytest.raises(ValueError, match="must not decrease"):
        bradley_terry_tokens(scores, response.flip(0), torch.tensor([[0, 2]]), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dpo_is_ln_2_where_policy_and_reference_agree(dtype: torch.dtype):
    chosen, rejected = -50.0 * torch.rand(8, dtype=dtype), -50.0 * torch.rand(8, dtype=dtype)
    loss = dpo(chosen, rejected, chosen.clone(), rejected.clone(), beta=0.1)
    assert torch.equal(loss, torch.full((8,), math.log(2), dtype=dtype))


def test_dpo_known_number_and_gradients():
    # both log-ratios are +-ln 3, beta 1/2: sigmoid(ln 3) = 3/4
    inputs = [vector(-5.0 + LN3), vector(-7.0 - LN3), vector(-5.0), vector(-7.0)]
    loss = dpo(*inputs, beta=0.5)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert [x.grad.item() for x in inputs] == pytest.approx([-0.125, 0.125, 0.125, -0.125])


def test_dpo_equals_a_loop():
    parts = -30.0 * torch.rand(4, 25, dtype=torch.float64)
    expected = [softplus(-0.3 * ((pc - rc) - (pr - rr))) for pc, pr, rc, rr in parts.T.tolist()]
    torch.testing.assert_close(dpo(*parts, beta=0.3), torch.tensor(expected, dtype=torch.float64))


def test_dpo_is_bradley_terry_on_implicit_rewards():
    parts = -30.0 * torch.rand(4, 25, dtype=torch.float64)
    chosen, rejected = 0.3 * (parts[0] - parts[2]), 0.3 * (parts[1] - parts[3])
    torch.testing.assert_close(dpo(*parts, beta=0.3), bradley_terry(chosen, rejected))


def test_dpo_keeps_float32_precision_of_long_responses():
    # thousands of nats beside a few, and a small change: the order of the subtractions decides what survives
    parts = [torch.tensor([x]) for x in (-8000.1, -3.1234567, -8000.7, -3.2345678)]
    pc, pr, rc, rr = (part.item() for part in parts)
    assert dpo(*parts, beta=1.0).item() == pytest.approx(softplus(-((pc - rc) - (pr - rr))), rel=1e-6)
