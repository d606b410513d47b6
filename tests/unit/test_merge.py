"""`assent merge`: what it writes, of whole models, adapters and reward models, and what it refuses before it writes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from assent import MergeConfig, cli, merge
from assent.config import MERGES
from assent.errors import ConfigError, ModelError, OutputError, RunFolderError
from assent.models import merged, shards

WEIGHT = "model.layers.1.mlp.up_proj.weight"


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change(folder: Path, target: Path, alter: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Path:
    """A copy of a folder with other weights."""
    shutil.copytree(folder, target)
    found = {name: alter(name, x) for name, x in stored(folder).items()}
    save_file({name: x for name, x in found.items() if x is not None}, target / "model.safetensors", {"format": "pt"})
    return target


def noisy(folder: Path, target: Path, seed: int, size: float = 0.02) -> Path:
    draw = torch.Generator().manual_seed(seed)
    return change(folder, target, lambda _, x: x + size * torch.randn(x.shape, generator=draw))


@pytest.fixture(scope="module")
def family(tiny_model_dir: Path, tmp_path_factory) -> dict[str, str]:
    """A base and three models that began from it."""
    root = tmp_path_factory.mktemp("family")
    return {
        "base": str(tiny_model_dir),
        **{name: str(noisy(tiny_model_dir, root / name, i)) for i, name in enumerate("abc")},
    }


@pytest.fixture
def run(family: dict[str, str], tmp_path: Path):
    """`run("a b", "slerp", base="base", ...)`: the stored weights of the merge."""

    def merged_weights(models: str, method: str, base: str | None = None, out: str = "out", **options) -> dict:
        paths = tuple(family.get(name, name) for name in models.split())
        shutil.rmtree(tmp_path / out, ignore_errors=True)
        merge(MergeConfig(paths, method, str(tmp_path / out), family.get(base or "", base), **options))
        return stored(tmp_path / out)

    return merged_weights


def float64(path: str) -> dict[str, np.ndarray]:
    return {name: x.double().numpy() for name, x in stored(Path(path)).items()}


def bits(folder: str, name: str = "model.safetensors") -> bytes:
    return (Path(folder) / name).read_bytes()


def close(got: dict, want: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name].numpy(), want[name], atol=atol, err_msg=name)


# ---- whole models, against the formulas on whole tensors


def test_sums(family, run) -> None:
    base, a, b, c = (float64(family[name]) for name in ("base", "a", "b", "c"))
    close(run("a b c", "linear", weights=(1, 2, 5)), {n: (a[n] + 2 * b[n] + 5 * c[n]) / 8 for n in a})
    close(run("a b", "linear", weights=(1, -2), normalize=False), {n: a[n] - 2 * b[n] for n in a})
    close(run("a b c", "ema", mu=0.25), {n: 0.75 * (0.75 * a[n] + 0.25 * b[n]) + 0.25 * c[n] for n in a})
    close(run("a", "liti", "base", eta=0.3), {n: 0.7 * base[n] + 0.3 * a[n] for n in a})
    want = {n: base[n] + 0.5 * ((a[n] - base[n]) - 2 * (b[n] - base[n])) for n in a}
    close(run("a b", "task-arithmetic", "base", weights=(1, -2), eta=0.5), want)


def arc(one: np.ndarray, two: np.ndarray, share: float) -> tuple[float, float]:
    omega = np.arccos((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))
    return np.sin((1 - share) * omega) / np.sin(omega), np.sin(share * omega) / np.sin(omega)


@pytest.mark.parametrize("granularity", [None, "tensor", "model"])
def test_slerp_has_an_angle_for_each_layer_tensor_or_the_model(granularity, family, run) -> None:
    base, a, b = (float64(family[name]) for name in ("base", "a", "b"))

    def group(name: str) -> str:
        layer = ".".join(name.split(".")[:3]) if ".layers." in name else name
        return {None: layer, "tensor": name, "model": ""}[granularity]

    want = {}
    for name in a:
        names = [other for other in a if group(other) == group(name)]
        one, two = (np.concatenate([(x[n] - base[n]).ravel() for n in names]) for x in (a, b))
        left, right = arc(one, two, 0.3)
        want[name] = base[name] + 0.8 * (left * (a[name] - base[name]) + right * (b[name] - base[name]))
    got = run("a b", "slerp", "base", weights=(7, 3), granularity=granularity, eta=0.8)
    close(got, want)
    linear = run("a b", "linear", weights=(7, 3))
    assert max((got[n] - linear[n]).abs().max().item() for n in got) > 1e-3


def test_slerp_of_three_is_warps_one_after_the_other(family, run) -> None:
    base, *models = (float64(family[name]) for name in ("base", "a", "b", "c"))
    tasks = [{n: x[n] - base[n] for n in x} for x in models]
    got = run("a b c", "slerp", "base", granularity="tensor")
    left, right = arc(tasks[0][WEIGHT], tasks[1][WEIGHT], 1 / 2)
    two = left * tasks[0][WEIGHT] + right * tasks[1][WEIGHT]
    left, right = arc(two, tasks[2][WEIGHT], 1 / 3)
    np.testing.assert_allclose(got[WEIGHT].numpy(), base[WEIGHT] + left * two + right * tasks[2][WEIGHT], atol=1e-6)


def test_ties_and_dare(family, run) -> None:
    base, a, b = (float64(family[name]) for name in ("base", "a", "b"))

    def trimmed(delta: np.ndarray, density: float) -> np.ndarray:
        count = max(1, int(density * delta.size))
        return np.where(np.abs(delta) >= np.sort(np.abs(delta).ravel())[-count], delta, 0)

    def ties(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        sign = np.where(one + 3 * two >= 0, 1, -1)
        agree = [np.sign(one) == sign, np.sign(two) == sign]
        total = agree[0] + 3 * agree[1]
        return np.where(total > 0, (one * agree[0] + 3 * two * agree[1]) / np.maximum(total, 1), 0)

    deltas = [{n: x[n] - base[n] for n in x} for x in (a, b)]
    want = {n: base[n] + 1.5 * ties(*(trimmed(d[n], 0.3) for d in deltas)) for n in a}
    close(run("a b", "ties", "base", density=0.3, weights=(1, 3), eta=1.5), want)
    close(
        run("a b", "dare-ties", "base", density=1.0, weights=(1, 3)),
        {n: base[n] + ties(*(d[n] for d in deltas)) for n in a},
    )
    close(run("a b", "dare", "base", density=1.0), {n: base[n] + deltas[0][n] + deltas[1][n] for n in a})
    one = run("a", "dare", "base", density=0.25, seed=3)
    moved = {n: (one[n].numpy() - base[n]) / np.where(deltas[0][n] == 0, 1, deltas[0][n]) for n in a}
    ratio = np.concatenate([x.ravel() for x in moved.values()])
    assert np.isclose(ratio, 0, atol=1e-3).mean() == pytest.approx(0.75, abs=0.02)
    kept = ratio[np.abs(ratio) > 1e-3]
    assert np.median(kept) == pytest.approx(4, abs=1e-3)


def test_karcher_is_between_its_models_whatever_their_order(family, run) -> None:
    forth, back = run("a b c", "karcher", "base"), run("c b a", "karcher", "base")
    assert max((forth[n] - back[n]).abs().max().item() for n in forth) < 1e-6
    slerp = run("a b c", "slerp", "base"), run("c b a", "slerp", "base")
    assert max((slerp[0][n] - slerp[1][n]).abs().max().item() for n in forth) > 1e-4, "which slerp is not"


# ---- identities


@pytest.mark.parametrize("method", ["slerp", "karcher", "linear"])
def test_at_the_ends_stand_the_models_to_the_bit(method: str, family, run, tmp_path) -> None:
    base = None if method == "linear" else "base"
    for weights, name in (((1, 0), "a"), ((0, 1), "b")):
        got, want = run("a b", method, base, weights=weights), stored(Path(family[name]))
        assert all(torch.equal(got[n], want[n]) for n in want) or method == "karcher"
        close(got, float64(family[name]), 1e-7)


def test_eta_0_is_the_base_and_1_the_model(family, run) -> None:
    for eta, name in ((0.0, "base"), (1.0, "a")):
        got, want = run("a", "liti", "base", eta=eta), stored(Path(family[name]))
        assert all(torch.equal(got[n], want[n]) for n in want)
    slerp = run("a b", "slerp", "base", eta=0.0)
    assert all(torch.equal(slerp[n], x) for n, x in stored(Path(family["base"])).items())


@pytest.mark.parametrize("method", MERGES)
def test_equal_models_merge_to_themselves_and_of_the_base_to_the_base(method, family, run) -> None:
    row = MERGES[method]
    options = {name: value for name, value in {"mu": 0.3, "density": 1.0}.items() if name in row.options}
    weights = {"weights": (1.0, 0.0)} if method in ("task-arithmetic", "dare") else {}
    for name in ("a", "base"):
        models = name if method == "liti" else f"{name} {name}"
        got = run(
            models, method, "base" if row.base else None, **options, **weights, **({"eta": 1.0} if row.base else {})
        )
        close(got, float64(family[name]), 1e-7)


def test_opposite_task_vectors_are_averaged_and_it_is_said(family, tmp_path, caplog) -> None:
    base, a = stored(Path(family["base"])), stored(Path(family["a"]))
    mirror = change(
        Path(family["base"]), tmp_path / "mirror", lambda n, x: 2 * base[n] - a[n] if "layers.1" in n else x + 0.1
    )
    merge(MergeConfig((family["a"], str(mirror)), "slerp", str(tmp_path / "out"), family["base"], weights=(3, 1)))
    got = stored(tmp_path / "out")[WEIGHT]
    torch.testing.assert_close(got, base[WEIGHT] + 0.5 * (a[WEIGHT] - base[WEIGHT]), atol=1e-6, rtol=0)
    said = "Task vectors are opposite, or cancel, in 1 of 4 parts (model.layers.1)"
    assert said in caplog.text and said in (tmp_path / "out" / "README.md").read_text()


# ---- what is written


def test_the_folder_is_the_first_models_with_other_weights(family, run, tmp_path: Path) -> None:
    run("a b", "slerp", "base")
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {file.name for file in Path(family["a"]).iterdir()} | {"README.md"}
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (
            json.loads(bits(str(out), name)) == json.loads(bits(family["a"], name)) if name.endswith("json") else True
        )
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in stored(out), "tied weights are stored once"
    AutoTokenizer.from_pretrained(out)
    card = (out / "README.md").read_text()
    assert "SLERP" in card and family["b"] in card and "Angles between task vectors" in card


def test_the_same_merge_has_the_same_bytes(family, run, tmp_path) -> None:
    for method in ("slerp", "dare-ties"):
        options = {"density": 0.5} if method == "dare-ties" else {}
        run("a b", method, "base", "one", **options)
        run("a b", method, "base", "two", **options)
        assert bits(str(tmp_path / "one")) == bits(str(tmp_path / "two"))
    run("a b", "dare-ties", "base", "three", density=0.5, seed=1)
    assert bits(str(tmp_path / "one")) != bits(str(tmp_path / "three"))


@pytest.mark.parametrize("method", ["slerp", "ties", "dare"])
def test_parts_and_shards_change_nothing(method: str, family, run, tmp_path, monkeypatch) -> None:
    options = {} if method == "slerp" else {"density": 0.4}
    whole = run("a b", method, "base", "whole", **options)
    monkeypatch.setattr(merged, "PART", 1000)
    monkeypatch.setattr(shards, "SHARD", 50_000)
    in_parts = run("a b", method, "base", "parts", **options)
    for name, x in whole.items():
        torch.testing.assert_close(in_parts[name], x, atol=1e-7, rtol=0)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))] and len(files) > 2
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    AutoModelForCausalLM.from_pretrained(tmp_path / "parts")
    again = run(str(tmp_path / "parts"), "liti", "base", "again", eta=1.0)
    assert all(torch.equal(again[n], in_parts[n]) for n in whole), "sharded folders are read"


def test_dtypes(family, run, tmp_path) -> None:
    in_bf16 = change(Path(family["a"]), tmp_path / "bf16", lambda _, x: x.bfloat16())
    edit(in_bf16 / "config.json", dtype="bfloat16")
    a, b = stored(in_bf16), stored(Path(family["b"]))
    kept = run(f"{in_bf16} b", "linear")
    assert {x.dtype for x in kept.values()} == {torch.bfloat16}
    assert all(torch.equal(x, ((a[n].double() + b[n].double()) / 2).bfloat16()) for n, x in kept.items()), (
        "rounded once"
    )
    whole = run(f"{in_bf16} b", "linear", dtype="fp32")
    assert {x.dtype for x in whole.values()} == {torch.float32}
    assert json.loads(bits(str(tmp_path / "out"), "config.json"))["dtype"] == "float32"
    with pytest.raises(ModelError, match=r"reach .*, which float16 cannot hold"):
        run("a b", "linear", weights=(1e7, 1e7), normalize=False, dtype="fp16")


def test_a_second_copy_of_a_tied_weight_is_left_out(family, run, tmp_path) -> None:
    twice = change(Path(family["a"]), tmp_path / "twice", lambda _, x: x)
    found = stored(twice)
    save_file(
        found | {"lm_head.weight": found["model.embed_tokens.weight"].clone()},
        twice / "model.safetensors",
        {"format": "pt"},
    )
    got, want = run(f"{twice} b", "linear"), run("a b", "linear")
    assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want)
    save_file(
        found | {"lm_head.weight": found["model.embed_tokens.weight"] + 1},
        twice / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="ties lm_head.weight to model.embed_tokens.weight"):
        run(f"{twice} b", "linear")


def test_buffers_are_copied_and_must_agree(family, run, tmp_path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    for folder, value in (("one", 1.0), ("two", 1.0), ("odd", 2.0)):
        made = change(Path(family["a"]), tmp_path / folder, lambda _, x: x)
        save_file(stored(made) | {name: torch.full((4,), value)}, made / "model.safetensors", {"format": "pt"})
    got = run(f"{tmp_path / 'one'} {tmp_path / 'two'}", "linear", weights=(1, 1), normalize=False)
    assert got[name].tolist() == [1.0] * 4
    with pytest.raises(ModelError, match="which is no weight to be merged, differs between"):
        run(f"{tmp_path / 'one'} {tmp_path / 'odd'}", "linear")


# ---- adapters


@pytest.fixture(scope="module")
def adapters(family, tmp_path_factory) -> list[str]:
    """Three sets on the base, of other ranks, scales and layers, as peft writes them."""
    root, made = tmp_path_factory.mktemp("adapters"), []
    kinds = ((2, ["q_proj", "v_proj"], False), (4, ["q_proj", "up_proj"], True), (3, "all-linear", False))
    for i, (rank, targets, rooted) in enumerate(kinds):
        torch.manual_seed(i)
        config = LoraConfig(
            r=rank, lora_alpha=8, target_modules=targets, use_rslora=rooted, task_type="CAUSAL_LM",
            init_lora_weights=False, rank_pattern={"q_proj": 1} if i == 0 else {},
        )  # fmt: skip
        get_peft_model(AutoModelForCausalLM.from_pretrained(family["base"]), config).save_pretrained(root / str(i))
        made.append(str(root / str(i)))
    return made


def peft_weights(base: str, folder: Path | str) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).merge_and_unload().state_dict()


ADAPTED = {
    "linear": {"weights": (1, 2, 3)},
    "ema": {"mu": 0.3},
    "task-arithmetic": {"weights": (1, -1, 0.5), "eta": 0.7},
    "slerp": {"eta": 1.2},
    "karcher": {"granularity": "tensor"},
}


@pytest.mark.parametrize("method", ADAPTED)
def test_merged_adapters_are_what_merged_models_are(method: str, family, adapters, tmp_path: Path) -> None:
    options = ADAPTED[method]
    for kind in ("auto", "merge"):
        merge(MergeConfig(tuple(adapters), method, str(tmp_path / kind), adapters=kind, **options))
    assert (tmp_path / "auto" / "adapter_config.json").is_file() and not (tmp_path / "auto" / "config.json").is_file()
    got, whole = peft_weights(family["base"], tmp_path / "auto"), stored(tmp_path / "merge")
    models = [peft_weights(family["base"], folder) for folder in adapters]
    if method == "linear":
        want = sum(w * x[WEIGHT].double() for w, x in zip((1, 2, 3), models, strict=True)) / 6
        torch.testing.assert_close(whole[WEIGHT].double(), want, atol=1e-6, rtol=0)
    for name, x in whole.items():
        torch.testing.assert_close(got[name], x, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name} {text}")
    assert (whole[WEIGHT] - stored(Path(family["base"]))[WEIGHT]).abs().max() > 1e-2


def test_what_of_adapters_is_no_adapter_is_said(family, adapters, tmp_path, caplog) -> None:
    models = tuple(adapters)
    out = str(tmp_path / "out")
    merge(MergeConfig(models, "ties", out, density=0.5))
    assert "a whole model is written, not adapters: --method ties looks at single weights" in caplog.text
    assert (tmp_path / "out" / "config.json").is_file()
    keep = {"adapters": "keep"}
    for config, reason in {
        MergeConfig(models, "ties", out + "1", density=0.5, **keep): "looks at single weights",
        MergeConfig(models, "linear", out + "1", normalize=False, **keep): "multiply the base as well",
        MergeConfig((*models, family["a"]), "linear", out + "1", **keep): "is not one set of adapters on a whole model",
        MergeConfig(models, "slerp", out + "1", family["a"], **keep): "is not the model that they belong to",
    }.items():
        with pytest.raises(ConfigError, match=f"--adapters keep: no merged adapters can be written: .*{reason}"):
            merge(config)


def test_other_kinds_of_adapters_are_put_together_by_peft(family, tmp_path, caplog) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], use_dora=False, bias="lora_only", task_type="CAUSAL_LM", init_lora_weights=False
    )
    folder = tmp_path / "odd"
    get_peft_model(AutoModelForCausalLM.from_pretrained(family["base"]), config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="bias 'lora_only'"):
        merge(MergeConfig((str(folder),), "liti", str(tmp_path / "x"), eta=0.5, adapters="keep"))
    merge(MergeConfig((str(folder),), "liti", str(tmp_path / "out"), eta=1.0))
    assert "is put together first" in caplog.text and not (tmp_path / "out" / ".whole").exists()
    want = peft_weights(family["base"], folder)
    for name, x in stored(tmp_path / "out").items():
        torch.testing.assert_close(x, want[name], atol=1e-6, rtol=0)


# ---- reward models


def test_reward_models_merge_with_their_heads(scorer_dir: Path, run, family, tmp_path: Path) -> None:
    other = noisy(scorer_dir, tmp_path / "other", 5)
    got = run(f"{scorer_dir} {other}", "linear")
    one, two = (
        AutoModelForSequenceClassification.from_pretrained(folder).score.weight for folder in (scorer_dir, other)
    )
    out = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(out.score.weight, (one + two) / 2)
    assert got["score.weight"].dtype == torch.float32
    half = run(f"{scorer_dir} {other}", "linear", dtype="bf16")
    assert half["score.weight"].dtype == torch.float32 and half[WEIGHT].dtype == torch.bfloat16
    with pytest.raises(ModelError, match=r"is a reward model, .* a language model: they do not merge"):
        run(f"{scorer_dir} a", "linear")
    edit(
        other / "config.json",
        assent_head={**json.loads(bits(str(other), "config.json"))["assent_head"], "outputs": ["helpfulness"]},
    )
    with pytest.raises(ModelError, match="are reward models of other outputs, weights or scales"):
        run(f"{scorer_dir} {other}", "linear")


def test_adapters_of_reward_models_merge_with_the_heads_beside_them(scorer_dir, family, tmp_path, monkeypatch) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(family["base"], num_labels=1)
    folders = []
    for i in range(2):
        torch.manual_seed(i)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(family["base"], num_labels=1), config)
        model.save_pretrained(tmp_path / f"a{i}")
        folders.append(tmp_path / f"a{i}")
    merge(MergeConfig(tuple(map(str, folders)), "linear", str(tmp_path / "kept"), weights=(1, 3)))
    merge(MergeConfig(tuple(map(str, folders)), "linear", str(tmp_path / "whole"), weights=(1, 3), adapters="merge"))
    got = PeftModel.from_pretrained(base, tmp_path / "kept").merge_and_unload().state_dict()
    heads = [load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"] for folder in folders]
    torch.testing.assert_close(got["score.weight"], (heads[0] + 3 * heads[1]) / 4)
    for name, x in stored(tmp_path / "whole").items():
        torch.testing.assert_close(got[name], x, atol=1e-6, rtol=0, msg=name)
    with pytest.raises(ConfigError, match=r"score.weight was saved with them, and there is none in the base"):
        merge(MergeConfig(tuple(map(str, folders)), "slerp", str(tmp_path / "x"), adapters="keep"))
    monkeypatch.chdir(Path(family["base"]).parent)
    edit(folders[1] / "adapter_config.json", base_model_name_or_path=Path(family["base"]).name)
    with pytest.raises(ConfigError, match=r"score.weight was saved with them"):  # the same base, spelt otherwise
        merge(MergeConfig(tuple(map(str, folders)), "slerp", str(tmp_path / "x"), adapters="keep"))


# ---- what is refused


def broken(family, tmp_path: Path, name: str) -> str:
    """A copy of a model in which one thing is not as in the others."""
    folder = tmp_path / name
    same = lambda _, x: x  # noqa: E731
    match name:
        case "shape":
            change(Path(family["a"]), folder, lambda n, x: x[:-1].clone() if n == WEIGHT else x)
        case "name":
            change(Path(family["a"]), folder, lambda n, x: None if n == WEIGHT else x)
        case "nan":
            change(
                Path(family["a"]),
                folder,
                lambda n, x: x.index_fill(1, torch.tensor(7), torch.nan) if n == WEIGHT else x,
            )
        case "infinite":
            change(Path(family["a"]), folder, lambda n, x: x / 0 if n == WEIGHT else x)
        case "ints":
            change(Path(family["a"]), folder, lambda n, x: x.to(torch.int8) if n == WEIGHT else x)
        case "fp8":
            change(Path(family["a"]), folder, lambda n, x: x.to(torch.float8_e4m3fn) if n == WEIGHT else x)
        case "quantised":
            change(Path(family["a"]), folder, same)
            edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
        case "rope":
            change(Path(family["a"]), folder, same)
            edit(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 123.0})
        case "type":
            change(Path(family["a"]), folder, same)
            edit(folder / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
        case "vocabulary":
            change(Path(family["a"]), folder, same)
            content = json.loads((folder / "tokenizer.json").read_text())
            vocab = content["model"]["vocab"]
            one, two = list(vocab)[40:42]
            vocab[one], vocab[two] = vocab[two], vocab[one]
            (folder / "tokenizer.json").write_text(json.dumps(content))
        case "merges":
            change(Path(family["a"]), folder, same)
            content = json.loads((folder / "tokenizer.json").read_text())
            content["model"]["merges"].reverse()
            (folder / "tokenizer.json").write_text(json.dumps(content))
        case "cut":
            change(Path(family["a"]), folder, same)
            os.truncate(folder / "model.safetensors", 50_000)
        case "gate":
            change(Path(family["a"]), folder, same)
            edit(folder / "config.json", assent_gate={"hidden": [4]})
        case "beside":
            change(Path(family["a"]), folder, same)
            save_file({"v_head.summary.weight": torch.ones(1, 32)}, folder / "value_head.safetensors")
        case "pickled":
            change(Path(family["a"]), folder, same)
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return str(folder)


BROKEN = {
    "shape": "model.layers.1.mlp.up_proj.weight has the shape",
    "name": "lacks model.layers.1.mlp.up_proj.weight, which",
    "nan": r"up_proj.weight\[0, 7\] is nan. Such weights are not merged",
    "infinite": "is -?inf",
    "ints": "stored as whole numbers: are they quantised",
    "fp8": "is stored as F8_E4M3: in few bits",
    "quantised": r"stored quantised \(gptq\)",
    "rope": "config.json: rope_parameters is .*: these weights work in other ways",
    "type": "is a model of type llama, .* of type mistral",
    "vocabulary": "have other vocabularies: the token",
    "merges": "their tokenizers differ in their model",
    "cut": "not a whole safetensors file",
    "gate": "has a gate, which belongs to its own weights",
    "beside": "its value head lies in value_head.safetensors",
    "pickled": "holds no weights in safetensors",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_merge_is_named_and_nothing_is_left(kind: str, family, run, tmp_path: Path) -> None:
    odd = broken(family, tmp_path, kind)
    before = {child.name for child in tmp_path.iterdir()}
    with pytest.raises(ModelError, match=BROKEN[kind]):
        run(f"a {odd}", "linear")
    with pytest.raises(ModelError):
        run("a b", "slerp", odd)
    assert {child.name for child in tmp_path.iterdir()} == before


def test_what_differs_without_harm_is_said(family, run, tmp_path, caplog) -> None:
    other = change(Path(family["a"]), tmp_path / "other", lambda _, x: x)
    edit(other / "config.json", max_position_embeddings=1024, attention_dropout=0.1, eos_token_id=3, use_cache=False)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    run(f"a {other}", "linear")
    assert "max_position_embeddings is 512" in caplog.text and "differ in their chat template" in caplog.text
    bare = change(Path(family["a"]), tmp_path / "bare", lambda _, x: x)
    for file in [*bare.glob("token*"), *bare.glob("chat*")]:
        file.unlink()
    run(f"a {bare}", "linear")
    assert f"{bare} has no tokenizer" in caplog.text


OPTIONS = {
    "a b --method slerp": "Give that model as --base",
    "a b --method linear --base c": "--method linear has no base; --base",
    "a --method slerp --base base": "--method slerp merges at least 2 models. Got 1",
    "a b --method liti --base base --eta 0.5": "--method liti merges exactly 1 model. Got 2",
    "a --method liti --base base": "--method liti needs --eta",
    "a b --method ema": "--method ema needs --mu",
    "a b --method ties --base base": "--method ties needs --density",
    "a b --method ties --base base --density 0": "--density must be",
    "a b --method linear --mu 0.1": "--mu has no effect with --method linear. It is of ema",
    "a b --method slerp --base base --seed 3": "--seed has no effect with --method slerp. It is of dare, dare-ties",
    "a b --method slerp --base base --no_normalize": "--no_normalize has no effect",
    "a b --method linear --granularity layer": "--granularity has no effect",
    "a b --method linear --weights 1 2 3": "--weights 1 2 3: there are 2 models",
    "a b --method slerp --base base --weights 1 -2": "no place for weights below 0",
    "a b --method slerp --base base --weights 0 0": "are all 0",
    "a b --method linear --weights 1 -1": "add up to 0",
    "a b --method linear --weights 1 inf": "each must be a finite number",
    "a b --method lerp": "--method must be one of",
    "--method linear": "MODELS must be given",
    "a nowhere/to/go --method linear": "there is no such folder",
    "a b --method linear --adapters keep": "is not one set of adapters",
}


@pytest.mark.parametrize("words", OPTIONS)
def test_options_that_contradict_each_other(words: str, family, tmp_path: Path, caplog) -> None:
    given = [family.get(word, word) for word in words.split()]
    assert cli.main(["merge", *given, "--out", str(tmp_path / "out")]) == 2
    assert OPTIONS[words] in caplog.text and not [*tmp_path.iterdir()]


def test_python_and_the_command_line_are_the_same(family, run, tmp_path) -> None:
    want = run("a b", "slerp", "base", "python", weights=(1, 3), eta=0.4)
    words = [
        family["a"],
        family["b"],
        "--base",
        family["base"],
        "--method",
        "slerp",
        "--weights",
        "1",
        "3",
        "--eta",
        "0.4",
    ]
    assert cli.main(["merge", *words, "--out", str(tmp_path / "cli")]) == 0
    assert bits(str(tmp_path / "python")) == bits(str(tmp_path / "cli")) and want
    assert cli.main(["merge", *words, "--out", str(tmp_path / "cli")]) == 2, "it exists"


# ---- faults


def test_a_full_disk_leaves_nothing(family, run, tmp_path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            run("a b", "linear")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.iterdir()]


def test_an_interrupt_leaves_nothing(family, run, tmp_path, monkeypatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merged.Merge, "_is_done", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("a b", "linear")
    assert not [*tmp_path.iterdir()]


def test_what_is_killed_is_absent_and_made_again_to_the_same_bytes(family, run, tmp_path, monkeypatch) -> None:
    if (child := os.fork()) == 0:
        monkeypatch.setattr(merged.Merge, "_is_done", lambda self, name: os.kill(os.getpid(), signal.SIGKILL))
        run("a b", "linear")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    run("a b", "linear")
    run("a b", "linear", out="undisturbed")
    assert bits(str(tmp_path / "out")) == bits(str(tmp_path / "undisturbed"))


def test_a_folder_in_the_way_stays(family, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        merge(MergeConfig((family["a"], family["b"]), "linear", str(tmp_path / "out")))
    assert (tmp_path / "out" / "mine").read_text() == "mine"


# ---- memory


LIMITED = """
import resource, sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from assent import MergeConfig, merge
from assent.models import merged

