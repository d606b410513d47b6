"""Several sources of the same reward as one: less is trusted where they disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from assent.data.records import Example
from assent.errors import ConfigError
from assent.rewards.group import Group, GroupReward, Scores, check_names, combined, from_sources


def mean(scores: np.ndarray) -> np.ndarray:
    """`mean(scores)` over the K members: [K, S] to [S]."""
    return scores.mean(axis=0)


def lowest(scores: np.ndarray) -> np.ndarray:
    """`min(scores)` over the K members, worst-case optimisation (arXiv 2310.02743): [K, S] to [S]."""
    return scores.min(axis=0)


def lower_bound(scores: np.ndarray, *, k: float) -> np.ndarray:
    """Lower confidence bound `mean(scores) - k * std(scores)` over the K members: [K, S] to [S], with
    `std^2 = mean((scores - mean)^2)`.

    Uncertainty-weighted optimisation (arXiv 2310.02743) with the standard deviation, which has the rewards' unit."""
    return scores.mean(axis=0) - k * scores.std(axis=0)


COMBINE: dict[str, Callable[..., np.ndarray]] = {"mean": mean, "min": lowest, "lcb": lower_bound}
"""How the members' rewards become one."""


def _lower_bound_slopes(scores: np.ndarray, *, k: float) -> np.ndarray:
    away, std = scores - scores.mean(axis=0), scores.std(axis=0)
    return (1 - k * np.divide(away, std, out=np.zeros_like(away), where=std > 0)) / len(scores)


SLOPES: dict[str, Callable[..., np.ndarray]] = {
    "mean": lambda scores: np.full_like(scores, 1 / len(scores)),
    "min": lambda scores: (np.arange(len(scores))[:, None] == scores.argmin(axis=0)).astype(scores.dtype),
    "lcb": _lower_bound_slopes,
}
"""What the one reward gains for what each member's does, d COMBINE / d scores: [K, S] to [K, S]."""
STD = "std"
"""How much the members disagree on an answer, among what is written down about it."""


class Ensemble:
    """Members that are asked for the same thing. An answer that one of them left unscored is unscored: a minimum over
    fewer members would favour it. The members' rewards are logged under their names, and their standard deviation
    beside each answer."""

    def __init__(self, name: str, members: Sequence[GroupReward], combine: str = "mean", *, k: float = 1.0) -> None:
        """`k` is how many standard deviations "lcb" lies below the mean. Raises ConfigError for fewer than two
        members, two of the same name, an unknown `combine`, or a `k` that is negative or not finite."""
        check_names(name, members)
        if len(members) < 2:
            raise ConfigError(f"{name}: an ensemble needs at least two members; got {members[0].name} alone.")
        if combine not in COMBINE:
            raise ConfigError(f"{name}: expected one of {', '.join(COMBINE)}; got '{combine}'.")
        if not 0 <= k < math.inf:
            raise ConfigError(f"{name}: expected k >= 0; got {k}.")
        self.name = name
        self.members = tuple(members)
        self._combine, self._slopes = COMBINE[combine], SLOPES[combine]
        self._options = {"k": k} if combine == "lcb" else {}

    def check(self, examples: Sequence[Example]) -> None:
        for member in self.members:
            member.check(examples)

    def combine(self, scores: np.ndarray) -> np.ndarray:
        """The members' rewards as one: [K, S] to [S]."""
        return self._combine(scores, **self._options)

    def slopes(self, scores: np.ndarray) -> np.ndarray:
        """Its derivative by each of them, [K, S]."""
        return self._slopes(scores, **self._options)

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises NonFiniteReward where what becomes of the members' rewards is not a float32 number."""
        scores = [member.score(groups) for member in self.members]
        own = np.stack([score.values for score in scores])
        with np.errstate(over="ignore", invalid="ignore"):  # `combined` finds what is not finite
            values = self.combine(own)
        found = from_sources(self.members, scores, combined(self.name, groups, values, ~np.isnan(own).any(axis=0)))
        return with_spread(found, own)


def with_spread(scores: Scores, members: np.ndarray) -> Scores:
    """The scores with the standard deviation of the `members`' [K, S] beside each answer, and its mean for logs."""
    with np.errstate(over="ignore", invalid="ignore"):
        spread = members.std(axis=0)
    known = spread[np.isfinite(spread)].tolist()
    column = [number if np.isfinite(number) else None for number in spread.tolist()]
    metrics = {**scores.metrics, STD: known} if known else scores.metrics
    return replace(scores, columns={**scores.columns, STD: column}, metrics=metrics)
