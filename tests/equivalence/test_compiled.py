"""The compiled decoding step against the one that is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config
from transformers.models.gemma import GemmaConfig
from transformers.models.gpt2 import GPT2Config

from assent.config import EngineConfig, GenerateConfig, SamplingConfig
from assent.errors import ConfigError, ModelError
from assent.rollout.engine import Completion
from assent.rollout.engines import engine_of
from assent.rollout.torch_engine import TorchEngine
from assent.settings import validate

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
LENGTHS = (3, 40, 11, 1, 24)
SAMPLING = SamplingConfig(max_new_tokens=24, temperature=0.8, max_batch=4)


def build(config: PretrainedConfig | None = None, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**COMMON)).float()


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, VOCAB, length) for length in LENGTHS]


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
    "config",
    [
        LlamaConfig(**COMMON),
        Qwen3Config(**COMMON, tie_word_embeddings=True),
        GemmaConfig(**COMMON | {"num_key_value_heads": 1}),
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    ],
    ids=lambda config: config.model_type,
)
def test_it_samples_the_same(config: PretrainedConfig) -> None:
    """Also when slots fall empty, down to the last one, and are filled anew."""
    both(build(config))


def test_long_answers_outgrow_the_cache_and_its_first_window() -> None:
    both(build(), SamplingConfig(max_new_tokens=300, max_batch=8), eos=(), n=1)


@pytest.mark.parametrize("packs", [True, False])
def test_weights_changed_between_calls_are_seen(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where weights are only cast, as on a GPU."""
    if not packs:
        monkeypatch.setattr("assent.rollout.packed_linear._can_pack", lambda *_: False)
    model = build()
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
    model, sampling = build(), replace(SAMPLING, max_new_tokens=40)
    used = TorchEngine(model, (0, 1), compiled=True)
    used.generate(prompts(), 3, sampling, 4)
    fresh = TorchEngine(model, (0, 1), compiled=True)
    agree(fresh.generate(prompts(), 3, sampling, 5), used.generate(prompts(), 3, sampling, 5), tolerance=0.0)


def error_of(engine: TorchEngine) -> np.ndarray:
    """Distances of the log-probs from those of transformers' own attention in fp32, for the tokens that were drawn."""
    out = engine.generate(prompts(), 8, replace(SAMPLING, temperature=1.0, max_batch=40), 5)
    model, distances = build(), []
    for prompt, group in zip(prompts(), out, strict=True):
        for answer in group:
            ids = torch.from_numpy(np.concatenate([prompt, answer.ids]))
            with torch.no_grad():
                logp = torch.log_softmax(model(ids[None]).logits[0, len(prompt) - 1 : -1], -1)
            distances.append(np.abs(answer.logprobs - logp.gather(-1, ids[len(prompt) :, None])[:, 0].numpy()))
    return np.concatenate(distances)


def test_bf16_is_as_near_to_fp32_as_without() -> None:
    plain = error_of(TorchEngine(build(), (), "bf16"))
    compiled = error_of(TorchEngine(build(), (), "bf16", compiled=True))
    assert 1e-4 < compiled.mean() < 1.2 * plain.mean()
    assert compiled.max() < 1.5 * plain.max()


def test_adapters_are_sampled_with() -> None:
    model = get_peft_model(build(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    both(model)


def test_two_engines_in_turns_keep_to_their_own_model() -> None:
    models = [build(seed=seed) for seed in (0, 1)]
    engines = [TorchEngine(model, (0, 1), compiled=True) for model in models]
    for seed in (5, 6):
        for model, engine in zip(models, engines, strict=True):
            want = TorchEngine(model, (0, 1)).generate(prompts(), 2, SAMPLING, seed)
            agree(engine.generate(prompts(), 2, SAMPLING, seed), want)


def test_more_engines_than_a_compiler_keeps_for_one_function() -> None:
    limit = torch._dynamo.config.recompile_limit
    config = LlamaConfig(**COMMON | {"num_hidden_layers": 1, "hidden_size": 16})
    for seed in range(limit + 1):
        engine = TorchEngine(build(config, seed), (), compiled=True)
        assert len(engine.generate(prompts()[:2], 1, replace(SAMPLING, max_new_tokens=2), 5)[0][0]) == 2


def test_one_compilation_serves_all_batches_and_windows() -> None:
    """Also where at first batch, window and width of a head happen to be the same number."""
    model = build(LlamaConfig(**COMMON | {"head_dim": 16}))
    engine, plain = TorchEngine(model, (), compiled=True), TorchEngine(model, ())
    counters.clear()
    for batch, length in ((16, 2), (16, 40), (5, 130), (2, 20), (40, 3)):
        asked = [np.array([2 + number % 60]) for number in range(batch)]
        sampling = SamplingConfig(max_new_tokens=length, max_batch=batch)
        agree(engine.generate(asked, 1, sampling, 5), plain.generate(asked, 1, sampling, 5))
    assert counters["stats"]["unique_graphs"] == 1


def test_without_a_cpp_compiler_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "nothing")))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    engine = TorchEngine(build(), (), compiled=True)
    with pytest.raises(
        ModelError, match=r"--engine.compile: .*could not be compiled .*needs a C\+\+ compiler"
    ) as caught:
        engine.generate(prompts(), 1, SAMPLING, 5)
    assert "TORCH" not in str(caught.value)


def test_a_model_with_branches_by_its_data_is_refused() -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    model = build()
    model.model.layers[0].mlp.act_fn = Branching()
    with pytest.raises(ModelError, match="--engine.compile: .*no branches by its data. Leave the option off"):
        TorchEngine(model, (), compiled=True).generate(prompts(), 1, SAMPLING, 5)


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--engine.compile needs a run of one process; this one has 2"):
        engine_of(None, EngineConfig(compile=True), (), SAMPLING, max_length=8, folder=tmp_path, ranks=2)
    with pytest.raises(ConfigError, match=re.escape("--engine.compile is for --engine.name torch")):
        validate(GenerateConfig("m", engine=EngineConfig("vllm", compile=True)))
