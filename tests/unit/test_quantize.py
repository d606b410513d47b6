"""QLoRA: adapters beside frozen weights in 4 or 8 bits. What is trained is what is saved, in whole numbers; and where
it cannot work it says so. Most of it needs bitsandbytes, which quantises on a CPU too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from assent import distributed
from assent.config import LoraConfig, ModelConfig
from assent.data.tree import Branch, Segment, TokenTree, TreeBatch, collate
from assent.errors import ConfigError, ModelError
from assent.models import policy as policy_module
from assent.models import quantize
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer
from assent.models.policy import Backbone
from assent.models.saving import save_model

KINDS = ("nf4", "int8")


def batch(flat: bool = False) -> TreeBatch:
    draw = np.random.default_rng(0)
    branches = tuple(Branch(draw.integers(3, 60, size), np.ones(size, bool)) for size in (4, 9))
    return collate([TokenTree(draw.integers(3, 60, 5), branches)], flat=flat)


def few_bits(folder: Path, kind: str, **options) -> ModelConfig:
    return ModelConfig(str(folder), **{"precision": "fp32", **options}, lora=LoraConfig(rank=4, quantize=kind))


def move(backbone: Backbone) -> None:
    """Changes everything that is trained."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32, name
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)


def adapters(backbone: Backbone) -> dict[str, Tensor]:
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad}


# ---- refusals, with or without bitsandbytes


def test_without_the_package(tiny_model_dir: Path, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: False)
    config = few_bits(tiny_model_dir, "nf4")
    message = r"^--model.lora.quantize nf4 needs the package bitsandbytes .*pip install 'assent\[quant\]'\.$"
    with pytest.raises(ModelError, match=message):
        load_policy(config, max_length=64)
    with pytest.raises(ModelError, match=message):
        load_score_model(config, tokenizer, max_length=64)


def test_on_a_device_that_it_does_not_support(tiny_model_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"xpu", "cuda"}))
    with pytest.raises(ModelError, match=r"quantize int8: bitsandbytes does not run on cpu. It runs on cuda, xpu\."):
        load_policy(few_bits(tiny_model_dir, "int8"), max_length=64)


