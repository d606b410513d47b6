"""What a policy is compared with: log-probs from disk are those of the frozen model and are never another run's, a
moving reference is the average that its formula names, and a LoRA policy without its adapters is its start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from assent.algorithms.preference.train import train_preference
from assent.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    ReferenceConfig,
    TrainConfig,
    preference_config,
)
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.deferred import resolved
from assent.distributed import World
from assent.errors import ModelError
from assent.models.loading import load_policy
from assent.models.references import FIELD, FollowingReference, Reference
from assent.outputs import cache_folder
from assent.train import session as session_module
from assent.train.log import read_metrics
from assent.train.references import cached_reference, model_digest
from assent.train.run import RunResult
from assent.train.session import Session

QUESTIONS = ("How do I boil an egg?", "What is the capital of France?", "Name three colours.", "12 + 30 =")
CACHED = ReferenceConfig(mode="cached")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of caches."""
    monkeypatch.setenv("ASSENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


@pytest.fixture
def train(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., RunResult]:
    """Trains four steps: train(name, objective, reference)."""
    rows = [
        {"prompt": f"{i}: {QUESTIONS[i % 4]}", "chosen": "Yes. " * (1 + i % 3), "rejected": f"No, {i} colours."}
        for i in range(14)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({**row, "chosen": "Red."}) + "\n" for row in rows[:3]))

    def run(name: str, objective: str = "dpo", reference: ReferenceConfig = CACHED, **options) -> RunResult:
        model = options.pop("model", tiny_model_dir)
        lora = LoraConfig(rank=options.pop("rank", 0))
        data = DataConfig(str(tmp_path / "pairs.jsonl"), eval=str(tmp_path / "held.jsonl"), max_length=96)
        return train_preference(
            preference_config(
                objective,
                model=ModelConfig(str(model), precision="fp32", lora=lora),
                data=replace(data, limit=options.pop("limit", None)),
                out=str(tmp_path / name),
                optim=OptimConfig(lr=1e-3, eps=1e-4, schedule="constant", warmup=0.0),
                train=TrainConfig(batch_size=4, max_steps=4, micro_tokens=160, eval_every=2),
                reference=vars(reference),
                probe=ProbeConfig(prompts=0),
            )
        )

    return run


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all policies that a run loads."""
    seen: list[str] = []

    def load(config, **options):
        seen.append(config.path)
        return load_policy(config, **options)

    monkeypatch.setattr(session_module, "load_policy", load)
    return seen


def changed_copy(model: Path, target: Path) -> Path:
    """The model with other weights."""
    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    save_file({k: v * np.float32(1.5) for k, v in weights.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def batch() -> TreeBatch:
    draw = np.random.default_rng(0)
    branches = tuple(Branch(draw.integers(3, 200, size), np.ones(size, bool)) for size in (5, 9))
    return collate([TokenTree(draw.integers(3, 200, 6), branches, ((0, 1, 0.0),))])


def shaken(policy, part: str = ""):
    """The policy with noise on its parameters."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if part in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return policy


# ---- from disk


