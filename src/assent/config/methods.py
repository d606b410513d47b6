"""The methods that learn from rewards of their own answers: one row each.

Commands, docs and tests are made from this table. A row combines an estimator of advantages
(`assent.config.estimators`) and a loss (a pure function of `assent.losses`) with the class of its options. Where
answers are compared, the estimator says which is the better one, and the loss is that of an objective on feedback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assent.config.distill import GKDDistill
from assent.config.estimators import ESTIMATORS
from assent.config.objectives import OBJECTIVES, FeedbackKind
from assent.config.online import OnlineConfig
from assent.config.online_preference import (
    NashMDConfig,
    OnlineDPOConfig,
    OnlineKTOConfig,
    OnlineSimPOConfig,
    XPOConfig,
)
from assent.config.policy_gradient import (
    CISPOConfig,
    DAPOConfig,
    DrGRPOConfig,
    GKDConfig,
    GRPOConfig,
    GSPOConfig,
    PPOConfig,
    REINFORCEConfig,
    REINFORCEPlusPlusBaselineConfig,
    REINFORCEPlusPlusConfig,
    ReMaxConfig,
    RLOOConfig,
)
from assent.config.sections import configuration, default_of, keywords
from assent.errors import ConfigError
from assent.names import suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """`loss` names the function, the section `loss` of `config` holds its options with the paper's defaults.
    `objective` is the row of `OBJECTIVES` whose loss it is, where answers are compared; None: a policy loss of tokens.
    `opponent` says by whom the second answer to each prompt is sampled: the reference, or a mixture of it and the
    policy; None: there is none, all answers are the policy's."""

    name: str
    summary: str
    paper: str
    config: type[OnlineConfig]
    estimator: str
    loss: str
    objective: str | None = None
    opponent: Literal["reference", "mixture"] | None = None

    @property
    def feedback(self) -> FeedbackKind | None:
        """What the sides of compared answers are to its loss."""
        return None if self.objective is None else OBJECTIVES[self.objective].feedback

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its loss, with their defaults."""
        return keywords(default_of(self.config, "loss"))

    @property
    def has_critic(self) -> bool:
        return "critic" in ESTIMATORS[self.estimator].needs

    @property
    def has_groups(self) -> bool:
        """Whether answers are compared with others to the same prompt."""
        return "groups" in ESTIMATORS[self.estimator].needs

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns a teacher's predictions."""
        return isinstance(default_of(self.config, "distill"), GKDDistill)


