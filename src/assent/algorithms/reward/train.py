"""What the training of every reward model has in common: windows of an epoch's order, and a run to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from assent import distributed
from assent.algorithms.reward.trust import appraise
from assent.data.dataset import Prepared
from assent.data.packing import EpochStream, Window
from assent.data.tree import TokenTree
from assent.models.policy import ScoreModel
from assent.models.reward_head import SCALAR
from assent.models.stored_heads import write_rule
from assent.train.facts import Line
from assent.train.held_out import held_out
from assent.train.loop import Algorithm, run
from assent.train.measured import Evaluation
from assent.train.opening import about_stream
from assent.train.run import RunResult
from assent.train.session import Session


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
    held: Sequence[TokenTree] | None = None,
) -> RunResult:
    """Runs `algorithm` over the epochs of `stream`, evaluating on the held-out trees of `data` (or what `held` has in
    their place); `config.out`/model is the folder of `scorer`, and trust.json says how far it can be trusted on these.
    `summary` makes metrics of what the loss says of all held-out items; `about` is said before the first step."""
    total = session.total_steps(stream.steps_per_epoch)
    if scorer.rule != SCALAR:
        distributed.on_main(
            lambda: write_rule(session.folder.path, scorer.rule)
        )  # for checkpoints, which do not say it

    def evaluate() -> Evaluation:
        return held_out(algorithm, data.eval if held is None else held, stream, session.world, summary=summary)

    return run(
        session,
        algorithm,
        total=total,
        evaluate=evaluate if data.eval else None,
        final={"model": scorer},
        about=[about_stream(stream, total), *about],
        appraise=lambda: appraise(session, scorer, data),
    )
