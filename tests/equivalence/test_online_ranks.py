"""Two ranks give what one gives, for online options that a rank could get wrong: every logged number, the sampled
answers, the final weights, the last checkpoint."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from assent.algorithms.online.train import train_online
from assent.config import (
    METHODS,
    CriticConfig,
    DataConfig,
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
    TrainConfig,
    online_config,
    settings,
)
from assent.train import checkpoint
from assent.train.log import read_jsonl, read_metrics

from .alike import assert_alike

WORKER = Path(__file__).parent / "workers" / "commands.py"
WORDS = "red green blue paris egg water seven minutes boil cool".split()
TWO = RolloutConfig(responses=2, minibatches=2, show=9)
TRAIN = TrainConfig(batch_size=5, micro_tokens=60, max_steps=4, threads=1)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ahead": ("rloo", {"rollout": replace(TWO, ahead=True)}),
    "ahead lora": ("rloo", {"rollout": replace(TWO, ahead=True)}),
    "given": ("grpo", {"given": GivenConfig("row", when="always")}),
    "hint": ("dr-grpo", {"given": GivenConfig("hint", "Say {answer}", when="always")}),
    "ewma": ("ppo", {"loss": {"ewma": 0.5}, "rollout": replace(TWO, target_kl=1e-5, epochs=2)}),
    "shared critic": ("ppo", {"critic": CriticConfig(shared=True, warmup=1)}),
    "one step": (
        "ppo",
        {"rollout": replace(TWO, minibatches=1, ahead=True), "train": replace(TRAIN, micro_tokens=4096)},
    ),
    "ptx": ("rloo", {"ptx": PtxConfig("DATA", coef=0.5, batch_size=3)}),
    "gkd lora": ("gkd", {"distill": {"beta": 0.5}}),
    "gkd on rows": (
        "gkd",
        {
            "distill": {"on_policy": 0.5, "beta": 0.0},
            "rewards": RewardsConfig(),
            "sampling": SamplingConfig(max_new_tokens=24, max_batch=4),
        },
    ),
    "teacher in the reward": ("rloo", {"distill": {"coef": 0.3}, "rewards": RewardsConfig()}),
    "credit": ("reinforce", {"rewards": RewardsConfig(("SCORER",), credit="gradient")}),
    "full reward": ("rloo", {"kl": vars(KLConfig(coef=0.2, estimator="full"))}),
    "moving anchor": ("rloo", {"kl": vars(KLConfig(0.2, anchor="ema", anchor_rate=0.3))}),
    "moving anchor lora": (
        "grpo",
        {"kl": vars(KLConfig(0.2, place="loss", estimator="full", anchor="ema", anchor_rate=0.3))},
    ),
    "full loss": ("grpo", {"kl": vars(KLConfig(coef=0.2, place="loss", estimator="full", target=0.1, horizon=50))}),
}


def configurations(out: Path, model: Path, data: Path, teacher: Path, scorer: Path) -> dict[str, OnlineConfig]:
    """Four steps on two rollouts of an odd number of prompts, so that shares are unequal."""

    def config(name: str) -> OnlineConfig:
        method, options = CASES[name]
        ptx = options.get("ptx")
        filled = options | ({"ptx": replace(ptx, data=str(data))} if ptx else {})
        if "distill" in filled:
            filled["distill"] = {**filled["distill"], "teacher": str(teacher)}
        if "rewards" in filled and filled["rewards"].model:
            filled["rewards"] = replace(filled["rewards"], model=(str(scorer),))
        lora = LoraConfig(rank=4 if "lora" in name else 0, alpha=8)
        shared: dict[str, Any] = {
            "model": ModelConfig(str(model), precision="fp32", lora=lora),
            "data": DataConfig(str(data), max_length=64),
            "out": str(out / name.replace(" ", "-")),
            # eps above the rounding of gradients, which Adam would otherwise blow up to whole steps
            "optim": OptimConfig(lr=1e-3, eps=1e-4, warmup=0.0, weight_decay=0.1, max_grad_norm=0.5),
            "train": TRAIN,
            "rewards": RewardsConfig(rules=("length=2,8",)),
            "rollout": TWO,
            "sampling": SamplingConfig(max_new_tokens=8, max_batch=4),
        }
        critic = {"critic": CriticConfig("policy")} if METHODS[method].has_critic else {}
        merged = {**shared, **critic, **filled}
        return online_config(method, **{**merged, "rollout": vars(merged["rollout"])})

    return {name: config(name) for name in CASES}


@pytest.fixture(scope="module")
def runs(
    program_ranks, tiny_model_dir: Path, teacher_dir: Path, scorer_dir: Path, tmp_path_factory
) -> dict[str, tuple[Path, Path]]:
    """For each case the run folders of one rank and of two."""
    folder = tmp_path_factory.mktemp("ranks")
    draw = random.Random(3)
    rows = [
        {"prompt": f"{i} {draw.choice(WORDS)}?", "completion": " ".join(draw.choices(WORDS, k=draw.randint(1, 3)))}
        for i in range(7)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(out: str) -> dict[str, OnlineConfig]:
        (folder / out).mkdir()
        return configurations(folder / out, tiny_model_dir, folder / "rows.jsonl", teacher_dir, scorer_dir)

    arguments = []
    double = make("double")
    for name, config in double.items():
        file = Path(f"{config.out}.yaml")
        file.write_text(settings.dump(config))
        arguments.append(f"{CASES[name][0]}:{file}")
    ranks = program_ranks(folder, [str(WORKER), *arguments])
    single = make("single")
    for config in single.values():
        train_online(config)
    ranks.join()
    return {name: (Path(single[name].out), Path(double[name].out)) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_answers(name: str, runs) -> None:
    one, two = (read_metrics(out / "metrics.jsonl", times=False) for out in runs[name])
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == pytest.approx(value, abs=1e-5, rel=1e-5, nan_ok=True), (key, a["step"])
    asked, again = (read_jsonl(out / "samples.jsonl") for out in runs[name])
    assert len(asked) >= 12 and len(asked) == len(again)
    for a, b in zip(asked, again, strict=True):
        assert (a["prompt"], a["response"], a.get("given")) == (b["prompt"], b["response"], b.get("given"))
        assert b["advantage"] == pytest.approx(a["advantage"], abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_states(name: str, runs, tiny_model_dir: Path) -> None:
    one, two = (load_file(out / "model" / "model.safetensors") for out in runs[name])
    start = load_file(tiny_model_dir / "model.safetensors")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=0, msg=lambda text, k=key: f"{k}: {text}")
    assert max((one[key] - start[key]).abs().max() for key in start) > 1e-4, "training moved the weights"
    first, second = (checkpoint.load(checkpoint.newest_complete(out / "checkpoints")) for out in runs[name])
    for part in ("policy", "algorithm"):
        assert_alike(first[part], second[part])


def test_the_cases_are_what_they_say(runs) -> None:
    rows = {name: read_metrics(one / "metrics.jsonl", times=False) for name, (one, _) in runs.items()}
    assert rows["ahead"][2]["mismatch"] > 1e-4 > rows["full reward"][2]["mismatch"]
    assert 0 < rows["given"][0]["given"] < rows["hint"][0]["given"] == 1, "one row is too long"
    assert [row["step"] for row in rows["ewma"] if "rollout" in row] != [1], "rollouts of four steps are left early"
    assert ["policy_loss" in row for row in rows["shared critic"]] == [False, False, True, True]
    assert all(row["ptx_nll"] > 0 for row in rows["ptx"])
    assert rows["full loss"][2]["kl_loss"] > 0 and rows["full loss"][2]["kl_coef"] != 0.2
