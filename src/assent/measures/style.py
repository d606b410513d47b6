"""Win rates had answers the baseline's length and Markdown: the style control of Arena-Hard and Chatbot Arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from assent.measures import logistic
from assent.measures.estimates import RESAMPLES, Estimate, estimate, undefined
from assent.measures.ranking import Comparisons
from assent.measures.shapes import Duels, Measure, Versus
from assent.measures.texts import bold, headings, list_items, words

FEATURES = ("length", "headings", "list items", "bold")
"""What of style is held equal, in the order of the columns of `differences`."""
RIDGE = 1e-3
"""So little that it only keeps coefficients finite where style or policy separates wins from losses."""
FEW = 20
"""Comparisons below which nothing is fitted: five coefficients need that many."""


def differences(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """[M, 4] for M pairs of answers: (a - b) / (a + b) of their lengths in words, and (a - b) / (a + b + 1) of their
    headings, list items and bold spans for each word + 1."""
    one, other = _densities(ours), _densities(theirs)
    total = one + other + [[0.0, 1.0, 1.0, 1.0]]
    return np.divide(one - other, total, out=np.zeros_like(one), where=total > 0)


def _densities(texts: Sequence[str]) -> np.ndarray:
    rows = [(len(words(text)), headings(text), list_items(text), bold(text)) for text in texts]
    counts = np.array(rows, np.float64).reshape(-1, 4)
    counts[:, 1:] /= counts[:, :1] + 1
    return counts


@dataclass(frozen=True, slots=True)
class Controlled:
    """`rates` [K] of each policy against the anchor, at no difference of style; `average` the same at the mean
    difference of style, which is what Arena-Hard's centred features give; `effects` of one standard deviation more of
    each feature, in nats."""

    rates: tuple[Estimate, ...]
    average: tuple[Estimate, ...]
    effects: dict[str, Estimate]


def controlled(
    found: Comparisons,
    style: np.ndarray,
    policies: int,
    anchor: int,
    *,
    features: Sequence[str] = FEATURES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Controlled:
    """Bradley–Terry strengths beside coefficients of the differences of style [M, F] (first - second), by logistic
    regression (Chiang et al., arXiv 2403.04132; Li et al., arXiv 2406.11939):

        P(first beats second) = σ(θ_first - θ_second + Σ_f β_f x_f / std_f),    rate_k = σ(θ_k - θ_anchor)

    Intervals draw prompts anew, each with all of its comparisons. Policies that no chain of comparisons joins to the
    anchor have no rate."""
    size = len(found.outcome)
    if size < FEW:
        nothing = undefined(f"fewer than {FEW} comparisons", size)
        return Controlled((nothing,) * policies, (nothing,) * policies, dict.fromkeys(features, nothing))
    weight = np.ones(size) if found.weight is None else found.weight
    spread = style.std(axis=0)
    scaled = np.divide(style, spread, out=np.zeros_like(style), where=spread > 0)
    design = np.zeros((size, policies))
    design[np.arange(size), found.first] = 1.0
    design[np.arange(size), found.second] -= 1.0
    x = np.delete(np.column_stack([design, scaled]), anchor, axis=1)
    start = logistic.fit(x, found.outcome, weight, l2=RIDGE)
    cache: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def fitted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Strengths above the anchor [K], and coefficients [F]; the draws are the same for every estimate."""
        key = rows.tobytes()
        if key not in cache:
            found_here = logistic.fit(x[rows], found.outcome[rows], weight[rows], l2=RIDGE, start=start)
            cache[key] = np.insert(found_here[: policies - 1], anchor, 0.0), found_here[policies - 1 :]
        return cache[key]

    mean = scaled.mean(axis=0)
    apart = _apart(found, policies, anchor)

    def of(k: int, shift: bool) -> Estimate:
        if apart[k]:
            return undefined("no chain of comparisons joins it to the baseline")

        def rate(rows: np.ndarray) -> float:
            strengths, effects = fitted(rows)
            return float(expit(strengths[k] + (effects @ mean if shift and k != anchor else 0.0)))

        return estimate(rate, found.prompt, resamples=resamples, seed=seed)

    def effect(f: int) -> Estimate:
        if not spread[f]:
            return undefined("it never differs", size)
        return estimate(lambda rows: float(fitted(rows)[1][f]), found.prompt, resamples=resamples, seed=seed)

    rates, average = (tuple(of(k, shift) for k in range(policies)) for shift in (False, True))
    return Controlled(rates, average, {name: effect(f) for f, name in enumerate(features)})


def _apart(found: Comparisons, policies: int, anchor: int) -> np.ndarray:
    """[K] bool: whether a policy was compared with the anchor over no chain of comparisons."""
    joined = np.arange(policies) == anchor
    for _ in range(policies):
        touched = joined[found.first] | joined[found.second]
        joined[found.first[touched]] = True
        joined[found.second[touched]] = True
    return ~joined


def _versus(duels: Duels) -> Estimate:
    there = np.flatnonzero(~np.isnan(duels.outcome))
    ours = [duels.ours.texts[row] for row in duels.pairs[there, 0]]
    theirs = [duels.theirs.texts[row] for row in duels.pairs[there, 1]]
    zeros = np.zeros(len(there), np.int64)
    found = Comparisons(zeros, zeros + 1, duels.outcome[there], duels.prompt[there])
    return controlled(found, differences(ours, theirs), 2, anchor=1).rates[0]


ROWS: tuple[Measure, ...] = (
    Versus(
        name="style-controlled-win-rate",
        about="the chance to win at no difference of length, headings, list items and bold spans, as Arena-Hard's "
        "style control (2406.11939), but with words for tokens and at no difference rather than the mean one",
        unit="share",
        better="higher",
        of=_versus,
    ),
)
