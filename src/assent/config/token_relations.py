"""The relations of options about the rewards of single tokens, a teacher's and a reward model's, as in
`assent.config.relations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assent.config.distill import DistillConfig
from assent.config.estimators import ESTIMATORS
from assent.config.methods import METHODS, method_of
from assent.config.online import OnlineConfig
from assent.config.policy_gradient import GKDConfig


def _teacher(config: OnlineConfig) -> str | None:
    name = method_of(config)
    if config.distill.teacher is not None:
        if METHODS[name].objective is None:
            return None
        return (
            f"--distill.teacher stands in the reward of each token, and {name} compares whole answers by theirs. Use "
            "assent gkd, or a method with a policy gradient."
        )
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
        f"the opponent of {name}": METHODS[name].opponent is not None,
        f"the estimator of {name}": config.loss.estimator is None
        and "greedy" in ESTIMATORS[METHODS[name].estimator].needs,
    }
    if asking := [option for option, asks in readers.items() if asks]:
        return (
            f"{asking[0]} reads what answers are worth, and the teacher (--distill.teacher) is all there is. Name "
            "rewards (--rewards.*), or leave it out."
        )
    return None


def _credit(config: OnlineConfig) -> str | None:
    rewards, name = config.rewards, method_of(config)
    row, given = METHODS[name], f"--rewards.credit {rewards.credit}"
    if rewards.credit == "last":
        if rewards.credit_share != type(rewards)().credit_share:
            return "--rewards.credit_share is about --rewards.credit gradient or absolute. Got last."
        return None
    if not rewards.model:
        return f"{given} asks reward models for their gradient. Give --rewards.model FOLDER."
    if rewards.weights.get("model", 1.0) == 0:
        return f"{given} spreads the reward models' part of a reward, and --rewards.weights model:0 leaves none."
    whole = config.loss.estimator is None and not ESTIMATORS[row.estimator].by_token
    if whole or row.objective is not None or row.opponent is not None:
        return (
            f"{given} changes nothing in {name}, which compares whole answers: the sum over an answer stays the same. "
            "Use ppo, reinforce or reinforce++."
        )
    return None


OF_TOKENS: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (OnlineConfig, _teacher),
    (GKDConfig, _own_answers),
    (OnlineConfig, _unrewarded),
    (OnlineConfig, _credit),
)
"""The relations of methods with a teacher, and of credit."""
