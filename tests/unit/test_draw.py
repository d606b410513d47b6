from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from assent.rollout.draw import _keep_top_p, sample, uniforms


def draw(logits: torch.Tensor, count: int, seed: int = 0, **options) -> np.ndarray:
    uniform = torch.from_numpy(uniforms(seed, 0, 0, count))
    return sample(logits.expand(count, -1), uniform, **options)[0].numpy()


@pytest.mark.parametrize("vocab", [3, 128, 300])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_follow_the_softmax(vocab: int, temperature: float) -> None:
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * 1.5
    counts = np.bincount(draw(logits, 20000, temperature=temperature), minlength=vocab)
    expected = torch.softmax(logits[0].double() / temperature, -1).numpy() * 20000
    big = expected > 5
    observed = np.append(counts[big], counts[~big].sum())
    wanted = np.append(expected[big], expected[~big].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_inverse_cdf_at_known_points() -> None:
    logits = torch.log(torch.tensor([0.25, 0.0, 0.5, 0.25]))
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1.0 - 2.0**-53], dtype=torch.float64)
    ids, logprobs = sample(logits.expand(6, -1), uniform)
    assert ids.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs.exp().numpy() == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.25, 0.25], abs=1e-6)


@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 1000])
def test_a_token_of_zero_probability_is_never_drawn(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(64, vocab, generator=generator) * 20
    logits[torch.rand(64, vocab, generator=generator) < 0.9] = float("-inf")
    alive = torch.randint(vocab, (64,), generator=generator)
    logits[torch.arange(64), alive] = 0.0
    for value in (0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53, 1.0):
        ids, logprobs = sample(logits, torch.full((64,), value, dtype=torch.float64))
        assert ((ids >= 0) & (ids < vocab)).all()
        assert torch.isfinite(logprobs).all()


def test_a_block_of_zero_probability_is_passed_over() -> None:
    logits = torch.full((3, 400), float("-inf"))
    logits[:, 140], logits[:, 399] = 0.0, 0.0
    ids, _ = sample(logits, torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64))
    assert ids.tolist() == [140, 399, 399]


def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0, -1.0]])
    assert set(draw(logits, 2000, top_k=3)) == {1, 2, 3}
    assert set(draw(logits, 2000, top_k=1)) == {1}
    assert set(draw(logits, 4000, top_k=7)) == set(range(7))


def test_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.2, 0.1]]))
    assert set(draw(logits, 2000, top_p=0.3)) == {1}
    assert set(draw(logits, 2000, top_p=0.55)) == {1, 2}
    assert set(draw(logits, 2000, top_p=0.75)) == {1, 2, 3}
    assert set(draw(logits, 2000, top_p=0.85)) == {0, 1, 2, 3}
    assert set(draw(logits, 2000, top_p=1e-9)) == {1}


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])  # nuclei of many and of few tokens
def test_top_p_keeps_what_a_sorted_list_says(spread: float) -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(4)) * spread
    logits = (logits * 8).round() / 8  # many equals
    for row in logits:
        p = torch.softmax(row.double(), -1).numpy()
        order = np.lexsort((np.arange(1000), -p))
        size = int(np.searchsorted(np.cumsum(p[order]), 0.9)) + 1
        kept = _keep_top_p(torch.softmax(row, -1)[None], 0.9)[0]
        assert set(torch.nonzero(kept)[:, 0].tolist()) == set(order[:size].tolist())


def test_top_p_is_taken_of_what_top_k_left() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    assert set(draw(logits, 2000, top_k=2, top_p=0.56)) == {0}  # 0.4 / 0.7 = 0.571 reaches it alone
    assert set(draw(logits, 2000, top_k=2, top_p=0.58)) == {0, 1}


def test_truncated_draws_keep_their_proportions() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    counts = np.bincount(draw(logits, 20000, top_k=3), minlength=4)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], 20000 * np.array([4, 3, 2]) / 9).pvalue > 1e-3


def test_logprobs_are_those_of_the_policy_before_truncation() -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    uniform = torch.from_numpy(uniforms(3, 0, 0, 50))
    ids, logprobs = sample(logits, uniform, temperature=0.6, top_k=5, top_p=0.8)
    want = torch.log_softmax(logits.double() / 0.6, -1).gather(-1, ids[:, None]).squeeze(-1)
    assert (logprobs - want).abs().max() < 1e-5


def test_temperature_zero_is_greedy_with_logprobs_at_one() -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    ids, logprobs = sample(logits, torch.zeros(50, dtype=torch.float64), temperature=0.0)
    assert torch.equal(ids, logits.argmax(-1))
    want = torch.log_softmax(logits.double(), -1).amax(-1)
    assert (logprobs - want).abs().max() < 1e-5


def test_half_precision_logits_are_normalised_in_single_precision() -> None:
    logits = torch.randn(20, 500, generator=torch.Generator().manual_seed(3)).bfloat16()
    ids, logprobs = sample(logits, torch.from_numpy(uniforms(0, 0, 0, 20)))
    want = torch.log_softmax(logits.double(), -1).gather(-1, ids[:, None]).squeeze(-1)
    assert (logprobs - want).abs().max() < 1e-5


def test_uniforms_depend_on_seed_prompt_and_response_alone() -> None:
    base = uniforms(5, 2, 3, 100)
    assert np.array_equal(uniforms(5, 2, 3, 40), base[:40])
    assert base.min() >= 0 and base.max() < 1
    for other in (uniforms(6, 2, 3, 100), uniforms(5, 3, 3, 100), uniforms(5, 2, 4, 100), uniforms(5, 3, 2, 100)):
        assert not np.array_equal(other, base)
    pooled = np.concatenate([uniforms(0, p, i, 50) for p in range(10) for i in range(10)])
    assert stats.kstest(pooled, "uniform").pvalue > 1e-3
