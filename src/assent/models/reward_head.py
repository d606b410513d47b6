"""What the K outputs of a reward head are, and how they become one reward."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """

    names: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)
    scale: tuple[tuple[float, float], ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(part) in (0, len(self.names)) for part in (self.weights, self.scale, self.offset))

    def __len__(self) -> int:
        return len(self.names)

    def shares(self, outputs: Tensor) -> Tensor:
        """What each output adds to the reward: [..., K] of the same. Raises ModelError where there are no weights."""
        self.require_weights("This reward model")
        return outputs * outputs.new_tensor(self.weights)

    def reward(self, outputs: Tensor) -> Tensor:
        """[..., K] to [...]."""
        return self.shares(outputs).sum(-1)

    def require_weights(self, who: str) -> None:
        """Raises ModelError where nobody has said how the outputs become a reward."""
        if not self.weights:
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
        return replace(self, weights=tuple(float(weights.get(name, 0.0)) for name in self.names))

    def section(self) -> dict[str, Any]:
        """The rule as JSON, without what is empty."""
        values = {"outputs": self.names, "weights": self.weights, "scale": self.scale, "offset": self.offset}
        return {name: json.loads(json.dumps(value)) for name, value in values.items() if value}


SCALAR = HeadRule()


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
        distinct = len(set(names)) == len(names) and all(isinstance(name, str) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: what it says of its reward head cannot be read: {brief(error)}.") from error
    fits = all(len(part) in (0, len(names)) for part in (weights, scale, offset))
    if not (names and distinct and fits and all(map(math.isfinite, (*weights, *offset)))):
        raise ModelError(
            f"{where}: what it says of its reward head does not fit together: outputs {shown(names)}, weights "
            f"{list(weights)}, {len(scale)} scales, {len(offset)} offsets."
        )
    return HeadRule(names, weights, scale, offset)
