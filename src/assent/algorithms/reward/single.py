"""A reward model of one output, for kinds that train a single reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from assent.errors import ConfigError
from assent.models.heads import WantedHead
from assent.models.policy import ScoreModel
from assent.models.reward_head import shown
from assent.train.session import Session

Scorer = TypeVar("Scorer", bound=ScoreModel)


def single_output(
    session: Session,
    output: str | None,
    learnt_from: str,
    *,
    kind: Callable[..., Scorer],
    readout: str = "last",
) -> Scorer:
    """The reward model that is trained, with one output: that of the folder called `output`, where it has several; of
    this `kind`, and with `readout` for its config. Raises ConfigError where it has several and none is chosen."""
    scorer: Any = session.score_model(trainable=True, new_head=True, head=WantedHead(only=output, kind=kind))
    if len(scorer.rule) > 1:
        raise ConfigError(
            f"{session.config.model.path} has {len(scorer.rule)} outputs ({shown(scorer.rule.names)}), and "
            f"{learnt_from} train one. Say which: --reward.output NAME"
        )
    scorer.plain.config.assent_head["trained_at"] = readout
    found: Scorer = scorer
    return found
