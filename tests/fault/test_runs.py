"""Whole runs that are stopped, killed, damaged or misused: the same bytes in the end, or a clear refusal."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import assent.train.loop as loop_module
import assent.train.run as run_module
from assent.config import (
    METHODS,
    OBJECTIVES,
    CriticConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    ReferenceConfig,
    RewardConfig,
    RewardsConfig,
    RewardSection,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
)
from assent.errors import NonFiniteError, OutputError, RunFolderError, ShutdownRequested
from assent.train import checkpoint, final
from assent.train.log import read_metrics

from ..kinds import KINDS
from .commands import train, until

WORDS = "red green blue paris egg water seven minutes boil cool answer question sentence thank welcome".split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Twelve pairs whose answers differ in length, one with a strength."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"{i} {text(1, 8)}?", "chosen": text(1, 9), "rejected": f"no {text(1, 9)}"} for i in range(12)]
    rows = [row | {"margin": 0.5 + i / 10} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(tiny_model_dir: Path, scorer_dir: Path, teacher_dir: Path, pairs: Path) -> Make:
    """Configuration of one of the runs below, written to `out`: six steps, methods eight."""

    def build(name: str, out: Path, **train) -> RunConfig:
        lora = LoraConfig(rank=2) if "lora" in name else LoraConfig()
        shared = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32", lora=lora),
            "data": DataConfig(str(pairs), eval_fraction=0.2, max_length=64),
            "out": str(out),
            "optim": OptimConfig(lr=3e-3, warmup=0.2, weight_decay=0.01),
            "train": TrainConfig(batch_size=4, micro_tokens=100, max_steps=6, eval_every=2, threads=1, **train),
        }
        match name.split()[0]:
            case "sft":
                return SFTConfig(**shared)
            case "reward":
                return RewardConfig(**shared, reward=RewardSection(readout="mean"))
            case objective if objective in OBJECTIVES:
                options = {"probe": ProbeConfig(prompts=2, max_new_tokens=4)}
                if objective == "tr-dpo":
                    options["reference"] = {"mode": "moving", "rate": 0.5, "every": 2}
                if "cached" in name:
                    options["reference"] = ReferenceConfig(mode="cached", cache=str(out.parent / "cache.safetensors"))
                return preference_config(objective, **shared, **options)
            case method if method in METHODS:
                shared["train"] = replace(shared["train"], max_steps=8, eval_every=3)
                critic = {"critic": CriticConfig(lr=5e-3)} if METHODS[method].has_critic else {}
                if METHODS[method].needs_teacher:
                    critic["distill"] = {"teacher": str(teacher_dir)}
                return online_config(
                    method,
                    **shared,
                    **critic,
                    rewards=RewardsConfig((str(scorer_dir),)),
                    rollout=vars(RolloutConfig(responses=2, epochs=2, minibatches=2)),
                    sampling=SamplingConfig(max_new_tokens=6),
                )
        raise ValueError(name)

    return build


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bytes_of(out: Path) -> dict[str, str]:
    """Hashes of all that a run computes: newest checkpoint, final models, metrics without times, samples."""
    newest = checkpoint.newest_complete(out / "checkpoints")
    found = {file.name: sha(file.read_bytes()) for file in newest.iterdir() if file.suffix == ".safetensors"}
    state = json.loads((newest / "state.json").read_text())
    state["run"].pop("positions")  # bytes of metrics.jsonl, whose times differ in length
    found["state"] = sha(json.dumps(state, sort_keys=True).encode())
    for file in sorted(out.glob("*/**/*.safetensors")):
        if "checkpoints" not in file.parts:
            found[str(file.relative_to(out))] = sha(file.read_bytes())
    rows = read_metrics(out / "metrics.jsonl", times=False)
    found["metrics"] = sha(repr(rows).encode())
    found["rows"] = str(len(rows))
    samples = out / "samples.jsonl"
    found["samples"] = sha(samples.read_bytes()) if samples.exists() else "none"
    return found


@pytest.fixture
def stop_at(monkeypatch) -> Callable[[int | None], None]:
    """Sends this process SIGTERM while the given step is recorded."""
    take = run_module.TrainingRun.take
    wanted: list[int | None] = [None]

    def taking(self, result) -> None:
        take(self, result)
        if result.step == wanted[0]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_module.TrainingRun, "take", taking)

    def choose(step: int | None) -> None:
        wanted[0] = step

    return choose


def interrupted(config: RunConfig, stop_at, *steps: int) -> None:
    """The run, stopped after each of `steps` and continued, to its end."""
    for number, step in enumerate((*steps, None)):
        stop_at(step)
        resumed = replace(config, resume="auto" if number else None)
        if step is None:
            train(resumed)
        else:
            with pytest.raises(ShutdownRequested, match=rf"step {step} saved; continue with --resume auto") as stopped:
                train(resumed)
            assert stopped.value.exit_code == 143


RUNS = ("sft", "reward", *KINDS, "dpo lora", "tr-dpo lora", "kto cached", "reward lora")


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_is_straight(name: str, make: Make, stop_at, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch and at its end, between evaluations and after one."""
    config = make(name, tmp_path / "stopped")
    train(make(name, tmp_path / "straight"))
    straight = bytes_of(tmp_path / "straight")
    assert int(straight["rows"]) >= config.train.max_steps
    interrupted(config, stop_at, 1, 3)
    assert bytes_of(tmp_path / "stopped") == straight


