"""The commands that train: their names, and for each kind what a person follows while it trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from assent.config import (
    METHODS,
    OBJECTIVES,
    REWARD_MODELS,
    OnlineConfig,
    PolicyRunConfig,
    RunConfig,
)
from assent.config.objectives import CUSTOM
from assent.measures.table import measure
from assent.train import history
from assent.train.facts import measured
from assent.train.measured import Measured


@dataclass(frozen=True, slots=True)
class Followed:
    """Which metrics are shown: of optimiser steps, and of evaluations (there they begin with "eval/"), those that a run
    has. The first held-out one is compared between start and end; `best` decides, as `better` says, which step was the
    best."""

    steps: tuple[str, ...]
    held_out: tuple[str, ...]
    best: str
    better: Callable[..., float]


REWARDS = ("reward", "kl", "entropy", "length", "unfinished")
ANSWERS = ("length", "unfinished")
FOLLOWED: dict[str, Followed] = {
    "sft": Followed(("nll",), ("nll",), "nll", min),
    **{
        key: Followed(row.steps, row.held_out, row.best, max if row.highest else min)
        for key, row in REWARD_MODELS.items()
    },
    "pairs": Followed(
        ("objective", "accuracy", "margin"), ("accuracy", "objective", "margin", "kl", *ANSWERS), "objective", min
    ),
    "binary": Followed(("objective", "accuracy"), ("accuracy", "objective", "auc", "kl", *ANSWERS), "objective", min),
    "ranking": Followed(
        ("objective", "accuracy", "margin"), ("accuracy", "objective", "margin", "kl", *ANSWERS), "objective", min
    ),
    "custom": Followed(
        ("objective", "accuracy", "margin"),
        ("accuracy", "objective", "margin", "auc", "kl", *ANSWERS), "objective", min
    ),
    "online": Followed(REWARDS, (*REWARDS, "unscored"), "reward", max),
    "teacher": Followed(
        ("teacher_kl", "teacher_agreement", "entropy", "length", "unfinished"),
        ("teacher_kl", "teacher_kl_forward", "teacher_agreement", "kl", "entropy", *ANSWERS), "teacher_kl", min,
    ),
    "critic": Followed(
        (*REWARDS, "value_loss", "explained_variance"), (*REWARDS, "unscored"), "reward", max
    ),
}  # fmt: skip
FOLLOWED["rating"] = FOLLOWED["ranking"]
"""By command, by the kind of feedback of an objective of the table, or by whether an online method has a critic, or
learns from a teacher alone."""


@dataclass(frozen=True, slots=True)
class TrainingCommand:
    """What `assent KEY` trains."""

    key: str
    name: str
    summary: str
    followed: Followed
    scores: bool = False
    """Whether the result is a reward model."""


def command_of(config: RunConfig) -> TrainingCommand:
    """The command that a configuration belongs to. What it measures of its answers is followed, too."""
    command = named_command(history.command_key(config))
    if isinstance(config, OnlineConfig) and not config.rewards.named:
        command = replace(command, followed=FOLLOWED["teacher"])
    if not isinstance(config, PolicyRunConfig) or not config.eval.measures:
        return command
    followed, best = command.followed, config.eval.best and measure(config.eval.best)
    followed = replace(followed, held_out=tuple(dict.fromkeys((*followed.held_out, *config.eval.measures))))
    if best:
        followed = replace(followed, best=best.name, better=max if best.better == "higher" else min)
    return replace(command, followed=followed)


def named_command(key: str) -> TrainingCommand:
    """`assent KEY`. Raises KeyError where that does not train."""
    if key == "sft":
        return TrainingCommand(key, "supervised fine-tuning", "Likelihood of the answers.", FOLLOWED["sft"])
    if key in REWARD_MODELS:
        return TrainingCommand(key, REWARD_MODELS[key].name, REWARD_MODELS[key].summary, FOLLOWED[key], scores=True)
    if key in OBJECTIVES:
        objective = OBJECTIVES[key]
        return TrainingCommand(key, objective.name, objective.summary, FOLLOWED[objective.feedback])
    if key == CUSTOM:
        return TrainingCommand(key, "an objective of your own", "Learns directly from feedback.", FOLLOWED[CUSTOM])
    method = METHODS[key]
    return TrainingCommand(key, method.name, method.summary, FOLLOWED["critic" if method.has_critic else "online"])


SPAN = 10
"""Steps that the live numbers are means of, so that a single batch does not mislead."""


class Live:
    """The line that a person watches: means of the last steps, and the newest evaluation."""

    def __init__(self, followed: Followed) -> None:
        self.followed = followed
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=SPAN) for name in followed.steps}
        self.held_out = ""

    def take(self, metrics: Mapping[str, float]) -> None:
        """The metrics of a step. What a step has none of (a rollout's reward, in its later steps) stays as it was."""
        for name, values in self._recent.items():
            if name in metrics:
                values.append(metrics[name])

    def measure(self, found: Measured) -> None:
        """An evaluation."""
        names = dict.fromkeys((self.followed.held_out[0], self.followed.best))
        values = {name: found.metrics[f"eval/{name}"] for name in names if f"eval/{name}" in found.metrics}
        shown = ", ".join(f"{words(name)} {measured(value)}" for name, value in values.items())
        self.held_out = f"held out at step {found.step:,}: {shown}"

    def means(self) -> dict[str, float]:
        """Means of the last steps."""
        return {name: sum(values) / len(values) for name, values in self._recent.items() if values}

    def __str__(self) -> str:
        parts = [f"{words(name)} {measured(value)}" for name, value in self.means().items()]
        return "  ".join([*parts, *([f"({self.held_out})"] if self.held_out else [])])


def words(metric: str) -> str:
    """A metric's name as it is read."""
    return metric.replace("_", " ")
