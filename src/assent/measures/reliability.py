"""How far annotators agree: Krippendorff's alpha, the kappas of Cohen and Fleiss, Gwet's AC1 and AC2, and Kendall's W.

Ratings are [I, A]: item, annotator; NaN where an annotator has not rated an item. Every coefficient is 1 where all
agree and about 0 where they agree as chance would. They differ in what chance is.

Each is given as a function of ratings, and (`..._of`) as a statistic of how often each item is drawn, of which a
bootstrap asks many times: what does not depend on the draw is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

Scale = Literal["nominal", "ordinal", "interval"]
Statistic = Callable[[np.ndarray], float]
"""Of weights [I], how often each item is drawn: a coefficient, NaN where it is not defined."""
SAME = 1e-12
"""Chance closer to certainty is one value alone."""
ENTRIES = 1_000_000
"""Of how many ratings by pairs of annotators kappas are computed at once."""


@dataclass(frozen=True, slots=True)
class Table:
    """Ratings as columns, one entry each: `item` [n], `annotator` [n] and `code` [n], the place in `values` [C] (all
    that could be given; those that were, where nothing else is said). `each` [I] counts the ratings of an item."""

    item: np.ndarray
    annotator: np.ndarray
    code: np.ndarray
    values: np.ndarray
    each: np.ndarray

    @classmethod
    def of(cls, ratings: np.ndarray, values: np.ndarray | None = None) -> Table:
        item, annotator = np.nonzero(~np.isnan(ratings))
        given = ratings[item, annotator]
        values = np.unique(given) if values is None else values
        each = np.bincount(item, minlength=len(ratings))
        return cls(item, annotator, np.searchsorted(values, given), values, each)

    @property
    def alike(self) -> np.ndarray:
        """[n]: how many ratings of its item are the same as this one, itself among them."""
        _, place, count = np.unique(
            self.item * max(1, len(self.values)) + self.code, return_inverse=True, return_counts=True
        )
        return np.asarray(count[place])

    def by_item(self, column: np.ndarray) -> np.ndarray:
        """[I]: a column's sum over the ratings of each item."""
        return np.bincount(self.item, column, len(self.each))

    def by_value(self, column: np.ndarray) -> np.ndarray:
        """[C]: a column's sum over the ratings of each value."""
        return np.bincount(self.code, column, len(self.values))

    def apart(self, place: np.ndarray) -> np.ndarray:
        """[I]: Σ (place_v - place_w)² over ordered pairs of an item's ratings; `place` [C] is where values stand."""
        at = place[self.code]
        found: np.ndarray = 2 * (self.each * self.by_item(at * at) - self.by_item(at) ** 2)
        return found


def agreement(ratings: np.ndarray) -> float:
    """Observed agreement p_o: over items with two ratings or more, the mean share of pairs of annotators that agree."""
    return agreement_of(Table.of(ratings))(np.ones(len(ratings)))