def test_random_numbers_go_on_where_they_were(make: Make, tmp_path: Path, monkeypatch) -> None:
    """Those of torch's own generator, whoever draws them in training."""
    drawn: list[float] = []
    gradients = loop_module._gradients

    def drawing(*arguments: Any) -> dict[str, float]:
        drawn.append(torch.rand(()).item())
        return gradients(*arguments)

    monkeypatch.setattr(loop_module, "_gradients", drawing)
    whole = make("sft", tmp_path / "straight")
    train(whole)
    straight, drawn[:] = list(drawn), []
    parts = replace(whole, out=str(tmp_path / "parts"))
    train(replace(parts, train=replace(parts.train, max_steps=3)))
    train(replace(parts, resume="auto"))
    assert drawn == straight and len(set(straight)) == 6


@pytest.mark.parametrize("name", [*METHODS, "ppo lora"])
def test_stopped_at_every_step_of_a_rollout_is_straight(name: str, make: Make, stop_at, tmp_path: Path) -> None:
    """Four steps are taken on one rollout: stops lie inside its epochs, between them, and between rollouts."""
    train(make(name, tmp_path / "straight"))
    straight = bytes_of(tmp_path / "straight")
    assert straight["samples"] != "none"
    rows = read_metrics(tmp_path / "straight" / "metrics.jsonl")
    fresh = [row for row in rows if "rollout" in row]
    assert [row["step"] for row in fresh] == [1, 5]
    for row in fresh:  # no update yet since these answers were sampled
        assert row["ratio"] == pytest.approx(1.0, abs=1e-6) and row["clip_fraction"] == 0 and row["mismatch"] < 1e-4
    interrupted(make(name, tmp_path / "stopped"), stop_at, *(range(1, 8) if name == "ppo" else (2, 5)))
    assert bytes_of(tmp_path / "stopped") == straight


def test_runs_differ_where_they_should(make: Make, tmp_path: Path) -> None:
    """The comparison above sees one other seed."""
    train(make("sft", tmp_path / "a"))
    train(make("sft", tmp_path / "b", seed=1))
    a, b = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert all(a[key] != b[key] for key in ("policy.safetensors", "optimizer.safetensors", "model/model.safetensors"))
    assert a["metrics"] != b["metrics"]


def test_resuming_a_finished_run_changes_nothing(make: Make, tmp_path: Path) -> None:
    config = make("sft", tmp_path / "run")
    train(config)
    before = bytes_of(tmp_path / "run")
    train(replace(config, resume="auto"))
    assert bytes_of(tmp_path / "run") == before


def test_a_longer_run_continues_a_finished_one(make: Make, tmp_path: Path, capsys) -> None:
    config = make("sft", tmp_path / "run")
    config = replace(config, optim=replace(config.optim, schedule="constant", warmup=0.0))
    train(replace(config, train=replace(config.train, max_steps=3)))
    train(replace(config, resume="auto"))
    assert "--train.max_steps: 3 -> 6" in capsys.readouterr().err
    train(replace(config, out=str(tmp_path / "straight")))
    assert bytes_of(tmp_path / "run")["policy.safetensors"] == bytes_of(tmp_path / "straight")["policy.safetensors"]


# ---- refusals


