"""What annotators go by beside the answers' worth: the side on which an answer is shown, and its length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy import stats
from scipy.special import expit, logsumexp, softmax

from assent.statistics import holm

RIDGE = 0.1
"""Holds the coefficients of an annotator with few labels."""
LEVEL = 0.01
"""Chance that anybody is said to have a taste where all annotators are alike."""
LEAST = 0.25
"""Tastes below it, in logits, are too small to act on: 0.25 turns 50 % into 56 %."""
NODES = 7
"""Values that the difference in worth of two answers may take: the points of Gauss-Hermite quadrature."""
STEPS = 300
SETTLED = 1e-3
"""Change of every coefficient with which a step is the last: errors are a hundred times as large."""


@dataclass(frozen=True, slots=True)
class Taste:
    """A coefficient of the logit with which an annotator takes the left answer, its standard error, and the p of the
    likelihood ratio against none (a large coefficient has a larger error than its p says)."""

    value: float
    error: float
    p: float


NOTHING = Taste(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Comparisons:
    """Votes without ties as columns [n]: `item` and `annotator` count from 0; `left` whether the left answer was taken;
    `turned` whether the two answers of the item stood the other way around; `longer` log(words left / words right)."""

    item: np.ndarray
    annotator: np.ndarray
    left: np.ndarray
    turned: np.ndarray
    longer: np.ndarray
    annotators: int
    sides_known: bool = True


def tastes(choices: Comparisons) -> list[tuple[Taste, Taste]]:
    """Of each annotator the taste for the left side and for the longer answer, by what all of them said:

        P(a takes the left of item i) = σ(w_a s d_i + b_a + l_a x),    d_i ~ N(0, 1)

    d_i is how much more the item's first answer is worth, s = 1 where that one stands on the left and -1 where not, and
    x the standardised `longer`: a two-parameter item response model with two biases (Birnbaum 1968), by EM over the
    points of a quadrature, with a small ridge. That worth itself goes with length shows in all l_a in proportion to
    w_a, and is taken off by the weighted median of l_a / w_a (where there are three annotators or more): a taste for
    length is what goes beyond it. Errors are those of the annotator's own block of the observed information
    (Louis 1982)."""
    if not len(choices.item):
        return [(NOTHING, NOTHING)] * choices.annotators
    votes = _Votes.of(choices)
    theta = votes.fitted(np.tile([1.0, 0.0, 0.0], (choices.annotators, 1)), votes.share)
    lean = _common(theta, votes.errors(theta))
    theta[:, 2] -= lean * theta[:, 0]
    votes = replace(votes, worth=votes.worth + lean * votes.longer[:, None])
    errors, p = votes.errors(theta), votes.against_none(theta)
    asked = np.bincount(choices.annotator, minlength=choices.annotators) > 3
    return [
        (
            Taste(own[1], off[1], chance[1]) if choices.sides_known and known else NOTHING,
            Taste(own[2], off[2], chance[2]) if known else NOTHING,
        )
        for own, off, chance, known in zip(theta.tolist(), errors.tolist(), p.tolist(), asked, strict=True)
    ]


def stand_out(found: Mapping[str, Taste]) -> dict[str, Taste]:
    """Those whose taste is told apart from none, with Holm's correction, and is large enough to act on."""
    adjusted = zip(found.items(), holm([taste.p for taste in found.values()]), strict=True)
    return {name: taste for (name, taste), p in adjusted if p < LEVEL and abs(taste.value) >= LEAST}


