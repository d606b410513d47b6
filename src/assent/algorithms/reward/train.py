"""What the training of every reward model has in common: windows of an epoch's order, and a run to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from assent.data.dataset import Prepared
from assent.data.packing import EpochStream, Window
from assent.errors import ConfigError
from assent.models.head import Linear
from assent.models.policy import ScoreModel
from assent.models.reward_head import shown
from assent.train.facts import Line
from assent.train.held_out import held_out
from assent.train.loop import Algorithm, run
from assent.train.measured import Evaluation
from assent.train.opening import about_stream
from assent.train.run import RunResult
from assent.train.session import Session


def single_output(
    session: Session,
    output: str | None,
    learnt_from: str,
    *,
    readout: str = "last",
    second_head: bool = False,
    language: Linear | None = None,
) -> ScoreModel:
    """The reward model that is trained, with one output: that of the folder called `output`, where it has several. With
    what stands beside it in training (`ScoreModel`), and `readout` for its config. Raises ConfigError where it has
    several and none is chosen."""

    def add(scorer: ScoreModel) -> None:
        if second_head:
            scorer.add_second_head(session.config.train.seed)
        if language is not None:
            scorer.add_language_head(language)

    scorer = session.score_model(trainable=True, new_head=True, only=output, add=add)
    if len(scorer.rule) > 1:
        raise ConfigError(
            f"{session.config.model.path} has {len(scorer.rule)} outputs ({shown(scorer.rule.names)}), and "
            f"{learnt_from} train one. Say which: --reward.output NAME"
        )
    scorer.plain.config.assent_head["trained_at"] = readout
    return scorer


class EpochTraining:
    """An algorithm that trains a reward model on the windows of a stream; its subclasses have the loss."""

    def __init__(self, scorer: ScoreModel, stream: EpochStream) -> None:
        self.scorer = scorer
        self.stream = stream
        self.modules: Mapping[str, nn.Module] = {"reward": scorer}

    def windows(self) -> Iterator[Window]:
        return iter(self.stream)

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """Nothing follows from an update."""

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def train_on(
    session: Session,
    algorithm: Algorithm,
    scorer: ScoreModel,
    stream: EpochStream,
    data: Prepared,
    *,
    summary: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] = lambda items: {},
    about: Sequence[Line] = (),
) -> RunResult:
    """Runs `algorithm` over the epochs of `stream`, evaluating on the held-out trees of `data`; `config.out`/model is
    the folder of `scorer`. `summary` makes metrics of what the loss says of all held-out items; `about` is said before
    the first step."""
    total = session.total_steps(stream.steps_per_epoch)

    def evaluate() -> Evaluation:
        return held_out(algorithm, data.eval, stream, session.world, summary=summary)

    return run(
        session,
        algorithm,
        total=total,
        evaluate=evaluate if data.eval else None,
        final={"model": scorer},
        about=[about_stream(stream, total), *about],
    )