def test_an_existing_run_is_not_reused(make: Make, tmp_path: Path) -> None:
    config = make("sft", tmp_path / "run")
    train(config)
    before = bytes_of(tmp_path / "run")
    with pytest.raises(RunFolderError, match="an earlier run is there. Continue it with --resume auto") as refused:
        train(config)
    assert refused.value.exit_code == 2
    assert bytes_of(tmp_path / "run") == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="is not empty and is no run folder"):
        train(replace(config, out=str(tmp_path / "notes")))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_another_run_is_not_continued(make: Make, stop_at, pairs: Path, tmp_path: Path) -> None:
    config = make("dpo", tmp_path / "run")
    stop_at(2)
    with pytest.raises(ShutdownRequested):
        train(config)
    stop_at(None)
    config = replace(config, resume="auto")
    with pytest.raises(RunFolderError) as refused:
        train(replace(config, optim=replace(config.optim, lr=1e-4), loss=replace(config.loss, beta=0.2)))
    text = str(refused.value)
    assert "--optim.lr: 0.003 -> 0.0001" in text and "--loss.beta: 0.1 -> 0.2" in text and "schedule" not in text
    with pytest.raises(RunFolderError, match="made with assent dpo, not with assent sft"):
        train(replace(make("sft", tmp_path / "run"), resume="auto"))
    changed = tmp_path / "pairs.jsonl"
    changed.write_text(pairs.read_text().replace("egg", "ham"))
    with pytest.raises(RunFolderError, match="--data.train, rows: .* -> .*"):
        train(replace(config, data=replace(config.data, train=str(changed))))
    train(config)  # after all that, it still continues


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, make: Make, stop_at, tmp_path: Path, caplog) -> None:
    train(make("sft", tmp_path / "straight"))
    config = make("sft", tmp_path / "run", save_every=1)
    stop_at(4)
    with pytest.raises(ShutdownRequested):
        train(config)
    stop_at(None)
    file = tmp_path / "run" / "checkpoints" / "step-000004" / "optimizer.safetensors"
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-5])
    train(replace(config, resume="auto"))
    warnings = "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert re.search(r"passed over: .*step-000004/optimizer.safetensors", warnings)
    got, want = bytes_of(tmp_path / "run"), bytes_of(tmp_path / "straight")
    assert got == want


# ---- numbers that are not finite


@pytest.mark.parametrize(
    ("lr", "words"),
    [(1e30, "the update was too large: policy"), (1e14, "policy gives nan for a few ordinary tokens")],
)
def test_a_diverging_run_saves_nothing(lr: float, words: str, make: Make, tmp_path: Path) -> None:
    config = make("dpo", tmp_path / "run", save_every=1)
    config = replace(config, optim=replace(config.optim, lr=lr, warmup=0.0, max_grad_norm=0.0))
    config = replace(config, train=replace(config.train, eval_every=0), data=replace(config.data, eval_fraction=0.0))
    with pytest.raises(NonFiniteError, match=f"^step 1: {words}") as stopped:
        train(config)
    assert stopped.value.exit_code == 3
    assert "No checkpoint exists yet" in str(stopped.value)
    assert str(stopped.value).count("step 1: ") == 1, "it is said once"
    assert checkpoint.newest_complete(tmp_path / "run" / "checkpoints") is None
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert not (tmp_path / "run" / "model").exists()


def test_a_bad_number_says_what_there_is_and_keeps_it(make: Make, tmp_path: Path, monkeypatch) -> None:
    """Without a checkpoint so far: the step before is saved. (In the first step there is nothing: see above.)"""
    whole, steps = loop_module._gradients, []

    def gradients(*given) -> dict[str, float]:
        steps.append(1)
        return whole(*given) | ({"loss": math.nan} if len(steps) == 3 else {})

    monkeypatch.setattr(loop_module, "_gradients", gradients)
    config = make("dpo", tmp_path / "run")
    with pytest.raises(NonFiniteError, match="^step 3: loss is nan") as stopped:
        train(config)
    assert "The update was not applied." in str(stopped.value) and "Checkpoint of step 2 saved" in str(stopped.value)
    newest = checkpoint.newest_complete(tmp_path / "run" / "checkpoints")
    assert newest is not None and checkpoint.read_manifest(newest)["step"] == 2
    monkeypatch.undo()
    train(replace(config, resume="auto"))
    train(replace(config, out=str(tmp_path / "straight")))
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "straight")


@pytest.mark.parametrize("error", [RuntimeError("no"), RunFolderError("no"), OSError(28, "No space left on device")])
def test_an_error_after_training_leaves_only_the_model_to_write(
    error: Exception, make: Make, tmp_path: Path, monkeypatch
) -> None:
    config = make("sft", tmp_path / "run")
    train(replace(config, out=str(tmp_path / "straight")))

    read_back, calls = final.read_back, []

    def at_the_end(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:  # before the first step it is tried
            return read_back(*arguments, **options)
        raise error

    with monkeypatch.context() as inner, pytest.raises((type(error), OutputError)) as failed:
        inner.setattr(final, "read_back", at_the_end)
        train(config)
    said = "\n".join([str(failed.value), *getattr(failed.value, "__notes__", ())])
    assert "Checkpoint of step 6 saved; continue with --resume auto. That only writes the model" in said
    with monkeypatch.context() as inner:
        inner.setattr("assent.train.loop.train_steps", lambda *_, start, total, **__: iter(range(start, total)))
        train(replace(config, resume="auto"))  # nothing is left to train
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "straight")


