"""Which prompts are drawn: uniformly over topics, the most complex more often, with a share of several turns.

A prompt's chance is decided first, exactly; then systematic sampling (Madow 1949) draws as many as are wanted with
just these chances. So the numbers of each topic, and of the most complex in it, are off by less than one or two from
what they are on average."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assent.errors import DataError

log = logging.getLogger(__name__)

UNIT = 1 << 40
"""Chances are whole numbers of this part of one, so that their sum is exact."""


@dataclass(frozen=True)
class Drawn:
    """`places` in their order; `chances` [N] with which each row was drawn."""

    places: list[int]
    chances: np.ndarray


def draw(
    topics: np.ndarray, weights: np.ndarray, several: np.ndarray, take: int | None, share: float | None, seed: int
) -> Drawn:
    """Draws of N rows with `topics` and `weights` [N]; of those drawn a `share` is of `several` turns [N]. Without
    `take` as many as can be. Says where there are fewer than that; raises DataError where there are none."""
    rng = np.random.default_rng(seed)
    if share is None:
        pools = [(np.arange(len(topics)), min(take or len(topics), len(topics)))]
    else:
        many, one = np.flatnonzero(several), np.flatnonzero(~several)
        total = largest(len(many), len(one), share, take or len(topics))
        if total == 0:
            raise DataError(
                f"--multi_turn {share:g}: {len(many)} prompts with several turns and {len(one)} with one are left, of "
                "which no prompts have this share."
            )
        pools = [(many, round(share * total)), (one, total - round(share * total))]
    chances = np.zeros(len(topics))
    places: list[int] = []
    for pool, count in pools:
        chances[pool] = inclusion(topics[pool], weights[pool], count)
        places += pool[systematic(chances[pool], topics[pool], weights[pool], count, rng)].tolist()
    if take is not None and len(places) < take:
        left = f"{len(topics)} are left"
        if share is not None:
            left = f"{int(several.sum())} with several turns and {int((~several).sum())} with one are left, "
            left += f"which allow {len(places)} with --multi_turn {share:g}"
        log.warning(f"--take {take}: fewer are taken, {len(places)}: {left}")
    return Drawn(sorted(places), chances)


def largest(many: int, one: int, share: float, most: int) -> int:
    """The largest total, at most `most`, of which round(share * total) are among `many` and the others among `one`."""
    if (share > 0 and many == 0) or (share < 1 and one == 0):
        return 0
    total = min(most, many + one)
    if share > 0:
        total = min(total, int((many + 0.5) / share) + 1)
    if share < 1:
        total = min(total, int((one + 0.5) / (1 - share)) + 1)
    while total > 0 and (round(share * total) > many or total - round(share * total) > one):
        total -= 1
    return total


def inclusion(topics: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """The chance of each of N rows to be among `count` that are drawn: the same sum in each topic, as far as it has as
    many rows; within a topic in proportion to `weights`, as far as no chance is above 1."""
    chances = np.zeros(len(topics))
    if not len(topics):
        return chances
    _, sizes = np.unique(topics, return_counts=True)
    budgets = filled(sizes.astype(float), np.ones(len(sizes)), float(count))
    for rows, budget in zip(np.split(np.argsort(topics, kind="stable"), np.cumsum(sizes)[:-1]), budgets, strict=True):
        chances[rows] = filled(np.ones(len(rows)), weights[rows], budget)
    return chances


def filled(most: np.ndarray, weights: np.ndarray, total: float) -> np.ndarray:
    """`total` in parts in proportion to `weights`, none of them above `most`: min(most, level * weights)."""
    parts, free = np.minimum(most, 0.0), np.ones(len(most), bool)
    if total >= most.sum():
        return most.copy()
    while True:
        level = (total - most[~free].sum()) / weights[free].sum()
        over = free & (level * weights >= most)
        if not over.any():
            parts[~free] = most[~free]
            parts[free] = level * weights[free]
            return parts
        free &= ~over


def systematic(
    chances: np.ndarray, topics: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Places of `count` rows, each drawn with its chance. Topics come in an order by chance, in each the heavier rows
    first, and equal ones in an order by chance; one random start decides all."""
    found, inverse = np.unique(topics, return_inverse=True)
    order = np.lexsort((rng.permutation(len(topics)), -weights, rng.permutation(len(found))[inverse]))
    units = np.round(chances[order] * UNIT).astype(np.int64)
    loose = np.flatnonzero((units > 0) & (units < UNIT))
    off = count * UNIT - int(units.sum())
    if len(loose):
        each, rest = divmod(off, len(loose))
        units[loose] += each
        units[loose[:rest]] += 1
    ends = np.cumsum(units) + int(rng.integers(UNIT))
    before = np.concatenate([[ends[0] - units[0]], ends[:-1]]) if len(ends) else ends
    return order[ends // UNIT > before // UNIT]


def most_complex(values: Sequence[float | None], top: float) -> tuple[np.ndarray, float | None]:
    """Which rows are the most complex, and from which value on: whole levels from the highest down while they are not
    more than `top` of those that have a value; the highest at least, unless all are alike."""
    numbers = np.array([np.nan if value is None else value for value in values], float)
    known = np.sort(numbers[~np.isnan(numbers)])[::-1]
    levels, counts = np.unique(known, return_counts=True)
    if len(levels) < 2:
        return np.zeros(len(numbers), bool), None
    shares = np.cumsum(counts[::-1]) / len(known)
    within = max(int((shares <= top + 1e-12).sum()), 1)
    start = float(levels[::-1][min(within, len(levels) - 1) - 1])
    return numbers >= start, start
