"""The reward models that can be trained: one row each, with their options.

Commands, docs and tests are made from the table at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.base import RunConfig
from assent.config.ranges import Named


@dataclass(frozen=True)
class RewardModelConfig(RunConfig):
    """What is trained is a reward model."""


@dataclass(frozen=True)
class RewardSection:
    """How the reward model reads and compares answers."""

    readout: Literal["last", "mean"] = "last"
    """last compares the scores at the last tokens; mean compares token by token over the whole response."""
    margin: bool = False
    """Ask for a score gap of at least the pair's strength."""
    output: Named | None = None
    """Goes on from one output of a reward model that has several (helpfulness, say), which becomes its only one: the
    second half of HelpSteer2-Preference's recipe (arXiv 2410.01257)."""


@dataclass(frozen=True)
class RewardConfig(RewardModelConfig):
    """Reward model from pairs (Bradley-Terry)."""

    reward: RewardSection = field(default_factory=RewardSection)


@dataclass(frozen=True)
class AttributesSection:
    """What is rated, and how the ratings become one reward."""

    outputs: tuple[str, ...] = ()
    """The attributes, in the order of the head's outputs. Empty: all that the training data rate, in the order in which
    they first stand there."""
    scale: tuple[float, float] | None = None
    """The lowest and the highest rating: others are bad rows. Without it the scale is read from the data."""
    weights: dict[str, float] = field(default_factory=dict)
    """reward = sum of weight * output, for example helpfulness:1 verbosity:-0.3; what is not named weighs 0. Without
    it, NVIDIA's for HelpSteer's five attributes (0.3, 0.74, 0.46, 0.47, -0.33), equal ones for all others."""


@dataclass(frozen=True)
class AttributesConfig(RewardModelConfig):
    """Reward model from ratings: one output for each attribute, and a rule that makes a reward of them."""

    attributes: AttributesSection = field(default_factory=AttributesSection)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """What a command trains. `target` is its "module:function"; `data` says what it learns from. A person follows the
    metrics `steps` of optimiser steps and `held_out` of evaluations; `best`, the `highest` or the lowest, says which
    step was the best."""

    name: str
    summary: str
    paper: str
    config: type[RewardModelConfig]
    target: str
    data: str
    steps: tuple[str, ...]
    held_out: tuple[str, ...]
    best: str
    highest: bool = True


REWARD_MODELS: dict[str, RewardModel] = {
    "reward": RewardModel(
        name="reward modelling (Bradley-Terry)", summary="Pairs told apart.", paper="2203.02155", config=RewardConfig,
        target="assent.algorithms.reward.pairs:train_reward", data="pairs",
        steps=("nll", "accuracy", "margin"), held_out=("accuracy", "nll", "margin"), best="accuracy",
    ),
    "reward-attributes": RewardModel(
        name="attribute regression", summary="Each attribute's rating, by an output of its own.", paper="2406.08673",
        config=AttributesConfig, target="assent.algorithms.reward.attributes:train_attributes", data="ratings",
        steps=("mse",), held_out=("mse", "correlation"), best="mse", highest=False,
    ),
}  # fmt: skip


def reward_model_of(config: RewardModelConfig) -> str:
    """The key in `REWARD_MODELS` that a configuration belongs to."""
    return next(key for key, row in REWARD_MODELS.items() if type(config) is row.config)
