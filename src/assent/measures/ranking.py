"""A ranking of many policies from comparisons of two: Bradley–Terry strengths, Elo, and where none can be said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assent.measures import logistic
from assent.measures.estimates import RESAMPLES, Estimate, undefined
from assent.measures.shapes import Among, Duels, Measure

POINTS = 400 / math.log(10)
"""Elo points of one nat: 400 more points are ten wins for one loss."""
ELO = 1000.0
"""Elo of a policy of average strength."""
PIN = 1e-9
"""Ridge that holds the one direction that comparisons leave free: adding the same to all strengths."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """M comparisons of K policies. Example: policy 0 beats policy 2 in answering prompt 7: first [0], second [2],
    outcome [1.0], prompt [7]."""

    first: np.ndarray
    """[M] int: a policy."""
    second: np.ndarray
    """[M] int: another."""
    outcome: np.ndarray
    """[M] float64: 1 where the first wins, 0.5 a tie, 0 where the second wins; no NaN: failures are counted before."""
    prompt: np.ndarray
    """[M] int: the prompt, for the intervals."""
    weight: np.ndarray | None = None
    """[M] float64: how much a comparison counts, 1 by itself."""

    def __post_init__(self) -> None:
        size = len(self.outcome)
        assert all(len(column) == size for column in (self.first, self.second, self.prompt)), "one entry each"
        assert np.all((0 <= self.outcome) & (self.outcome <= 1)), "0 to 1; failures are left out before"
        assert np.all(self.first != self.second), "no policy is compared with itself"


def wins_by_prompt(found: Comparisons, policies: int) -> np.ndarray:
    """[P, K, K]: how often, by weight, i has won against j on each prompt; a tie is half a win of both."""
    weight = np.ones(len(found.outcome)) if found.weight is None else found.weight
    codes = np.unique(found.prompt, return_inverse=True)[1]
    wins = np.zeros((int(codes.max(initial=-1)) + 1, policies, policies))
    np.add.at(wins, (codes, found.first, found.second), weight * found.outcome)
    np.add.at(wins, (codes, found.second, found.first), weight * (1 - found.outcome))
    return wins


def strengths(wins: np.ndarray, anchor: int | None = None, start: np.ndarray | None = None) -> np.ndarray:
    """Bradley–Terry strengths θ [K] of wins [K, K], nats: P(i beats j) = σ(θ_i - θ_j), by maximum likelihood
    (Bradley & Terry 1952), their mean, or the anchor's, at 0.

    There is a finite maximum only among policies each of which has won, over some chain of comparisons, against each
    other one (Ford 1957). Of those in the anchor's group (without an anchor the largest) the strengths are finite; one
    that only won against the group has +inf, one that only lost -inf, one that no chain joins to it NaN. `start` [K]:
    the strengths of like wins, to begin at."""
    size = len(wins)
    reach = (wins > 0) | np.eye(size, dtype=bool)
    for _ in range(0 if reach.all() else math.ceil(math.log2(size))):
        reach = reach @ reach
    same = reach & reach.T
    group = same[int(np.argmax(same.sum(1))) if anchor is None else anchor]
    members = np.flatnonzero(group)
    above, below = reach[:, members[0]], reach[members[0]]
    theta = np.select([group, above & below, above, below], [0.0, math.nan, math.inf, -math.inf], default=math.nan)
    i, j = (members[index] for index in np.triu_indices(len(members), 1))
    total = wins[i, j] + wins[j, i]
    met = total > 0
    if met.any():
        i, j, total = i[met], j[met], total[met]
        design = np.zeros((len(i), size))
        design[np.arange(len(i)), i], design[np.arange(len(i)), j] = 1.0, -1.0
        begin = None if start is None else np.where(np.isfinite(start[members]), start[members], 0.0)
        found = logistic.fit(design[:, members], wins[i, j] / total, total, l2=PIN, start=begin)
        theta[members] = found - (found.mean() if anchor is None else found[int(np.flatnonzero(members == anchor)[0])])
    return theta


def bradley_terry(
    names: Sequence[str],
    found: Comparisons,
    *,
    anchor: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Estimate, ...]:
    """The strengths of K policies with percentile intervals from drawing prompts anew; see `strengths`. A policy whose
    strength is not finite has none, and the problem says why. A bound is None where more draws than it leaves out have
    none: a policy that lost once may win all in many of them."""
    wins = wins_by_prompt(found, len(names))
    theta = strengths(wins.sum(0), anchor)
    times = np.bincount(np.concatenate([found.first, found.second]), minlength=len(names))
    rng = np.random.default_rng(seed)
    draws = np.full((resamples if len(wins) > 1 else 0, len(names)), math.nan)
    for draw in draws:
        counts = np.bincount(rng.integers(0, len(wins), len(wins)), minlength=len(wins))
        draw[:] = strengths(np.tensordot(counts, wins, 1), anchor, theta)
    return tuple(
        _bounded(theta[k], draws[:, k], int(times[k]), resamples)
        if math.isfinite(theta[k])
        else undefined(_why(names, theta, k), int(times[k]))
        for k in range(len(names))
    )


def _bounded(value: float, draws: np.ndarray, n: int, resamples: int, confidence: float = 0.95) -> Estimate:
    known = draws[~np.isnan(draws)]
    if len(known) < max(1, resamples / 2):
        return Estimate(float(value), n=n)
    # Without interpolation, which has no meaning next to an infinite value.
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    bounds = [float(bound) if math.isfinite(bound) else None for bound in (low, high)]
    return Estimate(float(value), bounds[0], bounds[1], n)


def _why(names: Sequence[str], theta: np.ndarray, k: int) -> str:
    group = [name for name, value in zip(names, theta, strict=True) if math.isfinite(value)]
    others = ", ".join(group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
    if theta[k] == math.inf:
        return f"it has never lost, on any chain of comparisons that joins it to {others}: no strength is too high"
    if theta[k] == -math.inf:
        return f"it has never won, on any chain of comparisons that joins it to {others}: no strength is too low"
    return f"no chain of comparisons joins it to {others}"


def elo(strength: Estimate, base: float = ELO) -> Estimate:
    """The same in Elo points: base + 400 / log(10) θ."""
    low, value, high = (
        None if bound is None else base + POINTS * bound for bound in (strength.low, strength.value, strength.high)
    )
    return Estimate(value, low, high, strength.n, strength.problem)


def comparisons(duels: Mapping[tuple[int, int], Duels]) -> Comparisons:
    """All comparisons that have an outcome."""
    rows = [(i, j, duel, ~np.isnan(duel.outcome)) for (i, j), duel in duels.items()]
    if not rows:
        nothing = np.zeros(0, np.int64)
        return Comparisons(nothing, nothing, np.zeros(0), nothing)
    return Comparisons(
        np.concatenate([np.full(there.sum(), i) for i, _, _, there in rows]),
        np.concatenate([np.full(there.sum(), j) for _, j, _, there in rows]),
        np.concatenate([duel.outcome[there] for _, _, duel, there in rows]),
        np.concatenate([duel.prompt[there] for _, _, duel, there in rows]),
    )


def _elo(names: tuple[str, ...], duels: Mapping[tuple[int, int], Duels]) -> tuple[Estimate, ...]:
    return tuple(elo(strength) for strength in bradley_terry(names, comparisons(duels)))


ROWS: tuple[Measure, ...] = (
    Among(
        name="elo",
        about="Bradley–Terry strength by maximum likelihood: 400 points more are ten wins for one loss, the mean 1000",
        unit="points",
        better="higher",
        of=_elo,
    ),
)
