"""Round trips of every kind of state, and what is kept on disk."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assent import environment
from assent.errors import CheckpointError
from assent.train import checkpoint


def same(a: object, b: object) -> bool:
    """Equal in type and in every byte, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        raw = [t.contiguous().flatten().view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return repr(a) == repr(b)


def nested_state() -> dict:
    """Everything that a run keeps, and what JSON and safetensors would each spoil."""
    draw = torch.Generator().manual_seed(1)
    floats = torch.randn(3, 5, generator=draw)
    return {
        "policy": {"model.embed.weight": floats, "model.norm.weight": torch.ones(4, dtype=torch.bfloat16)},
        "rng": {
            "python": random.Random(3).getstate(),
            "numpy": np.random.default_rng(4).bit_generator.state,
            "legacy": np.random.RandomState(5).get_state(),
            "torch": torch.get_rng_state(),
        },
        "tensors": {
            "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "transposed": floats.T,
            "slice": floats[1:, ::2],
            "complex": torch.tensor([1 + 2j]),
        },
        "arrays": [
            np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::-1],
            np.array(2.5),
            np.zeros((0, 2), np.int8),
            np.float32(0.1),
            np.bool_(True),
            np.array([1, 2], dtype=np.uint64),
        ],
        "loop": {
            "step": 12,
            "big": 2**130,
            "floats": [0.1, 1e-310, -0.0, float("nan"), float("inf"), -float("inf")],
            "pair": (1, (2.0, None), []),
            "flag": True,
            "text": "Zürich 漢字 \ud800 \x00 $tensor",
            "raw": b"\x00\xff",
            "by_number": {3: "three", (1, 2): "pair", None: 0},
            "$tensor": {"$float": "nan"},
            "empty": {},
        },
        "odd/names".replace("/", "_"): {
            "a/b": torch.zeros(1),
            "a": {"b": torch.ones(1)},
            "__metadata__": torch.ones(2),
        },
        "number": 3,
        "lone": torch.arange(3),
    }


def test_nested_state_round_trip(tmp_path):
    state = nested_state()
    loaded = checkpoint.load(checkpoint.save(tmp_path, 12, state))
    assert list(loaded) == list(state)
    for name in state:
        assert same(loaded[name], state[name]), name


def test_random_generators_continue(tmp_path):
    python, generator = random.Random(3), np.random.default_rng(4)
    python.gauss(0, 1), generator.integers(0, 10, dtype=np.int32)
    state = {"rng": {"python": python.getstate(), "numpy": generator.bit_generator.state}}
    loaded = checkpoint.load(checkpoint.save(tmp_path, 1, state))["rng"]
    resumed, again = random.Random(), np.random.default_rng()
    resumed.setstate(loaded["python"])
    again.bit_generator.state = loaded["numpy"]
    assert [resumed.gauss(0, 1) for _ in range(3)] == [python.gauss(0, 1) for _ in range(3)]
    assert again.random(5).tolist() == generator.random(5).tolist()


def test_saving_twice_gives_the_same_bytes(tmp_path):
    one, two = (checkpoint.save(tmp_path / name, 1, nested_state()) for name in ("a", "b"))
    assert checkpoint.read_manifest(one) == checkpoint.read_manifest(two)


def test_weights_file_is_plain_safetensors_and_ties_are_stored_once(tmp_path):
    weight = torch.nn.Parameter(torch.randn(8, 4))
    state = {"policy": {"embed.weight": weight, "head.weight": weight, "view": weight[:2]}, "step": 1}
    path = checkpoint.save(tmp_path, 1, state)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "policy.safetensors", "state.json"]
    stored = load_file(path / "policy.safetensors")
    assert stored.keys() == {"embed.weight", "view"}
    loaded = checkpoint.load(path)["policy"]
    assert loaded["head.weight"] is loaded["embed.weight"]
    assert torch.equal(loaded["head.weight"], weight) and torch.equal(loaded["view"], weight[:2])


