"""Best-of-n: what is gained when the answer with the highest reward of n is kept, in reward and in gold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from assent.statistics import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class Point:
    """The best of `n`: mean reward and mean gold over the prompts that have n scored answers or more, and what each
    has gained over one answer to the same prompts. `kl` is an upper bound of the KL divergence from the sampler, nats,
    and `distance` its root."""

    n: int
    prompts: int
    kl: float
    distance: float
    reward: Interval
    gold: Interval
    reward_gain: Interval
    gold_gain: Interval


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, in nats: the KL divergence of best-of-n from the sampler is at most that, and for samplers
    that repeat themselves much less (Beirami et al., arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def expected_best(reward: np.ndarray, worth: np.ndarray, n: int) -> float:
    """The expected `worth` of the answer with the highest reward among n of the N drawn without replacement, [N] each:
    sum_i C(i - 1, n - 1) / C(N, n) worth_(i), answers sorted by reward (Gao et al., arXiv 2210.10760, appendix A).
    Unbiased for n <= N; answers of equal reward are equally likely to be kept."""
    order = np.argsort(reward, kind="stable")
    weights = best_weights(len(reward), n)
    _, tied = np.unique(reward[order], return_inverse=True)
    shared = np.bincount(tied, weights=weights) / np.bincount(tied)
    return float(shared[tied] @ worth[order])


def best_weights(size: int, n: int) -> np.ndarray:
    """The chance that the i-th of `size` answers, worst first, is the best of n drawn: C(i - 1, n - 1) / C(size, n)."""
    i = np.arange(1, size + 1)
    with np.errstate(invalid="ignore"):
        logs = _log_choose(i - 1, n - 1) - _log_choose(np.array(size), n)
    return np.where(i >= n, np.exp(logs), 0.0)


def _log_choose(a: np.ndarray, b: int) -> np.ndarray:
    a = np.maximum(a, b)  # below it the weight is 0
    return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)


@dataclass(frozen=True, slots=True)
class Curves:
    """Expected reward and worth of the best of n by the reward, of P prompts each, for K sizes n. `short` more prompts
    have fewer answers than the greatest n, and are left out of all of it."""

    sizes: tuple[int, ...]
    """K, 1 the first."""
    reward: np.ndarray
    """[P, K]."""
    worth: np.ndarray
    """[P, K]."""
    short: int


MOST_SHORT = 0.1
"""Share of the prompts that may be left out for having fewer answers than the greatest n."""


def curves(reward: np.ndarray, worth: np.ndarray, prompt: np.ndarray) -> Curves:
    """The same prompts at every n: 1, and about two sizes to each doubling (2, 3, 4, 6, 8, 11, 16, ...), up to the
    number of answers with both numbers that nine prompts in ten have, [S] each. n = 1 alone where that is 1; no prompt
    at all where nothing has both."""
    there = np.flatnonzero(~(np.isnan(reward) | np.isnan(worth)))
    rows = [there[prompt[there] == number] for number in np.unique(prompt[there])]
    counts = np.sort([len(row) for row in rows])
    most = int(counts[int(MOST_SHORT * len(counts))]) if rows else 1
    halves = {round(2 ** (k / 2)) for k in range(2, 2 * int(math.log2(most)) + 2)}
    sizes = tuple(sorted({1, most} | {n for n in halves if n <= most}))
    used = [row for row in rows if len(row) >= most]
    proxy, truth = (
        np.array([[expected_best(reward[row], values[row], n) for n in sizes] for row in used]).reshape(-1, len(sizes))
        for values in (reward, worth)
    )
    return Curves(sizes, proxy, truth, len(rows) - len(used))


def size_at(kl: float, most: int) -> int | None:
    """The n up to `most` whose bound on KL is nearest to `kl`; None where it lies above that of `most`."""
    if kl > kl_bound(most):
        return None
    return min(range(1, most + 1), key=lambda n: abs(kl_bound(n) - kl))


def best_of_n(reward: np.ndarray, gold: np.ndarray | None, prompt: np.ndarray) -> tuple[Point, ...]:
    """The curve for n = 1, 2, 4, ... and the greatest number of answers that a prompt has, [S] each; answers without a
    reward (and, where there is gold, without gold) are left out. Prompts may have different numbers of answers: each
    point has those with at least n, which is why gains are over the same prompts; one with a single prompt of several
    is no point."""
    there = ~np.isnan(reward) if gold is None else ~(np.isnan(reward) | np.isnan(gold))
    truth = np.full(len(reward), math.nan) if gold is None else gold
    rows = [np.flatnonzero(there & (prompt == number)) for number in np.unique(prompt[there])]
    largest = max(map(len, rows), default=0)
    if largest < 2:
        return ()
    sizes = sorted({*(2**k for k in range(int(math.log2(largest)) + 1)), largest})
    points = []
    for n in sizes:
        used = [row for row in rows if len(row) >= n]
        if len(used) < min(2, len(rows)):
            continue
        proxy, worth = (
            np.array([[expected_best(reward[row], values[row], k) for k in (1, n)] for row in used])
            for values in (reward, truth)
        )
        points.append(
            Point(
                n,
                len(used),
                kl_bound(n),
                math.sqrt(kl_bound(n)),
                mean_interval(proxy[:, 1]),
                mean_interval(worth[:, 1]),
                mean_interval(proxy[:, 1] - proxy[:, 0]),
                mean_interval(worth[:, 1] - worth[:, 0]),
            )
        )
    return tuple(points)
