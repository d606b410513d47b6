"""What benchmarks.online_world trains: every online method, and PPO with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assent.config import (
    METHODS,
    DataConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    RewardsConfig,
    TrainConfig,
    online_config,
)
from assent.lab.artifacts import WorldPaths
from assent.lab.demo import SAMPLING

ANSWERS = 64
"""Answers that are trained on in one rollout, of every method: 64 prompts, or fewer with more answers each."""
KL = 0.4
"""Weight of the KL where a method has it in the reward, as in `assent demo`; elsewhere the method's default holds."""
MISSING_EOS = 1.0
"""`shaping.missing_eos_penalty` of all runs, as in `assent demo`."""
BASE = "base"
"""PPO as it stands in the table of all methods."""
FILE = "demonstrations"
"""Stands for the file of demonstrations below."""

VARIANTS: dict[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    BASE: ("PPO as above", {}),
    "normalise-running": ("rewards scaled by their running mean and deviation", {"shaping": {"normalise": "running"}}),
    "normalise-batch": ("rewards scaled within a rollout", {"shaping": {"normalise": "batch"}}),
    "unwhitened": ("advantages not whitened", {"loss": {"whiten": False}}),
    "critic-warmup": ("critic alone for 4 rollouts", {"critic": {"warmup": 4}}),
    "critic-policy": ("critic from the policy, new head", {"critic": {"start": "policy"}}),
    "critic-shared": ("critic as a head of the policy", {"critic": {"shared": True}}),
    "value-unclipped": ("value clip off", {"critic": {"clip": 0.0}}),
    "kl-k3": ("KL in the reward, k3", {"kl": {"estimator": "k3"}}),
    "kl-full": ("KL in the reward, full", {"kl": {"estimator": "full"}}),
    "kl-loss-k2": ("KL in the loss, k2", {"kl": {"place": "loss", "estimator": "k2"}}),
    "kl-loss-k3": ("KL in the loss, k3", {"kl": {"place": "loss", "estimator": "k3"}}),
    "kl-none": ("no KL", {"kl": {"coef": 0.0}}),
    "kl-target": ("KL weight adapted to 6 nats, horizon 500", {"kl": {"target": 6.0, "horizon": 500}}),
    "clip-0.1": ("clip 0.1", {"loss": {"clip": 0.1}}),
    "clip-0.3": ("clip 0.3", {"loss": {"clip": 0.3}}),
    "no-clip": ("objective none", {"loss": {"objective": "none"}}),
    "penalty": ("objective penalty, weight 1", {"loss": {"objective": "penalty"}}),
    "penalty-adaptive": (
        "objective penalty, adapted to 0.01", {"loss": {"objective": "penalty", "penalty_target": 0.01}},
    ),
    "target-kl": ("rollout left at 0.02 nats a token", {"rollout": {"target_kl": 0.02}}),
    "ewma": ("clip around an average, decay 0.9", {"loss": {"ewma": 0.9}}),
    "ptx": ("demonstrations mixed in (ptx 0.2)", {"ptx": {"data": FILE}}),
    "demonstration-prompts": ("prompts of the demonstrations", {"data": {"train": FILE}}),
    "given": ("these prompts, demonstrations as given answers", {"data": {"train": FILE}, "given": {"source": "row"}}),
}  # fmt: skip
"""What is changed, in words, and as options of the sections."""


@dataclass(frozen=True, slots=True)
class Base:
    """What every run begins with."""

    world: WorldPaths
    sft: Path
    reward: Path


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    method: str
    rate: float
    seed: int
    variant: str = BASE

    @property
    def name(self) -> str:
        changed = "" if self.variant == BASE else f"-{self.variant}"
        return f"{self.method}{changed}-{self.rate:g}-seed{self.seed}"


def configuration(cell: Cell, base: Base, out: Path) -> OnlineConfig:
    """The run of a cell; it has no length of its own."""
    row = METHODS[cell.method]
    plain = row.config(ModelConfig(""), DataConfig(""), "")
    config = online_config(
        cell.method,
        model=ModelConfig(str(base.sft), precision="fp32"),
        data=DataConfig(str(base.world.prompts), max_length=256),
        out=str(out),
        optim=OptimConfig(lr=cell.rate, schedule="constant", warmup=0.0),
        train=TrainConfig(batch_size=ANSWERS // plain.rollout.responses, seed=cell.seed),
        rewards=RewardsConfig((str(base.reward),)),
        shaping=replace(plain.shaping, missing_eos_penalty=MISSING_EOS),
        kl=replace(plain.kl, coef=KL) if plain.kl.place == "reward" and plain.kl.coef > 0 else plain.kl,
        sampling=SAMPLING,
    )
    assert row.has_critic or cell.variant == BASE, "the variants are those of PPO"
    for section, changes in VARIANTS[cell.variant][1].items():
        known = {name: str(base.world.sft) if value == FILE else value for name, value in changes.items()}
        config = replace(config, **{section: replace(getattr(config, section), **known)})
    return config
