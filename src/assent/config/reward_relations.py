"""The relations between options of reward models, for `assent.config.relations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assent.config.reward import AdversarialSection, RewardConfig, RewardSection


def _strength_once(config: RewardConfig) -> str | None:
    if config.reward.margin and config.reward.scaled:
        return (
            "--reward.margin asks for a gap of a pair's strength, --reward.scaled counts the pair by it. Give one of "
            "them."
        )
    return None


def _ties(config: RewardConfig) -> str | None:
    section = config.reward
    if section.ties == "drop":
        return _unread(section, "tie_chance", "ties", "--reward.ties rao-kupper or davidson")
    start = f"--reward.ties {section.ties}"
    if section.readout == "mean":
        return f"{start}: what a tie is at single tokens nobody has said. Use --reward.readout last."
    if section.margin:
        return f"{start} compares scores without a margin. Leave --reward.margin out; --reward.scaled weighs pairs."
    return None


def _regulariser(config: RewardConfig) -> str | None:
    section = config.reward
    if section.regulariser == "none":
        for name in ("regulariser_weight", "regulariser_beta"):
            if (wrong := _unread(section, name, "regulariser", "--reward.regulariser sft or dpo")) is not None:
                return wrong
        return None
    other = "votes" if section.votes else "ties" if section.ties != "drop" else None
    if other is not None:
        return (
            f"--reward.regulariser {section.regulariser} makes the chosen answer likely, and with --reward.{other} a "
            "pair need not have one. Give one of them."
        )
    return None


def _golden(config: RewardConfig) -> str | None:
    section = config.adversarial
    if (section.golden is None) != (section.samples is None):
        given, lacks = ("golden", "samples") if section.samples is None else ("samples", "golden")
        return (
            f"--adversarial.{given} {getattr(section, given)}: golden answers are told from samples, so --adversarial."
            f"{lacks} is needed as well."
        )
    if section.golden is None:
        for name in ("coef", "pairs_coef", "batch_size"):
            if getattr(section, name) != getattr(AdversarialSection(), name):
                return (
                    f"--adversarial.{name} is read only with --adversarial.golden and --adversarial.samples. Neither "
                    "was given."
                )
    return None


def _old(config: RewardConfig) -> str | None:
    section = config.old
    if section.coef == 0:
        return None if section.path is None else f"--old.path {section.path} is read only with --old.coef above 0."
    if config.reward.ties != "drop":
        return (
            f"--old.coef {section.coef:g} compares choices between two answers, and with --reward.ties "
            f"{config.reward.ties} a tie is a third one. Give one of them."
        )
    return None


def _unread(section: RewardSection, name: str, by: str, needs: str) -> str | None:
    """That an option was given which nothing reads."""
    if getattr(section, name) == getattr(RewardSection(), name):
        return None
    return f"--reward.{name} is read only with {needs}. Got --reward.{by} {getattr(section, by)}."


REWARD: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (RewardConfig, _strength_once),
    (RewardConfig, _ties),
    (RewardConfig, _regulariser),
    (RewardConfig, _golden),
    (RewardConfig, _old),
)