@pytest.mark.parametrize(
    ("objective", "rank"), [("dpo", 0), ("dpo", 4), ("kto", 0), ("ld-dpo", 0), ("aot", 0)], ids=str
)
def test_cached_logprobs_train_as_the_frozen_model_does(train, tiny_model_dir, objective: str, rank: int):
    runs = [train(mode, objective, ReferenceConfig(mode=mode), rank=rank) for mode in ("frozen", "cached")]
    frozen, cached = (read_metrics(run.out / "metrics.jsonl") for run in runs)
    assert [row["step"] for row in frozen] == [row["step"] for row in cached]
    for one, other in zip(frozen, cached, strict=True):
        names = [name for name in one if not name.startswith("time/")]
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4, abs=1e-5)
    weights = [load_file(run.model / "model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=1e-4)
    start = load_file(tiny_model_dir / "model.safetensors")
    assert max(float(np.abs(start[name] - value).max()) for name, value in weights[0].items()) > 1e-3


def test_the_second_run_loads_no_reference(train, loads, cache, tiny_model_dir, capsys):
    train("first")
    assert loads == [str(tiny_model_dir)] * 2
    assert "Computing the reference's log-probs of 17 examples" in capsys.readouterr().err
    loads.clear()
    train("second")
    assert loads == [str(tiny_model_dir)]
    (file,) = cache.iterdir()
    assert f"Reference log-probs from {file}" in capsys.readouterr().err


def test_a_lora_policy_is_its_own_reference(train, loads, tiny_model_dir, tmp_path):
    for mode in ("frozen", "cached"):
        train(mode, reference=ReferenceConfig(mode=mode), rank=4)
    assert loads == [str(tiny_model_dir)] * 2
    loads.clear()
    other = changed_copy(tiny_model_dir, tmp_path / "changed")
    train("by path", reference=ReferenceConfig(path=str(other)), rank=4)
    assert loads == [str(tiny_model_dir), str(other)]


def test_other_data_and_other_models_have_files_of_their_own(train, cache, tiny_model_dir, tmp_path):
    train("all")
    train("fewer", limit=8)
    train("other", reference=replace(CACHED, path=str(changed_copy(tiny_model_dir, tmp_path / "changed"))))
    train("again", limit=8)
    assert len(list(cache.iterdir())) == 3


def test_a_file_of_another_run_is_refused(train, cache, tiny_model_dir, tmp_path):
    file = tmp_path / "kept" / "reference.safetensors"
    mine = replace(CACHED, cache=str(file))
    train("first", reference=mine)
    assert file.is_file() and not cache.exists()
    train("second", reference=mine)
    other = changed_copy(tiny_model_dir, tmp_path / "changed")
    with pytest.raises(ModelError, match=f"--reference.cache {file}: these log-probs are of other data. Give"):
        train("fewer", reference=mine, limit=8)
    with pytest.raises(ModelError, match="are of another reference model. Give the file of this run's own reference"):
        train("path", reference=replace(mine, path=str(other)))
    with pytest.raises(ModelError, match="are of another reference model, other data"):
        train("both", reference=mine, model=other, limit=8)


def test_a_broken_file_is_named(train, tmp_path):
    file = tmp_path / "reference.safetensors"
    mine = replace(CACHED, cache=str(file))
    train("first", reference=mine)
    whole = file.read_bytes()
    for number, content in enumerate((whole[:-50], whole[:4], b"", b"not safetensors at all" * 9)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=f"{file}: not readable as cached log-probs .*Delete it to compute them"):
            train(f"broken {number}", reference=mine)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("precision", "another precision"),
        ("quantize", "weights in another number of bits"),
        ("format", "another version"),
        ("", "another number of tokens"),
    ],
)
def test_every_part_of_the_identity_counts(tiny_model_dir, tmp_path, name: str, words: str):
    """`name` is the part that a stored file says otherwise; "": its values are one short."""
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    config = preference_config("dpo", model=model, data=DataConfig("unused", max_length=96), out="unused")
    world = World(0, 1, 0, torch.device("cpu"))
    folder = SimpleNamespace(record_more=lambda inputs: None)
    session = Session(config, world, folder, None, None)
    trees = [TokenTree(np.arange(3, 9), (Branch(np.arange(3, 8), np.ones(5, bool)),), key=0)]
    section = ReferenceConfig(mode="cached", cache=str(tmp_path / "file.safetensors"))
    policy = load_policy(model, max_length=96)
    ((first,),) = cached_reference(session, policy, section, [trees])
    expected = policy(collate(trees)).logprobs.detach().numpy()
    np.testing.assert_allclose(first.branches[0].per_token[FIELD], expected, atol=1e-6)
    with safe_open(section.cache, "numpy") as stored:
        identity, values = stored.metadata(), stored.get_tensor(FIELD)
    assert identity["model"] == model_digest(model) and identity["precision"] == "fp32"
    if name:
        identity[name] = "x"
    else:
        values = values[:-1]
    save_file({FIELD: values}, section.cache, metadata=identity)
    with pytest.raises(ModelError, match=f"these log-probs are of {words}"):
        cached_reference(session, policy, section, [trees])


