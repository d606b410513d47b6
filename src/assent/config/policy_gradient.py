"""Options of the methods that learn from rewards of their own answers, each with its paper's defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval
from typing_extensions import Doc

from assent.config.distill import GKDDistill
from assent.config.online import (
    ActorCriticConfig,
    KLConfig,
    KLEstimator,
    KLPlace,
    OnlineConfig,
    PolicyLossConfig,
    RolloutConfig,
    ShapingConfig,
)
from assent.config.ranges import Count, NotNegative, Share

# ---- options that several losses have

Entropy = Annotated[float, Ge(0), Doc("Weight of an entropy bonus, per token.")]
Clip = Annotated[
    float, Interval(gt=0, lt=1), Doc("Clip range: how far a probability ratio may move from 1 and still gain.")
]
ClipHigh = Annotated[float | None, Gt(0), Doc("How far the ratio may move above 1; default: as far as below.")]
Gamma = Annotated[float, Interval(ge=0, le=1), Doc("Discount of later rewards.")]
Whiten = Annotated[bool, Doc("Scale advantages to mean 0 and variance 1 over the rollout.")]
Scale = Annotated[
    Literal["group", "batch", "none"],
    Doc("Divide advantages by the standard deviation of their group's rewards, of the whole rollout's, or not."),
]
Reduction = Annotated[
    Literal["token", "response", "fixed"],
    Doc(
        "What counts the same in the loss of a step: every token, every response, or every token as one of a response "
        "of the longest length."
    ),
]

# ---- other defaults of shared sections


@dataclass(frozen=True)
class GroupRollout(RolloutConfig):
    __doc__ = RolloutConfig.__doc__

    responses: Count = 8


@dataclass(frozen=True)
class NoKL(KLConfig):
    __doc__ = KLConfig.__doc__

    coef: NotNegative = 0.0


# ---- PPO


@dataclass(frozen=True)
class PPOLoss(PolicyLossConfig):
    """Options of PPO."""

    objective: Annotated[
        Literal["clip", "none", "penalty"],
        Doc(
            "What holds a step near the policy that sampled: the clip, nothing (conservative policy iteration), or a "
            "penalty on KL(old || new)."
        ),
    ] = "clip"
    clip: Clip = 0.2
    clip_high: ClipHigh = None
    dual_clip: Annotated[
        float | None,
        Gt(1),
        Doc("Bound of the ratio where the advantage is negative (arXiv 1912.09729); default: none."),
    ] = None
    penalty: Annotated[float, Ge(0), Doc("Weight of the penalty on KL(old || new).")] = 1.0
    penalty_target: Annotated[
        float | None,
        Gt(0),
        Doc("Halve or double the penalty after each rollout to bring KL(old || new), in nats per token, near this."),
    ] = None
    ewma: Annotated[
        float | None,
        Interval(gt=0, lt=1),
        Doc(
            "Clip around an average of the policy's weights with this decay per step (PPO-EWMA, arXiv 2110.00641) in "
            "place of the policy that sampled."
        ),
    ] = None
    tuned_batch: Annotated[
        int | None,
        Ge(1),
        Doc(
            "train.batch_size that optim.lr and ewma were tuned for: both are rescaled to this run's (batch-size "
            "invariance, arXiv 2110.00641)."
        ),
    ] = None
    gamma: Gamma = 1.0
    lam: Annotated[float, Interval(ge=0, le=1), Doc("GAE's lambda.")] = 0.95
    steps: Annotated[
        int | None,
        Ge(1),
        Doc(
            "Tokens that an advantage looks ahead before it trusts the critic (with lam 1: n-step returns); default: "
            "to the end of the answer."
        ),
    ] = None
    whiten: Whiten = True
    reduction: Reduction = "token"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class PPORollout(RolloutConfig):
    __doc__ = RolloutConfig.__doc__

    epochs: Count = 2
    minibatches: Count = 2


@dataclass(frozen=True)
class PPOConfig(ActorCriticConfig):
    """Options of `assent ppo`."""

    rollout: PPORollout = field(default_factory=PPORollout)
    loss: PPOLoss = field(default_factory=PPOLoss)


# ---- REINFORCE and its baselines


@dataclass(frozen=True)
class REINFORCELoss(PolicyLossConfig):
    """Options of REINFORCE."""

    gamma: Gamma = 1.0
    whiten: Whiten = False
    reduction: Reduction = "token"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class REINFORCEConfig(OnlineConfig):
    """Options of `assent reinforce`."""

    loss: REINFORCELoss = field(default_factory=REINFORCELoss)


@dataclass(frozen=True)
class REINFORCEPlusPlusLoss(PolicyLossConfig):
    """Options of REINFORCE++."""

    clip: Clip = 0.2
    gamma: Gamma = 1.0
    whiten: Whiten = True
    reduction: Reduction = "token"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class REINFORCEPlusPlusKL(KLConfig):
    __doc__ = KLConfig.__doc__

    coef: NotNegative = 0.01


@dataclass(frozen=True)
class REINFORCEPlusPlusConfig(OnlineConfig):
    """Options of `assent reinforce++`."""

    kl: REINFORCEPlusPlusKL = field(default_factory=REINFORCEPlusPlusKL)
    loss: REINFORCEPlusPlusLoss = field(default_factory=REINFORCEPlusPlusLoss)


@dataclass(frozen=True)
class REINFORCEPlusPlusBaselineLoss(PolicyLossConfig):
    """Options of REINFORCE++ baseline."""

    clip: Clip = 0.2
    scale: Scale = "none"
    whiten: Whiten = True
    reduction: Reduction = "token"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class REINFORCEPlusPlusBaselineKL(KLConfig):
    __doc__ = KLConfig.__doc__

    coef: NotNegative = 0.01
    place: KLPlace = "loss"
    estimator: KLEstimator = "k2"


@dataclass(frozen=True)
class REINFORCEPlusPlusBaselineConfig(OnlineConfig):
    """Options of `assent reinforce++-baseline`."""

    rollout: GroupRollout = field(default_factory=GroupRollout)
    kl: REINFORCEPlusPlusBaselineKL = field(default_factory=REINFORCEPlusPlusBaselineKL)
    loss: REINFORCEPlusPlusBaselineLoss = field(default_factory=REINFORCEPlusPlusBaselineLoss)


@dataclass(frozen=True)
class RLOOLoss(PolicyLossConfig):
    """Options of RLOO."""

    whiten: Whiten = False
    reduction: Reduction = "fixed"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class RLOORollout(RolloutConfig):
    __doc__ = RolloutConfig.__doc__

    responses: Count = 4


@dataclass(frozen=True)
class RLOOConfig(OnlineConfig):
    """Options of `assent rloo`."""

    rollout: RLOORollout = field(default_factory=RLOORollout)
    loss: RLOOLoss = field(default_factory=RLOOLoss)


class ReMaxLoss(RLOOLoss):
    """Options of ReMax."""


@dataclass(frozen=True)
class ReMaxConfig(OnlineConfig):
    """Options of `assent remax`."""

    loss: ReMaxLoss = field(default_factory=ReMaxLoss)


# ---- GRPO and its successors


@dataclass(frozen=True)
class GRPOLoss(PolicyLossConfig):
    """Options of GRPO."""

    clip: Clip = 0.2
    scale: Scale = "group"
    reduction: Reduction = "response"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class GRPOKL(KLConfig):
    __doc__ = KLConfig.__doc__

    coef: NotNegative = 0.04
    place: KLPlace = "loss"
    estimator: KLEstimator = "k3"


@dataclass(frozen=True)
class GRPOConfig(OnlineConfig):
    """Options of `assent grpo`."""

    rollout: GroupRollout = field(default_factory=GroupRollout)
    kl: GRPOKL = field(default_factory=GRPOKL)
    loss: GRPOLoss = field(default_factory=GRPOLoss)


@dataclass(frozen=True)
class DrGRPOLoss(GRPOLoss):
    """Options of Dr. GRPO."""

    scale: Scale = "none"
    reduction: Reduction = "fixed"


@dataclass(frozen=True)
class DrGRPOConfig(OnlineConfig):
    """Options of `assent dr-grpo`."""

    rollout: GroupRollout = field(default_factory=GroupRollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: DrGRPOLoss = field(default_factory=DrGRPOLoss)


@dataclass(frozen=True)
class DAPOLoss(PolicyLossConfig):
    """Options of DAPO."""

    clip: Clip = 0.2
    clip_high: ClipHigh = 0.28
    scale: Scale = "group"
    reduction: Reduction = "token"
    dynamic: Annotated[bool, Doc("Dynamic sampling: sample further prompts in place of zero-variance groups.")] = True
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class DAPOShaping(ShapingConfig):
    __doc__ = ShapingConfig.__doc__

    overlong: Share = 0.2


@dataclass(frozen=True)
class DAPOConfig(OnlineConfig):
    """Options of `assent dapo`."""

    rollout: GroupRollout = field(default_factory=GroupRollout)
    kl: NoKL = field(default_factory=NoKL)
    shaping: DAPOShaping = field(default_factory=DAPOShaping)
    loss: DAPOLoss = field(default_factory=DAPOLoss)


@dataclass(frozen=True)
class GSPOLoss(PolicyLossConfig):
    """Options of GSPO."""

    clip: Clip = 3e-4
    clip_high: ClipHigh = 4e-4
    scale: Scale = "group"
    reduction: Reduction = "response"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class GSPORollout(GroupRollout):
    __doc__ = RolloutConfig.__doc__

    minibatches: Count = 4


@dataclass(frozen=True)
class GSPOConfig(OnlineConfig):
    """Options of `assent gspo`."""

    rollout: GSPORollout = field(default_factory=GSPORollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: GSPOLoss = field(default_factory=GSPOLoss)


@dataclass(frozen=True)
class CISPOLoss(PolicyLossConfig):
    """Options of CISPO."""

    clip_high: ClipHigh = 4.0
    scale: Scale = "group"
    reduction: Reduction = "token"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class CISPOConfig(OnlineConfig):
    """Options of `assent cispo`."""

    rollout: GroupRollout = field(default_factory=GroupRollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: CISPOLoss = field(default_factory=CISPOLoss)


# ---- distillation


@dataclass(frozen=True)
class GKDLoss(PolicyLossConfig):
    """Options of GKD."""

    gamma: Gamma = 1.0
    whiten: Whiten = False
    reduction: Reduction = "token"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class GKDConfig(OnlineConfig):
    """Options of `assent gkd`."""

    kl: NoKL = field(default_factory=NoKL)
    distill: GKDDistill = field(default_factory=GKDDistill)
    loss: GKDLoss = field(default_factory=GKDLoss)