def agreement_of(table: Table, quadratic: bool = False) -> Statistic:
    """`agreement`; with `quadratic` weights the mean of 1 - (v - w)² / range²."""
    pairs = table.each * (table.each - 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if quadratic:
            spread = float(np.ptp(table.values)) if len(table.values) > 1 else 1.0
            agreed = 1 - table.apart(table.values / spread) / pairs
        else:
            agreed = table.by_item(table.alike - 1.0) / pairs
    there = pairs > 0
    agreed = np.where(there, agreed, 0.0)

    def statistic(drawn: np.ndarray) -> float:
        count = float(drawn @ there)
        return float(drawn @ agreed) / count if count else math.nan

    return statistic


def krippendorff(ratings: np.ndarray, scale: Scale = "nominal") -> float:
    """Krippendorff's alpha = 1 - D_o / D_e (Krippendorff 2011): observed disagreement over that of the same values
    dealt out at random, with δ² = 1[v ≠ w] (nominal), (v - w)² (interval), or the squared number of values between two
    ranks, their own counting half (ordinal). Chance: all annotators draw from one pool of values, without replacement.
    NaN where there is only one value."""
    return krippendorff_of(Table.of(ratings), scale)(np.ones(len(ratings)))


def krippendorff_of(table: Table, scale: Scale = "nominal") -> Statistic:
    """`krippendorff`."""
    several = table.each >= 2
    others = np.where(several, table.each - 1.0, np.inf)
    there = several[table.item]
    differ = table.by_item(table.each[table.item] - table.alike.astype(np.float64)) / others
    fixed = table.values - table.values.mean() if scale == "interval" and len(table.values) else None
    far = None if fixed is None else table.apart(fixed) / others

    def statistic(drawn: np.ndarray) -> float:
        total = table.by_value(np.where(there, drawn[table.item], 0.0))
        n = total.sum()
        if n < 2:
            return math.nan
        if scale == "nominal":
            observed, expected = float(drawn @ differ), float(n * n - total @ total) / (n - 1)
        else:
            place = (np.cumsum(total) - total / 2) / n if fixed is None else fixed
            observed = float(drawn @ (table.apart(place) / others if far is None else far))
            expected = float(2 * (n * (total @ place**2) - (total @ place) ** 2)) / (n - 1)
        return 1 - observed / expected if (total > 0).sum() > 1 else math.nan

    return statistic


def cohen(ratings: np.ndarray, quadratic: bool = False) -> float:
    """Cohen's kappa of two annotators, κ = (p_o - p_e) / (1 - p_e), over the items that both rated; `quadratic` weighs
    with 1 - (v - w)² / range² (Cohen 1968). Chance: each annotator draws from their own values. For more than two
    annotators, the mean over all pairs (Light's kappa). NaN where both use one value only."""
    pairs = np.array(list(combinations(range(ratings.shape[1]), 2)), int).reshape(-1, 2)
    drawn = np.ones(len(ratings))
    parts = np.array_split(pairs, max(1, len(pairs) * len(ratings) // ENTRIES))
    return _mean(np.concatenate([_cohens(ratings, part, quadratic)(drawn) for part in parts]))


def pairs_sharing(ratings: np.ndarray, least: int) -> tuple[np.ndarray, int]:
    """([P, 2] pairs of annotators that have rated `least` items both, how many ratings they share in all)."""
    rated = csr_array(~np.isnan(ratings), dtype=np.int64)
    shared = np.triu((rated.T @ rated).toarray(), 1)
    found = np.argwhere(shared >= max(1, least))
    return found, int(shared[found[:, 0], found[:, 1]].sum())


def cohen_of(ratings: np.ndarray, pairs: np.ndarray, quadratic: bool = False) -> Statistic:
    """`cohen` as the mean over `pairs` [P, 2] of annotators."""
    kappas = _cohens(ratings, pairs, quadratic)
    return lambda drawn: _mean(kappas(drawn))


def _mean(kappas: np.ndarray) -> float:
    defined = kappas[~np.isnan(kappas)]
    return float(defined.mean()) if len(defined) else math.nan


def _cohens(ratings: np.ndarray, pairs: np.ndarray, quadratic: bool) -> Callable[[np.ndarray], np.ndarray]:
    """[P]: kappa of each pair, NaN where it is not defined."""
    values = _values(ratings)
    shared = [np.nonzero(~np.isnan(ratings[:, two]).any(axis=1))[0] for two in pairs]
    item = np.concatenate([np.zeros(0, int), *shared])
    pair = np.repeat(np.arange(len(pairs)), [len(items) for items in shared])
    one, other = (
        np.searchsorted(values, ratings[item, pairs[pair, side]]) if len(pairs) else np.zeros(0, int) for side in (0, 1)
    )
    chances = (_chance_quadratic if quadratic else _chance)(pair, one, other, len(pairs), values)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        weight = drawn[item]
        count = np.bincount(pair, weight, len(pairs))
        with np.errstate(invalid="ignore", divide="ignore"):
            observed, expected = chances(weight, count)
            return np.where(expected > SAME, 1 - observed / expected, np.nan)

    return statistic


_Chances = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of the weight of each entry and their sum by pair: ([P] observed disagreement, [P] that of chance)."""


def _chance(pair: np.ndarray, one: np.ndarray, other: np.ndarray, pairs: int, values: np.ndarray) -> _Chances:
    codes, differ = len(values), (one != other).astype(np.float64)

    def chances(weight: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (
            np.bincount(pair * codes + code, weight, pairs * codes).reshape(pairs, codes) for code in (one, other)
        )
        return np.bincount(pair, weight * differ, pairs) / count, 1 - (first * second).sum(1) / count**2

    return chances


def _chance_quadratic(pair: np.ndarray, one: np.ndarray, other: np.ndarray, pairs: int, values: np.ndarray) -> _Chances:
    spread = float(np.ptp(values)) if len(values) > 1 else 1.0
    place = (values - values.mean()) / spread if len(values) else values
    a, b = place[one], place[other]

    def chances(weight: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def mean(column: np.ndarray) -> np.ndarray:
            found: np.ndarray = np.bincount(pair, weight * column, pairs) / count
            return found

        return mean((a - b) ** 2), mean(a * a) + mean(b * b) - 2 * mean(a) * mean(b)

    return chances


def fleiss(ratings: np.ndarray) -> float:
    """Fleiss' kappa (1971), κ = (p_o - p_e) / (1 - p_e), p_e = Σ_c π_c², π_c the mean over items of the share that says
    c. Chance: all annotators draw from one pool. Where items have different numbers of ratings, as Gwet (2014)
    generalises it: items with one rating count in π."""
    return fleiss_of(Table.of(ratings))(np.ones(len(ratings)))


def fleiss_of(table: Table) -> Statistic:
    """`fleiss`."""
    observed, shares = agreement_of(table), _shares(table)

    def statistic(drawn: np.ndarray) -> float:
        share = shares(drawn)
        chance = float(share @ share)
        return (observed(drawn) - chance) / (1 - chance) if chance < 1 - SAME else math.nan

    return statistic


def _shares(table: Table) -> Callable[[np.ndarray], np.ndarray]:
    """π [C]: the mean over items of the share of its ratings that have each value."""
    part = 1 / table.each[table.item]

    def shares(drawn: np.ndarray) -> np.ndarray:
        found = table.by_value(part * drawn[table.item])
        total = found.sum()
        return found / total if total else found

    return shares


def gwet(ratings: np.ndarray, quadratic: bool = False, values: np.ndarray | None = None) -> float:
    """Gwet's AC1 (2008), with `quadratic` weights AC2 (2014): AC = (p_o - p_e) / (1 - p_e) with

        p_e = Σ_vw weight[v, w] / (C (C - 1)) · Σ_c π_c (1 - π_c),  π_c the mean over items of the share that says c

    Chance: only doubtful items are guessed, so that one frequent value does not make agreement look like chance. With
    one value only p_e is 0 and AC is 1. `values` [C] are all that could be given; default: those that were."""
    return gwet_of(Table.of(ratings, values), quadratic)(np.ones(len(ratings)))


def gwet_of(table: Table, quadratic: bool = False) -> Statistic:
    """`gwet`."""
    observed, shares, values = agreement_of(table, quadratic), _shares(table), table.values
    if quadratic and len(values) > 1:  # Σ_vw (v - w)² by sums, of values that may be many
        at = (values - values.mean()) / float(np.ptp(values))
        total = len(values) ** 2 - 2 * len(values) * float(at @ at)
    else:
        total = float(len(values))

    def statistic(drawn: np.ndarray) -> float:
        agreed = observed(drawn)
        if len(values) < 2:
            return agreed
        share = shares(drawn)
        chance = total / (len(values) * (len(values) - 1)) * float(share @ (1 - share))
        return (agreed - chance) / (1 - chance)

    return statistic


def with_others(table: Table, annotators: int) -> Callable[[np.ndarray], np.ndarray]:
    """[A]: of weights [I], the mean agreement of each annotator with each other on the items that both have rated."""
    same, others = table.alike - 1.0, table.each[table.item] - 1.0

    def statistic(drawn: np.ndarray) -> np.ndarray:
        weight = drawn[table.item]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = np.bincount(table.annotator, weight * same, annotators) / np.bincount(
                table.annotator, weight * others, annotators
            )
        return found

    return statistic


def kendall_w(ratings: np.ndarray) -> float:
    """Kendall's coefficient of concordance, corrected for ties, of m annotators that rated (or ranked) the same n
    items:

        W = (12 Σ_i R_i² - 3 m² n (n + 1)²) / (m² n (n² - 1) - m Σ_a T_a),  T_a = Σ over a's ties of t of (t³ - t)

    with R_i the sum of item i's ranks. Items that not all have rated are left out. NaN where nothing is ranked."""
    whole = ratings[~np.isnan(ratings).any(axis=1)]
    n, m = whole.shape
    if n < 2 or m < 2:
        return math.nan
    ranks = np.column_stack([rankdata(column) for column in whole.T])
    sizes = np.concatenate([np.unique(column, return_counts=True)[1] for column in whole.T]).astype(np.float64)
    ties = float((sizes**3 - sizes).sum())
    below = m**2 * n * (n**2 - 1) - m * ties
    sums = ranks.sum(1)
    return float((12 * (sums @ sums) - 3 * m**2 * n * (n + 1) ** 2) / below) if below > 0 else math.nan


def most_frequent(ratings: np.ndarray) -> tuple[float, float]:
    """(The share of the most frequent value among the ratings of items that have two or more, how far annotators agree
    on the others: of two ratings of an item, one of which is another value, how probably both are the same.)"""
    table = Table.of(ratings[(~np.isnan(ratings)).sum(axis=1) >= 2])
    total = table.by_value(np.ones(len(table.item)))
    if not len(total):
        return math.nan, math.nan
    agreed = table.by_value((table.alike - 1) / (table.each[table.item] - 1))
    most = int(total.argmax())
    rest = total.sum() - total[most]
    return float(total[most] / total.sum()), float((agreed.sum() - agreed[most]) / rest) if rest else math.nan


def _values(ratings: np.ndarray) -> np.ndarray:
    return np.unique(ratings[~np.isnan(ratings)])
