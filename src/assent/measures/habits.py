"""What annotators go by beside the answers' worth: the side an answer is shown on, its length, or nothing at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from assent.measures import logistic
from assent.statistics import Interval, holm, proportion_interval

RIDGE = 0.1
"""Holds the coefficients of an annotator with few labels."""
CLEAR = 2 / 3
"""Agreement with the others from which annotators are not taken for coins."""
LEVEL = 0.01
"""Chance that anybody is said to have a taste where all annotators are alike."""
LEAST = 0.25
"""Tastes below it, in logits, differ too little from the others' to act on: 0.25 turns 50 % into 56 %."""


@dataclass(frozen=True, slots=True)
class Taste:
    """A coefficient of the logit with which an annotator takes the left answer, and its standard error."""

    value: float
    error: float


NOTHING = Taste(math.nan, math.nan)


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


def habits(
    annotator: np.ndarray,
    took_left: np.ndarray,
    others: np.ndarray,
    log_lengths: np.ndarray,
    annotators: int,
    *,
    sides_known: bool = True,
) -> list[Habits]:
    """The habits of each annotator from n comparisons: `annotator` [n]; `took_left` [n] 1, 0, or 0.5 for a tie;
    `others` [n] how probable the left answer is the better one without this annotator's own label (NaN: nobody else
    looked); `log_lengths` [n] log(words left / words right).

    The tastes are coefficients of a logistic regression of an annotator's choices without ties on 1 (the side), the
    others' logit (the worth) and the standardised length, with a small ridge; `sides_known` False leaves the side out.
    """
    scale = float(np.std(log_lengths)) or 1.0
    worth = logit(np.clip(np.nan_to_num(others, nan=0.5), 0.02, 0.98))
    made = []
    for each in range(annotators):
        mine = annotator == each
        decided = mine & (took_left != 0.5)
        judged = decided & np.isfinite(others) & (others != 0.5)
        agreed = (took_left[judged] == 1) == (others[judged] > 0.5)
        columns = [np.ones(len(worth))] * sides_known + [log_lengths / scale, worth]
        tastes = _tastes(np.column_stack(columns)[decided], took_left[decided])
        made.append(
            Habits(
                int(mine.sum()),
                int((mine & ~decided).sum()),
                proportion_interval(int(agreed.sum()), len(agreed)),
                tastes[0] if sides_known else NOTHING,
                tastes[int(sides_known)],
            )
        )
    return made


def careless(agreements: Mapping[str, Interval]) -> set[str]:
    """Whose agreement with the others is no better than a coin's: its 95 % interval reaches down to half, and it is
    lower than that of the median annotator (or than `CLEAR`, where even that one hardly agrees), tested with Holm's
    correction. Of few labels nothing is said: a coin's and anybody's are then the same."""
    known = {name: each for name, each in agreements.items() if each.n > 0}
    usual = max(CLEAR, float(np.median([each.mean for each in known.values()]))) if known else CLEAR
    chances = [float(stats.binom.cdf(round(each.mean * each.n), each.n, usual)) for each in known.values()]
    adjusted = zip(known.items(), holm(chances), strict=True)
    return {name for (name, each), p in adjusted if p < LEVEL and each.low <= 0.5}


def stand_out(tastes: Mapping[str, Taste]) -> dict[str, Taste]:
    """The annotators whose taste sets them apart from the others, with how far it lies beyond the median of all, tested
    with Holm's correction. The others' votes are what is taken for worth, so one annotator's taste shows in all others'
    as its opposite: counted is what lies on the same side of the median as of 0."""
    beyond = {name: replace(taste, value=_beyond(taste, tastes)) for name, taste in tastes.items()}
    chances = [2 * float(stats.norm.sf(abs(t.value) / t.error)) if t.error > 0 else math.nan for t in beyond.values()]
    adjusted = zip(beyond.items(), holm(chances), strict=True)
    return {name: taste for (name, taste), p in adjusted if p < LEVEL and abs(taste.value) >= LEAST}


def _beyond(taste: Taste, tastes: Mapping[str, Taste]) -> float:
    known = [each.value for each in tastes.values() if each.error > 0]
    away = taste.value - (float(np.median(known)) if len(known) > 2 else 0.0)
    return min(taste.value, away, key=abs) if taste.value * away > 0 else 0.0


def _tastes(x: np.ndarray, y: np.ndarray) -> list[Taste]:
    """The coefficients of a ridge logistic regression, with errors by the inverse of the Hessian at the optimum."""
    if len(y) <= x.shape[1]:
        return [NOTHING] * x.shape[1]
    theta = logistic.fit(x, y, l2=RIDGE)
    chance = expit(x @ theta)
    hessian = (x.T * (chance * (1 - chance))) @ x + RIDGE * np.eye(x.shape[1])
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return [Taste(float(value), float(error)) for value, error in zip(theta, errors, strict=True)]
