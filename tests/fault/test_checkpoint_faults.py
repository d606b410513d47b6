"""A checkpoint is complete or absent: damage is named, falling back works, a failed or killed save harms nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from assent.errors import CheckpointError
from assent.train import checkpoint

SOURCE = Path(checkpoint.__file__).parents[2]


def state(step: int) -> dict:
    draw = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(16, 8, generator=draw), "b.bias": torch.randn(8, generator=draw)}
    return {"policy": weights, "optimizer": {"exp_avg": weights, "step": {"a.weight": step}}, "loop": {"step": step}}


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        checkpoint.save(tmp_path, step, state(step))
    return tmp_path


def cut(path: Path) -> None:
    content = (path / "policy.safetensors").read_bytes()
    (path / "policy.safetensors").write_bytes(content[:-10])


def empty(path: Path) -> None:
    (path / "optimizer.safetensors").write_bytes(b"")


def lose_weights(path: Path) -> None:
    (path / "policy.safetensors").unlink()


def lose_optimizer(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def flip_two_bytes(path: Path) -> None:
    content = bytearray((path / "policy.safetensors").read_bytes())
    content[-7] ^= 1
    content[-100] ^= 128
    (path / "policy.safetensors").write_bytes(content)


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def wrong_sha(path: Path) -> None:
    """As someone would who edits a checkpoint by hand and the manifest after it."""
    text = (path / "manifest.json").read_text()
    sha = json.loads(text)["files"]["state.json"]["sha256"]
    (path / "manifest.json").write_text(text.replace(sha, "0" * 64))


def edit_state(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('{"step": 4}', '{"step": 5}'))


def break_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def write_as_earlier_version(path: Path) -> None:
    """Whole, but of the format before this one."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["format"] = 2
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": checkpoint._seal(manifest)}))


DAMAGE = {
    cut: r"policy.safetensors: \d+ bytes, but the manifest says \d+",
    empty: r"optimizer.safetensors: 0 bytes",
    lose_weights: r"policy.safetensors: missing",
    lose_optimizer: r"optimizer.safetensors: missing",
    flip_two_bytes: r"policy.safetensors: its sha256 differs",
    lose_manifest: r"manifest.json: missing",
    wrong_sha: r"manifest.json: its sha256 does not match",
    edit_state: r"state.json: its sha256 differs",
    break_manifest: r"manifest.json: not readable",
    write_as_earlier_version: r"manifest.json: format 2; this version reads format 3. The version of assent that wrote",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_auto_falls_back(folder, damage, caplog):
    newest = folder / "step-000004"
    damage(newest)
    with pytest.raises(CheckpointError, match=DAMAGE[damage]):
        checkpoint.load(newest)
    with pytest.raises(CheckpointError, match=DAMAGE[damage]):
        checkpoint.find_resume(folder, str(newest))  # an explicit path never falls back
    path = checkpoint.find_resume(folder, "auto")
    assert re.search(DAMAGE[damage], warned(caplog)[0])
    assert path == folder / "step-000002"
    assert checkpoint.load(path)["loop"] == {"step": 2}


def test_nothing_good_left(folder, caplog):
    for path in folder.iterdir():
        cut(path)
    assert checkpoint.newest_complete(folder) is None
    assert len(warned(caplog)) == 2


def test_a_run_of_an_earlier_version_does_not_begin_anew(folder):
    for path in folder.iterdir():
        write_as_earlier_version(path)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.find_resume(folder, "auto")
    said = str(refused.value)
    assert said.count("format 2; this version reads format 3.") == 2 and "start a new run in another --out" in said


def test_unfinished_folder_is_never_loaded_and_is_cleared_away(folder, caplog):
    shutil.copytree(folder / "step-000004", folder / "step-000006.tmp-4242")
    assert checkpoint.newest_complete(folder) == folder / "step-000004" and not warned(caplog)
    checkpoint.save(folder, 8, state(8))
    assert not (folder / "step-000006.tmp-4242").exists()


def test_damaged_checkpoint_is_replaced_by_the_repeated_step(folder):
    flip_two_bytes(folder / "step-000004")
    checkpoint.save(folder, 4, state(4))
    assert torch.equal(checkpoint.load(folder / "step-000004")["policy"]["a.weight"], state(4)["policy"]["a.weight"])


def test_kill_between_the_two_renames_of_a_replacement(folder, monkeypatch):
    """The checkpoint of the same step is still found under its interim name, and goes once it is replaced."""
    rename = Path.rename

    def die(self, target):
        if ".tmp-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, 4, state(40))
    monkeypatch.undo()
    assert checkpoint.newest_complete(folder) == folder / "step-000004.old"
    assert checkpoint.load(folder / "step-000004.old")["loop"] == {"step": 4}
    checkpoint.save(folder, 4, state(4))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["save_file", "sync", "_publish"])
