"""Whether the members of an ensemble disagree where it is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from assent.measures.correlation import ranks
from assent.measures.estimates import RESAMPLES, Estimate, estimate, undefined
from assent.statistics import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class Disagreement:
    """`auroc`: the chance that a pair which the ensemble orders wrongly has the greater disagreement of two pairs, one
    wrong and one right; 0.5 says nothing. `of_gap` is the same of a small |gap|, which needs no ensemble.
    `split` is the share of pairs on whose order the members are divided, `members` their accuracies."""

    auroc: Estimate
    of_gap: Estimate
    split: Interval
    members: tuple[Interval, ...]


def disagreement(
    gap: np.ndarray, members: np.ndarray, prompt: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Disagreement:
    """From `gap = reward(better) - reward(worse)` of the ensemble [M] and of each member [E, M]. The disagreement about
    a pair is the standard deviation of the members' gaps, each divided by its own root mean square, since members may
    score on different scales. Ties are wrong. (In arXiv 2310.02743 the deviation is the uncertainty.)"""
    there = ~np.isnan(gap) & ~np.isnan(members).any(axis=0)
    gap, members, prompt = gap[there], members[:, there], prompt[there]
    labels = prompt.tolist()
    accuracies = tuple(mean_interval(member > 0, labels, seed=seed) for member in members)
    split = mean_interval((np.sign(members) != np.sign(members[:1])).any(axis=0), labels, seed=seed)
    if not len(gap):
        nothing = undefined("no pair with all rewards")
        return Disagreement(nothing, nothing, split, accuracies)
    size = np.sqrt((members**2).mean(axis=1, keepdims=True))
    if (size == 0).any():
        nothing = undefined("a member gives both answers of every pair the same reward", len(gap))
        return Disagreement(nothing, nothing, split, accuracies)
    spread, wrong = (members / size).std(axis=0), gap <= 0
    if wrong.all() or not wrong.any():
        nothing = undefined(f"{'every' if wrong.any() else 'no'} pair is wrong", len(gap))
        return Disagreement(nothing, nothing, split, accuracies)

    def predicts(score: np.ndarray) -> Estimate:
        return estimate(lambda rows: auroc(score[rows], wrong[rows]), prompt, resamples=resamples, seed=seed)

    return Disagreement(predicts(spread), predicts(-np.abs(gap)), split, accuracies)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties half: (sum of the positives' ranks - n (n + 1) / 2) / (n m),
    n positives and m negatives (Mann and Whitney 1947). NaN without both."""
    n = int(positive.sum())
    m = len(positive) - n
    if not n or not m:
        return math.nan
    return float((ranks(score)[positive].sum() - n * (n + 1) / 2) / (n * m))