METHODS: dict[str, Method] = {
    "ppo": Method(
        name="PPO", summary="Clipped policy gradient with a critic.", paper="1707.06347", config=PPOConfig,
        estimator="gae", loss="ppo_clip",
    ),
    "reinforce": Method(
        name="REINFORCE", summary="Policy gradient with the rewards that follow a token.", paper="1909.08593",
        config=REINFORCEConfig, estimator="return", loss="reinforce",
    ),
    "reinforce++": Method(
        name="REINFORCE++", summary="Clipped policy gradient, advantages scaled over the whole rollout.",
        paper="2501.03262", config=REINFORCEPlusPlusConfig, estimator="return", loss="ppo_clip",
    ),
    "reinforce++-baseline": Method(
        name="REINFORCE++ baseline", summary="The same with the mean of a prompt's answers as baseline.",
        paper="2501.03262", config=REINFORCEPlusPlusBaselineConfig, estimator="group", loss="ppo_clip",
    ),
    "rloo": Method(
        name="RLOO", summary="Each answer against the mean of the others to its prompt.", paper="2402.14740",
        config=RLOOConfig, estimator="leave_one_out", loss="reinforce",
    ),
    "remax": Method(
        name="ReMax", summary="Each answer against the most likely one.", paper="2310.10505", config=ReMaxConfig,
        estimator="greedy", loss="reinforce",
    ),
    "grpo": Method(
        name="GRPO", summary="Rewards scaled within a prompt's group of answers.", paper="2402.03300",
        config=GRPOConfig, estimator="group", loss="ppo_clip",
    ),
    "dr-grpo": Method(
        name="Dr. GRPO", summary="GRPO without its biases for length and difficulty.", paper="2503.20783",
        config=DrGRPOConfig, estimator="group", loss="ppo_clip",
    ),
    "dapo": Method(
        name="DAPO",
        summary="GRPO with a higher upper clip, every token counting the same, zero-variance groups replaced.",
        paper="2503.14476", config=DAPOConfig, estimator="group", loss="ppo_clip",
    ),
    "gspo": Method(
        name="GSPO", summary="GRPO with one ratio for a whole answer.", paper="2507.18071", config=GSPOConfig,
        estimator="group", loss="gspo",
    ),
    "cispo": Method(
        name="CISPO", summary="REINFORCE with a bounded importance weight and group advantages.", paper="2506.13585",
        config=CISPOConfig, estimator="group", loss="cispo",
    ),
    "gkd": Method(
        name="GKD", summary="On-policy distillation: a teacher's predictions on the policy's own answers.",
        paper="2306.13649", config=GKDConfig, estimator="return", loss="reinforce",
    ),
    "online-dpo": Method(
        name="Online DPO", summary="DPO, or another loss of pairs, on the best and the worst of the policy's answers.",
        paper="2402.04792", config=OnlineDPOConfig, estimator="pair", loss="dpo", objective="dpo",
    ),
    "xpo": Method(
        name="XPO", summary="Online DPO against an answer of the reference, whose own answers are made less likely.",
        paper="2405.21046", config=XPOConfig, estimator="pair", loss="dpo", objective="dpo", opponent="reference",
    ),
    "nash-md": Method(
        name="Nash-MD", summary="Policy gradient of the chance to win against a mixture of policy and reference.",
        paper="2312.00886", config=NashMDConfig, estimator="return", loss="reinforce", opponent="mixture",
    ),
    "online-kto": Method(
        name="Online KTO", summary="KTO on sampled answers, desirable where their reward is above their prompt's mean.",
        paper="2402.01306", config=OnlineKTOConfig, estimator="label", loss="kto", objective="kto",
    ),
    "online-simpo": Method(
        name="Online SimPO", summary="SimPO on the best and the worst of the policy's answers, without a reference.",
        paper="2405.14734", config=OnlineSimPOConfig, estimator="pair", loss="simpo", objective="simpo",
    ),
}  # fmt: skip


def online_config(method: str, **options: Any) -> OnlineConfig:
    """The configuration of a method from Python. A section (`rollout`, `kl`, `loss`, ...) is given as a mapping of the
    options that differ from the method's defaults, as in YAML; others keep them. Raises `ConfigError` for a method or
    an option that does not exist.

    >>> config = online_config(
    ...     "grpo", model={"path": "m"}, data={"train": "prompts.jsonl"}, out="runs/grpo", kl={"coef": 0.1}
    ... )
    >>> config.kl.place, config.kl.estimator
    ('loss', 'k3')
    """
    if method not in METHODS:
        raise ConfigError(f"There is no online method '{method}'.{suggestion(method, METHODS)}")
    return configuration(METHODS[method].config, options)


def method_of(config: OnlineConfig) -> str:
    """The key in `METHODS` that a configuration belongs to."""
    return next(key for key, row in METHODS.items() if type(config) is row.config)


def objective_key(config: OnlineConfig) -> str | None:
    """The row of `OBJECTIVES` whose loss a method compares answers by; None where it compares none."""
    own = METHODS[method_of(config)].objective
    return getattr(config.loss, "pairs", own)


def compares_with_reference(config: OnlineConfig) -> bool:
    """Whether a method compares answers by a loss with a reference (one of the user's own may ask for it)."""
    key = objective_key(config)
    return key is not None and (config.loss.function is not None or OBJECTIVES[key].needs_reference)


def has_reference(config: OnlineConfig) -> bool:
    """Whether a method has a reference: for its KL, its loss or its opponent."""
    return config.kl.coef > 0 or compares_with_reference(config) or METHODS[method_of(config)].opponent is not None
