"""Win rates had the answers been as long as the baseline's: AlpacaEval 2's length-controlled one, where its own rows
are at hand, and else the length-adjusted one, which is not AlpacaEval's and does not bear its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from assent.errors import DataError
from assent.measures import logistic
from assent.measures.estimates import RESAMPLES, Estimate, estimate, undefined
from assent.measures.extras import extra
from assent.measures.gamed import Gamed
from assent.measures.shapes import Duels, Measure, Versus

CS = np.logspace(-4, 4, 10)
"""Inverse strengths of the L1 penalty among which cross-validation chooses."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""Weight of a row of the baseline against its own concise and verbose variants: 0.2 for the two of them."""
RIDGE = 1e-3
"""Of the length-adjusted rate: so little that it only keeps the rate finite where every comparison is won."""
FEW = 10
"""Comparisons below which nothing is fitted."""
LEAST = 1e-15
SEED = 123
"""AlpacaEval's, of the order in which liblinear takes the coefficients."""


def preferences(values: Sequence[float | None]) -> np.ndarray:
    """AlpacaEval's `preference` as the chance that the model beats the baseline, [M]: 1 the baseline, 2 the model, a
    number between them a probability, 0 or 1.5 a tie; NaN where there is none. Raises DataError for anything else."""
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    numbers = np.where(numbers == 0, 1.5, numbers) - 1
    if len(wrong := np.flatnonzero((numbers < 0) | (numbers > 1))):
        raise DataError(
            f"row {wrong[0] + 1}: a preference is 0 (a tie) or from 1 (the baseline) to 2 (the model). "
            f"Got {values[wrong[0]]}"
        )
    return numbers


def standardised(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """tanh((theirs - ours) / std) of lengths in characters [M]: std of the differences with n - 1, their mean left in;
    the sign of the difference where all are the same."""
    delta = (theirs - ours).astype(np.float64)
    spread = delta.std(ddof=1) if len(delta) > 1 else 0.0
    return np.tanh(delta / spread) if spread > 0 else np.sign(delta)


@dataclass(frozen=True, slots=True)
class Fit:
    """`rate` 0 to 1 is the mean over the instructions of the chance to win at no difference of length, with an interval
    from drawing them anew (the penalty stays); the coefficients of tanh, difficulty and the constant; C as chosen."""

    rate: Estimate
    coefficients: np.ndarray
    c: float


def length_controlled(
    outcome: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    index: np.ndarray,
    gamed: Gamed,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Fit:
    """AlpacaEval 2's length-controlled win rate (Dubois et al., arXiv 2404.04475) from outcomes [M] (0 to 1, NaN a
    failure, which is left out), lengths of answers in characters [M] and instructions [M]:

        P(win) = σ(a tanh(Δlen / std) + b difficulty + c),    rate = mean of σ(b difficulty + c)

    fitted with an L1 penalty on the rows and, with weight 0.1, the gamed ones, for which c is 0; the penalty of ten
    by 5-fold cross-validation on log loss, with scikit-learn as there; the draws of the interval are fitted with the
    penalty that all rows chose. Over a row of AlpacaEval without a preference that package averages a
    predicted one; here it is left out."""
    there = ~np.isnan(outcome)
    if there.sum() < FEW:
        return Fit(undefined(f"fewer than {FEW} comparisons", int(there.sum())), np.full(3, math.nan), math.nan)
    outcome, ours, theirs, index = outcome[there], ours[there], theirs[there], index[there]
    hard = gamed.difficulties(index)
    own = np.column_stack([standardised(ours, theirs), hard, np.ones(len(outcome))])
    known = ~np.isnan(gamed.preference)
    other = np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.length))])[known]
    x, y = np.concatenate([other, own]), np.concatenate([gamed.preference[known], outcome])
    weight = np.concatenate([np.full(len(other), GAMED_WEIGHT), np.ones(len(own))])
    coefficients, c = _chosen(x, y, weight)
    fixed = np.arange(len(other))

    def rate(rows: np.ndarray) -> float:
        used = np.concatenate([fixed, len(other) + rows])
        found = logistic.fit(x[used], y[used], weight[used], l1=1 / c, start=coefficients)
        return float(expit(own[rows][:, 1:] @ found[1:]).mean())

    found = estimate(rate, index, resamples=resamples, seed=seed)
    return Fit(replace(found, value=float(expit(own[:, 1:] @ coefficients[1:]).mean())), coefficients, c)


