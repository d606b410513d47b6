"""What an evaluation records of over-optimisation: where each policy stands between KL and score, and the laws of gain
by distance that its points follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assent.measures.estimates import Estimate
from assent.measures.overoptimisation import Fit, Law


@dataclass(frozen=True)
class FrontierPoint:
    """A policy between KL from the reference, nats per answer, and score.

    run       what it is a state of: the run's name; its own where it is none
    step      the step of the run; None where it is no state of one, or nobody knows
    scores    mean score by source; the win rate against the baseline by those that only compare
    on_front  whether no other policy has as much by the source that decides for as little KL, and more of one of them
    """

    name: str
    run: str
    step: int | None
    kl: Estimate
    scores: Mapping[str, Estimate]
    on_front: bool


@dataclass(frozen=True)
class LawPoint:
    """One point of a law. `gain` is the score above the start's on the same prompts; `kl` has no bounds, and is itself
    an upper bound, for best-of-n."""

    name: str
    kl: Estimate
    score: Estimate
    gain: Estimate

    @property
    def distance(self) -> float:
        """sqrt(KL); NaN where the estimate of KL is not above 0."""
        return math.sqrt(self.kl.value) if self.kl.value is not None and self.kl.value > 0 else math.nan


@dataclass(frozen=True)
class LawFit:
    """Gain by distance along one run ("rl"), or along n of the best of n answers of one policy ("best-of-n").

    name    the run or the policy
    source  whose score has gained
    proxy   best-of-n: by whose score the answer is chosen; "" for rl
    start   what gain is measured from, in words; "" where that is not there
    points  in the order of training, or of n; the start is none of them
    fit     its coefficients are None, with the reason, where no law could be fitted
    prompts that have all points; `left_out` more have not
    """

    method: Law
    name: str
    source: str
    proxy: str
    start: str
    points: tuple[LawPoint, ...]
    fit: Fit
    prompts: int = 0
    left_out: int = 0


def load_point(raw: Mapping[str, Any]) -> FrontierPoint:
    """What JSON has of it."""
    scores = {name: Estimate(**score) for name, score in raw["scores"].items()}
    return FrontierPoint(**{**raw, "kl": Estimate(**raw["kl"]), "scores": scores})


def load_law(raw: Mapping[str, Any]) -> LawFit:
    """What JSON has of it."""
    points = tuple(
        LawPoint(point["name"], *(Estimate(**point[key]) for key in ("kl", "score", "gain"))) for point in raw["points"]
    )
    found = {key: Estimate(**raw["fit"][key]) for key in ("alpha", "beta", "peak", "best")}
    spread = raw["fit"]["spread"]
    fit = Fit(
        raw["fit"]["law"], **found, spread=math.nan if spread is None else spread, furthest=raw["fit"]["furthest"]
    )
    return LawFit(**{**raw, "points": points, "fit": fit})
