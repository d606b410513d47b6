"""By how much a policy prefers the better answers of a prompt file: margins of pairs, and histograms of several
policies on the same edges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from assent.measures.answers import Given
from assent.measures.likelihood import implicit, summed

BINS = 30


def pair_margins(given: Given) -> dict[str, np.ndarray]:
    """For each pair [M] of the file: log pi(better) - log pi(worse), nats, and the same of log pi - log pi_ref (the
    margin of implicit rewards but for beta) where there is a reference. NaN where an answer cannot be read."""
    better, worse = given.pairs[:, 0], given.pairs[:, 1]
    numbers = {"likelihood": summed(given)}
    if given.reference_log_prob is not None:
        numbers["implicit reward"] = implicit(given)
    return {name: values[better] - values[worse] for name, values in numbers.items()}


def histograms(values: Mapping[str, np.ndarray], bins: int = BINS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(edges [bins + 1], name -> counts [bins]) of several columns on the same edges: from the least to the greatest
    value but for one in a hundred at either end, which are counted in the first and last bin, and with 0 among the
    edges where the values lie on both sides of it. NaN is left out."""
    known = {name: column[~np.isnan(column)] for name, column in values.items()}
    whole = np.concatenate([np.zeros(0), *known.values()])
    if not len(whole):
        return np.zeros(0), {name: np.zeros(0, np.int64) for name in known}
    low, high = np.quantile(whole, [0.01, 0.99])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / bins
    if low < 0 < high:
        low = np.floor(low / width) * width
    edges = low + width * np.arange(bins + 1 + (low + width * bins < high))
    inside = {name: np.clip(column, edges[0], edges[-1]) for name, column in known.items()}
    return edges, {name: np.histogram(column, edges)[0] for name, column in inside.items()}
