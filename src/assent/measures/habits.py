"""What annotators do as a rule: agree with the others or not, and go by side or length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from assent.measures.tastes import LEVEL, NOTHING, Comparisons, Taste, tastes
from assent.statistics import Interval, holm, proportion_interval

HARDLY = 0.6
"""Share of comparisons in agreement with the others below which labels are worth hardly more than a coin's."""


@dataclass(frozen=True, slots=True)
class Habits:
    """One annotator. `agreement`: how often, without ties, the side is taken that most others took, with Wilson's
    interval; `side`: taste for what is shown on the left; `length`: taste for the longer answer, for one standard
    deviation of log(words left / words right). `labels` are all, ties too."""

    labels: int
    ties: int
    agreement: Interval
    side: Taste = NOTHING
    length: Taste = NOTHING


def habits(choices: Comparisons, ties: np.ndarray, others: np.ndarray) -> list[Habits]:
    """The habits of each annotator: `choices` [n] are theirs without ties, `others` [n] how probable the left answer is
    the better one without this annotator's own label (NaN: nobody else looked), and `ties` [annotators] how many they
    gave."""
    judged = np.isfinite(others) & (others != 0.5)
    agreed = np.where(judged, choices.left == (others > 0.5), 0)
    counts, right, labels = (
        np.bincount(choices.annotator, weight, choices.annotators) for weight in (judged, agreed, None)
    )
    return [
        Habits(int(given + tied), int(tied), proportion_interval(int(same), int(of)), *own)
        for given, tied, same, of, own in zip(labels, ties, right, counts, tastes(choices), strict=True)
    ]


def careless(found: Mapping[str, Habits]) -> set[str]:
    """Who agrees with the others hardly more often than a coin: surely on less than `HARDLY` of all comparisons, or
    perhaps no more often than a coin, where the rest surely agree more often (binomial tests with Holm's correction).
    """
    known = {name: each.agreement for name, each in found.items() if each.agreement.n}
    total, right = sum(each.n for each in known.values()), sum(each.mean * each.n for each in known.values())
    chances = []
    for each in known.values():
        rest = (right - each.mean * each.n) / (total - each.n) if total > each.n else math.nan
        chances.append(float(stats.binom.cdf(round(each.mean * each.n), each.n, rest)))
    below = dict(zip(known, holm(chances), strict=True))
    return {name for name, each in known.items() if each.high < HARDLY or (each.low <= 0.5 and below[name] < LEVEL)}
