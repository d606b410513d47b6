"""The relations between options of distillation and others, as in `assent.config.relations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assent.config.distill import DistillConfig
from assent.config.estimators import ESTIMATORS
from assent.config.methods import METHODS, method_of
from assent.config.online import OnlineConfig
from assent.config.policy_gradient import GKDConfig


def _teacher(config: OnlineConfig) -> str | None:
    if config.distill.teacher is not None:
        return None
    name = method_of(config)
    if METHODS[name].needs_teacher:
        return f"--distill.teacher FOLDER must be given: {name} learns its predictions."
    if config.distill.coef != DistillConfig().coef:
        return "--distill.coef is the weight of the teacher of --distill.teacher FOLDER. There is none."
    return None


def _own_answers(config: GKDConfig) -> str | None:
    if config.distill.on_policy == 1:
        return None
    share = f"--distill.on_policy {config.distill.on_policy:g}"
    if config.rewards.named:
        return (
            f"{share} learns from answers that the policy did not sample, and rewards have no policy gradient there. "
            "Leave the rewards out, or use --distill.on_policy 1."
        )
    if config.given.source != "none":
        return f"{share} takes answers from the rows, as --given.source {config.given.source} does. Give one of them."
    return None


def _unrewarded(config: OnlineConfig) -> str | None:
    """What reads rewards, where there are none."""
    if config.distill.teacher is None or config.rewards.named:
        return None
    name = method_of(config)
    shaping, curriculum = config.shaping, config.curriculum
    readers = {
        f"--shaping.baseline {shaping.baseline}": shaping.baseline != "none",
        f"--shaping.normalise {shaping.normalise}": shaping.normalise != "none",
        "--shaping.clip": shaping.clip is not None,
        f"--curriculum.order {curriculum.order} without --curriculum.column": curriculum.order != "random"
        and curriculum.column is None,
        "--curriculum.rest": curriculum.rest > 0,
        f"--given.source {config.given.source}": config.given.source != "none",
        "--loss.dynamic": getattr(config.loss, "dynamic", False),
        f"the estimator of {name}": config.loss.estimator is None
        and "greedy" in ESTIMATORS[METHODS[name].estimator].needs,
    }
    if asking := [option for option, asks in readers.items() if asks]:
        return (
            f"{asking[0]} reads what answers are worth, and the teacher (--distill.teacher) is all there is. Name "
            "rewards (--rewards.*), or leave it out."
        )
    return None


DISTILL: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (OnlineConfig, _teacher),
    (GKDConfig, _own_answers),
    (OnlineConfig, _unrewarded),
)
"""The relations of methods with a teacher."""
