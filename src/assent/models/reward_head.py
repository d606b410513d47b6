"""What the K outputs of a reward head are, and how they become one reward."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from assent.errors import ConfigError, ModelError
from assent.foreign import brief
from assent.names import suggestion


@dataclass(frozen=True, slots=True)
class HeadRule:
    """The K outputs of a reward head, and how they become one reward:

        outputs[k] = logits[k] + offset[k],    reward = sum_k weights[k] * outputs[k]

    names    K; ("reward",) of a scalar model, else the attributes
    weights  K, the scalar rule; empty where nobody has said it: the outputs can be read, but are no reward
    scale    (lowest, highest) of the ratings that each output was trained on, or empty
    offset   K constants that the head of another tool adds to its logits, or empty. Others that read the folder do not
             add them.
    ensemble how heads that were trained for the same reward become one instead: their "mean", the lowest ("min"), or
             "lcb", mean - `deviations` * std (arXiv 2310.02743); empty where the outputs are different things
    """

    names: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)
    scale: tuple[tuple[float, float], ...] = ()
    offset: tuple[float, ...] = ()
    ensemble: str = ""
    deviations: float = 1.0

    def __post_init__(self) -> None:
        assert all(len(part) in (0, len(self.names)) for part in (self.weights, self.scale, self.offset))

    def __len__(self) -> int:
        return len(self.names)

    def shares(self, outputs: Tensor) -> Tensor:
        """What each output adds to the reward: [..., K] of the same. Raises ModelError where there are no weights."""
        if self.ensemble:
            return _members(outputs, self.ensemble, self.deviations)
        self.require_weights("This reward model")
        return outputs * outputs.new_tensor(self.weights)

    def reward(self, outputs: Tensor) -> Tensor:
        """[..., K] to [...]."""
        return self.shares(outputs).sum(-1)

    def require_weights(self, who: str) -> None:
        """Raises ModelError where nobody has said how the outputs become a reward."""
        if not self.weights and not self.ensemble:
            raise ModelError(
                f"{who} has {len(self)} outputs ({shown(self.names)}), and its config.json does not say how they become"
                " one reward. Say it: --rewards.output_weights NAME:WEIGHT ..."
            )

    def reweighted(self, weights: Mapping[str, float], flag: str = "--rewards.output_weights") -> HeadRule:
        """The same outputs by another rule: those that are not named weigh 0. Raises ConfigError for a name that no
        output has, and for weights that are not finite or all 0."""
        for name, weight in weights.items():
            if name not in self.names:
                raise ConfigError(
                    f"{flag}: no output is called '{name}'.{suggestion(name, self.names)} There are: "
                    f"{', '.join(self.names)}."
                )
            if not math.isfinite(weight):
                raise ConfigError(f"{flag} {name}:{weight:g}: expected a finite number.")
        if not any(weights.values()):
            raise ConfigError(f"{flag}: all weights are 0, so every answer would be worth the same.")
        return replace(self, weights=tuple(float(weights.get(name, 0.0)) for name in self.names), ensemble="")

    @property
    def code(self) -> str:
        """How torch computes the reward from `outputs` [..., K]; empty where nobody has said it."""
        mean, std = "outputs.mean(-1)", "outputs.std(-1, correction=0)"
        if self.ensemble:
            bound = f"{mean} - {self.deviations:g} * {std}"
            return {"mean": mean, "min": "outputs.amin(-1)", "lcb": bound}[self.ensemble]
        return f"outputs @ torch.tensor({list(self.weights)})" if self.weights else ""

    def section(self) -> dict[str, Any]:
        """The rule as JSON, without what is empty."""
        values: dict[str, Any] = {"outputs": self.names, "weights": self.weights, "scale": self.scale}
        values |= {"offset": self.offset, "ensemble": self.ensemble}
        values |= {"deviations": self.deviations} if self.ensemble == "lcb" else {}
        return {name: json.loads(json.dumps(value)) for name, value in values.items() if value}


SCALAR = HeadRule()
ENSEMBLES = ("mean", "min", "lcb")
"""How heads of one reward become one."""


def _members(outputs: Tensor, ensemble: str, deviations: float) -> Tensor:
    """What each of K heads adds to their mean, minimum, or mean - deviations * std, [..., K]: the minimum is all of the
    lowest head's; of the last, head k has (out_k - deviations * (out_k - mean)^2 / std) / K."""
    count = outputs.shape[-1]
    if ensemble == "min":
        lowest = outputs.argmin(-1, keepdim=True)
        return outputs * torch.zeros_like(outputs).scatter(-1, lowest, 1.0)
    if ensemble == "mean":
        return outputs / count
    away = outputs - outputs.mean(-1, keepdim=True)
    std = away.square().mean(-1, keepdim=True).sqrt()
    return (outputs - deviations * away.square() / std.clamp_min(torch.finfo(std.dtype).tiny)) / count


@dataclass(frozen=True, slots=True)
class Scored:
    """Responses as a reward model sees them. `shares` are what each output adds to the reward: their sum over K.

    reward   [S]
    outputs  [S, K]
    shares   [S, K]
    """

    reward: Tensor
    outputs: Tensor
    shares: Tensor


def shown(names: Sequence[str], most: int = 12) -> str:
    """Names of outputs, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def rule_of(section: Mapping[str, Any], where: str) -> HeadRule:
    """The rule that `section` holds, as `HeadRule.section` gives it. Raises ModelError where it is none."""
    try:
        names = tuple(section["outputs"])
        weights = tuple(map(float, section.get("weights", ())))
        scale = tuple((float(low), float(high)) for low, high in section.get("scale", ()))
        offset = tuple(map(float, section.get("offset", ())))
        ensemble, deviations = str(section.get("ensemble", "")), float(section.get("deviations", 1.0))
        distinct = len(set(names)) == len(names) and all(isinstance(name, str) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: what it says of its reward head cannot be read: {brief(error)}.") from error
    fits = all(len(part) in (0, len(names)) for part in (weights, scale, offset))
    if not (names and distinct and fits and all(map(math.isfinite, (*weights, *offset)))):
        raise ModelError(
            f"{where}: what it says of its reward head does not fit together: outputs {shown(names)}, weights "
            f"{list(weights)}, {len(scale)} scales, {len(offset)} offsets."
        )
    if ensemble not in ("", *ENSEMBLES) or not 0 <= deviations < math.inf:
        raise ModelError(
            f"{where}: its heads become one reward by {', '.join(ENSEMBLES)}, with deviations >= 0; got {ensemble!r}, "
            f"{deviations:g}."
        )
    return HeadRule(names, weights, scale, offset, ensemble, deviations)