def test_full_disk(folder, monkeypatch, where):
    """At the first tensor, while flushing, and at the very end."""
    monkeypatch.setattr(checkpoint, where, full_disk)
    with pytest.raises(CheckpointError, match="step 6.*No space left.*Earlier checkpoints are untouched"):
        checkpoint.save(folder, 6, state(6), keep=1)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    assert checkpoint.load(checkpoint.newest_complete(folder))["loop"] == {"step": 4}


def test_disk_that_is_really_full(tmp_path):
    """The limit on file sizes stands in for the end of the disk: safetensors itself meets it, after 4 KiB."""
    code = f"""
import resource, signal, sys
import torch
from assent.errors import CheckpointError
from assent.train import checkpoint
checkpoint.save({str(tmp_path)!r}, 1, {{"x": {{"w": torch.ones(10)}}}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save({str(tmp_path)!r}, 2, {{"x": {{"w": torch.ones(100000)}}}})
except CheckpointError as error:
    print("CheckpointError", error)
"""
    done = run_python(code)
    assert "CheckpointError Could not write the checkpoint of step 2" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.load(tmp_path / "step-000001")["x"]["w"].sum() == 10


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory|File exists"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, state(1))


def test_old_ones_go_only_after_the_new_one_is_there(folder, monkeypatch):
    order = []
    rmtree, publish = shutil.rmtree, checkpoint._publish
    monkeypatch.setattr(shutil, "rmtree", lambda path, **kw: (order.append(Path(path).name), rmtree(path, **kw)))
    monkeypatch.setattr(checkpoint, "_publish", lambda *paths: (publish(*paths), order.append("published")))
    checkpoint.save(folder, 6, state(6), keep=1)
    deleted = [name for name in order if name.startswith(("step-000002", "step-000004"))]
    assert len(deleted) == 2 and order.index("published") < min(order.index(name) for name in deleted)


def test_a_deletion_that_fails_is_only_a_warning(folder, monkeypatch, caplog):
    def refuse(self, target):
        raise PermissionError(errno.EACCES, "denied")

    checkpoint.save(folder, 6, state(6), keep=3)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: rename(self, to) if "tmp" in self.name else refuse(self, to))
    checkpoint.save(folder, 8, state(8), keep=1)
    assert "Could not delete the old checkpoint" in warned(caplog)[0]
    assert checkpoint.newest_complete(folder) == folder / "step-000008"


def test_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path):
    """A process saves without end and is killed; what is found afterwards is whole and not older than it announced."""
    code = f"""
import torch
from assent.train import checkpoint
step = 0
while True:
    step += 1
    checkpoint.save({str(tmp_path)!r}, step, {{"x": {{"w": torch.full((200000,), float(step))}}, "n": step}}, keep=2)
    print(step, flush=True)
"""
    for delay in (0.0, 0.006, 0.017):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
            for line in process.stdout:
                announced = int(line)
                if announced == 3:
                    time.sleep(delay)
                    process.send_signal(signal.SIGKILL)
                    break
            announced = max([announced, *(int(line) for line in process.stdout)])
        loaded = checkpoint.load(checkpoint.newest_complete(tmp_path))
        assert loaded["n"] >= announced
        assert loaded["x"]["w"].unique().tolist() == [float(loaded["n"])]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": ""}


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
