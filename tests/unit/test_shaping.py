"""Running moments against numpy, DAPO's penalty, the two rules for the weight of a KL penalty, and rates that move with
the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.losses import RunningMoments, adaptive_kl, adaptive_penalty, overlong_penalty, rescaled

BATCHES = st.lists(st.lists(st.floats(-100, 100, width=32), max_size=7), max_size=6)


@settings(max_examples=100, deadline=None)
@given(batches=BATCHES, offset=st.sampled_from([0.0, 1e6]))
def test_running_moments_are_those_of_everything_at_once(batches: list[list[float]], offset: float):
    moments, everything = RunningMoments(), []
    for batch in batches:
        moments.update(torch.tensor(batch, dtype=torch.float64) + offset)
        everything += [x + offset for x in batch]
    assert moments.count == len(everything)
    if everything:
        assert moments.mean == pytest.approx(np.mean(everything), rel=1e-12, abs=1e-9)
        assert moments.variance == pytest.approx(np.var(everything), rel=1e-9, abs=1e-7)


def test_running_moments_far_from_zero_in_float32_rewards():
    rewards = 1000.0 + torch.randn(5000, generator=torch.Generator().manual_seed(0))
    moments = RunningMoments()
    for part in rewards.split(17):
        moments.update(part)
    exact = rewards.double().numpy()
    assert moments.mean == pytest.approx(exact.mean(), rel=1e-13)
    assert moments.variance == pytest.approx(exact.var(), rel=1e-10)


def test_unscored_rewards_are_left_out_and_stay_unscored():
    moments = RunningMoments()
    moments.update(torch.tensor([math.nan, 1.0, 3.0]))
    moments.update(torch.tensor([math.nan]))
    moments.update(torch.zeros(0))
    assert (moments.count, moments.mean, moments.variance) == (2, 2.0, 1.0)
    moments.update(torch.tensor([8.0]))
    assert (moments.count, moments.mean) == (3, 4.0) and moments.variance == pytest.approx(26 / 3)
    scaled = moments.normalise(torch.tensor([4.0, math.nan, 7.0]))
    torch.testing.assert_close(scaled, torch.tensor([0.0, math.nan, 3 / math.sqrt(26 / 3)]), equal_nan=True)
    assert scaled.dtype == torch.float32


def test_normalise_without_spread_only_shifts():
    moments = RunningMoments()
    assert moments.normalise(torch.tensor([2.0])).tolist() == [2.0]
    moments.update(torch.tensor([5.0, 5.0]))
    assert moments.normalise(torch.tensor([5.0, 6.0])).tolist() == [0.0, 1.0]


def test_running_moments_resume_where_they_stopped():
    first, second = torch.randn(2, 9, dtype=torch.float64)
    whole, resumed = RunningMoments(), RunningMoments()
    whole.update(first)
    resumed.load_state_dict(whole.state_dict())
    whole.update(second)
    resumed.update(second)
    assert whole.state_dict() == resumed.state_dict()
    assert set(whole.state_dict()) == {"count", "mean", "squares"}


def test_running_moments_refuse_the_infinite_and_stay_as_they_were():
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 2.0]))
    before = moments.state_dict()
    with pytest.raises(ValueError, match="infinite"):
        moments.update(torch.tensor([3.0, math.inf]))
    with pytest.raises(ValueError, match=r"rewards \[1, 2\]"):
        moments.update(torch.tensor([[1.0, 2.0]]))
    assert moments.state_dict() == before


def test_overlong_penalty_known_numbers():
    lengths = torch.tensor([1, 80, 85, 90, 100, 120])
    penalty = overlong_penalty(lengths, limit=100, buffer=20)
    torch.testing.assert_close(penalty, torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0]))
    assert overlong_penalty(lengths.double(), limit=100, buffer=20).dtype == torch.float64
    assert overlong_penalty(lengths, limit=100, buffer=100)[1] == pytest.approx(-0.8)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_overlong_penalty_refuses_a_buffer_outside_the_limit(buffer: int):
    with pytest.raises(ValueError, match=f"1 ... 100 tokens, the limit; got {buffer}"):
        overlong_penalty(torch.tensor([1]), limit=100, buffer=buffer)
    with pytest.raises(ValueError, match=r"lengths \[1, 1\]"):
        overlong_penalty(torch.tensor([[1]]), limit=100, buffer=10)


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (600.0, 1.02), (0.0, 0.98), (7.2, 1.02), (-3.0, 0.98)]
)
def test_adaptive_kl_moves_towards_the_target(kl: float, factor: float):
    after = adaptive_kl(0.15, kl, target=6.0, horizon=10_000, responses=1000)
    assert after == pytest.approx(0.15 * factor)


def test_adaptive_kl_moves_in_proportion_to_the_responses():
    assert adaptive_kl(1.0, 60.0, target=6.0, horizon=100, responses=50) == pytest.approx(1.1)
    assert adaptive_kl(1.0, 60.0, target=6.0, horizon=200, responses=50) == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("kl", "beta"), [(0.0, 1.5), (0.0066, 1.5), (0.0067, 3.0), (0.01, 3.0), (0.015, 3.0), (0.0151, 6.0), (9.0, 6.0)]
)
def test_adaptive_penalty_halves_and_doubles(kl: float, beta: float):
    assert adaptive_penalty(3.0, kl, target=0.01) == beta


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_no_number_moves_nothing(kl: float):
    with pytest.raises(ValueError, match=f"adaptive_kl: expected a finite KL; got {kl}"):
        adaptive_kl(0.1, kl, target=6.0, horizon=100, responses=10)
    with pytest.raises(ValueError, match=f"adaptive_penalty: expected a finite KL; got {kl}"):
        adaptive_penalty(0.1, kl, target=6.0)


def test_rescaled_known_numbers():
    assert rescaled(1e-3, None, ratio=4.0) == (pytest.approx(2e-3), None)
    lr, decay = rescaled(1e-3, 0.9, ratio=0.25)
    assert lr == pytest.approx(5e-4) and decay == pytest.approx(36 / 37)  # centre of mass 9 batches, then 36
    assert rescaled(3e-4, 0.5, ratio=1.0) == (pytest.approx(3e-4), pytest.approx(0.5))


@pytest.mark.parametrize("ratio", [0.1, 3.0])
def test_rescaled_keeps_the_samples_that_an_average_reaches_back(ratio: float):
    def samples(decay: float, batch: float) -> float:
        """Mean age of what is averaged, in samples."""
        return batch * sum(age * decay**age for age in range(5000)) / sum(decay**age for age in range(5000))

    _, decay = rescaled(1.0, 0.8, ratio=ratio)
    assert samples(decay, 100 * ratio) == pytest.approx(samples(0.8, 100), rel=1e-9)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan])
def test_rescaled_refuses_what_is_no_ratio(ratio: float):
    with pytest.raises(ValueError, match=f"rescaled: expected a ratio > 0; got {ratio}"):
        rescaled(1.0, 0.9, ratio=ratio)
