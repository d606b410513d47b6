"""Options of the methods that compare answers as they are sampled, each with its paper's defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Predicate
from typing_extensions import Doc

from assent.config.online import KLConfig, OnlineConfig, PolicyLossConfig, RolloutConfig
from assent.config.policy_gradient import Entropy, Gamma, GroupRollout, NoKL, Reduction, Whiten
from assent.config.ranges import Count, NotNegative, Share

PairLoss = Literal[
    "dpo", "cdpo", "robust-dpo", "ipo", "hinge", "cpo", "simpo", "r-dpo", "ld-dpo", "ln-dpo", "dpop", "asymmetric-dpo",
    "rpo", "reference-free-dpo", "odpo", "f-dpo", "tdpo", "wpo", "apo-zero", "apo-down", "exo", "sppo", "discopop",
]  # fmt: skip
"""The objectives on pairs with a beta whose loss is that of one pair alone and whose reference stays."""
Preference = Literal["auto", "bradley_terry", "win_rate", "order"]

Pairs = Annotated[PairLoss, Doc("The loss of a pair, by its objective (docs/objectives.md).")]
OnlineBeta = Annotated[
    float | None,
    Gt(0),
    Doc("Scale of the implicit reward: smaller moves further from the reference. Default: that of the loss offline."),
]
Ties = Annotated[
    Literal["leave_out", "first"],
    Doc("A prompt whose answers are all worth the same gives no pair, or its first answer is taken for the better."),
]


@dataclass(frozen=True)
class PairRollout(RolloutConfig):
    __doc__ = RolloutConfig.__doc__

    responses: Count = 2


@dataclass(frozen=True)
class OnlineDPOLoss(PolicyLossConfig):
    """Options of Online DPO."""

    pairs: Pairs = "dpo"
    beta: OnlineBeta = None
    ties: Ties = "leave_out"


@dataclass(frozen=True)
class OnlineDPOConfig(OnlineConfig):
    """Options of `assent online-dpo`."""

    rollout: PairRollout = field(default_factory=PairRollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: OnlineDPOLoss = field(default_factory=OnlineDPOLoss)


@dataclass(frozen=True)
class XPOLoss(OnlineDPOLoss):
    """Options of XPO."""

    alpha: Annotated[
        float,
        Ge(0),
        Doc("Weight of the exploration bonus: how much the reference's own answers are made less likely."),
    ] = 1e-5


@dataclass(frozen=True)
class XPOConfig(OnlineConfig):
    """Options of `assent xpo`."""

    rollout: PairRollout = field(default_factory=PairRollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: XPOLoss = field(default_factory=XPOLoss)


@dataclass(frozen=True)
class NashMDLoss(PolicyLossConfig):
    """Options of Nash-MD."""

    mixture: Annotated[
        Share,
        Doc("Weight of the reference in the opponent, policy^(1 - mixture) * reference^mixture; 0: the policy itself."),
    ] = 0.5
    preference: Annotated[
        Preference,
        Doc(
            "How two rewards become the probability that the first answer is preferred. bradley_terry: "
            "sigmoid(r - r'). win_rate: (1 + r - r') / 2, which gives back the win rates of a judge of pairs. order: "
            "1, 1/2 or 0. auto: win_rate where one judge of pairs gives the reward, else bradley_terry."
        ),
    ] = "auto"
    gamma: Gamma = 1.0
    whiten: Whiten = False
    reduction: Reduction = "fixed"
    entropy: Entropy = 0.0


@dataclass(frozen=True)
class NashMDKL(KLConfig):
    __doc__ = KLConfig.__doc__

    coef: NotNegative = 0.1


@dataclass(frozen=True)
class NashMDConfig(OnlineConfig):
    """Options of `assent nash-md`."""

    rollout: PairRollout = field(default_factory=PairRollout)
    kl: NashMDKL = field(default_factory=NashMDKL)
    loss: NashMDLoss = field(default_factory=NashMDLoss)


@dataclass(frozen=True)
class OnlineKTOLoss(PolicyLossConfig):
    """Options of Online KTO."""

    beta: OnlineBeta = None
    threshold: Annotated[
        float | None,
        Predicate(math.isfinite),
        Doc("Shaped reward above which an answer is desirable, below undesirable; default: the mean of its prompt's."),
    ] = None
    desirable_weight: Annotated[float, Gt(0), Doc("Weight of desirable answers.")] = 1.0
    undesirable_weight: Annotated[float, Gt(0), Doc("Weight of undesirable answers.")] = 1.0


@dataclass(frozen=True)
class OnlineKTOConfig(OnlineConfig):
    """Options of `assent online-kto`."""

    rollout: GroupRollout = field(default_factory=GroupRollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: OnlineKTOLoss = field(default_factory=OnlineKTOLoss)


@dataclass(frozen=True)
class OnlineSimPOLoss(PolicyLossConfig):
    """Options of Online SimPO."""

    beta: OnlineBeta = None
    ties: Ties = "leave_out"


@dataclass(frozen=True)
class OnlineSimPOConfig(OnlineConfig):
    """Options of `assent online-simpo`."""

    rollout: PairRollout = field(default_factory=PairRollout)
    kl: NoKL = field(default_factory=NoKL)
    loss: OnlineSimPOLoss = field(default_factory=OnlineSimPOLoss)
