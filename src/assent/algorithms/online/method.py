"""What a method is made of, read off its row in the tables and its options: once, and typed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from assent.algorithms.online.coefficients import Coefficients
from assent.algorithms.online.comparison import Comparison, comparison_of, preference_of
from assent.algorithms.own import OwnFunction, own_function, require_known
from assent.config import METHODS, CriticConfig, GKDDistill, OnlineConfig, critic_of, keywords, method_of
from assent.config.estimators import ESTIMATORS
from assent.errors import ConfigError
from assent.losses import ADVANTAGES, LOSSES, rescaled
from assent.losses.functions import Quantity, TensorFunction, options_of, with_options

POLICY_LOSSES = {"clip": "ppo_clip", "none": "cpi", "penalty": "ppo_penalty"}
"""PPO's losses by `loss.objective`."""
PENALTY = "penalty"
"""The option of a loss that a controller moves."""
LOSS = "--loss.function"
ESTIMATOR = "--loss.estimator"
TOGETHER = "What compares tokens or responses belongs in an estimator of advantages (--loss.estimator)."
TOKENS: Mapping[str, Quantity] = {
    "logprobs": Quantity("N", "log-prob of the token under the policy that is trained"),
    "old_logprobs": Quantity("N", "the same before the step, a constant (with `--loss.ewma` under the average)"),
    "advantages": Quantity("N", "its advantage, a constant"),
    "response": Quantity("N", "which response it belongs to, 0, 1, ..., never decreasing"),
    "sampler_logprobs": Quantity("N", "log-prob under the engine that sampled it, a constant"),
    "reference_logprobs": Quantity(
        "N", "log-prob under the reference (or its `--kl.anchor`), a constant (with `--kl.coef` above 0)"
    ),
    "entropy": Quantity("N", "entropy of the policy's prediction, with a gradient"),
}
"""What a user's policy loss may ask for."""
REWARDS: Mapping[str, Quantity] = {
    "rewards": Quantity("S", "reward of the response, shaped, less its KL where that belongs in the reward"),
    "token_rewards": Quantity("N", "the same by token: each has its KL, the last of a response its reward too"),
    "values": Quantity("N", "the critic's value of the token (`ppo`)"),
    "greedy": Quantity("S", "reward of the most likely response to the prompt, which is sampled for it"),
    "response": Quantity("N", "which response the token belongs to, 0, 1, ..., never decreasing"),
    "prompt": Quantity("S", "which prompt the response answers (with `--rollout.responses` 2 or more)"),
}
"""What a user's estimator of advantages may ask for."""
CLIPS = ("clip", "clip_high", "dual_clip")
"""Options of policy losses that bound the ratio."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """How a teacher's predictions are learnt: `coef` times log policy - log teacher is taken from the reward of a
    token, or, `in_loss`, `coef` times their divergence is added (`models.divergences`), with this `beta` and of logits
    over `temperature`; `on_policy` is the share of prompts that the policy answers."""

    coef: float
    temperature: float
    in_loss: bool = False
    beta: float = 1.0
    on_policy: float = 1.0


@dataclass(frozen=True, slots=True)
class OnlineMethod:
    """A method with its options.

    loss            the policy loss of each token, or that of a comparison
    penalised       whether it has a penalty, whose weight is `Coefficients.penalty`
    estimator       the advantage of each token or each response, or the side of each response in a comparison
    comparison      how answers are compared; None: they are credited with advantages
    opponent        weight of the reference in who samples the second answer to each prompt; None: nobody does
    preference      how rewards become the probability to win against the opponent; None: they stay what they are
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
    distilled       how a teacher is learnt from, None without one
    """

    loss: TensorFunction
    penalised: bool
    estimator: TensorFunction
    comparison: Comparison | None
    opponent: float | None
    preference: str | None
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
    distilled: Distilled | None = None

    @property
    def clips(self) -> dict[str, Any]:
        """What bounds the ratio, as `ratio_diagnostics` takes it."""
        known = {} if isinstance(self.loss.call, OwnFunction) else self.loss.options
        return {"clip": math.inf} | {name: value for name, value in known.items() if name in CLIPS}

    @property
    def reads_entropy(self) -> bool:
        """Whether the loss needs the entropy of the policy's predictions."""
        return self.entropy > 0 or "entropy" in self.loss.inputs

    @property
    def by_response(self) -> bool:
        """Whether the loss has one ratio for a whole response."""
        return "response" in self.loss.inputs and not isinstance(self.loss.call, OwnFunction)


