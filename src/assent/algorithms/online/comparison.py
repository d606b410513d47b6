"""Methods that compare answers as they are sampled: by which objective, who is better than whom, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.own import own_function
from assent.algorithms.preference import step_loss as preference
from assent.algorithms.preference.diagnostics import item_metrics
from assent.algorithms.preference.objective import TOGETHER, feedback_of, offered
from assent.algorithms.preference.step_loss import MEANS, WITH_REFERENCE, Inputs, Requirement, Term, needs_of
from assent.config import OBJECTIVES, Objective, OnlineConfig, keywords, objective_key
from assent.config.online import SOURCES
from assent.config.online_preference import NashMDLoss, XPOLoss
from assent.config.sections import default_of, ranges_of
from assent.data.packing import Counts
from assent.data.tree import TreeBatch
from assent.errors import ConfigError
from assent.losses import LOSSES, win_probability
from assent.losses.functions import TensorFunction, with_options
from assent.models.policy import TokenScores
from assent.names import suggestion
from assent.rewards.group import RewardError
from assent.rewards.judge.prompt import read_prompt
from assent.rollout.rollout import Fields, Rollout

FUNCTION, OPTIONS = "--loss.function", "--loss.options"

# ---- what a method is made of


@dataclass(frozen=True, slots=True)
class Comparison:
    """`row` and `term` are the objective that answers are compared by; `explore` weighs the log-probs of answers that
    the policy did not sample (XPO's alpha)."""

    row: Objective
    term: Term
    explore: float = 0.0

    @property
    def needs(self) -> frozenset[Requirement]:
        return needs_of([self.term])

    @property
    def beta(self) -> float:
        """The scale of implicit rewards in metrics."""
        found = self.term.loss.options.get("beta")
        return float(found) if isinstance(found, int | float) else 1.0

    @property
    def in_pairs(self) -> bool:
        """Whether an answer counts only beside another one."""
        return self.row.feedback == "pairs"

    def reads_before(self, rollout: Rollout) -> bool:
        """Whether the policy must read a rollout before its step: for KTO's reference point, or because the step trains
        on some of the answers only, and so could not tell of all."""
        return Requirement.MISMATCHED in self.needs or not _used(rollout, self).all()


def comparison_of(config: OnlineConfig, estimator: TensorFunction) -> Comparison | None:
    """The comparison of a method; None where it makes none. `estimator` may have taken some of `loss.options`. Raises
    ConfigError for options that the objective does not have, and for a function of the user's that does not fit."""
    key = objective_key(config)
    if key is None:
        return None
    row, section = OBJECTIVES[key], config.loss
    own = keywords(section)
    options = {name: value if own.get(name) is None else own[name] for name, value in row.options.items()}
    given = {name: value for name, value in section.options.items() if name not in estimator.takes}
    if section.function is None:
        loss = with_options(LOSSES[row.loss], options | _checked(given, row, key, own))
    else:
        loss = own_function(section.function, FUNCTION, offered(), given, options, TOGETHER)
        _require_names(given, loss.takes, section.function)
        row = _own_row(section.function, loss, row)
    explore = section.alpha if isinstance(section, XPOLoss) else 0.0
    return Comparison(row.as_trained(loss.options), Term(key, loss), explore)


def _checked(given: Mapping[str, float], row: Objective, key: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an objective from numbers, within their ranges."""
    known = {name: value for name, value in row.options.items() if name not in own}
    _require_names(given, known, key)
    section: Any = type(default_of(row.config, "loss"))
    ranges = ranges_of(section)
    found: dict[str, Any] = {}
    for name, value in given.items():
        flag, default = f"{OPTIONS} {name}:{value:g}", known[name]
        if isinstance(default, bool):
            if value not in (0, 1):
                raise ConfigError(f"{flag}: '{name}' of {key} is off or on. Give 0 or 1.")
            found[name] = bool(value)
        elif not isinstance(default, float):
            raise ConfigError(f"{flag}: '{name}' of {key} is {default!r} here; it is chosen offline only, by a word.")
        elif name in ranges and not ranges[name].holds(value):
            raise ConfigError(f"{flag}: '{name}' of {key} must be {ranges[name].words}.")
        else:
            found[name] = value
    return found


def _require_names(given: Mapping[str, float], known: Any, who: str) -> None:
    for name, value in given.items():
        if name not in known:
            there = f"There are: {', '.join(known)}." if known else "It has none beside those of --loss."
            raise ConfigError(f"{OPTIONS} {name}:{value:g}: {who} has no such option.{suggestion(name, known)} {there}")


def _own_row(spec: str, loss: TensorFunction, row: Objective) -> Objective:
    """The objective of a function of the user's in place of that of `row`, from the same feedback."""
    who, needs = f"{FUNCTION} {spec}", needs_of([Term(spec, loss)])
    if (feedback := feedback_of(who, loss.inputs)) != row.feedback or Requirement.SHIFT in needs:
        raise ConfigError(f"{who} asks for {', '.join(loss.inputs)}; here answers are compared as {row.feedback} only.")
    reward: Any = "ratio" if needs & WITH_REFERENCE else "logprob"
    return replace(row, name=spec, loss=spec, reward=reward, feedback=feedback)


def preference_of(config: OnlineConfig) -> str | None:
    """How rewards become the probability to win against an opponent's answer; None where nothing asks for it. Raises
    ConfigError where it does not follow from what gives the rewards."""
    if not isinstance(config.loss, NashMDLoss):
        return None
    given, rewards = config.loss.preference, config.rewards
    if given != "auto":
        return given
    judge = config.judge
    if not rewards.judges or not read_prompt(judge.prompt).compares or judge.rule == "bradley_terry":
        return "bradley_terry"
    alone = sum(len(getattr(rewards, kind)) for kind in SOURCES) == 1 and not rewards.weights
    if alone and judge.pairs == "all":
        return "win_rate"
    raise ConfigError(
        "--loss.preference auto: the reward is a judge's win rate together with something else (further sources, "
        "--rewards.weights, --judge.pairs baseline), so how two of them become a probability must be said: "
        "bradley_terry, win_rate or order."
    )


# ---- stages of a rollout


def against_opponents(rollout: Rollout, how: str) -> tuple[Rollout, dict[str, float]]:
    """The policy's answers alone, shaped = P(answer is preferred to the opponent's) - 1/2, of prompts with both.

    Raises RewardError where no prompt has both, and for win rates that are none."""
    assert rollout.shaped is not None
    both = np.flatnonzero(rollout.sizes == 2)
    pairs = rollout.of_prompts(both)
    if not len(pairs):
        raise RewardError("no prompt has a reward for both its answers, the policy's and its opponent's.")
    own = pairs.sampled()
    shaped = pairs.shaped
    assert shaped is not None and own.shaped is not None
    mine, theirs = own.shaped, shaped[pairs.demonstration]
    try:
        chance = win_probability(torch.from_numpy(mine).double(), torch.from_numpy(theirs).double(), preference=how)
    except ValueError:
        far = int(np.abs(mine - theirs).argmax())
        raise RewardError(
            f"rewards of {mine[far]:.6g} and {theirs[far]:.6g} are more than 1 apart, so they are no win rates of two "
            "answers against each other. Give --loss.preference bradley_terry."
        ) from None
    notes = [
        {**note, "preference": value} for note, value in zip(own.notes or [{}] * len(own), chance.tolist(), strict=True)
    ]
    made = replace(own, shaped=(chance - 0.5).float().numpy(), notes=tuple(notes))
    return made, {"win_rate": float(chance.mean()), "no_signal": float((chance == 0.5).double().mean())}


def compared(rollout: Rollout, estimator: TensorFunction, comparison: Comparison) -> tuple[Rollout, dict[str, float]]:
    """The rollout with `side`, and what became of its prompts: `no_signal` is the share without a comparison."""
    assert rollout.shaped is not None
    rewards, lengths = torch.from_numpy(rollout.shaped).double(), torch.from_numpy(rollout.lengths)
    tokens = rewards.new_zeros(len(rollout.ids)).index_add(0, lengths.cumsum(0) - 1, rewards)
    side = estimator(
        {
            "token_rewards": tokens,
            "rewards": rewards,
            "values": None,
            "greedy": None if rollout.greedy is None else torch.from_numpy(rollout.greedy).double(),
            "response": torch.from_numpy(rollout.response),
            "prompt": torch.from_numpy(rollout.prompt),
        }
    )
    if len(side) != len(rollout) or not bool((side.abs() * (side.abs() - 1) == 0).all()):
        raise ConfigError(
            "--loss.estimator: where answers are compared it gives each response its side: 1 preferred, -1 not, 0 "
            "neither."
        )
    made = replace(rollout, side=side.float().numpy())
    used = _used(made, comparison)
    decided = len(np.unique(made.prompt[used]))
    metrics = {"no_signal": 1 - decided / len(made.prompts), "compared": float(decided)}
    if made.demonstration.any() and decided:
        assert made.side is not None
        preferred = used & (made.side > 0)
        metrics["win_rate"] = float((~made.demonstration[preferred]).mean())
    return made, metrics


def selected(rollout: Rollout, comparison: Comparison) -> Rollout:
    """The answers that are compared, with KTO's reference point: max(0, mean of log pi/pi_ref over all that the policy
    sampled), an unbiased estimate of KL(pi || pi_ref) before it is cut at 0."""
    if Requirement.MISMATCHED in comparison.needs:
        own = rollout.sampled()
        held_to = own.reference if own.anchor is None else own.anchor
        assert own.old is not None and held_to is not None
        drift = max(0.0, float(own.sums((own.old - held_to).astype(np.float64)).mean()))
        rollout = replace(rollout, reference_point=np.full(len(rollout), drift, np.float32))
    used = _used(rollout, comparison)
    if used.all():
        return rollout
    kept = rollout.take(np.flatnonzero(used))
    return kept.of_prompts(np.flatnonzero(kept.sizes))


def _used(rollout: Rollout, comparison: Comparison) -> np.ndarray:
    """Which answers are in a comparison, [S] bool."""
    assert rollout.side is not None
    used: np.ndarray = rollout.side != 0
    if comparison.in_pairs:
        better, worse = (np.bincount(rollout.prompt, rollout.side == s, len(rollout.prompts)) > 0 for s in (1, -1))
        used = used & (better & worse)[rollout.prompt]
    return used


# ---- the loss of a step


def comparison_loss(
    batch: TreeBatch, scores: TokenScores, fields: Fields, comparison: Comparison, counts: Counts
) -> tuple[Tensor, dict[str, tuple[Tensor | float, float]]]:
    """A micro-batch's part of the loss of its step, and how the policy reads the answers that are compared:

    mean of the objective's losses  +  explore * sum over answers of others of log pi / prompts"""
    held_to = fields.reference if fields.anchor is None else fields.anchor
    inputs, mean = Inputs(batch, scores, held_to), MEANS[comparison.row.feedback]
    total = preference.step_loss(inputs, [comparison.term], mean, counts)
    metrics: dict[str, tuple[Tensor | float, float]] = {
        "objective": (total.detach() * max(1, mean.step(counts)), mean.batch(batch))
    }
    for name, value in item_metrics(inputs, comparison.row, comparison.beta).metrics.items():
        metrics[f"implicit_{name}" if name.startswith("reward/") else name] = value
    if comparison.explore and fields.sampled is not None:
        others = ((1 - fields.sampled) * scores.logprobs).sum()
        total = total + comparison.explore * others / counts.prompts
        metrics["logprob_sum/opponent"] = (others.detach(), len(batch.keys))
    return total, metrics
