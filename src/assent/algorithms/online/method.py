"""What a method is made of, read off its row in the tables and its options: once, and typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assent.algorithms.online.coefficients import Coefficients
from assent.config import METHODS, CriticConfig, OnlineConfig, critic_of, keywords, method_of
from assent.config.estimators import ESTIMATORS
from assent.losses import ADVANTAGES, LOSSES, rescaled
from assent.losses.functions import TensorFunction, with_options

OBJECTIVES = {"clip": "ppo_clip", "none": "cpi", "penalty": "ppo_penalty"}
"""PPO's losses by `loss.objective`."""
PENALTY = "penalty"
"""The option of a loss that a controller moves."""
CLIPS = ("clip", "clip_high", "dual_clip")
"""Options of policy losses that bound the ratio."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its options.

    loss            the policy loss of each token
    estimator       the advantage of each token or each response
    critic          None where it has none
    needs_greedy    whether the most likely response to each prompt is sampled as well
    whiten          whether advantages are scaled over the rollout
    reduction       how the tokens of a step are weighted
    dynamic         whether further prompts replace zero-variance groups
    entropy         weight of the entropy bonus
    penalty_target  where a controller keeps KL(old || new)
    ewma            decay of the average of the policy's weights that ratios are taken to
    learning_rate   for this run's batch
    start           the coefficients that a run begins with
    """

    loss: TensorFunction
    estimator: TensorFunction
    critic: CriticConfig | None
    needs_greedy: bool
    whiten: bool
    reduction: str
    dynamic: bool
    entropy: float
    penalty_target: float | None
    ewma: float | None
    learning_rate: float
    start: Coefficients

    @property
    def penalised(self) -> bool:
        """Whether the loss has a penalty, whose weight is `Coefficients.penalty`."""
        return PENALTY in self.loss.takes

    @property
    def clips(self) -> dict[str, Any]:
        """What bounds the ratio, as `ratio_diagnostics` takes it."""
        return {"clip": math.inf} | {name: value for name, value in self.loss.options.items() if name in CLIPS}

    @property
    def by_response(self) -> bool:
        """Whether the loss has one ratio for a whole response."""
        return "response" in self.loss.inputs


def method_with(config: OnlineConfig) -> Method:
    """The method of a configuration."""
    row, options = METHODS[method_of(config)], keywords(config.loss)
    estimator = ESTIMATORS[row.estimator]
    loss = LOSSES[OBJECTIVES[options["objective"]] if "objective" in options else row.loss]
    learning_rate, ewma = _for_this_batch(config, options)
    return Method(
        loss=with_options(loss, {name: value for name, value in options.items() if name != PENALTY}),
        estimator=with_options(ADVANTAGES[estimator.function], options),
        critic=critic_of(config),
        needs_greedy="greedy" in estimator.needs,
        whiten=options.get("whiten", False),
        reduction=options["reduction"],
        dynamic=options.get("dynamic", False),
        entropy=options["entropy"],
        penalty_target=options.get("penalty_target"),
        ewma=ewma,
        learning_rate=learning_rate,
        start=Coefficients(config.kl.coef, float(options.get(PENALTY, 0.0))),
    )


def _for_this_batch(config: OnlineConfig, options: Mapping[str, Any]) -> tuple[float, float | None]:
    """Learning rate and decay of the average, rescaled where they were tuned for another batch."""
    lr, decay, tuned = config.optim.lr, options.get("ewma"), options.get("tuned_batch")
    if tuned is None or tuned == config.train.batch_size:
        return lr, decay
    return rescaled(lr, decay, ratio=config.train.batch_size / tuned)
