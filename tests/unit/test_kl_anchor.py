"""The KL that counts from a moving average of the policy (WARP, arXiv 2406.16768): the average of its formula, the KL
from it, and its two ends: a rate of 0 is the fixed reference, one of 1 the policy itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from assent.algorithms.online.rollouts import Rollouts
from assent.algorithms.online.train import Online, train_online
from assent.config import (
    DataConfig,
    KLConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.data.packing import Window
from assent.data.tree import TokenTree, collate
from assent.losses import adaptive_kl
from assent.models.loading import load_policy
from assent.rollout.rollout import Rollout
from assent.train import checkpoint
from assent.train.log import read_metrics
from assent.train.run import RunResult

STEPS, RATE = 4, 0.3
REWARD = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in str(text)) / (1 + len(str(text))) for text in completions]
"""
Train = Callable[..., RunResult]


@pytest.fixture
def train(tmp_path: Path, tiny_model_dir: Path) -> Train:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} red?"}) + "\n" for i in range(6)))
    (tmp_path / "rewards.py").write_text(REWARD)

    def run(
        name: str,
        minibatches: int = 1,
        rank: int = 0,
        ahead: bool = False,
        save_every: int = 0,
        method: str = "rloo",
        loss: Mapping[str, Any] = MappingProxyType({}),
        coef: float = 0.1,
        **kl: Any,
    ):
        return train_online(
            online_config(
                method,
                model=ModelConfig(str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=rank, alpha=8)),
                data=DataConfig(str(file), max_length=64),
                out=str(tmp_path / name),
                optim=OptimConfig(lr=1e-2, warmup=0.0),
                train=TrainConfig(
                    batch_size=3, micro_tokens=40, max_steps=STEPS, threads=1, save_every=save_every, keep=STEPS
                ),
                rewards=RewardsConfig(functions=(f"{tmp_path / 'rewards.py'}:vowels",)),
                rollout=vars(RolloutConfig(responses=2, minibatches=minibatches, ahead=ahead)),
                sampling=SamplingConfig(max_new_tokens=6),
                kl={"coef": coef, **kl},
                loss=loss,
            )
        )

    return run


def rows_of(result: RunResult) -> list[dict[str, float]]:
    return read_metrics(result.out / "metrics.jsonl", times=False)


def states(result: RunResult) -> list[dict[str, Any]]:
    return [checkpoint.load(path) for path in sorted((result.out / "checkpoints").glob("step-*"))]


def kl_by_hand(rollout: Rollout, policy: dict[str, Any], other: dict[str, Any], model: ModelConfig) -> float:
    """Mean over answers of log pi(y) - log pi_other(y), by two models with these weights, one answer at a time."""
    sums = []
    for weights in (policy, other):
        loaded = load_policy(model, max_length=64)
        loaded.load_state_dict(weights)
        with torch.no_grad():
            each = [
                loaded(collate([TokenTree(tree.prompt, (branch,))]), 1.0).logprobs.double().sum()
                for tree in rollout.trees()
                for branch in tree.branches
            ]
        sums.append(np.array(each))
    return float((sums[0] - sums[1]).mean())


def test_the_average_is_that_of_its_formula(train: Train, tiny_model_dir: Path, monkeypatch) -> None:
    """theta_ema <- (1 - rate) theta_ema + rate theta after every step, from the start on, in float64; and the KL that
    is logged is the one from the policy to it, as both were when the answers were sampled."""
    made: list[Rollout] = []
    make = Rollouts.make
    monkeypatch.setattr(Rollouts, "make", lambda *args, **options: made.append(make(*args, **options)) or made[-1])
    result = train("run", minibatches=2, save_every=1, anchor="ema", anchor_rate=RATE)
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    start = {name: value.clone() for name, value in load_policy(model, max_length=64).state_dict().items()}
    found = states(result)
    assert len(found) == STEPS
    expected = {name: value.double().numpy() for name, value in start.items()}
    policies, averages = [start], [start]
    for state in found:
        policy, average = state["policy"], state["algorithm"]["average"]["model"]
        for name, value in policy.items():
            expected[name] = (1 - RATE) * expected[name] + RATE * value.double().numpy()
            np.testing.assert_allclose(average[name].numpy(), expected[name], atol=1e-6)
        policies, averages = [*policies, policy], [*averages, average]
    moved = max(float((averages[-1][name] - start[name]).abs().max()) for name in start)
    apart = max(float((averages[-1][name] - policies[-1][name]).abs().max()) for name in start)
    assert moved > 1e-3 and apart > 1e-3
    rollouts = [row for row in rows_of(result) if "rollout" in row]
    assert [row["step"] - 1 for row in rollouts] == list(range(0, STEPS, 2))
    for row, one in zip(rollouts, made, strict=True):
        at = int(row["step"]) - 1
        wanted = [kl_by_hand(one.rollout, policies[at], other[at], model) for other in (averages, [start] * (at + 1))]
        assert [row["kl_anchor"], row["kl"]] == pytest.approx(wanted, abs=2e-4)
    assert rollouts[0]["kl_anchor"] == rollouts[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rollouts[-1]["kl_anchor"] - rollouts[-1]["kl"]) > 1e-3


