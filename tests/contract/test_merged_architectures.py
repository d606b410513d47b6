"""Architectures whose tensors lie in other ways than Llama's: fused, by expert, turned, with buffers among them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from assent import MergeConfig, merge
from assent.models.keys import HARMLESS

spec = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
architectures = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = architectures
spec.loader.exec_module(architectures)


def read(folder: Path | str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.fixture
def three(request, tmp_path: Path) -> list[str]:
    folders = [tmp_path / str(seed) for seed in range(3)]
    for seed, folder in enumerate(folders):
        architectures.write(request.param, folder, seed)
    return [str(folder) for folder in folders]


@pytest.mark.parametrize("three", ["gpt2", "mixtral", "mamba", "gemma3_text", "deepseek_v3"], indirect=True)
def test_what_transformers_reads_is_the_mean_of_what_it_read(three: list[str], tmp_path: Path) -> None:
    merge(MergeConfig(tuple(three[1:]), "linear", str(tmp_path / "mean")))
    merge(MergeConfig(tuple(three[1:]), "slerp", str(tmp_path / "slerp"), three[0], weights=(1, 0)))
    one, two, got, end = map(read, (three[1], three[2], tmp_path / "mean", tmp_path / "slerp"))
    for name, x in got.items():
        torch.testing.assert_close(x, (one[name] + two[name]) / 2, atol=1e-6, rtol=0, msg=name)
        assert torch.equal(end[name], one[name]), name


@pytest.mark.parametrize("three", ["gpt2"], indirect=True)
def test_adapters_on_turned_weights(three: list[str], tmp_path: Path) -> None:
    """GPT-2 stores its linear layers turned (Conv1D, fan_in_fan_out)."""
    folders = []
    for i, target in enumerate((["c_attn"], ["c_attn", "wte"])):
        torch.manual_seed(i)
        config = LoraConfig(
            r=2 + i, target_modules=target, fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(three[0]), config)
        model.save_pretrained(tmp_path / f"a{i}", save_embedding_layers=False)
        folders.append(str(tmp_path / f"a{i}"))
    merge(MergeConfig((folders[0], folders[0]), "slerp", str(tmp_path / "whole"), adapters="merge"))
    merge(MergeConfig(tuple(folders), "linear", str(tmp_path / "kept"), weights=(1, 3)))

    def adapted(folder: str) -> dict[str, torch.Tensor]:
        return (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(three[0]), folder)
            .merge_and_unload()
            .state_dict()
        )

    one, two, whole, kept = (
        adapted(folders[0]),
        adapted(folders[1]),
        read(tmp_path / "whole"),
        adapted(str(tmp_path / "kept")),
    )
    for name, x in one.items():
        torch.testing.assert_close(whole[name], x, atol=1e-6, rtol=0, msg=name)
        torch.testing.assert_close(kept[name], (x + 3 * two[name]) / 4, atol=1e-5, rtol=1e-5, msg=name)
    assert (
        one["transformer.h.0.attn.c_attn.weight"] - read(three[0])["transformer.h.0.attn.c_attn.weight"]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("three", ["deepseek_v3"], indirect=True)
def test_buffers_that_training_moves_are_merged_and_others_stay(three: list[str], tmp_path: Path) -> None:
    files = [Path(folder) / "model.safetensors" for folder in three[1:]]
    name = next(name for name in load_file(files[0]) if name.endswith("e_score_correction_bias"))
    for value, file in enumerate(files, 1):
        save_file(load_file(file) | {name: torch.full_like(load_file(file)[name], value)}, file, {"format": "pt"})
    merge(MergeConfig(tuple(three[1:]), "linear", str(tmp_path / "out")))
    assert load_file(tmp_path / "out" / "model.safetensors")[name].unique().tolist() == [1.5]
    merge(MergeConfig((three[1], three[1]), "linear", str(tmp_path / "same"), normalize=False))
    assert load_file(tmp_path / "same" / "model.safetensors")[name].unique().tolist() == [1.0], (
        "no weight to be doubled"
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        Path(three[1], "config.json").read_text()
    )


def test_a_bias_of_attention_is_no_old_buffer() -> None:
    assert HARMLESS.search("transformer.h.0.attn.bias") and HARMLESS.search("attn.masked_bias")
    assert not HARMLESS.search("transformer.h.0.attn.c_attn.bias")