def test_tensors_that_share_memory_partly_stay_apart(tmp_path):
    buffer = torch.arange(10.0)
    state = {"x": {"left": buffer[:6], "right": buffer[4:], "all": buffer, "square": buffer.view(2, 5)}}
    assert same(checkpoint.load(checkpoint.save(tmp_path, 1, state)), state)


def test_no_pickle_is_ever_written_or_read(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    path = checkpoint.save(tmp_path, 1, nested_state())
    checkpoint.load(path)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), torch.eye(2).to_sparse(), lambda: 0])
def test_what_cannot_be_held_is_refused_by_name(tmp_path, value):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, {"loop": {"thing": [value]}})
    assert list(tmp_path.iterdir()) == []


def test_manifest_records_what_the_run_was_made_of(tmp_path):
    meta = {"config_hash": "c0ffee", "data_fingerprint": "f00d", "world_size": 2, "by_rank": {0: 1, 10: 2, 9: 3}}
    manifest = checkpoint.read_manifest(checkpoint.save(tmp_path, 7, {"a": 1}, meta=meta, best_step=5))
    assert manifest["step"] == 7 and manifest["best_step"] == 5
    assert manifest["meta"]["world_size"] == 2 and manifest["meta"]["by_rank"] == {"0": 1, "10": 2, "9": 3}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["files"]["state.json"]["size"] == len(json.dumps({"a": 1}))


@pytest.mark.parametrize(("build", "metadata"), [("2.13.0+cu130", "2.13.0"), ("2.13.0+cpu", "2.13.0+cpu")])
def test_torch_is_recorded_with_its_build(tmp_path, monkeypatch, build, metadata):
    """PyPI's build for CUDA says it only in torch.__version__; a run that goes on with another build is told."""
    monkeypatch.setattr(torch, "__version__", build)
    monkeypatch.setattr(environment, "_recorded", lambda package: metadata)
    found = checkpoint.read_manifest(checkpoint.save(tmp_path, 1, {"a": 1}))["versions"]
    assert found["torch"] == build and found["numpy"] == metadata


def steps(folder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_newest_and_best_are_kept(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2, best_step=best)
    assert steps(tmp_path) == [2, 4, 5]
    assert checkpoint.best(tmp_path) == tmp_path / "step-000002"
    checkpoint.save(tmp_path, 6, {"step": 6}, keep=2, best_step=6)
    checkpoint.save(tmp_path, 7, {"step": 7}, keep=2, best_step=6)
    assert steps(tmp_path) == [6, 7]
    assert checkpoint.best(tmp_path) == tmp_path / "step-000006"
    checkpoint.save(tmp_path, 8, {"step": 8}, keep=1, best_step=None)
    assert steps(tmp_path) == [8] and checkpoint.best(tmp_path) is None


def test_later_checkpoints_of_an_abandoned_course_go(tmp_path):
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, {"step": step}, keep=3)
    checkpoint.save(tmp_path, 3, {"step": 3}, keep=3)  # continued from 2
    assert steps(tmp_path) == [2, 3]


def test_the_same_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 2, {"x": 1})
    checkpoint.save(tmp_path, 2, {"x": 2})
    assert steps(tmp_path) == [2]
    assert checkpoint.load(tmp_path / "step-000002") == {"x": 2}


def test_what_resume_means(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.find_resume(folder, None) is None
    assert checkpoint.find_resume(folder, "auto") is None
    checkpoint.save(folder, 2, {"x": 1})
    newest = checkpoint.save(folder, 4, {"x": 1})
    assert checkpoint.find_resume(folder, "auto") == newest
    assert checkpoint.find_resume(folder, str(folder / "step-000002")) == folder / "step-000002"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.find_resume(folder, str(folder / "step-000003"))
    with pytest.raises(CheckpointError, match="run folder"):
        checkpoint.find_resume(folder, str(tmp_path / "run"))
