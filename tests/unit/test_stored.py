"""Model folders that are not as they should be: each refused at once, by file, field and number."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assent.config import ExportConfig, ModelConfig
from assent.errors import ModelError
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer, quiet_transformers

Change = Callable[[Path], object]


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def load(folder: Path) -> Any:
    return load_policy(ModelConfig(str(folder), precision="fp32"), max_length=64)


def edit(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    found = load_file(file)
    change(found)
    save_file(found, file, metadata={"format": "pt"})


def refused(folder: Path, *words: str) -> None:
    begun = time.process_time()
    with pytest.raises(ModelError) as error:
        load(folder)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert time.process_time() - begun < 2  # whatever else runs


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads (3)"),
        ({"rms_norm_eps": "x"}, "'rms_norm_eps' expected float, got str (value: 'x')"),
        ({"rms_norm_eps": float("nan")}, "(rms_norm_eps nan, "),
        ({"rms_norm_eps": -1.0}, "(rms_norm_eps -1.0, "),
        ({"hidden_size": -32}, "hidden_size -32"),
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"num_hidden_layers": "2"}, "'num_hidden_layers' expected int"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; the folder holds 20 weights in all"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
        ({"head_dim": 0}, "head_dim 0"),
        ({"hidden_act": "nope"}, "hidden_act 'nope' is not known to this model"),
        ({"model_type": "nope"}, "model type `nope`"),
        ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}, "rope_parameters.rope_type 'nope'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_parameters.rope_theta 'x'"),
        ({"dtype": "float99"}, "dtype is 'float99', which is no dtype"),
        ({"pad_token_id": 10**9}, "pad_token_id 1000000000"),
        ({"hidden_size": 10**9, "head_dim": 8}, "(400, 1000000000) here, (400, 32) there"),
        ({"hidden_size": 64}, "has the shape (400, 32), but config.json asks for (400, 64)"),
        ({"tie_word_embeddings": False}, "it lacks lm_head.weight. Is tie_word_embeddings in its config.json right?"),
    ],
)
def test_odd_configurations(fields: dict[str, Any], words: str, folder: Path) -> None:
    edit(folder, **fields)
    refused(folder, str(folder) if "eps" not in words or "'" in words else "LlamaForCausalLM", words)


def test_odd_sizes_of_heads(folder: Path) -> None:
    """transformers 5.23 refuses an odd size itself; with 5.17 it is the weights that contradict it."""
    edit(folder, head_dim=7)
    with pytest.raises(ModelError, match=r"`head_dim`=7|the shape \(16, 32\), but config.json asks for \(14, 32\)"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not readable as JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b"\xff\x00", "not readable as JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not readable as JSON: maximum recursion depth"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_unreadable_configurations(content: bytes, words: str, name: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    refused(folder, f"{folder / name}: {words}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "generation_config.json"])
def test_pipes_are_never_opened(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, f"{folder / name} is a named pipe; expected a file")


def test_pipes_among_adapters_are_never_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    os.mkfifo(adapter / "adapter_model.safetensors")
    refused(adapter, "adapter_model.safetensors is a named pipe; expected a file")


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a named pipe; expected a model folder")


def _index(folder: Path, *shards: str) -> None:
    names = dict(zip("abcdef", shards, strict=False))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


SHARD = "model-00001-of-00002.safetensors"


def _shard(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / SHARD)


def _alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / SHARD)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((_shard,), f"two sets of weights: model.safetensors, and {SHARD}"),
        ((_shard, lambda f: _index(f, SHARD)), f"two sets of weights: model.safetensors, and {SHARD}"),
        ((lambda f: _index(f, SHARD),), f"names {SHARD}, which the folder lacks"),
        ((lambda f: (f / "config.json").write_text(" " * (1 << 26) + "{}"),), "has 67,108,866 bytes, too many"),
        ((_alone,), f"holds {SHARD} without model.safetensors.index.json"),
        ((_alone, lambda f: _index(f, SHARD, "gone")), "names gone, which the folder lacks"),
        ((_shard, _alone, lambda f: _index(f)), f"holds {SHARD}, which model.safetensors.index.json does not name"),
        ((_alone, lambda f: (f / "model.safetensors.index.json").write_text("{}")), "expected a weight_map"),
        ((lambda f: (f / "model.safetensors").write_bytes(b"x" * 99),), "not a whole safetensors file"),
        ((lambda f: os.truncate(f / "model.safetensors", 9000),), "not a whole safetensors file"),
    ],
)
def test_weights_that_are_there_twice_or_in_part(changes: tuple[Change, ...], words: str, folder: Path) -> None:
    for change in changes:
        change(folder)
    refused(folder, words)


@pytest.mark.parametrize("chosen", [None, SHARD])
def test_one_set_of_two_may_be_named(chosen: str | None, folder: Path) -> None:
    """An index of the one whole file is no second set; and config.json may say which it is."""
    _index(folder, "model.safetensors")
    if chosen is not None:
        _shard(folder)
        edit(folder, transformers_weights=chosen)
    load(folder)


UP = "model.layers.1.mlp.up_proj.weight"


def _spoil(found: dict[str, torch.Tensor]) -> None:
    found[UP][3, 7] = float("nan")
    found["model.norm.weight"][2] = float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_spoil, f"model.safetensors: {UP}[3, 7] is nan (2 such numbers in 2 of 20 tensors)"),
        (lambda x: x.update({UP: x[UP].to(torch.int8)}), f"{UP} are stored as whole numbers (I8)"),
        (lambda x: x.update({UP: x[UP].double().fill_(1e300)}), f"{UP}[0, 0] is inf"),
        (lambda x: x.update({UP: torch.zeros(0)}), f"{UP} has the shape (0,)"),
        (lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"] + 1}), "config.json ties lm_head.weight"),
        (lambda x: x.update({"model.extra.weight": torch.ones(3)}), "its weights hold model.extra.weight"),
        (lambda x: x.pop(UP), f"it lacks {UP}"),
        (lambda x: x.clear() or x.update({"wte.weight": torch.ones(3, 3)}), "it lacks "),
    ],
)
def test_weights_that_give_no_model(change: Callable[[dict], object], words: str, folder: Path) -> None:
    weights(folder, change)
    refused(folder, str(folder), words)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"].clone()}),
        lambda x: x.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        lambda x: x.update({name: value.double() for name, value in x.items()}),
        lambda x: x.update({name: value.bfloat16() for name, value in x.items()}),
    ],
)
def test_what_does_no_harm_is_loaded_without_a_word(change: Callable[[dict], object], folder: Path, capsys) -> None:
    weights(folder, change)
    quiet_transformers()  # as every command does
    load(folder)
    assert capsys.readouterr() == ("", "")


def test_every_reader_of_a_folder_is_told(folder: Path, tokenizer, tmp_path: Path) -> None:
    """Reward models, critics and `assent export` read through the same gate."""
    from assent.algorithms.export import export

    weights(folder, _spoil)
    source = ModelConfig(str(folder), precision="fp32")
    for attempt in (
        lambda: load_score_model(source, tokenizer, max_length=64),
        lambda: export(ExportConfig(str(folder), str(tmp_path / "out"))),
    ):
        with pytest.raises(ModelError, match=r"up_proj\.weight\[3, 7\] is nan"):
            attempt()
    edit(folder, num_attention_heads=3)
    for attempt in (
        lambda: load_score_model(source, tokenizer, max_length=64),
        lambda: export(ExportConfig(str(folder), str(tmp_path / "out"))),
    ):
        with pytest.raises(ModelError, match=r"config\.json: The hidden size"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_a_broken_tokenizer_is_no_traceback(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelError, match=f"cannot load the tokenizer {folder}"):
        load_tokenizer(ModelConfig(str(folder)))


# ---- adapters


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _spoil_one(found: dict[str, torch.Tensor]) -> None:
    found[min(found)][0, 1] = float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_spoil_one, r"adapter_model\.safetensors: .*layers\.0.*lora_A\.weight\[0, 1\] is inf"),
        (lambda x: [x.update({name.replace("q_proj", "wq"): x.pop(name)}) for name in list(x)], "weights"),
        (lambda x: x.pop(min(x)), "these adapters do not fit the model: weights are missing"),
        (lambda x: x.update(other=torch.ones(2)), "the model has no place for 1 of these weights: other"),
        (lambda x: x.update({min(x): torch.ones(3, 32)}), "these adapters do not fit the model: .*size mismatch"),
        (lambda x: x.clear(), "weights"),
    ],
)
def test_adapters_that_do_not_fit(change: Callable[[dict], object], words: str, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    found = load_file(file)
    change(found)
    save_file(found, file)
    with pytest.raises(ModelError, match=words):
        load(adapter)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target_modules": ["nothing"]}, "nothing"),
        ({"r": "two"}, "do not fit the model"),
        ({"r": -1}, "do not fit the model"),
        ({"peft_type": "IA3"}, "adapters of the kind IA3"),
        ({"base_model_name_or_path": None}, "does not say which model"),
    ],
)
def test_adapter_configurations_that_do_not_fit(fields: dict[str, Any], words: str, adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(ModelError, match=words):
        load(adapter)