def test_eight_bits_on_several_ranks(tiny_model_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cpu"}))
    monkeypatch.setattr(quantize.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(quantize.dist, "get_world_size", lambda: 2)
    with pytest.raises(ModelError, match="cannot be sharded. Got 2 ranks. Start without torchrun, or use .* nf4"):
        load_policy(few_bits(tiny_model_dir, "int8"), max_length=64)


def test_only_what_adapters_freeze_is_quantised(tiny_model_dir: Path, monkeypatch) -> None:
    """A frozen reference and a model that is trained whole are loaded as ever."""
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: False)
    load_policy(few_bits(tiny_model_dir, "nf4"), max_length=64, trainable=False)
    load_policy(ModelConfig(str(tiny_model_dir), lora=LoraConfig(quantize="nf4")), max_length=64)


def test_quantised_weights_over_ranks_need_a_torch_that_shards_integers(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "SHARDS_INTEGERS", False)
    layer = torch.nn.Linear(2, 2)
    layer.packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    world = distributed.World(rank=0, size=2, local_rank=0, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="--model.lora.quantize: torch .* over 2 ranks. Use torch 2.13 or newer"):
        distributed.shard(layer, world, blocks=[])


# ---- with bitsandbytes


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    pytest.importorskip("bitsandbytes")
    return request.param


def test_what_is_packed_and_what_is_trained(kind: str, tiny_model_dir: Path) -> None:
    policy = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    packed = quantize.quantised_layers(policy.model)
    names = {name.removesuffix(".base_layer").rpartition(".")[2] for name in packed}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(layer.weight.dtype == {"nf4": torch.uint8, "int8": torch.int8}[kind] for layer in packed.values())
    assert {p.dtype for name, p in policy.named_parameters() if "base_layer" not in name} == {torch.float32}
    assert all("lora_" in name for name in adapters(policy)) and len(adapters(policy)) == 2 * len(packed)
    assert policy.tree, "prompts are shared"
    error = (policy(batch()).logprobs - load_policy(plain(tiny_model_dir), max_length=64)(batch()).logprobs).abs()
    assert 0 < error.max() < {"nf4": 0.5, "int8": 0.05}[kind]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_four_bits_are_qloras(precision: str, tiny_model_dir: Path) -> None:
    """NormalFloat, with scales that are quantised again."""
    pytest.importorskip("bitsandbytes")
    policy = load_policy(few_bits(tiny_model_dir, "nf4", precision=precision), max_length=64)
    for layer in quantize.quantised_layers(policy.model).values():
        assert layer.quant_state.quant_type == "nf4" and layer.quant_state.nested
        assert layer.compute_dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def plain(folder: Path, **options) -> ModelConfig:
    return ModelConfig(str(folder), precision="fp32", **options)


def whole_twin(policy: Backbone, tokenizer, folder: Path) -> Backbone:
    """The same adapters beside the numbers that the packed weights stand for."""
    with torch.no_grad():
        kept = {name: p.clone() for name, p in adapters(policy).items()}
        for name, parameter in adapters(policy).items():
            if "lora_B" in name:
                parameter.zero_()
        save_model(policy, tokenizer, folder)
        twin = load_policy(plain(folder, lora=LoraConfig(rank=4)), max_length=64)
        for model in (policy, twin):
            for name, parameter in adapters(model).items():
                parameter.copy_(kept[name])
    return twin


def test_gradients_are_those_of_the_whole_weights(kind: str, tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    """Also after an evaluation, which bitsandbytes would use to repack them."""
    policy = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    move(policy)
    twin = whole_twin(policy, tokenizer, tmp_path)
    policy.eval()
    with torch.no_grad():
        policy(batch())
    policy.train()
    got, want = policy(batch()).logprobs, twin(batch()).logprobs
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    ours = torch.autograd.grad(got.sum(), list(adapters(policy).values()))
    theirs = torch.autograd.grad(want.sum(), list(adapters(twin).values()))
    assert adapters(policy).keys() == adapters(twin).keys()
    for a, b in zip(ours, theirs, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_start_is_the_model_without_adapters(kind: str, tiny_model_dir: Path) -> None:
    policy = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    start = policy(batch()).logprobs
    move(policy)
    with policy.without_adapters():
        assert torch.equal(policy(batch()).logprobs, start)
        anchor = policy.anchor(batch())
    assert policy(batch(), anchor=anchor).kl.min() > 0
    assert (policy(batch()).logprobs - start).abs().max() > 1e-2


@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_bf16(kind: str, layout: str, tiny_model_dir: Path) -> None:
    policy = load_policy(few_bits(tiny_model_dir, kind, precision="bf16", layout=layout), max_length=64)
    exact = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    rows = batch(flat=layout == "flat")
    got, want = policy(rows).logprobs, exact(batch()).logprobs
    assert got.dtype == torch.float32 and 0 < (got - want).abs().max() < 0.1
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in adapters(policy).values())


def deep_folder(tokenizer, folder: Path) -> Path:
    """A model deep enough for bf16 products to differ by some hundredths from one layout to the other."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=16, num_attention_heads=4,
        initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_rounding_is_no_leak_between_answers(kind: str, tokenizer, tmp_path: Path, monkeypatch) -> None:
    """Sharing prompts is verified with packed weights too, but not to fp32's precision."""
    config = few_bits(deep_folder(tokenizer, tmp_path), kind, precision="bf16", layout="tree")
    assert load_policy(config, max_length=64).tree

    class Leak(policy_module.TreeAttend):
        """Every answer sees those before it."""

        def __init__(self, segments: tuple[Segment, ...], tokens: int) -> None:
            joined = (Segment(s.start, s.prompt_end, ((s.prompt_end, s.end),)) for s in segments)
            super().__init__(tuple(joined), tokens)

    monkeypatch.setattr(policy_module, "TreeAttend", Leak)
    with pytest.raises(ModelError, match="sharing prompts changes its log-probs"):
        load_policy(config, max_length=64)


def test_activation_checkpointing(kind: str, tiny_model_dir: Path) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        policy = load_policy(few_bits(tiny_model_dir, kind, activation_checkpointing=recompute), max_length=64)
        move(policy)
        policy(batch()).logprobs.sum().backward()
        found.append([p.grad for p in adapters(policy).values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# ---- what is saved


def check_folder(folder: Path) -> None:
    """fp32, and nothing in it speaks of bits."""
    assert "quant" not in (folder / "config.json").read_text()
    weights = load_file(folder / "model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.float32}
    marks = ("lora_", "base_layer", "absmax", "quant", "SCB", "weight_format", "modules_to_save")
    assert not any(mark in name for mark in marks for name in weights)


def test_saved_folder_is_whole(kind: str, tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    policy = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    move(policy)
    want = policy(batch()).logprobs.detach()
    save_model(policy, tokenizer, tmp_path)
    assert torch.equal(policy(batch()).logprobs, want) and quantize.quantised_layers(policy.model), "it may go on"
    check_folder(tmp_path)
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(kept) == len(adapters(policy)) and {x.dtype for x in kept.values()} == {torch.float32}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4

    original = load_file(tiny_model_dir / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == original.keys() and all(written[n].shape == x.shape for n, x in original.items())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # it is not needed any more
    again = load_policy(plain(tmp_path), max_length=64)
    torch.testing.assert_close(again(batch()).logprobs.detach(), want, atol=2e-5, rtol=0)


def test_biases_and_transposed_weights(kind: str, tokenizer, tmp_path: Path) -> None:
    """GPT-2 keeps its weights as [in, out], square ones too; in bf16, biases are cast beside the packed weights."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for precision, tolerance in (("fp32", 2e-5), ("bf16", 0.1)):
        policy = load_policy(few_bits(tmp_path / "base", kind, precision=precision), max_length=32)
        move(policy)
        rows = batch(flat=not policy.tree)
        want = policy(rows).logprobs.detach()
        save_model(policy, tokenizer, tmp_path / precision)
        check_folder(tmp_path / precision)
        again = load_policy(plain(tmp_path / precision), max_length=32)(rows).logprobs.detach()
        torch.testing.assert_close(again, want, atol=tolerance, rtol=0)


def test_layers_without_adapters_are_whole_too(kind: str, tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    lora = LoraConfig(rank=4, targets=("q_proj",), quantize=kind)
    policy = load_policy(plain(tiny_model_dir, lora=lora), max_length=64)
    move(policy)
    want = policy(batch()).logprobs.detach()
    save_model(policy, tokenizer, tmp_path)
    check_folder(tmp_path)
    again = load_policy(plain(tmp_path), max_length=64)
    torch.testing.assert_close(again(batch()).logprobs.detach(), want, atol=2e-5, rtol=0)


def test_a_trained_reward_head_is_never_lost(kind: str, tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    """Neither by the bits, nor in the folder, nor when training goes on from there."""
    scorer = load_score_model(few_bits(tiny_model_dir, kind), tokenizer, max_length=64, seed=3)
    head = scorer.model.score.weight
    assert head.dtype == torch.float32 and head.requires_grad
    assert any(name.endswith("score.modules_to_save.default.weight") for name in adapters(scorer))
    fresh = load_score_model(plain(tiny_model_dir), tokenizer, max_length=64, seed=3).model.score.weight
    assert torch.equal(head, fresh), "the head of the seed, whatever the bits"
    move(scorer)
    rows = batch()
    want = scorer(rows, rows.last).detach()
    save_model(scorer, tokenizer, tmp_path)
    check_folder(tmp_path)
    written = load_file(tmp_path / "model.safetensors")["score.weight"]
    assert torch.equal(written, head.detach()) and not torch.equal(written, fresh)
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(torch.equal(x, written) for name, x in kept.items() if "score" in name)

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    (segment,) = rows.segments
    for index, (start, end) in enumerate(segment.branches):
        ids = torch.cat([rows.tokens[: segment.prompt_end], rows.tokens[start:end]])[None]
        assert model(input_ids=ids).logits.item() == pytest.approx(want[index].item(), abs=2e-5)
    again = load_score_model(few_bits(tmp_path, kind), tokenizer, max_length=64, new_head=False)
    assert torch.equal(again.model.score.weight.detach(), written)


def test_checkpoints_have_the_same_names_for_any_number_of_ranks(kind: str, tiny_model_dir: Path) -> None:
    """Parameters, no scales; and a checkpoint brings the adapters back."""
    policy = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    move(policy)
    want = policy(batch()).logprobs
    state = {name: x.clone() for name, x in distributed.full_state_dict(policy).items()}
    assert state.keys() == {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    again = load_policy(few_bits(tiny_model_dir, kind), max_length=64)
    distributed.load_full_state_dict(again, state)
    assert torch.equal(again(batch()).logprobs, want)


# ---- over ranks


def sharded_run(base: Path, out: Path) -> None:
    """Two gradient steps and a saved model, in one process or several; every rank has the same batch."""
    world = distributed.init(threads=1)
    torch.manual_seed(0)
    policy = load_policy(few_bits(base, "nf4"), max_length=64, device=world.device)
    move(policy)
    distributed.shard(policy, world, blocks=policy.blocks)
    for _ in range(2):
        (policy(batch()).logprobs.sum() / world.size).backward()
        with torch.no_grad():
            for parameter in adapters(policy).values():
                parameter.sub_(1e-3 * parameter.grad)
                parameter.grad = None
    state = {key.removeprefix("model."): x for key, x in distributed.full_state_dict(policy).items()}
    distributed.on_main(lambda: save_model(policy, load_tokenizer(plain(base)), out, state))


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(program_ranks, tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if not distributed.SHARDS_INTEGERS:
        pytest.skip("this torch shards no integers")
    program_ranks(tmp_path, [__file__, str(tiny_model_dir), str(tmp_path / "two")]).join()
    sharded_run(tiny_model_dir, tmp_path / "one")
    got, want = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert got.keys() == want.keys()
    check_folder(tmp_path / "two")
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":
    sharded_run(Path(sys.argv[1]), Path(sys.argv[2]))