PLACES: dict[str, dict[str, Any]] = {
    "reward": {"ahead": True},
    "full": {"place": "loss", "estimator": "full", "minibatches": 2},
    "k3 lora": {"rank": 4, "place": "loss", "estimator": "k3", "minibatches": 2},
    "online-dpo": {"method": "online-dpo", "coef": 0.0, "minibatches": 2},
    "online-dpo lora": {"method": "online-dpo", "coef": 0.0, "rank": 4},
    "online-kto": {"method": "online-kto", "coef": 0.0, "minibatches": 2},
    "xpo f-dpo": {"method": "xpo", "loss": {"pairs": "f-dpo", "alpha": 0.1}, "coef": 0.0, "minibatches": 2},
    "nash-md": {"method": "nash-md"},
}


@pytest.mark.parametrize("place", PLACES)
def test_at_rate_0_it_is_the_fixed_reference(train: Train, place: str) -> None:
    """To the bit, but for the number that is logged beside."""
    fixed = train("fixed", **PLACES[place])
    still = train("still", anchor="ema", anchor_rate=0.0, **PLACES[place])
    rows = rows_of(still)
    assert [row.pop("kl_anchor") for row in rows if "kl_anchor" in row] == [row["kl"] for row in rows if "kl" in row]
    assert rows == rows_of(fixed) and len(rows) == STEPS
    weights = [(result.model / "model.safetensors").read_bytes() for result in (fixed, still)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("place", PLACES)
def test_at_rate_1_it_is_the_policy(train: Train, place: str) -> None:
    """Of which the policy has no distance when it samples, nor before any step on what it has sampled."""
    rows = rows_of(train("run", anchor="ema", anchor_rate=1.0, **PLACES[place]))
    fresh = [row for row in rows if "kl_anchor" in row]
    assert [row["kl_anchor"] for row in fresh] == pytest.approx([0.0] * len(fresh), abs=2e-6)
    assert abs(fresh[-1]["kl"]) > 1e-4
    if PLACES[place].get("place") == "loss":
        assert [row["kl_loss"] for row in rows] == pytest.approx([0.0] * STEPS, abs=1e-7)
    if PLACES[place].get("method") == "online-dpo":  # at every step its own twin: no margin
        assert [row["objective"] for row in rows] == pytest.approx([math.log(2)] * len(rows), abs=1e-6)


def test_a_loss_of_comparisons_is_held_to_the_average(train: Train, tiny_model_dir: Path, monkeypatch) -> None:
    """DPO by its formula, from the policy and the average as both were at each of the two steps of a rollout."""
    seen: list[Window] = []
    window = Online._window
    monkeypatch.setattr(Online, "_window", lambda *given: seen.append(window(*given)) or seen[-1])
    options = {"method": "online-dpo", "coef": 0.0, "minibatches": 2, "save_every": 1}
    result = train("run", anchor="ema", anchor_rate=RATE, **options)
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    start = {name: value.clone() for name, value in load_policy(model, max_length=64).state_dict().items()}
    found = states(result)
    policies = [start, *(state["policy"] for state in found)]
    averages = [start, *(state["algorithm"]["average"]["model"] for state in found)]
    for step, (row, one) in enumerate(zip(rows_of(result), seen, strict=True)):
        losses = []
        for batch in one.batches:
            sums = []
            for weights in (policies[step], averages[step]):
                loaded = load_policy(model, max_length=64)
                loaded.load_state_dict(weights)
                with torch.no_grad():
                    sums.append(batch.sum_by_response(loaded(batch, 1.0).logprobs).double())
            ratio = sums[0] - sums[1]
            for better, worse in batch.pairs.tolist():
                losses.append(float(torch.nn.functional.softplus(-0.1 * (ratio[better] - ratio[worse]))))
        assert row["objective"] == pytest.approx(float(np.mean(losses)), abs=1e-5)
    assert abs(rows_of(result)[-1]["objective"] - math.log(2)) > 1e-4


def test_the_weight_follows_the_kl_that_counts(train: Train) -> None:
    kl = {"target": 0.05, "horizon": 12, "anchor": "ema", "anchor_rate": RATE}
    rows = rows_of(train("run", **kl))
    weight = 0.1
    for row in rows:
        assert row["kl_coef"] == pytest.approx(weight)
        weight = adaptive_kl(weight, row["kl_anchor"], target=0.05, horizon=12, responses=6)
    by_the_other = adaptive_kl(rows[-2]["kl_coef"], rows[-2]["kl"], target=0.05, horizon=12, responses=6)
    assert rows[-1]["kl_coef"] != pytest.approx(by_the_other, rel=1e-6)


def test_what_a_run_says_of_it(train: Train, capsys) -> None:
    train("run", anchor="ema", anchor_rate=0.25)
    told = " ".join(capsys.readouterr().err.split())
    assert "the policy's average (0.25 of the policy a step); 0.1 x KL from it in the reward" in told
    assert KLConfig().anchor == "fixed"
