"""Options of learning directly from feedback: what objectives share, and those of objectives on yes/no labels, rankings
and ratings. `assent.config.pairs` has those on pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt
from typing_extensions import Doc

from assent.config.base import LossConfig, PolicyRunConfig, ProbeConfig, RunConfig
from assent.config.ranges import Count, Finite, Named, NonzeroShare

Beta = Annotated[float, Gt(0), Doc("Scale of the implicit reward. With a reference: smaller moves further from it.")]
Temperature = Annotated[float, Gt(0), Doc("How soft targets (NCA) or the blend of the two losses (DiscoPOP) are.")]
ReferenceMode = Literal["frozen", "cached", "moving"]


@dataclass(frozen=True)
class ReferenceConfig:
    """The model that the policy is compared with."""

    path: Named | None = None
    """Reference model; default: the start of the policy (with LoRA: the policy without its adapters)."""
    mode: ReferenceMode = "frozen"
    """frozen runs it beside the policy; cached computes its log-probs once, keeps them on disk and needs no second
    model from then on; moving lets it follow the policy (arXiv 2404.09656)."""
    cache: Named | None = None
    """cached: the file of log-probs; default: in ~/.cache/assent (or ASSENT_CACHE), named by data and model."""
    rate: NonzeroShare = 0.6
    """moving: share of the policy in the new reference; 1 makes it a copy."""
    every: Count = 512
    """moving: optimiser steps from one update to the next."""


@dataclass(frozen=True)
class BetaLoss(LossConfig):
    """Options of the loss."""

    beta: Beta = 0.1


@dataclass(frozen=True)
class PreferenceConfig(PolicyRunConfig):
    """Learning directly from feedback: base of the objectives' configurations."""

    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True)
class PairConfig(PreferenceConfig):
    """Learning from pairs."""

    plus: dict[str, float] = field(default_factory=dict)
    """Further pairwise objectives (or sft) to add, each at its own defaults, for example sft:0.2 ipo:0.5."""
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True)
class ReferencePairConfig(PairConfig):
    """Learning from pairs, held to a reference."""

    loss: BetaLoss = field(default_factory=BetaLoss)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@dataclass(frozen=True)
class BinaryConfig(PreferenceConfig):
    """Learning from yes/no labels, held to a reference."""

    threshold: Finite | None = None
    """Rated answers: the rating from which an answer counts as desirable."""
    loss: BetaLoss = field(default_factory=BetaLoss)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@dataclass(frozen=True)
class ListConfig(PreferenceConfig):
    """Learning from several answers that are ranked or rated, held to a reference."""

    loss: BetaLoss = field(default_factory=BetaLoss)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@dataclass(frozen=True)
class CustomConfig(PreferenceConfig):
    """Learning directly from feedback by a function of your own: what it needs follows from its parameters."""

    objective: Named = field(kw_only=True)
    """FILE.py:function or module:function: its positional parameters are the tensors that it asks for."""
    options: dict[str, float] = field(default_factory=dict)
    """Its options (keyword-only parameters), for example beta:0.1; others keep their defaults."""
    whole_step: bool = False
    """The loss of a pair depends on the others (it sorts them, or takes their mean): it is given all pairs of a step at
    once."""
    threshold: Finite | None = None
    """Yes/no labels from rated answers: the rating from which an answer counts as desirable."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


def loss_of(config: PreferenceConfig) -> LossConfig:
    """The options of an objective's loss."""
    assert isinstance(config, PairConfig | BinaryConfig | ListConfig), type(config)
    return config.loss


def reference_of(config: RunConfig) -> ReferenceConfig | None:
    """The reference of an objective; None for all that have none. Whether one of the user's own compares with it, its
    parameters say."""
    anchored = ReferencePairConfig | BinaryConfig | ListConfig | CustomConfig
    return config.reference if isinstance(config, anchored) else None


# ---- objectives on yes/no labels


@dataclass(frozen=True)
class KTOLoss(BetaLoss):
    """Options of KTO."""

    desirable_weight: Annotated[
        float | None, Gt(0), Doc("Weight of desirable answers; default: 1, or more where they are the rarer class.")
    ] = None
    undesirable_weight: Annotated[
        float | None, Gt(0), Doc("Weight of undesirable answers; default: 1, or more where they are the rarer class.")
    ] = None


@dataclass(frozen=True)
class KTOConfig(BinaryConfig):
    """Options of `assent kto`."""

    loss: KTOLoss = field(default_factory=KTOLoss)


class BCOConfig(BinaryConfig):
    """Options of `assent bco`."""


class APOZeroUnpairedConfig(BinaryConfig):
    """Options of `assent apo-zero-unpaired`."""


# ---- objectives on rankings and ratings


class PlackettLuceDPOConfig(ListConfig):
    """Options of `assent pl-dpo`."""


@dataclass(frozen=True)
class NCALoss(BetaLoss):
    """Options of NCA."""

    beta: Beta = 0.01
    temperature: Temperature = 1.0


@dataclass(frozen=True)
class NCAConfig(ListConfig):
    """Options of `assent nca`."""

    loss: NCALoss = field(default_factory=NCALoss)


class InfoNCALoss(NCALoss):
    """Options of InfoNCA."""


@dataclass(frozen=True)
class InfoNCAConfig(ListConfig):
    """Options of `assent infonca`."""

    loss: InfoNCALoss = field(default_factory=InfoNCALoss)
