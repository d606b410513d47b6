"""How often the better answer of a pair has the higher reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assent.statistics import Interval, mean_interval, win_rate

BINS = 5
"""Parts that strengths are divided into; where there are no more different strengths than that, each is one."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`right` is the share of pairs with reward(better) > reward(worse): a tie is not right. Its interval is Wilson's
    with the effective number of pairs (several pairs of a prompt are worth fewer); `by_prompt` is the same share with
    the bootstrap interval that draws whole prompts anew. Pairs with an unscored answer are left out and counted as
    `missing`."""

    right: Interval
    by_prompt: Interval
    ties: int


def accuracy(gap: np.ndarray, prompt: np.ndarray) -> Accuracy:
    """Of `gap = reward(better) - reward(worse)` [M], NaN where a reward is missing; `prompt` [M] says whose pairs are
    of one prompt."""
    right = np.where(np.isnan(gap), np.nan, gap > 0)
    labels = prompt.tolist()
    return Accuracy(
        win_rate(right, np.full(len(gap), 0.5), labels).rate, mean_interval(right, labels), int((gap == 0).sum())
    )


def by_label(gap: np.ndarray, prompt: np.ndarray, labels: Sequence[str]) -> dict[str, Accuracy]:
    """The same of each part of the pairs; one without a label ("") is in none."""
    names = np.array(labels, dtype=object)
    return {name: accuracy(gap[names == name], prompt[names == name]) for name in dict.fromkeys(labels) if name}


def strength_bins(strength: np.ndarray, bins: int = BINS) -> list[str]:
    """Names of the parts that the pairs [M] fall into by how clearly one answer is better, weakest first in the order
    of the names' numbers: each strength by itself where there are at most `bins`, else quantiles. "" where a pair has
    no strength."""
    known = strength[~np.isnan(strength)]
    values = np.unique(known)
    if len(values) <= bins:
        return ["" if np.isnan(value) else f"{value:g}" for value in strength]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, strength, side="right") - 1, 0, len(edges) - 2)
    return [
        "" if np.isnan(value) else f"{edges[index]:.3g} to {edges[index + 1]:.3g}"
        for value, index in zip(strength, place, strict=True)
    ]


def length_classes(better: np.ndarray, worse: np.ndarray) -> list[str]:
    """Whether the better answer [M] is the shorter or the longer one, or as long."""
    return ["as long" if b == w else "shorter" if b < w else "longer" for b, w in zip(better, worse, strict=True)]
