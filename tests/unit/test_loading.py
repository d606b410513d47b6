"""Models in and out: what is loaded is what will be trained, what is saved is what transformers loads, and anything
else is refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from assent.config import LoraConfig, ModelConfig
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.models import loading
from assent.models.head import Transform, measure
from assent.models.heads import load_score_model
from assent.models.loading import (
    load_policy,
    load_tokenizer,
    resolve_precision,
)
from assent.models.saving import save_model
from assent.models.sources import model_folder


def batch() -> TreeBatch:
    draw = np.random.default_rng(0)
    branches = tuple(Branch(draw.integers(3, 60, size), np.ones(size, bool)) for size in (4, 9))
    return collate([TokenTree(draw.integers(3, 60, 5), branches)])


def logits(folder: Path | str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def fp32(folder: Path | str, **options) -> ModelConfig:
    return ModelConfig(str(folder), precision="fp32", **options)


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def edit(file: Path, **values) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values}))


# ---- what is loaded


def test_master_weights_are_fp32_whatever_the_folder_has(tiny_model_dir: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(str(tmp_path), precision="bf16"), max_length=64)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert policy.dtype == torch.bfloat16
    scores = policy(batch())
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    exact = load_policy(fp32(tmp_path), max_length=64)(batch())
    assert 0 < (scores.logprobs - exact.logprobs).abs().max() < 0.1


def test_dropout_is_off(tmp_path: Path) -> None:
    """The same numbers twice, in training mode, of models that come with dropout."""
    torch.manual_seed(0)
    gpt2 = GPT2Config(
        vocab_size=70, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        attention_dropout=0.5,
    )  # fmt: skip
    for name, config in (("gpt2", gpt2), ("llama", llama)):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        for layout in ("tree", "flat"):
            policy = load_policy(fp32(tmp_path / name, layout=layout), max_length=32)
            assert policy.model.training
            rows = batch() if layout == "tree" else collate(flat_trees(), flat=True)
            assert torch.equal(policy(rows).logprobs, policy(rows).logprobs)


def flat_trees() -> list[TokenTree]:
    draw = np.random.default_rng(0)
    return [TokenTree(draw.integers(3, 60, 5), (Branch(draw.integers(3, 60, 7), np.ones(7, bool)),))]


def test_frozen_models_have_no_gradients(tiny_model_dir: Path) -> None:
    policy = load_policy(fp32(tiny_model_dir, activation_checkpointing=True), max_length=64, trainable=False)
    assert not any(p.requires_grad for p in policy.parameters()) and not policy.model.training
    assert not policy(batch()).logprobs.requires_grad


def test_lora_trains_adapters_only(tiny_model_dir: Path) -> None:
    policy = load_policy(fp32(tiny_model_dir, lora=LoraConfig(rank=3, alpha=6)), max_length=64)
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    some = load_policy(fp32(tiny_model_dir, lora=LoraConfig(rank=3, targets=("q_proj", "v_proj"))), max_length=64)
    assert {n.split(".lora_")[0].rpartition(".")[2] for n, p in some.named_parameters() if p.requires_grad} == {
        "q_proj",
        "v_proj",
    }
    start = load_policy(fp32(tiny_model_dir), max_length=64)
    assert torch.equal(policy(batch()).logprobs, start(batch()).logprobs), "adapters begin at nothing"


def tiny(auto, config) -> torch.nn.Module:
    torch.manual_seed(0)
    return auto.from_config(config).eval()


def test_what_follows_the_head_is_measured() -> None:
    """Of architectures that scale or cap their logits, under whatever name."""
    from transformers import AutoConfig

    sizes = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}  # fmt: skip
    for kind, options, want in (
        ("llama", {}, Transform()),
        ("cohere", {"logit_scale": 0.25}, Transform(0.25)),
        ("granite", {"logits_scaling": 3.0}, Transform(1 / 3)),
        ("hyperclovax", {"logits_scaling": 0.125}, Transform(0.125)),
        ("gemma2", {"final_logit_softcapping": 30.0}, Transform(1.0, 30.0)),
        ("gemma2", {"final_logit_softcapping": 7.25}, Transform(1.0, 7.25)),
        ("recurrent_gemma", {"logits_soft_cap": 20.0, "lru_width": 32}, Transform(1.0, 20.0)),
    ):
        config = AutoConfig.for_model(kind, **sizes, **options)
        found = measure(tiny(AutoModelForCausalLM, config))
        assert found is not None and found.scale == pytest.approx(want.scale, rel=1e-6), kind
        assert found.softcap == (want.softcap and pytest.approx(want.softcap, rel=1e-5)), kind


SMALL = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("name", ["cohere", "granite", "gemma2"])
def test_scaled_and_capped_logits_are_the_models_own(name: str, tmp_path: Path) -> None:
    from transformers import CohereConfig, Gemma2Config, GraniteConfig

    config = {
        "cohere": lambda: CohereConfig(**SMALL, logit_scale=0.3),
        "granite": lambda: GraniteConfig(**SMALL, logits_scaling=3.0),
        "gemma2": lambda: Gemma2Config(**SMALL, final_logit_softcapping=2.0),
    }[name]()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = load_policy(fp32(tmp_path), max_length=32)
    (tree,) = flat_trees()
    got = policy(collate([tree], flat=not policy.tree)).logprobs
    ids = torch.from_numpy(np.concatenate([tree.prompt, tree.branches[0].ids]))[None]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    want = model(input_ids=ids).logits.log_softmax(-1)[0, 4:-1].gather(1, ids[0, 5:, None]).squeeze(1)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("asked", "native", "want"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32"), ("bf16", False, "bf16")],
)
def test_precision(asked: str, native: bool, want: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_precision(asked, "cpu") == want


# ---- what is saved


def test_saved_folder_is_the_same_model(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    policy = load_policy(fp32(tiny_model_dir), max_length=64)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    save_model(policy, tokenizer, tmp_path / "model")
    again = load_policy(fp32(tmp_path / "model"), max_length=64)
    assert torch.equal(again(batch()).logprobs, policy(batch()).logprobs)
    assert (logits(tmp_path / "model") - logits(tiny_model_dir)).abs().max() > 1e-3
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.chat_template == tokenizer.chat_template and loaded.eos_token == tokenizer.eos_token
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "assent" not in json.dumps(config)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_lora_folder_merges_and_keeps_the_adapter(tied: bool, tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    from peft import PeftModel

    base = copy(tiny_model_dir, tmp_path / "base")
    if not tied:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
        model.save_pretrained(base)
    policy = load_policy(fp32(base, lora=LoraConfig(rank=4)), max_length=64)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    want = policy(batch()).logprobs.detach()
    save_model(policy, tokenizer, tmp_path / "model")
    torch.testing.assert_close(policy(batch()).logprobs.detach(), want, atol=1e-5, rtol=0)  # it may go on

    merged = load_policy(fp32(tmp_path / "model"), max_length=64)
    torch.testing.assert_close(merged(batch()).logprobs.detach(), want, atol=1e-5, rtol=0)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "model" / "adapter").eval()
    with torch.no_grad():
        ids = torch.arange(3, 40)[None]
        torch.testing.assert_close(adapted(input_ids=ids).logits, logits(tmp_path / "model"), atol=1e-5, rtol=0)
    assert (logits(tmp_path / "model") - logits(base)).abs().max() > 0.1


def test_a_run_folder_stands_for_its_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy(tiny_model_dir, tmp_path / "run" / "model")
    assert model_folder(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    assert model_folder(str(tiny_model_dir)) == str(tiny_model_dir)
    assert model_folder("owner/name") == "owner/name"
    assert load_tokenizer(fp32(tmp_path / "run")).eos_token == "<|im_end|>"


# ---- refusals


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config.json \(nor model/config.json"):
        load_policy(fp32(tmp_path), max_length=64)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none/there: there is no such folder"):
        load_policy(fp32(tmp_path / "none" / "there"), max_length=64)


def test_weights_that_do_not_fit_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    lacking = copy(tiny_model_dir, tmp_path / "lacking")
    edit(lacking / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"it lacks model.layers.2"):
        load_policy(fp32(lacking), max_length=64)
    wrong = copy(tiny_model_dir, tmp_path / "wrong")
    edit(wrong / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match=r"has the shape \(32, 96\), but config.json asks for \(32, 64\) and 5 more"):
        load_policy(fp32(wrong), max_length=64)
    cut = copy(tiny_model_dir, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut/model\.safetensors: not a whole safetensors file"):
        load_policy(fp32(cut), max_length=64)


def test_pickled_weights_are_never_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model_dir, tmp_path / "pickled")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        load_policy(fp32(folder), max_length=64)


def test_code_of_a_model_does_not_run_unasked(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model_dir, tmp_path / "code")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').write('ran')\n")
    edit(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    with pytest.raises(ModelError):
        load_policy(fp32(folder), max_length=64)
    assert not (tmp_path / "canary").exists()


def test_a_limit_beyond_the_models_positions_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match="reads at most 512 tokens. Got --data.max_length 513"):
        load_policy(fp32(tiny_model_dir), max_length=513)
    load_policy(fp32(tiny_model_dir), max_length=512)


def test_tokenizers_that_cannot_teach_an_end_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model_dir, tmp_path / "endless")
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="its tokenizer has no EOS token"):
        load_tokenizer(fp32(folder))
    bare = copy(tiny_model_dir, tmp_path / "bare")
    edit(bare / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(fp32(bare))
    assert tokenizer.pad_token == tokenizer.eos_token


def test_every_model_is_checked_in_the_mode_that_trains(tiny_model_dir: Path, tokenizer, monkeypatch) -> None:
    seen: list[tuple[str, bool]] = []

    def choose(backbone, sample, path, layout, length) -> None:
        seen.append((layout, backbone.model.training))

    monkeypatch.setattr(loading, "choose_layout", choose)
    load_policy(fp32(tiny_model_dir), max_length=64)
    load_score_model(fp32(tiny_model_dir), tokenizer, max_length=64)
    load_policy(fp32(tiny_model_dir, layout="flat"), max_length=64, trainable=False)
    assert seen == [("auto", True), ("auto", True), ("flat", False)]
