"""The rollout engine against the model's own padded forward, and against the log-probabilities of training; with its
decoding step compiled, against itself without."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from assent.config import EngineConfig, GenerateConfig, SamplingConfig
from assent.config.settings import validate
from assent.data.tree import Branch, TokenTree, collate
from assent.errors import ConfigError, ModelError
from assent.models.attention import install
from assent.models.policy import Policy
from assent.rollout.build import engine_of
from assent.rollout.draw import uniforms
from assent.rollout.engine import Completion
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
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **options: LlamaConfig(**COMMON | options),
    "qwen3": lambda: Qwen3Config(**COMMON),
    "gemma": lambda: GemmaConfig(**COMMON),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, sliding_window=512),
    "mistral": lambda: MistralConfig(**COMMON),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
}
LENGTHS = (3, 40, 11, 1, 24)
SAMPLING = SamplingConfig(max_new_tokens=24, temperature=0.8, max_batch=4)


def build(name: str, seed: int = 0, **options: float) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name](**options)).float()


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
    out = TorchEngine(model, (0, 1), precision).generate(prompts(), 3, SAMPLING, seed=5)
    got = np.concatenate([c.logprobs for group in out for c in group])
    assert got == pytest.approx(training_logprobs(model, out, precision), abs=tolerance)


# ---------------------------------------------------------------------------------------------------- compiled


def agree(got: list[list[Completion]], want: list[list[Completion]], tolerance: float = 1e-4) -> None:
    for one, other in zip(sum(got, []), sum(want, []), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


def both(
    model: PreTrainedModel, sampling: SamplingConfig = SAMPLING, eos: tuple[int, ...] = (0, 1), n: int = 3
) -> None:
    engine = TorchEngine(model, eos, compiled=True)
    for seed in (5, 6):
        agree(
            engine.generate(prompts(), n, sampling, seed),
            TorchEngine(model, eos).generate(prompts(), n, sampling, seed),
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {}), ("llama", {"num_key_value_heads": 1}), ("qwen3", {}), ("gemma", {}), ("gpt2", {})],
)
@pytest.mark.usefixtures("traced")
def test_a_compiled_step_samples_the_same(name: str, options: dict[str, int]) -> None:
    """Also when slots fall empty, down to the last one, and are filled anew."""
    both(build(name, **options))


def test_its_kernels_sample_the_same() -> None:
    both(build("llama"))


def test_long_answers_outgrow_the_cache_and_its_first_window() -> None:
    both(build("llama"), SamplingConfig(max_new_tokens=300, max_batch=8), eos=(), n=1)


@pytest.mark.parametrize("packs", [True, False])
def test_weights_changed_between_calls_are_seen(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where weights are only cast, as on a GPU."""
    if not packs:
        monkeypatch.setattr("assent.rollout.packed_linear._can_pack", lambda *_: False)
    model = build("llama")
    engine = TorchEngine(model, (0, 1), compiled=True)
    before = engine.generate(prompts(), 2, SAMPLING, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = engine.generate(prompts(), 2, SAMPLING, 5)
    assert [c.ids.tolist() for c in sum(after, [])] != [c.ids.tolist() for c in sum(before, [])]
    agree(after, TorchEngine(model, (0, 1)).generate(prompts(), 2, SAMPLING, 5))


def test_the_first_call_is_like_every_other() -> None:
    """What a resumed run samples first is byte for byte what the straight one sampled."""
    model, sampling = build("llama"), replace(SAMPLING, max_new_tokens=40)
    used = TorchEngine(model, (0, 1), compiled=True)
    used.generate(prompts(), 3, sampling, 4)
    fresh = TorchEngine(model, (0, 1), compiled=True)
    agree(fresh.generate(prompts(), 3, sampling, 5), used.generate(prompts(), 3, sampling, 5), tolerance=0.0)


def error_of(engine: TorchEngine) -> np.ndarray:
    """Distances of the log-probs from those of transformers' own attention in fp32, for the tokens that were drawn."""
    out = engine.generate(prompts(), 8, replace(SAMPLING, temperature=1.0, max_batch=40), 5)
    model, distances = build("llama"), []
    for prompt, group in zip(prompts(), out, strict=True):
        for answer in group:
            ids = torch.from_numpy(np.concatenate([prompt, answer.ids]))
            with torch.no_grad():
                logp = torch.log_softmax(model(ids[None]).logits[0, len(prompt) - 1 : -1], -1)
            distances.append(np.abs(answer.logprobs - logp.gather(-1, ids[len(prompt) :, None])[:, 0].numpy()))
    return np.concatenate(distances)


def test_bf16_is_as_near_to_fp32_as_without() -> None:
    plain = error_of(TorchEngine(build("llama"), (), "bf16"))
    compiled = error_of(TorchEngine(build("llama"), (), "bf16", compiled=True))
    assert 1e-4 < compiled.mean() < 1.2 * plain.mean()
    assert compiled.max() < 1.5 * plain.max()


@pytest.mark.usefixtures("traced")
def test_adapters_are_sampled_with() -> None:
    model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    both(model)


@pytest.mark.usefixtures("traced")
def test_every_engine_has_a_compilation_of_its_own() -> None:
    """In turns, and of more than a compiler keeps for one function: models that differ in more than their weights."""
    sampling = replace(SAMPLING, max_new_tokens=4)
    with torch._dynamo.config.patch(recompile_limit=1):
        models = [build("llama", seed, num_hidden_layers=1, rms_norm_eps=0.3 * seed + 1e-6) for seed in range(3)]
        engines = [TorchEngine(model, (0, 1), compiled=True) for model in models]
        for seed in (5, 6):
            for model, engine in zip(models, engines, strict=True):
                want = TorchEngine(model, (0, 1)).generate(prompts(), 2, sampling, seed)
                agree(engine.generate(prompts(), 2, sampling, seed), want)


@pytest.mark.usefixtures("traced")
def test_one_compilation_serves_all_batches_and_windows() -> None:
    """Also where at first batch, window and width of a head happen to be the same number."""
    model = build("llama", head_dim=16)
    engine, plain = TorchEngine(model, (), compiled=True), TorchEngine(model, ())
    counters.clear()
    for batch, length in ((16, 2), (16, 40), (5, 130), (2, 20), (40, 3)):
        asked = [np.array([2 + number % 60]) for number in range(batch)]
        sampling = SamplingConfig(max_new_tokens=length, max_batch=batch)
        agree(engine.generate(asked, 1, sampling, 5), plain.generate(asked, 1, sampling, 5))
    assert counters["stats"]["unique_graphs"] == 1


def test_without_a_cpp_compiler_the_error_says_so(tmp_path: Path) -> None:
    engine = TorchEngine(build("llama"), (), compiled=True)
    nowhere = torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "nothing")), "force_disable_caches": True})
    message = r"--engine.compile: .*could not be compiled .*needs a C\+\+ compiler"
    with nowhere, pytest.raises(ModelError, match=message) as caught:
        engine.generate(prompts(), 1, SAMPLING, 5)
    assert "TORCH" not in str(caught.value)


def test_a_model_with_branches_by_its_data_is_refused() -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    model = build("llama")
    model.model.layers[0].mlp.act_fn = Branching()
    with pytest.raises(ModelError, match="--engine.compile: .*no branches by its data. Leave the option off"):
        TorchEngine(model, (), compiled=True).generate(prompts(), 1, SAMPLING, 5)


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--engine.compile needs a run of one process; this one has 2"):
        engine_of(None, EngineConfig(compile=True), (), SAMPLING, max_length=8, folder=tmp_path, ranks=2)
    with pytest.raises(ConfigError, match=re.escape("--engine.compile is for --engine.name torch")):
        validate(GenerateConfig("m", engine=EngineConfig("vllm", compile=True)))
