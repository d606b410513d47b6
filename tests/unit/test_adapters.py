"""LoRA: what is trained is what is merged, exactly, on every architecture; anything else is refused before training."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconMambaConfig,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)

from assent.config import LoraConfig, ModelConfig
from assent.errors import ModelError
from assent.models.adapters import merged_weights
from assent.models.loading import load_policy
from assent.models.readback import own_numbers, read_back, sample_batch
from assent.models.saving import save_model

IDS = torch.arange(3, 40)[None]
SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
ARCHITECTURES = {
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SMALL, num_experts=4),
    "olmoe": lambda: OlmoeConfig(**SMALL, num_experts=4),
    "granitemoe": lambda: GraniteMoeConfig(**SMALL, num_local_experts=4),
    "gpt_oss": lambda: GptOssConfig(**SMALL, num_local_experts=4),
    "phimoe": lambda: PhimoeConfig(**SMALL, num_local_experts=4),
    "deepseek_v3": lambda: DeepseekV3Config(**{**SMALL, **LATENT}),
    "gpt2": lambda: GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1),
}


def folder_of(config, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def adapted(folder: Path, *targets: str, layout: str = "flat", shake: bool = True):
    lora = LoraConfig(rank=2, targets=targets or ("all-linear",))
    policy = load_policy(ModelConfig(str(folder), precision="fp32", layout=layout, lora=lora), max_length=32)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad and shake:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return policy


def saved(policy, tokenizer, folder: Path) -> torch.Tensor:
    """Logits of the folder by transformers, which reading back has found to be those of the policy."""
    own = own_numbers(policy, tokenizer)
    found = read_back(policy, tokenizer, folder, save_model(policy, tokenizer, folder), own)
    assert not found.beware, found.words
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def by_peft(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_linear_layers_and_experts_are_trained_and_merged(name: str, tokenizer, tmp_path: Path) -> None:
    base = folder_of(ARCHITECTURES[name](), tmp_path / "base")
    policy = adapted(base, shake=False)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=20.0)
    for _ in range(2):  # B moves first, then A
        (-policy(sample_batch(400, flat=True)).logprobs.sum()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    moved = [name for name, p in policy.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert any("attn" in name for name in moved)
    if name in ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3"):
        assert any(".experts." in name for name in moved), "fused experts have adapters"
    out = saved(policy, tokenizer, tmp_path / "out")
    torch.testing.assert_close(by_peft(base, tmp_path / "out" / "adapter"), out, atol=2e-4, rtol=0)
    assert (out - logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))).abs().max() > 1e-2


def test_embeddings_are_merged(tokenizer, tmp_path: Path) -> None:
    base = folder_of(LlamaConfig(**SMALL), tmp_path / "base")
    policy = adapted(base, "embed_tokens", "q_proj", layout="tree")
    out = saved(policy, tokenizer, tmp_path / "out")
    torch.testing.assert_close(by_peft(base, tmp_path / "out" / "adapter"), out, atol=1e-4, rtol=0)
    before, after = (
        AutoModelForCausalLM.from_pretrained(f).get_input_embeddings().weight for f in (base, tmp_path / "out")
    )
    assert (before - after).abs().max() > 1e-2


def test_one_of_two_tied_weights_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"model.embed_tokens and lm_head are one tied weight"):
        adapted(tiny_model_dir, "embed_tokens", "q_proj")


@pytest.mark.parametrize("targets", [("lm_head",), ("lm_head", "q_proj")])
def test_a_head_with_adapters_is_trained_and_merged(targets: tuple[str, ...], tokenizer, tmp_path: Path) -> None:
    base = folder_of(LlamaConfig(**SMALL), tmp_path / "base")
    policy = adapted(base, *targets)
    out = saved(policy, tokenizer, tmp_path / "out")
    torch.testing.assert_close(by_peft(base, tmp_path / "out" / "adapter"), out, atol=1e-4, rtol=0)
    before, after = (
        AutoModelForCausalLM.from_pretrained(f).get_output_embeddings().weight for f in (base, tmp_path / "out")
    )
    assert (before - after).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_prj",), r"no layer is called 'q_prj'. Perhaps you meant 'q_proj'. There are: .*down_proj, .*v_proj"),
        (("q_proj", "gate"), "no layer is called 'gate'"),
        (("q_proj", "all-linear"), "all-linear stands alone"),
        (("input_layernorm",), "peft cannot put adapters there"),
    ],
)
def test_targets_that_match_nothing_are_refused(targets: tuple[str, ...], words: str, tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=words):
        adapted(tiny_model_dir, *targets)


def test_a_mistyped_target_ends_with_one_line(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    from assent import cli

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    options = [
        "--model.lora.rank",
        "2",
        "--model.lora.targets",
        "q_prj",
        "--data.train",
        str(rows),
        "--data.max_length",
        "64",
    ]
    assert cli.main(["sft", "--model.path", str(tiny_model_dir), "--out", str(tmp_path / "run"), *options]) == 2
    assert "error: --model.lora.targets: no layer is called 'q_prj'" in capsys.readouterr().err


def test_layers_that_kernels_read_past_their_adapters_are_left_out_and_said(tokenizer, tmp_path: Path, capsys) -> None:
    config = FalconMambaConfig(
        vocab_size=400, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    policy = adapted(folder_of(config, tmp_path / "base"))
    assert "all-linear leaves out conv1d, dt_proj, out_proj" in capsys.readouterr().err
    saved(policy, tokenizer, tmp_path / "out")


def test_no_warning_is_left_to_the_user(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(adapted(tiny_model_dir), tokenizer, tmp_path)


def test_every_part_of_an_adapter_must_find_its_place(tiny_model_dir: Path) -> None:
    policy = adapted(tiny_model_dir)
    state = dict(policy.model.state_dict())
    state["base_model.model.model.norm.lora_A.default.weight"] = torch.ones(1)
    with pytest.raises(ModelError, match="this kind cannot be merged into the weights: .*model.norm.lora_A"):
        merged_weights(policy.model, state)


def test_a_failed_merge_leaves_the_adapters(tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    policy = adapted(tiny_model_dir)

    def fail(*_):
        raise KeyError("mlp.experts.weight")

    monkeypatch.setattr("assent.models.saving.merged_weights", fail)
    with pytest.raises(ModelError, match=r"could not be merged .*Nothing is lost: they are in .*adapter \(peft loads"):
        save_model(policy, tokenizer, tmp_path)
    by_peft(tiny_model_dir, tmp_path / "adapter")


def test_reading_back_finds_a_wrong_merge(tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    policy = adapted(tiny_model_dir)
    own = own_numbers(policy, tokenizer)
    own_merge = merged_weights

    def wrong(model, state):
        merged = own_merge(model, state)
        name = "model.layers.1.mlp.down_proj.weight"
        return {**merged, name: merged[name] * 1.5}

    monkeypatch.setattr("assent.models.saving.merged_weights", wrong)
    written = save_model(policy, tokenizer, tmp_path)
    with pytest.raises(ModelError, match="with the merged weights transformers differs by"):
        read_back(policy, tokenizer, tmp_path, written, own)