def test_cached_numbers_that_are_not_finite_are_named(train, cache, tiny_model_dir):
    train("first", "dpo", CACHED)
    (file,) = cache.iterdir()
    with safe_open(file, "numpy") as stored:
        metadata, values = stored.metadata(), stored.get_tensor(FIELD)
    save_file({FIELD: np.where(np.arange(len(values)) == 3, np.nan, values)}, file, metadata=metadata)
    with pytest.raises(ModelError, match=rf"{file}: 1 of its {len(values)} log-probs are not finite"):
        train("second", "dpo", CACHED)


def test_where_caches_lie(monkeypatch, tmp_path):
    assert cache_folder("reference") == tmp_path / "cache" / "reference"
    monkeypatch.delenv("ASSENT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("reference") == Path("/somewhere/assent/reference")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("reference") == Path.home() / ".cache" / "assent" / "reference"


# ---- models


def test_a_moving_reference_is_the_average_of_its_formula(tiny_model_dir):
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    policy, other = (load_policy(model, max_length=96, trainable=trainable) for trainable in (True, False))
    start = {name: value.clone() for name, value in other.named_parameters()}
    reference = FollowingReference(policy, shaken(other), rate=0.3, every=2)
    begun = {name: value.clone() for name, value in other.named_parameters()}
    assert any(not torch.equal(begun[name], start[name]) for name in start)  # it keeps its own start
    expected = dict(begun)
    for step in range(1, 8):
        reference.follow(step)
        if step in (2, 4, 6):
            now = dict(policy.named_parameters())
            expected = {name: 0.3 * now[name].detach() + 0.7 * value for name, value in expected.items()}
        for name, value in other.named_parameters():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        shaken(policy)
    assert not torch.equal(reference.logprobs(batch()), policy(batch()).logprobs)
    saved = resolved(reference.state_dict())
    again = FollowingReference(policy, load_policy(model, max_length=96, trainable=False), rate=0.3, every=2)
    again.load_state_dict(saved)
    assert torch.equal(again.logprobs(batch()), reference.logprobs(batch()))


def test_a_moving_reference_of_adapters_begins_and_follows(tiny_model_dir):
    model = ModelConfig(str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=4))
    torch.manual_seed(0)
    policy, other = (load_policy(model, max_length=96) for _ in range(2))
    adapters = dict(policy.named_parameters())
    drawn = [name for name in adapters if "lora_A" in name]
    assert any(not torch.equal(adapters[name], value) for name, value in other.named_parameters() if name in drawn)
    reference = FollowingReference(policy, other.requires_grad_(False), rate=1.0, every=1)
    assert all(torch.equal(adapters[name], value) for name, value in other.named_parameters())
    shaken(policy, "lora_")
    assert not torch.equal(reference.logprobs(batch()), policy(batch()).logprobs)
    reference.follow(1)
    assert torch.equal(reference.logprobs(batch()), policy(batch()).logprobs)


def test_tr_dpo_follows_at_its_steps(train):
    far, near = (
        train(f"every {every}", "tr-dpo", ReferenceConfig(mode="moving", rate=1.0, every=every)) for every in (9, 2)
    )
    frozen = train("frozen", "dpo", ReferenceConfig())
    losses = [
        [row["loss"] for row in read_metrics(run.out / "metrics.jsonl") if "loss" in row] for run in (frozen, far, near)
    ]
    assert losses[0] == losses[1]
    assert losses[2][:2] == losses[0][:2]
    assert losses[2][2] == pytest.approx(np.log(2), abs=1e-6)  # the reference has just become the policy
    assert losses[0][2] != pytest.approx(np.log(2), abs=1e-4)


def test_without_adapters_a_policy_is_its_start(tiny_model_dir):
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    base = load_policy(model, max_length=96, trainable=False)
    policy = shaken(load_policy(replace(model, lora=LoraConfig(rank=4)), max_length=96), "lora_")
    reference = Reference(policy, None)
    torch.testing.assert_close(reference.logprobs(batch()), base(batch()).logprobs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(reference.anchor(batch()).hidden, base.anchor(batch()).hidden, rtol=0, atol=1e-6)
    assert (policy(batch()).logprobs - reference.logprobs(batch())).abs().max() > 1e-3
    assert not reference.logprobs(batch()).requires_grad
