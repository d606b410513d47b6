"""From verdicts to rewards: the orders of one comparison, and the comparisons of one group. Pure functions.

A verdict on K answers is a share for each, which sum to 1: a letter gives 1 to its answer, a tie the same to all, and
probabilities of letters are such shares already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME = 1e-12


def share_of(chances: Sequence[float]) -> np.ndarray:
    """`exp(l_k) / sum_j exp(l_j)` of the log-probabilities of K letters, [K]: for two P(A) / (P(A) + P(B))."""
    logs = np.asarray(chances, np.float64)
    odds = np.exp(logs - logs.max())
    return odds / odds.sum()


def best(share: np.ndarray) -> frozenset[int]:
    """Which answers a verdict puts first: several where they are tied."""
    return frozenset(np.flatnonzero(share >= share.max() - SAME).tolist())


def consistent(orders: np.ndarray) -> bool:
    """Whether all R orders of one comparison, [R, K] by answer, put the same answers first."""
    return len({best(share) for share in orders}) == 1


def settled(orders: np.ndarray, contradiction: str) -> np.ndarray | None:
    """What one comparison gives each of its K answers, from its R orders [R, K] by answer.

    Where the orders agree, their mean; where they contradict each other: None ("leave_out"), 1/K each ("tie", as in
    MT-Bench, arXiv 2306.05685), or their mean all the same ("mean")."""
    if contradiction == "mean" or consistent(orders):
        return orders.mean(axis=0)
    return None if contradiction == "leave_out" else np.full(orders.shape[1], 1 / orders.shape[1])


def win_rates(size: int, pairs: Sequence[tuple[int, int]], outcomes: Sequence[float]) -> np.ndarray:
    """`r_i = mean of the outcomes of answer i over the pairs that it is in`, [S]; NaN for an answer in none.

    `pairs` [M] are (i, j), `outcomes` [M] what i has of them: 1 a win, 0 a defeat, 0.5 a tie; j has the rest."""
    total, count = np.zeros(size), np.zeros(size)
    for (i, j), outcome in zip(pairs, outcomes, strict=True):
        total[i] += outcome
        total[j] += 1 - outcome
        count[[i, j]] += 1
    with np.errstate(invalid="ignore"):
        return total / np.where(count > 0, count, np.nan)


def bradley_terry(size: int, pairs: Sequence[tuple[int, int]], outcomes: Sequence[float]) -> np.ndarray:
    """The strengths s [S] that maximise

        sum over pairs of  o log sigmoid(s_i - s_j) + (1 - o) log sigmoid(s_j - s_i)  -  sum_i s_i^2 / 2

    (Bradley and Terry 1952, ties as half a win), by Newton's method; NaN for an answer in no pair. The standard normal
    prior keeps them finite where an answer won or lost every pair; they sum to 0."""
    strength = np.zeros(size)
    for _ in range(100):
        gradient, hessian = -strength, -np.eye(size)
        for (i, j), outcome in zip(pairs, outcomes, strict=True):
            expected = 1 / (1 + np.exp(strength[j] - strength[i]))
            gradient[i] += outcome - expected
            gradient[j] -= outcome - expected
            weight = expected * (1 - expected)
            hessian[[i, j], [i, j]] -= weight
            hessian[[i, j], [j, i]] += weight
        step = np.linalg.solve(hessian, gradient)
        strength = strength - step
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    compared = np.isin(np.arange(size), [answer for pair in pairs for answer in pair])
    return np.where(compared, strength, np.nan)


RULES = {"win_rate": win_rates, "bradley_terry": bradley_terry}
"""How the comparisons of a group become a reward for each of its answers."""
