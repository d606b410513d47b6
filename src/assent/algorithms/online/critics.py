"""Where a critic of its own comes from."""

from __future__ import annotations

from assent.config.online import CriticConfig, OnlineConfig
from assent.errors import ConfigError
from assent.models.mixtures import output_names
from assent.models.policy import ScoreModel
from assent.models.reward_head import shown
from assent.models.sources import resolve
from assent.train.session import Session


def check_critic(config: OnlineConfig, section: CriticConfig | None) -> None:
    """Raises ConfigError where the critic would begin as a reward model of several outputs, gated or not: a critic
    gives one value."""
    path = None if section is None or section.shared else _critic_path(config, section)
    names = () if path is None else output_names(resolve(path))
    if len(names) > 1:
        assert section is not None
        raise ConfigError(
            f"--critic.start {section.start}: {path} has {len(names)} outputs ({shown(names)}), and a critic gives one "
            "value. Use --critic.start policy (a new head on the policy's model), or the folder of a reward model of "
            "one output (assent reward; with --reward.output NAME it trains one of several)."
        )


def critic_model(session: Session, config: OnlineConfig, section: CriticConfig) -> ScoreModel:
    path = _critic_path(config, section)
    return session.score_model(path, trainable=True, new_head=section.start != "reward")


def _critic_path(config: OnlineConfig, section: CriticConfig) -> str | None:
    """Where the critic's weights come from; None: from the policy's."""
    if section.start == "reward":
        return config.rewards.model[0]
    return None if section.start == "policy" else section.start
