"""Options of the objectives on pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval
from typing_extensions import Doc

from assent.config.base import LossConfig
from assent.config.preference import (
    Beta,
    BetaLoss,
    PairConfig,
    ReferenceConfig,
    ReferenceMode,
    ReferencePairConfig,
    Temperature,
)

LabelSmoothing = Annotated[float, Interval(ge=0, lt=0.5), Doc("Share of the labels that are taken to be wrong.")]
LengthNormalised = Annotated[bool, Doc("Divide log-probs by the answer's length.")]
SFTWeight = Annotated[float, Ge(0), Doc("Weight of the chosen answer's negative log-likelihood.")]


class DPOConfig(ReferencePairConfig):
    """Options of `assent dpo`."""


@dataclass(frozen=True)
class CDPOLoss(BetaLoss):
    """Options of cDPO."""

    label_smoothing: LabelSmoothing = 0.1


@dataclass(frozen=True)
class CDPOConfig(ReferencePairConfig):
    """Options of `assent cdpo`."""

    loss: CDPOLoss = field(default_factory=CDPOLoss)


class RobustDPOLoss(CDPOLoss):
    """Options of Robust DPO."""


@dataclass(frozen=True)
class RobustDPOConfig(ReferencePairConfig):
    """Options of `assent robust-dpo`."""

    loss: RobustDPOLoss = field(default_factory=RobustDPOLoss)


@dataclass(frozen=True)
class IPOLoss(BetaLoss):
    """Options of IPO."""

    length_normalised: LengthNormalised = False


@dataclass(frozen=True)
class IPOConfig(ReferencePairConfig):
    """Options of `assent ipo`."""

    loss: IPOLoss = field(default_factory=IPOLoss)


class HingeConfig(ReferencePairConfig):
    """Options of `assent hinge`."""


@dataclass(frozen=True)
class SLiCHFLoss(LossConfig):
    """Options of SLiC-HF."""

    delta: Annotated[float, Gt(0), Doc("Gap of log-probs that is asked for.")] = 1.0
    sft_weight: SFTWeight = 0.1


@dataclass(frozen=True)
class SLiCHFConfig(PairConfig):
    """Options of `assent slic`."""

    loss: SLiCHFLoss = field(default_factory=SLiCHFLoss)


@dataclass(frozen=True)
class RRHFLoss(LossConfig):
    """Options of RRHF."""

    sft_weight: SFTWeight = 1.0


@dataclass(frozen=True)
class RRHFConfig(PairConfig):
    """Options of `assent rrhf`."""

    loss: RRHFLoss = field(default_factory=RRHFLoss)


@dataclass(frozen=True)
class CPOLoss(BetaLoss):
    """Options of CPO."""

    sft_weight: SFTWeight = 1.0
    label_smoothing: LabelSmoothing = 0.0


@dataclass(frozen=True)
class CPOConfig(PairConfig):
    """Options of `assent cpo`."""

    loss: CPOLoss = field(default_factory=CPOLoss)


@dataclass(frozen=True)
class ORPOLoss(LossConfig):
    """Options of ORPO."""

    odds_weight: Annotated[float, Ge(0), Doc("Weight of the odds ratio beside the chosen answer's likelihood.")] = 0.1


@dataclass(frozen=True)
class ORPOConfig(PairConfig):
    """Options of `assent orpo`."""

    loss: ORPOLoss = field(default_factory=ORPOLoss)


@dataclass(frozen=True)
class SimPOLoss(BetaLoss):
    """Options of SimPO."""

    beta: Beta = 2.0
    gamma: Annotated[float, Ge(0), Doc("Gap of rewards that is asked for, in nats.")] = 1.0
    length_normalised: LengthNormalised = True


@dataclass(frozen=True)
class SimPOConfig(PairConfig):
    """Options of `assent simpo`."""

    loss: SimPOLoss = field(default_factory=SimPOLoss)


@dataclass(frozen=True)
class RDPOLoss(BetaLoss):
    """Options of R-DPO."""

    length_penalty: Annotated[float, Ge(0), Doc("Reward that one more token must earn to be worth it.")] = 0.01


@dataclass(frozen=True)
class RDPOConfig(ReferencePairConfig):
    """Options of `assent r-dpo`."""

    loss: RDPOLoss = field(default_factory=RDPOLoss)


@dataclass(frozen=True)
class LDDPOLoss(BetaLoss):
    """Options of LD-DPO."""

    tail_weight: Annotated[
        float, Interval(ge=0, le=1), Doc("Weight of the tokens beyond the shorter answer's length.")
    ] = 0.5


@dataclass(frozen=True)
class LDDPOConfig(ReferencePairConfig):
    """Options of `assent ld-dpo`."""

    loss: LDDPOLoss = field(default_factory=LDDPOLoss)


@dataclass(frozen=True)
class LNDPOLoss(BetaLoss):
    """Options of LN-DPO."""

    beta: Beta = 5.0


@dataclass(frozen=True)
class LNDPOConfig(ReferencePairConfig):
    """Options of `assent ln-dpo`."""

    loss: LNDPOLoss = field(default_factory=LNDPOLoss)


@dataclass(frozen=True)
class DPOPLoss(BetaLoss):
    """Options of DPOP."""

    beta: Beta = 0.3
    penalty: Annotated[float, Ge(0), Doc("Weight of the chosen answer's fall below the reference.")] = 50.0


@dataclass(frozen=True)
class DPOPConfig(ReferencePairConfig):
    """Options of `assent dpop`."""

    loss: DPOPLoss = field(default_factory=DPOPLoss)


@dataclass(frozen=True)
class AsymmetricDPOLoss(BetaLoss):
    """Options of Asymmetric DPO."""

    beta: Beta = 0.6
    beta_rejected: Annotated[float, Gt(0), Doc("The same for the rejected answer.")] = 0.2


@dataclass(frozen=True)
class AsymmetricDPOConfig(ReferencePairConfig):
    """Options of `assent asymmetric-dpo`."""

    loss: AsymmetricDPOLoss = field(default_factory=AsymmetricDPOLoss)


@dataclass(frozen=True)
class RPOLoss(BetaLoss):
    """Options of RPO."""

    sft_weight: SFTWeight = 1.0


@dataclass(frozen=True)
class RPOConfig(ReferencePairConfig):
    """Options of `assent rpo`."""

    loss: RPOLoss = field(default_factory=RPOLoss)


@dataclass(frozen=True)
class ReferenceFreeDPOConfig(PairConfig):
    """Options of `assent reference-free-dpo`."""

    loss: BetaLoss = field(default_factory=BetaLoss)


@dataclass(frozen=True)
class ODPOLoss(BetaLoss):
    """Options of ODPO."""

    offset: Annotated[Literal["log", "linear"], Doc("How a pair's strength becomes the gap that is asked for.")] = "log"
    offset_scale: Annotated[float, Ge(0), Doc("Factor of that gap.")] = 1.0


@dataclass(frozen=True)
class ODPOConfig(ReferencePairConfig):
    """Options of `assent odpo`."""

    loss: ODPOLoss = field(default_factory=ODPOLoss)


@dataclass(frozen=True)
class FDPOLoss(BetaLoss):
    """Options of f-DPO."""

    divergence: Annotated[
        Literal["reverse_kl", "forward_kl", "js", "alpha"],
        Doc("The divergence that holds the policy to the reference."),
    ] = "js"
    divergence_alpha: Annotated[float, Interval(gt=0, lt=1), Doc("Of the alpha divergence.")] = 0.5


@dataclass(frozen=True)
class FDPOConfig(ReferencePairConfig):
    """Options of `assent f-dpo`."""

    loss: FDPOLoss = field(default_factory=FDPOLoss)


@dataclass(frozen=True)
class MovingReference(ReferenceConfig):
    __doc__ = ReferenceConfig.__doc__

    mode: ReferenceMode = "moving"


@dataclass(frozen=True)
class TRDPOConfig(ReferencePairConfig):
    """Options of `assent tr-dpo`."""

    reference: MovingReference = field(default_factory=MovingReference)


@dataclass(frozen=True)
class TDPOLoss(BetaLoss):
    """Options of TDPO."""

    kl_weight: Annotated[float, Ge(0), Doc("Weight of the sequence KL of rejected against chosen.")] = 0.5


@dataclass(frozen=True)
class TDPOConfig(ReferencePairConfig):
    """Options of `assent tdpo`."""

    loss: TDPOLoss = field(default_factory=TDPOLoss)


@dataclass(frozen=True)
class WPOLoss(BetaLoss):
    """Options of WPO."""

    beta: Beta = 0.01


@dataclass(frozen=True)
class WPOConfig(ReferencePairConfig):
    """Options of `assent wpo`."""

    loss: WPOLoss = field(default_factory=WPOLoss)


class APOZeroConfig(ReferencePairConfig):
    """Options of `assent apo-zero`."""


class APODownConfig(ReferencePairConfig):
    """Options of `assent apo-down`."""


@dataclass(frozen=True)
class EXOLoss(BetaLoss):
    """Options of EXO."""

    label_smoothing: LabelSmoothing = 1e-3


@dataclass(frozen=True)
class EXOConfig(ReferencePairConfig):
    """Options of `assent exo`."""

    loss: EXOLoss = field(default_factory=EXOLoss)


@dataclass(frozen=True)
class SPPOLoss(BetaLoss):
    """Options of SPPO."""

    beta: Beta = 0.001


@dataclass(frozen=True)
class SPPOConfig(ReferencePairConfig):
    """Options of `assent sppo`."""

    loss: SPPOLoss = field(default_factory=SPPOLoss)


@dataclass(frozen=True)
class AOTLoss(BetaLoss):
    """Options of AOT."""

    label_smoothing: LabelSmoothing = 0.0


@dataclass(frozen=True)
class AOTConfig(ReferencePairConfig):
    """Options of `assent aot`."""

    loss: AOTLoss = field(default_factory=AOTLoss)


class AOTUnpairedLoss(AOTLoss):
    """Options of AOT unpaired."""


@dataclass(frozen=True)
class AOTUnpairedConfig(ReferencePairConfig):
    """Options of `assent aot-unpaired`."""

    loss: AOTUnpairedLoss = field(default_factory=AOTUnpairedLoss)


@dataclass(frozen=True)
class DiscoPOPLoss(BetaLoss):
    """Options of DiscoPOP."""

    beta: Beta = 0.05
    temperature: Temperature = 0.05


@dataclass(frozen=True)
class DiscoPOPConfig(ReferencePairConfig):
    """Options of `assent discopop`."""

    loss: DiscoPOPLoss = field(default_factory=DiscoPOPLoss)
