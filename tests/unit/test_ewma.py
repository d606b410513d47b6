"""PPO-EWMA's average of the policy's weights: the formula, its start, and its state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from assent.algorithms.online.ewma import EwmaPolicy
from assent.config import LoraConfig, ModelConfig
from assent.data.tree import Branch, TokenTree, collate
from assent.deferred import resolved
from assent.models.loading import load_policy
from assent.models.policy import Policy

IDS = np.arange(3, 9)
BATCH = collate([TokenTree(IDS[:2], (Branch(IDS[2:], np.ones(4, bool)),))])


@pytest.fixture
def load(tiny_model_dir: Path) -> Callable[..., Policy]:
    def policy(rank: int = 0) -> Policy:
        lora = LoraConfig(rank=rank)
        return load_policy(ModelConfig(str(tiny_model_dir), precision="fp32", lora=lora), max_length=64)

    return policy


def move(policy: Policy, seed: int) -> None:
    """Another optimiser step."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def weights(policy: Policy) -> list[torch.Tensor]:
    return [parameter.detach().double().clone() for parameter in policy.model.parameters()]


def test_the_average_is_that_of_the_formula(load) -> None:
    """sum_i decay^i theta_(t - i) / sum_i decay^i, with the start among the policies."""
    policy, twin, decay = load(), load(), 0.7
    move(twin, 99)  # whatever it was before
    average = EwmaPolicy(twin, policy, decay)
    history = [weights(policy)]
    for step in range(4):
        for mine, other in zip(twin.model.parameters(), policy.model.parameters(), strict=True):
            assert mine.data_ptr() != other.data_ptr()
        for index, mean in enumerate(weights(twin)):
            ages = [decay**age for age in range(len(history))]
            wanted = sum(a * past[index] for a, past in zip(ages, reversed(history), strict=True)) / sum(ages)
            torch.testing.assert_close(mean, wanted, atol=1e-6, rtol=0)
        move(policy, step)
        history.append(weights(policy))
        average.follow()


def test_it_begins_as_the_policy_itself(load) -> None:
    """Adapters too, which two loads draw independently."""
    policy, twin = load(rank=2), load(rank=2)
    for one in (policy, twin):
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "lora" in name:
                    parameter.normal_(std=0.3)
    with torch.no_grad():
        assert (twin(BATCH, 0.6).logprobs - policy(BATCH, 0.6).logprobs).abs().max() > 1e-3
        average = EwmaPolicy(twin, policy, 0.9)
        torch.testing.assert_close(average.logprobs(BATCH, 0.6), policy(BATCH, 0.6).logprobs)
        move(policy, 1)
        average.follow()
        assert (average.logprobs(BATCH, 0.6) - policy(BATCH, 0.6).logprobs).abs().max() > 1e-3
        assert (average.logprobs(BATCH, 0.6) - average.logprobs(BATCH, 1.0)).abs().max() > 1e-3


def test_log_probs_have_no_gradient(load) -> None:
    assert not EwmaPolicy(load(), load(), 0.9).logprobs(BATCH, 1.0).requires_grad


def test_a_loaded_state_goes_on_as_the_straight_one(load) -> None:
    policy, twin = load(), load()
    average = EwmaPolicy(twin, policy, 0.8)
    for step in range(2):
        move(policy, step)
        average.follow()
    state = resolved(average.state_dict())
    saved = {"weight": state["weight"], "model": {name: value.clone() for name, value in state["model"].items()}}
    other = load()
    resumed = EwmaPolicy(other, policy, 0.8)
    resumed.load_state_dict(saved)
    move(policy, 7)
    for each in (average, resumed):
        each.follow()
    assert resumed.weight == average.weight == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3)
    assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(twin), strict=True))
