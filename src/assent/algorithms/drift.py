"""What the drift alarm is told of sampled answers beside what is logged anyway: how they read, and what they are worth
to a reward that nothing is trained by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from assent.config import OnlineConfig, PolicyRunConfig, RunConfig
from assent.data.chat import Chat
from assent.data.records import Example
from assent.measures import drift
from assent.rewards.group import GroupReward, Progress
from assent.rewards.groups import groups_of
from assent.rewards.held_out import held_out_source
from assent.rollout.rollout import Rollout
from assent.train.alarm import DriftAlarm
from assent.train.session import Session

PREFIX = "alarm/"
TEXTS = 64
"""Answers that are read, one to each of the first prompts: always as many, since varieties of different numbers of
answers are not comparable, and few, since it is done at each step."""


class DriftSeries:
    """`alarm/` metrics of a rollout, for `train.alarm`; `source` is the held-out reward, where there is one."""

    def __init__(self, chat: Chat, source: GroupReward | None = None) -> None:
        self.chat, self.source = chat, source

    def __call__(
        self, rollout: Rollout, examples: Sequence[Example], progress: Progress | None = None
    ) -> dict[str, float]:
        """Every rank must call it with the same rollout, whose prompts `examples` [P] are. Raises what the source
        raises."""
        found = drift.of_texts(self._texts(rollout))
        if self.source is not None:
            found |= self._worth(self.source, rollout, examples, progress)
        return {PREFIX + name: value for name, value in found.items() if not math.isnan(value)}

    def _texts(self, rollout: Rollout) -> list[str]:
        sizes = rollout.sizes
        first = (sizes.cumsum() - sizes)[sizes > 0][:TEXTS]
        return [
            self.chat.decode(
                rollout.answers[row], rollout.prompts[rollout.prompt[row]], finished=bool(rollout.finished[row])
            )
            for row in first.tolist()
        ]

    def _worth(
        self, source: GroupReward, rollout: Rollout, examples: Sequence[Example], progress: Progress | None
    ) -> dict[str, float]:
        held = source.score(groups_of(rollout, examples, self.chat, progress)).values
        there = ~np.isnan(held)
        found = {"held_out": float(held[there].mean()) if there.any() else math.nan}
        return found | {"held_out_unscored": float(1 - there.mean())}


def drift_series(
    session: Session, config: RunConfig, alarm: DriftAlarm | None, examples: Sequence[Example]
) -> DriftSeries | None:
    """What a run's alarm is told; None where it is off. Every rank must call it. Raises ConfigError or DataError where
    the held-out source cannot score answers to these prompts."""
    if alarm is None or not alarm.on:
        return None
    assert isinstance(config, PolicyRunConfig), "only these have an alarm"
    source = held_out_source(session, config)
    if source is not None:
        source.check(examples)
    return DriftSeries(session.chat, source)


def rollouts_of(config: OnlineConfig, total: int, per_rollout: int) -> int:
    """How many rollouts a run of `total` steps has, at most."""
    return total if config.rollout.target_kl is not None else -(-total // per_rollout)
