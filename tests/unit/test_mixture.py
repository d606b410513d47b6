"""Sampling from the geometric mixture of two models: the log-probs that are recorded, the distribution that is drawn
from, and both ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assent.config import LoraConfig, ModelConfig, SamplingConfig
from assent.distributed import World
from assent.errors import ModelError
from assent.models.loading import load_policy
from assent.rollout.mixture import MixtureEngine
from assent.rollout.sampler import Ask, Sampler
from assent.rollout.torch_engine import TorchEngine

VOCAB = 20
PROMPTS = [np.array([1, 2, 3]), np.array([7]), np.array([4, 5, 6, 8, 9])]
SAMPLING = SamplingConfig(max_new_tokens=5, max_batch=4, temperature=0.8)


def llama(seed: int, vocab: int = VOCAB, layers: int = 2, width: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    """By the model's own attention, [T, V] float64."""
    model.set_attn_implementation("eager")
    return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].double().numpy()


def mixed(model: LlamaForCausalLM, other: LlamaForCausalLM, weight: float, ids: np.ndarray) -> np.ndarray:
    """log p of the mixture at every position, in numpy; -inf where one of the two has no such token."""
    parts = [logits(one, ids) for one in (model, other)]
    width = max(part.shape[1] for part in parts)
    whole = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf) for part in parts]
    z = ((1 - weight) * whole[0] + weight * whole[1]) / SAMPLING.temperature
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB + 6], ids=["", "another padding"])
@pytest.mark.parametrize("weight", [0.125, 0.5, 0.9])
def test_log_probs_are_those_of_the_mixture(weight: float, vocab: int) -> None:
    """In fewer slots than answers, by models of other depths and widths."""
    model, other = llama(0), llama(1, vocab, layers=3, width=32)
    found = MixtureEngine(model, other, weight, (0,)).generate(PROMPTS, 4, SAMPLING, seed=3)
    for prompt, answers in zip(PROMPTS, found, strict=True):
        for one in answers:
            ids = np.concatenate([prompt, one.ids])
            wanted = mixed(model, other, weight, ids)[len(prompt) - 1 : -1]
            assert one.ids.max() < VOCAB
            assert one.logprobs == pytest.approx(wanted[np.arange(len(one)), one.ids], abs=2e-5)


def test_tokens_are_drawn_from_it() -> None:
    """Of 4,000 first tokens the shares are those of the mixture, and far from those of either model."""
    model, other = llama(0), llama(1)
    one = SamplingConfig(max_new_tokens=1, max_batch=4000, temperature=SAMPLING.temperature)
    (answers,) = MixtureEngine(model, other, 0.5, ()).generate(PROMPTS[:1], 4000, one, seed=0)
    shares = np.bincount([int(answer.ids[0]) for answer in answers], minlength=VOCAB) / 4000
    far = [np.abs(shares - np.exp(mixed(model, other, weight, PROMPTS[0])[-1])).sum() for weight in (0.0, 0.5, 1.0)]
    assert far[1] < 0.08 < 0.3 < min(far[0], far[2])


def test_the_ends_are_the_models_themselves() -> None:
    model, other = llama(0), llama(1)
    for weight, alone in ((0.0, model), (1.0, other)):
        wanted = TorchEngine(alone, (0,)).generate(PROMPTS, 3, SAMPLING, seed=5)
        found = MixtureEngine(model, other, weight, (0,)).generate(PROMPTS, 3, SAMPLING, seed=5)
        for a, b in zip(sum(wanted, []), sum(found, []), strict=True):
            assert a.ids.tolist() == b.ids.tolist() and a.logprobs.tolist() == b.logprobs.tolist()


def test_a_second_model_without_adapters_is_the_first_ones_start(tiny_model_dir: Path) -> None:
    config = ModelConfig(str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=2))
    policy = load_policy(config, max_length=64)
    start = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    turns: list[str] = []

    @contextmanager
    def plain() -> Iterator[None]:
        turns.append("off")
        with policy.without_adapters():
            yield

    for weight in (0.5, 1.0):
        own = MixtureEngine(policy.model, None, weight, (), plain=plain).generate(PROMPTS, 2, SAMPLING, seed=1)
        two = MixtureEngine(policy.model, start.model, weight, ()).generate(PROMPTS, 2, SAMPLING, seed=1)
        for a, b in zip(sum(own, []), sum(two, []), strict=True):
            assert a.ids.tolist() == b.ids.tolist() and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    adapted = TorchEngine(policy.model, ()).generate(PROMPTS, 2, SAMPLING, seed=1)
    assert turns and adapted[0][0].logprobs != pytest.approx(two[0][0].logprobs, abs=1e-3)


def test_what_the_second_model_cannot_hold_is_refused() -> None:
    other = llama(1)
    other.config.max_position_embeddings = 6
    with pytest.raises(ModelError, match="more than the 6 positions of LlamaForCausalLM"):
        MixtureEngine(llama(0), other, 0.5, ()).generate(PROMPTS, 1, SAMPLING, seed=0)


def test_a_sampler_asks_the_opponent_for_its_answers(tiny_model_dir: Path) -> None:
    policy = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64)
    engine, opponent = TorchEngine(policy.model, ()), MixtureEngine(llama(0, 300), llama(1, 300), 0.5, ())
    sampler = Sampler(World(0, 1, 0, torch.device("cpu")), policy, engine, SAMPLING, opponent=opponent)
    rows = np.arange(3)
    own, theirs = sampler.sample([Ask(PROMPTS, rows, 2, 7), Ask(PROMPTS, rows, 1, 7, opponent=True)])
    assert not own.demonstration.any() and theirs.demonstration.all()
    wanted = opponent.generate(PROMPTS, 1, SAMPLING, 7)
    assert theirs.ids.tolist() == np.concatenate([group[0].ids for group in wanted]).tolist()
    assert np.isfinite(theirs.sampler).all()
