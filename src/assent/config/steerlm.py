"""Options of `assent steerlm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

from assent.config.loops import LoopConfig
from assent.config.online_relations import engine_is_asked
from assent.config.ranges import Count, Named, Share

Grade = Annotated[int, Interval(ge=-1000, le=1000)]


@dataclass(frozen=True)
class SteeringConfig:
    """What answers are labelled with, and asked for."""

    model: Named | None = None
    """Attribute model (a run of assent reward-attributes, a folder, a hub id): its outputs are the attributes, in its
    order. Without it one is trained on `ratings`."""
    ratings: Named | None = None
    """Ratings that an attribute model is trained on first, from `model.path`."""
    options: dict[str, str] = field(default_factory=dict)
    """ratings: options of assent reward-attributes, for example optim.lr:1e-3 train.epochs:2."""
    names: tuple[str, ...] = ()
    """The attributes that the policy is to know, in this order; default: all outputs of the attribute model."""
    wanted: Named | None = None
    """What answers are asked to be where nothing else is said, in later rounds and by the trained model, for example
    helpfulness=4,verbosity=1. What is not named: as in the most frequent labels of the best tenth of the
    demonstrations."""
    lowest: Grade = 0
    """Lowest value that can be asked for; what is measured is rounded, and clamped to the scale."""
    highest: Grade = 4
    """Highest value."""
    line: Named = "{attributes}\n"
    """What is written before an answer: {attributes} stands for name:value,..., or {NAME} for one value. NeMo's:
    <extra_id_2>{attributes} and a line end."""
    sweep: tuple[str, ...] = ()
    """Attributes that are asked for at every value after each round, and measured; default: all."""
    prompts: Named | None = None
    """File of the prompts for that; default: the held-out data, else the prompts of the rounds."""
    limit: Count = 64
    """Use only the first of them."""


@dataclass(frozen=True)
class SteerLMConfig(LoopConfig):
    """SteerLM (arXiv 2310.05344): answers that can be asked to be more or less of what an attribute model measures."""

    rounds: Count = 2
    """Rounds of SFT: the first on demonstrations, each later one on answers of the policy as well."""
    steering: SteeringConfig = field(default_factory=SteeringConfig)
    prompts: Named | None = None
    """File of prompts to answer in later rounds; default: those of the demonstrations."""
    answers: Count = 1
    """Answers to each prompt in later rounds, sampled at the wanted attributes."""
    demonstrations: Share = 1.0
    """Share of the demonstrations that later rounds learn again, beside the policy's own answers."""


def _one_labeller(config: SteerLMConfig) -> str | None:
    options = config.steering
    if (options.model is None) == (options.ratings is None):
        got = "Neither is given" if options.model is None else "Both are given"
        return (
            "assent steerlm labels answers by --steering.model, or by a model that it trains on --steering.ratings. "
            f"{got}."
        )
    if options.ratings is None and options.options:
        return "--steering.options is about an attribute model that is trained. Give --steering.ratings."
    return None


def _steerable(config: SteerLMConfig) -> str | None:
    if config.steering.lowest >= config.steering.highest:
        return f"--steering.lowest {config.steering.lowest} must be below --steering.highest {config.steering.highest}."
    if "\\n" in config.steering.line:
        return (
            "--steering.line: \\n stands there as two letters. Give a line end: $'{attributes}\\n' in most shells, or "
            '"{attributes}\\n" in YAML.'
        )
    if config.data.rendered:
        return "assent steerlm writes attributes by the chat template, which --data.rendered leaves out."
    return None


STEERLM = tuple((SteerLMConfig, relation) for relation in (_one_labeller, _steerable, engine_is_asked))
"""Relations between its options (`assent.config.relations`)."""