room, out, small, large = int(sys.argv[1]), sys.argv[2], sys.argv[3:6], sys.argv[6:9]
merged.PART = 1 << 15


def run(models, method, name):
    options = {} if method == "slerp" else {"density": 0.2}
    merge(MergeConfig(tuple(models[1:]), method, f"{out}/{name}-{method}", models[0], **options))


for method in ("slerp", "ties"):  # what is set up at the first time
    run(small, method, "warm")
status = Path("/proc/self/status").read_text()  # as the system counts what is asked for against RLIMIT_DATA
asked = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (asked + room,) * 2)
for ask in (lambda: torch.ones(2 * room // 4), lambda: load_file(f"{large[0]}/model.safetensors")):
    try:
        ask()
    except (MemoryError, RuntimeError, SafetensorError, OSError):
        continue
    sys.exit("the limit does not bind")
for method in ("slerp", "ties"):
    run(large, method, "large")
"""
"""In a process of its own, whose memory nothing has been freed in: the limit must bind."""


ROOM = 4_000_000
"""Bytes that a merge may ask for beyond what the process has."""


@pytest.fixture(scope="module")
def large(family, tmp_path_factory) -> list[str]:
    """A base and two models of 20 times ROOM, with a tensor of 5 times; most of it in holes of files."""
    config = AutoConfig.from_pretrained(family["base"])
    config.vocab_size, config.intermediate_size = 200_000, 80_000
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in AutoModelForCausalLM.from_config(config).state_dict().items()}
    del shapes["lm_head.weight"]  # tied
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    folders = []
    for i in range(3):
        folders.append(tmp_path_factory.mktemp("large"))
        config.save_pretrained(folders[-1])
        with (folders[-1] / "model.safetensors").open("wb") as file:
            head = shards._header({name: (torch.float32, shape) for name, shape in shapes.items()})
            file.write(head + np.full(1000, 1 + i, np.float32).tobytes())
            file.truncate(len(head) + size)
    assert size >= 20 * ROOM
    return [str(folder) for folder in folders]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_memory_is_that_of_parts_however_large_the_model(large, family, tmp_path) -> None:
    """RLIMIT_DATA counts what a process asks for, also what is mapped to be its own: it binds."""
    small = [family[name] for name in ("base", "a", "b")]
    words = [sys.executable, "-c", LIMITED, str(ROOM), str(tmp_path), *small, *large]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for method in ("slerp", "ties"):
        assert (tmp_path / f"large-{method}" / "model.safetensors").stat().st_size >= 20 * ROOM
