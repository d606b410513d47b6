"""Sampling: at once or while training goes on, with which weights, and which rank samples what."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assent.config import LoraConfig, ModelConfig, SamplingConfig
from assent.data.tree import Branch, TokenTree, collate
from assent.distributed import World
from assent.models.loading import load_policy
from assent.models.policy import Policy
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout
from assent.rollout.sampler import Ask, Sampler, weights_of
from assent.rollout.torch_engine import TorchEngine

SAMPLING = SamplingConfig(max_new_tokens=4, temperature=0.8)


class FakeEngine:
    """Its answers name the prompt, the weights it was sent and their number; it can be held up."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.threads: list[threading.Thread] = []
        self.go = threading.Event()
        self.go.set()
        self.broken = False

    def generate(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int = 0
    ) -> list[list[Completion]]:
        assert self.go.wait(60)
        self.threads.append(threading.current_thread())
        self.heard.append(("generate", (len(prompts), n, sampling.temperature, seed, first)))
        if self.broken:
            raise ValueError("no more answers")
        return [
            [Completion(np.array([int(prompt[0]), i]), np.zeros(2, np.float32), i == 0) for i in range(n)]
            for prompt in prompts
        ]

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        self.heard.append(("weights", sorted(state_dict)[0]))


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, rank, torch.device("cpu"))


@pytest.fixture
def policy(tiny_model_dir: Path) -> Policy:
    return load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64)


def asks() -> list[Ask]:
    prompts, rows = [np.array([number, 5]) for number in range(5)], np.arange(20, 25)
    return [Ask(prompts, rows, 2, 11), Ask(prompts[:3], rows[:3], 1, 11, temperature=0.0)]


def test_responses_come_in_the_order_of_their_prompts(policy: Policy) -> None:
    engine = FakeEngine()
    many, greedy = Sampler(world(), policy, engine, SAMPLING, owns_weights=False).sample(asks())
    assert engine.heard == [("generate", (5, 2, 0.8, 11, 0)), ("generate", (3, 1, 0.0, 11, 0))]
    assert [prompt.tolist() for prompt in many.prompts] == [[number, 5] for number in range(5)]
    assert many.rows.tolist() == [20, 21, 22, 23, 24] and greedy.rows.tolist() == [20, 21, 22]
    assert [ids.tolist() for ids in many.answers] == [[n, i] for n in range(5) for i in range(2)]
    assert [ids.tolist() for ids in greedy.answers] == [[n, 0] for n in range(3)]
    assert many.sizes.tolist() == [2] * 5 and greedy.sizes.tolist() == [1] * 3
    assert many.finished.tolist() == [True, False] * 5
    assert engine.threads == [threading.current_thread()] * 2


def test_each_rank_asks_its_share(policy: Policy) -> None:
    """Answers are seeded by the number of their prompt in the whole list, wherever they are sampled."""
    engines = [FakeEngine() for _ in range(3)]
    parts = [
        Sampler(world(rank, 3), policy, engine, SAMPLING, owns_weights=False)._generate(asks())
        for rank, engine in enumerate(engines)
    ]
    shares = [[what for _, what in engine.heard] for engine in engines]
    assert [(count, first) for count, _, _, _, first in (share[0] for share in shares)] == [(2, 0), (2, 2), (1, 4)]
    assert [(count, first) for count, _, _, _, first in (share[1] for share in shares)] == [(1, 0), (1, 1), (1, 2)]
    assert [group[0].ids[0] for part in parts for group in part[0]] == [0, 1, 2, 3, 4]


def test_an_engine_with_its_own_weights_is_sent_them_first(policy: Policy) -> None:
    engine = FakeEngine()
    sampler = Sampler(world(), policy, engine, SAMPLING, owns_weights=True)
    sampler.sample(asks())
    assert [kind for kind, _ in engine.heard] == ["weights", "generate", "generate"]
    sampler.begin(asks())
    sampler.finish()
    assert [kind for kind, _ in engine.heard[3:]] == ["weights", "generate", "generate"]


def test_what_is_begun_goes_on_beside_the_training(policy: Policy) -> None:
    engine = FakeEngine()
    sampler = Sampler(world(), policy, engine, SAMPLING, owns_weights=True)
    engine.go.clear()
    sampler.begin(asks())  # returns although no answer is there
    assert [kind for kind, _ in engine.heard] == ["weights"]
    with pytest.raises(AssertionError, match="busy"):
        sampler.sample(asks())
    with pytest.raises(AssertionError):
        sampler.begin(asks())
    engine.go.set()
    many, _ = sampler.finish()
    assert many.sizes.tolist() == [2] * 5 and threading.current_thread() not in engine.threads
    with pytest.raises(AssertionError, match="nothing was begun"):
        sampler.finish()
    assert len(sampler.sample(asks())[0].prompts) == 5


def test_an_error_beside_the_training_is_raised_where_answers_are_wanted(policy: Policy) -> None:
    engine = FakeEngine()
    sampler = Sampler(world(), policy, engine, SAMPLING, owns_weights=True)
    engine.broken = True
    sampler.begin(asks())
    with pytest.raises(ValueError, match="no more answers"):
        sampler.finish()
    engine.broken = False
    assert len(sampler.sample(asks())[0].prompts) == 5, "and it can be asked again"


def test_ahead_is_sampled_with_the_weights_from_before(policy: Policy, tiny_model_dir: Path) -> None:
    """Token by token the answers that would have been sampled at once, whatever happens to the policy meanwhile."""
    copy = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64, trainable=False)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(3.0)  # the copy is of the start
    ahead = Sampler(world(), policy, TorchEngine(copy.model, [2]), SAMPLING, owns_weights=True)
    shared = Sampler(world(), policy, TorchEngine(policy.model, [2]), SAMPLING, owns_weights=False)
    wanted = shared.sample(asks())
    ahead.begin(asks())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.neg_()
    got = ahead.finish()
    after = shared.sample(asks())

    def ids(rollouts: list[Rollout]) -> list[list[int]]:
        return [answer.tolist() for rollout in rollouts for answer in rollout.answers]

    assert ids(got) == ids(wanted) and ids(after) != ids(wanted)
    np.testing.assert_allclose(got[0].sampler, wanted[0].sampler, atol=1e-6)


def test_weights_are_those_of_a_plain_model_adapters_included(tiny_model_dir: Path) -> None:
    config = ModelConfig(str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=2))
    adapted = load_policy(config, max_length=64)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    plain = load_policy(replace(config, lora=LoraConfig()), max_length=64, trainable=False)
    ids = np.arange(3, 9)
    batch = collate([TokenTree(ids[:2], (Branch(ids[2:], np.ones(4, bool)),))])
    with torch.no_grad():
        wanted, start = adapted(batch).logprobs, plain(batch).logprobs
        TorchEngine(plain.model, [2]).update_weights(weights_of(adapted))
        torch.testing.assert_close(plain(batch).logprobs, wanted, atol=1e-5, rtol=0)
    assert (wanted - start).abs().max() > 1e-3
