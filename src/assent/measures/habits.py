"""What annotators do as a rule: agree with the others or not, and go by side or length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from assent.measures.tastes import LEVEL, NOTHING, Comparisons, Taste, tastes
from assent.statistics import Interval, holm, proportion_interval

HARDLY = 0.6
"""Agreement with the others below which labels are worth hardly more than a coin's."""
CLEAR = 2 / 3
"""Agreement with the others from which annotators are not taken for coins."""


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


def careless(agreements: Mapping[str, Interval]) -> set[str]:
    """Whose agreement with the others is hardly better than a coin's: surely below `HARDLY`, or perhaps no more than
    half, and lower than that of the median annotator (or than `CLEAR`, where even that one hardly agrees), tested with
    Holm's correction. Of few labels nothing is said: a coin's and anybody's are then the same."""
    known = {name: each for name, each in agreements.items() if each.n > 0}
    usual = max(CLEAR, float(np.median([each.mean for each in known.values()]))) if known else CLEAR
    chances = [float(stats.binom.cdf(round(each.mean * each.n), each.n, usual)) for each in known.values()]
    adjusted = zip(known.items(), holm(chances), strict=True)
    return {name for (name, each), p in adjusted if each.high < HARDLY or (p < LEVEL and each.low <= 0.5)}