# ---- real processes


def command(config: RunConfig) -> list[str]:
    from assent.config import settings

    file = Path(config.out).parent / f"{Path(config.out).name}.yaml"
    file.write_text(settings.dump(config))
    return [type(config).__name__.removesuffix("Config").lower(), "--config", str(file)]


def test_killed_at_random_moments_is_straight(children, make: Make, tmp_path: Path) -> None:
    """SIGKILL to a PPO run, over and over, each time continued: in the middle of a save, and at seeded moments of the
    start and of the loop."""
    draw = random.Random(5)

    def config(name: str) -> RunConfig:
        made = make("ppo", tmp_path / name, save_every=1)
        return replace(made, resume="auto", train=replace(made.train, max_steps=16))

    assert children.wait(children.start(command(config("straight")))) == 0, children.log.read_text()
    folder, metrics = tmp_path / "killed" / "checkpoints", tmp_path / "killed" / "metrics.jsonl"
    killed = torn = 0
    for moment in ("save", "loop", "start") * 3:
        before, size = unfinished(folder), metrics.stat().st_size if metrics.exists() else 0
        pid = children.start(command(config("killed")))
        if moment == "save":
            while lives(pid) and unfinished(folder) in ([], before):
                time.sleep(0.0005)
        elif moment == "loop":
            while lives(pid) and (not metrics.exists() or metrics.stat().st_size == size):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
        else:
            time.sleep(draw.uniform(0, 0.6))
        os.kill(pid, signal.SIGKILL)
        killed += children.wait(pid) == -signal.SIGKILL
        if unfinished(folder) not in ([], before):
            torn += 1
            assert checkpoint.newest_complete(folder) not in unfinished(folder)
    assert children.wait(children.start(command(config("killed")))) == 0, children.log.read_text()
    assert killed >= 5 and torn >= 1, (killed, torn)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "straight")


def unfinished(folder: Path) -> list[Path]:
    """Checkpoints that a killed process left half written."""
    return list(folder.glob("*.tmp-*"))


def lives(pid: int) -> bool:
    """Whether a child still runs (one that ended waits to be asked for)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def present(file: Path) -> bytes:
    """What a file holds; nothing where it is not there, as between the trial of a run's files and their first rows."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves(number: int, code: int, children, make: Make, tmp_path: Path) -> None:
    """In the middle of a long step too: the one before it is saved."""
    rows = [{"prompt": f"{i}?", "completion": "red green blue"} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make("sft", tmp_path / "run")
    config = replace(
        config,
        data=replace(config.data, train=str(tmp_path / "rows.jsonl"), eval_fraction=0.0),
        train=replace(config.train, max_steps=100_000, eval_every=0, batch_size=300, micro_tokens=1),
    )
    pid = children.start(command(config))
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: b'"step"' in present(metrics))
    os.kill(pid, number)
    assert children.wait(pid) == code
    said = children.log.read_text()
    assert f"{signal.Signals(number).name}: stopping" in said and "Traceback" not in said
    step = read_metrics(metrics)[-1]["step"]
    assert f"Checkpoint of step {step} saved; continue with --resume auto." in said
    newest = checkpoint.newest_complete(tmp_path / "run" / "checkpoints")
    assert checkpoint.read_manifest(newest)["step"] == step
    more = replace(config, resume="auto", train=replace(config.train, max_steps=int(step)))
    assert children.wait(children.start(command(more))) == 0, children.log.read_text()


def test_exit_codes_of_refusals(children, make: Make, tmp_path: Path) -> None:
    config = make("sft", tmp_path / "run")
    assert children.wait(children.start(command(config))) == 0, children.log.read_text()
    assert children.wait(children.start(command(config))) == 2
    assert children.log.read_text().startswith("error: --out") and "Traceback" not in children.log.read_text()
    diverging = make("sft", tmp_path / "diverging")
    diverging = replace(diverging, optim=replace(diverging.optim, lr=1e30, warmup=0.0))
    assert children.wait(children.start(command(diverging))) == 3
    said = children.log.read_text()
    assert "step 1: the update was too large: " in said and "Traceback" not in said
