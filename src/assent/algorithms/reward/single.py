"""A reward model of one output, for kinds that train a single reward."""

from __future__ import annotations

from assent.errors import ConfigError
from assent.models.head import Linear
from assent.models.policy import ScoreModel
from assent.models.reward_head import shown
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
