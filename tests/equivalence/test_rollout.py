"""The rollout engine against the model's own padded forward, and against the log-probabilities of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from assent.config import SamplingConfig
from assent.data.tree import Branch, TokenTree, collate
from assent.models.attention import install
from assent.models.policy import Policy
from assent.rollout.engine import Completion
from assent.rollout.sampler import uniforms
from assent.rollout.torch_engine import TorchEngine

VOCAB = 70
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON),
    "gemma": lambda: GemmaConfig(**COMMON),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, sliding_window=256),
    "mistral": lambda: MistralConfig(**COMMON),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
}
LENGTHS = (3, 40, 11, 1, 24)


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]()).float()


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, VOCAB, length) for length in LENGTHS]


def padded_logprobs(model: PreTrainedModel, completions: list[list[Completion]], temperature: float) -> np.ndarray:
    """Of all sampled tokens in order, from one right-padded forward with transformers' eager attention."""
    model.set_attn_implementation("eager")
    model.eval()
    rows = [(prompt, c) for prompt, group in zip(prompts(), completions, strict=True) for c in group]
    width = max(len(prompt) + len(c) for prompt, c in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, c) in enumerate(rows):
        ids[row, : len(prompt) + len(c)] = torch.from_numpy(np.concatenate([prompt, c.ids]))
        mask[row, : len(prompt) + len(c)] = 1
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float() / temperature, -1)
    parts = []
    for row, (prompt, c) in enumerate(rows):
        where = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(c))
        parts.append(logp[row, where, torch.from_numpy(c.ids)])
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_are_the_models_own(name: str) -> None:
    model = build(name)
    sampling = SamplingConfig(max_new_tokens=24, temperature=0.8, top_k=20, max_batch=4)
    out = TorchEngine(model, (0, 1)).generate(prompts(), 3, sampling, seed=5)
    got = np.concatenate([c.logprobs for group in out for c in group])
    assert got == pytest.approx(padded_logprobs(model, out, 0.8), abs=1e-4)
    assert got.std() > 0.1


def test_token_t_of_a_response_is_drawn_with_its_own_uniform() -> None:
    model = build("llama")
    out = TorchEngine(model, (0, 1)).generate(prompts(), 3, SamplingConfig(max_new_tokens=24, max_batch=4), seed=5)
    model.eval()
    for p, (prompt, group) in enumerate(zip(prompts(), out, strict=True)):
        for i, c in enumerate(group):
            model.set_attn_implementation("eager")
            with torch.no_grad():
                logits = model(torch.from_numpy(np.concatenate([prompt, c.ids]))[None]).logits[0, len(prompt) - 1 : -1]
            cdf = torch.softmax(logits.double(), -1).cumsum(-1).numpy()
            for t, u in enumerate(uniforms(5, p, i, len(c))):
                below = cdf[t, c.ids[t] - 1] if c.ids[t] > 0 else 0.0
                assert below - 1e-4 <= u <= cdf[t, c.ids[t]] + 1e-4, (p, i, t)


def training_logprobs(model: PreTrainedModel, completions: list[list[Completion]], precision: str) -> np.ndarray:
    trees = [
        TokenTree(prompt, tuple(Branch(c.ids, np.ones(len(c), dtype=bool)) for c in group))
        for prompt, group in zip(prompts(), completions, strict=True)
    ]
    install(model)
    with torch.no_grad():
        return Policy(model, precision=precision, tree=True)(collate(trees), temperature=0.8).logprobs.numpy()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_rollout_logprobs_are_training_logprobs(precision: str, tolerance: float) -> None:
    model = build("llama")
    sampling = SamplingConfig(max_new_tokens=24, temperature=0.8, max_batch=4)
    out = TorchEngine(model, (0, 1), precision).generate(prompts(), 3, sampling, seed=5)
    got = np.concatenate([c.logprobs for group in out for c in group])
    assert got == pytest.approx(training_logprobs(model, out, precision), abs=tolerance)