def _chosen(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients and C, by scikit-learn's liblinear with the options of AlpacaEval: near its tolerance several C are
    equally good, so that a better solver chooses others, up to half a point away."""
    linear, metrics, selection, config = (
        extra(f"sklearn{name}", "the length-controlled win rate")
        for name in (".linear_model", ".metrics", ".model_selection", "")
    )
    both = np.r_[weight, weight]  # each row twice: as a win, weighted by its chance, and as a loss
    with config.config_context(enable_metadata_routing=True):
        score = metrics.make_scorer(_entropy, response_method="predict_proba", greater_is_better=False)
        model = linear.LogisticRegressionCV(
            Cs=CS,
            cv=selection.GroupKFold(FOLDS),
            scoring=score.set_score_request(truth=True, importance=True),
            l1_ratios=(1,),
            solver="liblinear",
            fit_intercept=False,
            random_state=SEED,
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([x, x]),
            np.r_[np.ones(len(y)), np.zeros(len(y))],
            sample_weight=np.r_[y, 1 - y] * both,
            groups=np.r_[np.arange(len(y)), np.arange(len(y))],
            truth=np.r_[y, y],
            importance=both,
        )
    return model.coef_[0], float(np.ravel(model.C_)[0])


def _entropy(target: np.ndarray, chance: np.ndarray, truth: np.ndarray, importance: np.ndarray) -> float:
    """Mean over the rows of the weighted log loss: what the penalty is chosen by."""
    chance = np.clip(chance, LEAST, 1 - LEAST)
    return float(-(importance * (truth * np.log(chance) + (1 - truth) * np.log(1 - chance))).mean())


def length_adjusted(
    outcome: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    prompt: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The chance to win at no difference of length, 0 to 1: σ(c) of P(win) = σ(a tanh(Δlen / std) + c), by maximum
    likelihood, with an interval from drawing prompts anew. AlpacaEval's model without the instructions' difficulties
    and the gamed rows, so not its number: up to some points away.

    Undefined where all answers differ in length by the same, since length cannot be told from worth then."""
    there = ~np.isnan(outcome)
    if there.sum() < FEW:
        return undefined(f"fewer than {FEW} comparisons", int(there.sum()))
    outcome, delta = outcome[there], standardised(ours[there], theirs[there])
    if not np.ptp(delta) and delta.any():
        return undefined("all answers differ from the baseline's by the same length", len(outcome))
    x = np.column_stack([delta, np.ones(len(delta))])

    start = logistic.fit(x, outcome, l2=RIDGE)

    def rate(rows: np.ndarray) -> float:
        return float(expit(logistic.fit(x[rows], outcome[rows], l2=RIDGE, start=start)[1]))

    return estimate(rate, prompt[there], resamples=resamples, seed=seed)


def _lengths(duels: Duels) -> tuple[np.ndarray, np.ndarray]:
    """Characters of our answers and of theirs, [M] each."""
    ours = np.array([len(duels.ours.texts[row]) for row in duels.pairs[:, 0]], np.float64)
    theirs = np.array([len(duels.theirs.texts[row]) for row in duels.pairs[:, 1]], np.float64)
    return ours, theirs


def _adjusted(duels: Duels) -> Estimate:
    return length_adjusted(duels.outcome, *_lengths(duels), duels.prompt)


def _controlled(duels: Duels) -> Estimate:
    known = duels.ours.prompts.alpaca_eval
    assert known is not None, "a need of the row"
    ours, theirs = _lengths(duels)
    return length_controlled(duels.outcome, ours, theirs, known.index[duels.prompt], known.gamed).rate


ROWS: tuple[Measure, ...] = (
    Versus(
        name="length-adjusted-win-rate",
        about="the chance to win at no difference of length: σ(c) of P(win) = σ(a tanh(Δlen / std) + c); AlpacaEval's "
        "length-controlled rate has its own rows besides",
        unit="share",
        better="higher",
        of=_adjusted,
    ),
    Versus(
        name="length-controlled-win-rate",
        about="AlpacaEval 2's length-controlled win rate (2404.04475), by its regression with its own gamed rows and "
        "difficulties, which are of its baseline gpt4_1106_preview",
        unit="share",
        better="higher",
        needs=("baseline", "gamed"),
        package="sklearn",
        of=_controlled,
    ),
)