@dataclass(frozen=True)
class _Votes:
    """Choices laid out for EM over the points of the quadrature; coefficients are [annotators, 3]: of worth, side,
    length."""

    item: np.ndarray
    annotator: np.ndarray
    annotators: int
    left: np.ndarray
    """[n, 1]"""
    worth: np.ndarray
    """[n, nodes]: how much more the left answer may be worth."""
    side: float
    """1, or 0 where sides are not known."""
    longer: np.ndarray
    prior: np.ndarray
    """[nodes]: log-probabilities."""

    @classmethod
    def of(cls, choices: Comparisons) -> _Votes:
        points, weights = hermegauss(NODES)
        return cls(
            choices.item,
            choices.annotator,
            choices.annotators,
            choices.left.astype(np.float64)[:, None],
            np.where(choices.turned, -1.0, 1.0)[:, None] * points,
            float(choices.sides_known),
            choices.longer / (float(np.std(choices.longer)) or 1.0),
            np.log(weights / weights.sum()),
        )

    def fitted(
        self, theta: np.ndarray, share: Callable[[np.ndarray], np.ndarray], free: Sequence[int] = (0, 1, 2)
    ) -> np.ndarray:
        """By EM from `theta`: `share` says how probable each d is, and the coefficients that are not `free` stay."""
        for _ in range(STEPS):
            step = np.zeros_like(theta)
            step[:, free] = self._step(theta, share(theta), list(free))
            theta = theta + step
            if float(np.abs(step).max()) < SETTLED:
                break
        return theta

    def _step(self, theta: np.ndarray, share: np.ndarray, free: list[int]) -> np.ndarray:
        """One of Newton's on the expected log-likelihood, at most 1 in each coefficient."""
        chance = expit(self._logit(theta))
        gradient = self._gradient(share * (self.left - chance)) - RIDGE * theta
        hessian = self._hessian(share * chance * (1 - chance))
        step = np.linalg.solve(hessian[:, free][:, :, free], gradient[:, free, None])[..., 0]
        return np.clip(step, -1.0, 1.0)

    def errors(self, theta: np.ndarray) -> np.ndarray:
        """[annotators, 3]; NaN where the information is not positive definite."""
        chance, share = expit(self._logit(theta)), self.share(theta)
        off = self.left - chance
        mean, slope = (share * off).sum(1), (share * off * self.worth).sum(1)
        known = self._hessian(share * (chance * (1 - chance) - off**2))
        known += self._outer(slope**2, slope * mean, mean**2)
        found = np.full(theta.shape, np.nan)
        for place, information in enumerate(known):
            values = np.linalg.eigvalsh(information)
            if values[0] > 1e-9 * values[-1]:
                found[place] = np.sqrt(np.diag(np.linalg.inv(information)))
        return found

    def against_none(self, theta: np.ndarray) -> np.ndarray:
        """[annotators, 3]: p of a coefficient being 0, their other two fitted anew, all others' as they are."""
        rest = np.log(self.share(theta)) - self._said(theta)  # what the votes of the others say of d

        def share(own: np.ndarray) -> np.ndarray:
            return softmax(rest + self._said(own), axis=1)

        def likelihood(own: np.ndarray) -> np.ndarray:
            votes = logsumexp(rest + self._said(own), axis=1)
            return self._by_annotator(votes) - RIDGE / 2 * (own**2).sum(1)

        found, most = np.ones_like(theta), likelihood(theta)
        for which in (1, 2):
            none = theta.copy()
            none[:, which] = 0.0
            less = likelihood(self.fitted(none, share, [each for each in range(3) if each != which]))
            found[:, which] = stats.chi2.sf(np.maximum(2 * (most - less), 0.0), 1)
        return found

    def share(self, theta: np.ndarray) -> np.ndarray:
        """[n, nodes]: how probable each difference in worth is, of the vote's item, by all votes on it."""
        said, item = self._said(theta), self.item
        total = np.column_stack([np.bincount(item, column) for column in said.T])
        return softmax(total + self.prior, axis=1)[item]

    def _said(self, theta: np.ndarray) -> np.ndarray:
        """[n, nodes]: log-likelihood of each vote."""
        return -np.logaddexp(0, np.where(self.left == 1, -1, 1) * self._logit(theta))

    def _logit(self, theta: np.ndarray) -> np.ndarray:
        """[n, nodes]: of the left answer."""
        worth, side, length = theta[self.annotator].T
        return worth[:, None] * self.worth + (side * self.side + length * self.longer)[:, None]

    def _gradient(self, weight: np.ndarray) -> np.ndarray:
        plain = weight.sum(1)
        columns = ((weight * self.worth).sum(1), plain * self.side, plain * self.longer)
        return np.column_stack([self._by_annotator(column) for column in columns])

    def _hessian(self, weight: np.ndarray) -> np.ndarray:
        """[annotators, 3, 3], with the ridge."""
        square, cross = (weight * self.worth**2).sum(1), (weight * self.worth).sum(1)
        return self._outer(square, cross, weight.sum(1)) + RIDGE * np.eye(3)

    def _outer(self, square: np.ndarray, cross: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """[annotators, 3, 3]: products of the regressors (worth, side, length), summed; those of worth are within
        `square` and `cross`."""
        others = (np.ones(len(plain)), np.full(len(plain), self.side), self.longer)
        weights = ((square, cross, cross), (cross, plain, plain), (cross, plain, plain))
        made = np.empty((self.annotators, 3, 3))
        for row in range(3):
            for column in range(row, 3):
                product = weights[row][column] * others[row] * others[column]
                made[:, row, column] = made[:, column, row] = self._by_annotator(product)
        return made

    def _by_annotator(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.annotator, values, self.annotators)


def _common(theta: np.ndarray, errors: np.ndarray) -> float:
    """How much length goes with worth: the median of l_a / w_a, weighted by how well each is known."""
    known = np.isfinite(errors[:, 2]) & (theta[:, 0] != 0)
    if known.sum() < 3:
        return 0.0
    ratio, weight = theta[known, 2] / theta[known, 0], (theta[known, 0] / errors[known, 2]) ** 2
    order = np.argsort(ratio)
    return float(ratio[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)])