def method_with(config: OnlineConfig) -> OnlineMethod:
    """The method of a configuration. Raises ConfigError for a function of the user's that does not fit it."""
    row, options = METHODS[method_of(config)], keywords(config.loss)
    learning_rate, ewma = _for_this_batch(config, options)
    estimator = _estimator(config, ADVANTAGES[ESTIMATORS[row.estimator].function], options)
    comparison = comparison_of(config, estimator)
    loss = _loss(config, row.loss, options) if comparison is None else comparison.term.loss
    if comparison is None:
        own = [function for function in (loss, estimator) if isinstance(function.call, OwnFunction)]
        require_known(config.loss.options, "--loss.options", *own)
    _require_read(config, loss, estimator)
    return OnlineMethod(
        loss=loss,
        penalised=PENALTY in options and PENALTY in loss.takes,
        estimator=estimator,
        comparison=comparison,
        opponent={"reference": 1.0, "mixture": options.get("mixture")}.get(row.opponent or ""),
        preference=preference_of(config),
        critic=critic_of(config),
        needs_greedy="greedy" in estimator.inputs,
        whiten=options.get("whiten", False),
        reduction=options.get("reduction", "response"),
        dynamic=options.get("dynamic", False),
        entropy=options.get("entropy", 0.0),
        penalty_target=options.get("penalty_target"),
        ewma=ewma,
        learning_rate=learning_rate,
        start=Coefficients(config.kl.coef, float(options.get(PENALTY, 0.0))),
        distilled=_distilled(config),
    )


def _distilled(config: OnlineConfig) -> Distilled | None:
    section, temperature = config.distill, config.sampling.temperature
    if section.teacher is None:
        return None
    if not isinstance(section, GKDDistill):
        return Distilled(section.coef, temperature)
    return Distilled(section.coef, section.temperature or temperature, True, section.beta, section.on_policy)


def _require_read(config: OnlineConfig, loss: TensorFunction, estimator: TensorFunction) -> None:
    """Raises ConfigError where an option of the method's own loss or estimator was set, and the user's function in its
    place does not have it."""
    row, given = METHODS[method_of(config)], keywords(config.loss)
    replaced = {
        LOSS: (config.loss.function, options_of(LOSSES[row.loss])),
        ESTIMATOR: (config.loss.estimator, options_of(ADVANTAGES[ESTIMATORS[row.estimator].function])),
    }
    for flag, (spec, names) in replaced.items():
        for name in names:
            if (
                spec is not None
                and given.get(name) != row.options.get(name)
                and name not in (*loss.takes, *estimator.takes)
            ):
                raise ConfigError(
                    f"--loss.{name} {given[name]} is an option of {row.name}'s own {flag.removeprefix('--loss.')}, and "
                    f"{flag} {spec} in its place has none of that name. Leave it out, or give the function the "
                    f"keyword-only parameter '{name}'."
                )


def _loss(config: OnlineConfig, name: str, options: Mapping[str, Any]) -> TensorFunction:
    if config.loss.function is None:
        return with_options(LOSSES[POLICY_LOSSES[options["objective"]] if "objective" in options else name], options)
    found = own_function(config.loss.function, LOSS, TOKENS, config.loss.options, options, TOGETHER)
    if "reference_logprobs" in found.inputs and config.kl.coef == 0:
        raise ConfigError(
            f"{LOSS} {config.loss.function} asks for 'reference_logprobs', and --kl.coef 0 has no reference. Give "
            "--kl.coef a number above 0."
        )
    return found


def _estimator(config: OnlineConfig, own: Callable[..., Tensor], options: Mapping[str, Any]) -> TensorFunction:
    if (spec := config.loss.estimator) is None:
        return with_options(own, options)
    found = own_function(spec, ESTIMATOR, REWARDS, config.loss.options, options)
    if "values" in found.inputs and critic_of(config) is None:
        name = METHODS[method_of(config)].name
        raise ConfigError(f"{ESTIMATOR} {spec} asks for 'values' of a critic, and {name} has none. Use: assent ppo")
    if "prompt" in found.inputs and config.rollout.responses == 1:
        raise ConfigError(
            f"{ESTIMATOR} {spec} asks for 'prompt', to compare responses to the same one. Give --rollout.responses "
            "2 or more."
        )
    return found


def _for_this_batch(config: OnlineConfig, options: Mapping[str, Any]) -> tuple[float, float | None]:
    """Learning rate and decay of the average, rescaled where they were tuned for another batch."""
    lr, decay, tuned = config.optim.lr, options.get("ewma"), options.get("tuned_batch")
    if tuned is None or tuned == config.train.batch_size:
        return lr, decay
    return rescaled(lr, decay, ratio=config.train.batch_size / tuned)
