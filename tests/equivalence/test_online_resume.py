"""Online runs with every option that has a state of its own, stopped and continued: the same bytes as one that ran
straight through. A stop lies inside a rollout, between two, and while the next is being sampled."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import assent.train.run as run_module
from assent.algorithms.online.prompts import Prompts
from assent.algorithms.online.train import train_online
from assent.config import (
    METHODS,
    CriticConfig,
    CurriculumConfig,
    DataConfig,
    EngineConfig,
    GivenConfig,
    KLConfig,
    LoraConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    PtxConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    ShapingConfig,
    TrainConfig,
    online_config,
)
from assent.errors import ShutdownRequested
from assent.train import checkpoint
from assent.train.log import read_jsonl, read_metrics

STEPS = 6
PROMPTS = 5  # rollouts of two reach over the ends of passes
TWO = RolloutConfig(responses=2, minibatches=2, show=9)
TRAIN = TrainConfig(batch_size=2, micro_tokens=100, max_steps=STEPS, threads=1, keep=9)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ahead": ("ppo", {"rollout": replace(TWO, ahead=True)}),
    "ahead greedy": ("remax", {"rollout": replace(TWO, responses=1, ahead=True)}),
    "compiled": ("grpo", {"engine": EngineConfig(compile=True), "rollout": replace(TWO, ahead=True)}),
    "one step": (
        "ppo",
        {"rollout": replace(TWO, minibatches=1, ahead=True), "train": replace(TRAIN, micro_tokens=4096)},
    ),
    "ewma": ("ppo", {"loss": {"ewma": 0.5, "tuned_batch": 8}, "rollout": TWO}),
    "ptx": ("ppo", {"ptx": PtxConfig("DATA", batch_size=2), "rollout": TWO}),
    "given row": ("grpo", {"given": GivenConfig("row", when="always"), "rollout": TWO}),
    "given hint": (
        "grpo",
        {"given": GivenConfig("hint", "Say {answer} {level}", when="always"), "rollout": replace(TWO, ahead=True)},
    ),
    "curriculum": ("rloo", {"curriculum": CurriculumConfig("easy", rest=1), "rollout": TWO}),
    "shaping running": ("rloo", {"shaping": ShapingConfig("running", "running", clip=1.0), "rollout": TWO}),
    "shaping row": (
        "reinforce",
        {"shaping": ShapingConfig("row", "batch", missing_eos_penalty=0.5), "rollout": TWO},
    ),
    "shared critic": ("ppo", {"critic": CriticConfig(shared=True, warmup=1), "rollout": TWO}),
    "critic warm-up": ("ppo", {"critic": CriticConfig("policy", warmup=2), "rollout": TWO}),
    "target_kl": ("ppo", {"rollout": replace(TWO, epochs=2, target_kl=1e-4)}),
    "adaptive": (
        "ppo",
        {
            "kl": KLConfig(target=0.1, horizon=8),
            "loss": {"objective": "penalty", "penalty_target": 1e-3},
            "rollout": replace(TWO, epochs=2, minibatches=1),
        },
    ),
    "distilled on rows": (
        "gkd",
        {
            "distill": {"on_policy": 0.5, "beta": 0.5},
            "rollout": replace(TWO, ahead=True),
            "rewards": RewardsConfig(),
            "sampling": SamplingConfig(max_new_tokens=24),
        },
    ),
    "teacher in the reward": ("ppo", {"distill": {"coef": 0.3}, "rollout": TWO}),
    "moving anchor": (
        "grpo",
        {"kl": KLConfig(0.1, place="loss", estimator="k3", anchor="ema", anchor_rate=0.3), "rollout": TWO},
    ),
    "moving anchor lora": (
        "ppo",
        {
            "kl": KLConfig(anchor="ema", anchor_rate=0.3, target=0.1, horizon=8),
            "model": LoraConfig(rank=4, alpha=8),
            "rollout": replace(TWO, ahead=True),
        },
    ),
    "dynamic": (
        "dapo",
        {
            "curriculum": CurriculumConfig("hard", column="level", rest=1),
            "rewards": RewardsConfig(rules=("length=2,8",)),
            "rollout": replace(TWO, ahead=True),
        },
    ),
}
EVERY_STEP = ("ahead", "one step", "curriculum", "target_kl", "adaptive", "dynamic")
"""Stopped after each step; the others in the first rollout and after the second, where what they add is no less at work
than after other steps."""
Make = Callable[[str, Path], OnlineConfig]


@pytest.fixture(scope="module")
def make(tiny_model_dir: Path, teacher_dir: Path, tmp_path_factory) -> Make:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    answers = ("paris", "red green", "egg", "water seven minutes boil cool red green blue", "blue egg")
    rows = [{"prompt": f"{i} red?", "completion": answers[i], "level": i, "gold": "e"} for i in range(PROMPTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(name: str, out: Path) -> OnlineConfig:
        method, options = CASES[name]
        ptx = options.get("ptx")
        filled = options | ({"ptx": replace(ptx, data=str(file))} if ptx else {})
        critic = {"critic": CriticConfig("policy")} if METHODS[method].has_critic else {}
        if "distill" in filled:
            filled["distill"] = {**filled["distill"], "teacher": str(teacher_dir)}
        shared: dict[str, Any] = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32"),
            "data": DataConfig(str(file), max_length=64),
            "out": str(out),
            "optim": OptimConfig(lr=1e-2, warmup=0.0, weight_decay=0.01),
            "train": TRAIN,
            "rewards": RewardsConfig(rules=("length=5,6", "contains=gold")),
            "sampling": SamplingConfig(max_new_tokens=6),
        }
        whole = {section: vars(filled[section]) for section in ("rollout", "kl") if section in filled}
        if "model" in filled:
            whole["model"] = replace(shared["model"], lora=filled["model"])
        return online_config(method, **{**shared, **critic, **filled, **whole})

    return build


@pytest.fixture
def stop_after(monkeypatch) -> Callable[[int | None], None]:
    """Sends this process SIGTERM while the given step is recorded."""
    take, wanted = run_module.TrainingRun.take, [None]

    def taking(self: Any, result: Any) -> None:
        take(self, result)
        if result.step == wanted[0]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_module.TrainingRun, "take", taking)

    def choose(step: int | None) -> None:
        wanted[0] = step

    return choose


def outcome(out: Path) -> dict[str, object]:
    """All that a run computes: weights, the last checkpoint, metrics without times, samples."""
    files = [*checkpoint.newest_complete(out / "checkpoints").glob("*.safetensors"), *out.glob("*/model.safetensors")]
    found: dict[str, object] = {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    return found | {
        "metrics": read_metrics(out / "metrics.jsonl", times=False),
        "samples": read_jsonl(out / "samples.jsonl"),
    }


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_continued_is_straight(
    name: str, make: Make, stop_after, tmp_path: Path, monkeypatch, request
) -> None:
    if name == "compiled":  # that kernels repeat themselves to the bit: test_rollout.py
        request.getfixturevalue("traced")
    monkeypatch.setattr("assent.rollout.sampler.PATIENCE", 120.0)  # answers under way are not given up
    asked: list[list[int]] = []
    take = Prompts.next

    def taking(self: Prompts, size: int) -> Any:
        indices = take(self, size)
        asked.append(indices.tolist())
        return indices

    monkeypatch.setattr(Prompts, "next", taking)
    train_online(make(name, tmp_path / "straight"))
    straight, wanted = outcome(tmp_path / "straight"), list(asked)
    asked.clear()
    stops = range(1, STEPS + 1) if name in EVERY_STEP else (1, 4, STEPS)
    for step in stops:
        config = replace(make(name, tmp_path / "stopped"), resume="auto" if step > 1 else None)
        stop_after(step if step < STEPS else None)
        if step < STEPS:
            with pytest.raises(ShutdownRequested):
                train_online(config)
        else:
            train_online(config)
    assert outcome(tmp_path / "stopped") == straight
    assert asked == wanted, "no prompt is lost or asked again"
    worked(name, straight["metrics"], wanted)


def worked(name: str, metrics: list[dict[str, float]], asked: list[list[int]]) -> None:
    """That the case has the state it is about."""
    fresh = [row for row in metrics if "rollout" in row]
    assert len(metrics) == STEPS and len(fresh) >= 2
    if "rest=" not in repr(CASES[name][1].get("curriculum")):
        each = Counter(index for rollout in asked for index in rollout)
        assert max(each.values()) - min(each.values()) <= 1 and len(each) == PROMPTS
    match name:
        case "ahead" | "ahead greedy" | "given hint" | "compiled":
            assert len(asked) == len(fresh) + 1, "the last one is under way when the run ends"
            assert fresh[0]["importance"] == pytest.approx(1, abs=1e-3) and fresh[1]["mismatch"] > 1e-3
        case "ewma":
            assert metrics[0]["lr"] == pytest.approx(5e-3), "that of batches of 8, for batches of 2"
        case "given row":
            assert all(row["given"] > 0 for row in fresh)
        case "curriculum" | "dynamic":
            assert any(0 < row["resting"] for row in fresh)
        case "target_kl":
            assert [row["step"] for row in fresh] != [1, 5], "rollouts of four steps are left early"
            assert any(row["approx_kl"] > 1e-4 for row in metrics)
        case "moving anchor" | "moving anchor lora":
            last = fresh[-1]
            assert fresh[0]["kl_anchor"] == fresh[0]["kl"] and abs(last["kl_anchor"] - last["kl"]) > 1e-5
        case "adaptive":
            assert len({row["penalty"] for row in fresh}) == len({row["kl_coef"] for row in fresh}) == len(fresh)
        case "shared critic" | "critic warm-up":
            warming = [row["step"] for row in metrics if "policy_loss" not in row]
            assert warming == ([1, 2] if name == "shared critic" else [1, 2, 3, 4])
        case "ptx":
            assert all(row["ptx_nll"] > 0 for row in metrics)
