"""Whether a reward follows the form of answers (their length, lists, headings, bold) more than the judgements do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from assent.measures.correlation import mirrored, spearman
from assent.measures.estimates import RESAMPLES, Estimate, estimate, undefined
from assent.measures.judged import Judged
from assent.measures.texts import LENGTH, features


@dataclass(frozen=True, slots=True)
class Relation:
    """Rank correlations, over pairs, of how two answers differ in one feature with

    reward              their difference in reward
    label               which of them people prefer, by its strength where they said one
    gold                their difference in gold reward, or rating
    given_label         reward, the label held fixed: what of it the labels do not explain
    given_gold          reward, gold held fixed
    given_length        reward, length held fixed
    given_length_label  reward, length and label held fixed

    None where there is no gold, and where the feature is length itself."""

    feature: str
    differs: float
    """Share of pairs whose answers differ in it."""
    reward: Estimate
    label: Estimate
    gold: Estimate | None
    given_label: Estimate
    given_gold: Estimate | None
    given_length: Estimate | None
    given_length_label: Estimate | None


@dataclass(frozen=True, slots=True)
class Level:
    """Rank correlation of the rewards of all answers with one feature, both less their mean over the answers to the
    same prompt; also with length held fixed (None for length itself)."""

    feature: str
    reward: Estimate
    given_length: Estimate | None


@dataclass(frozen=True, slots=True)
class Longer:
    """Share of the pairs of different length in which the longer answer is preferred: by the reward, by the labels, and
    the first less the second."""

    reward: Estimate
    label: Estimate
    excess: Estimate


@dataclass(frozen=True, slots=True)
class Bias:
    """What the form of answers has to do with their rewards."""

    longer: Longer
    relations: tuple[Relation, ...]
    levels: tuple[Level, ...]


def bias(judged: Judged, *, resamples: int = RESAMPLES, seed: int = 0) -> Bias:
    """All of it; unscored answers are left out."""
    counted = features(judged.texts)
    gap = judged.gap(judged.rewards)
    there = ~np.isnan(gap)
    prompt = judged.pair_prompt[there]
    known = {
        "reward": gap[there],
        "label": _label(judged.strength)[there],
        **({} if judged.gold is None else {"gold": judged.gap(judged.gold)[there]}),
        **{name: judged.gap(values)[there] for name, values in counted.items()},
    }
    related = partial(_related, known, prompt, resamples=resamples, seed=seed)
    with_gold = judged.gold is not None
    relations = tuple(
        Relation(
            name,
            float((known[name] != 0).mean()) if len(prompt) else math.nan,
            related(name, "reward"),
            related(name, "label"),
            related(name, "gold") if with_gold else None,
            related(name, "reward", ("label",)),
            related(name, "reward", ("gold",)) if with_gold else None,
            None if name == LENGTH else related(name, "reward", (LENGTH,)),
            None if name == LENGTH else related(name, "reward", (LENGTH, "label")),
        )
        for name in counted
    )
    return Bias(
        prefers_longer(known["reward"], known[LENGTH], prompt, resamples=resamples, seed=seed),
        relations,
        _levels(judged, counted, resamples=resamples, seed=seed),
    )


def prefers_longer(
    gap: np.ndarray, length: np.ndarray, prompt: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Longer:
    """From `gap = reward(better) - reward(worse)` [M] and the same difference in length. Equal rewards count half."""
    differ = length != 0
    if not differ.any():
        nothing = undefined("the two answers of every pair are of the same length" if len(length) else "no scored pair")
        return Longer(nothing, nothing, nothing)
    sign, clusters = np.sign(length[differ]), prompt[differ]
    reward, label = (np.sign(gap[differ]) * sign + 1) / 2, (sign + 1) / 2

    def share(values: np.ndarray) -> Estimate:
        return estimate(lambda rows: float(values[rows].mean()), clusters, resamples=resamples, seed=seed)

    return Longer(share(reward), share(label), share(reward - label))


def _label(strength: np.ndarray) -> np.ndarray:
    """By how much the better answer of each pair is preferred [M], above 0; by 1 where not all have a strength."""
    positive = strength[strength > 0]
    if np.isnan(strength).any() or not len(positive):
        return np.ones(len(strength))
    return np.where(strength > 0, strength, positive.min() / 2)


def _related(
    known: Mapping[str, np.ndarray],
    prompt: np.ndarray,
    feature: str,
    other: str,
    given: Sequence[str] = (),
    *,
    resamples: int,
    seed: int,
) -> Estimate:
    """Spearman's correlation of two columns of differences, whichever answer of a pair stands first."""
    columns = np.stack([known[feature], known[other], *(known[name] for name in given)])
    there = ~np.isnan(columns).any(axis=0)
    columns = columns[:, there]
    n = columns.shape[1]
    if n < 3 + len(given):
        return undefined(f"too few scored pairs ({n})", n)
    for name, column in zip((feature, other), columns[:2], strict=True):
        if not column.any():
            return undefined(f"the answers of no pair differ in {name}", n)

    def statistic(rows: np.ndarray) -> float:
        x, y, *fixed = (mirrored(column) for column in columns[:, rows])
        return spearman(x, y, fixed)

    problem = f"{' and '.join(given)} alone explain the differences in {feature} or {other}"
    return estimate(statistic, prompt[there], problem=problem, resamples=resamples, seed=seed)


def _levels(judged: Judged, counted: Mapping[str, np.ndarray], *, resamples: int, seed: int) -> tuple[Level, ...]:
    there = ~np.isnan(judged.rewards)
    _, codes, counts = np.unique(judged.prompt[there], return_inverse=True, return_counts=True)
    several = counts[codes] > 1
    prompt = codes[several]
    known = {name: within(values[there][several], prompt) for name, values in counted.items()}
    reward = within(judged.rewards[there][several], prompt)

    def related(name: str, given: Sequence[str] = ()) -> Estimate:
        n, x, fixed = len(prompt), known[name], [known[other] for other in given]
        if not n:
            return undefined("no prompt has two scored answers")
        if not reward.any():
            return undefined("the rewards of the answers to a prompt are all equal", n)
        if not x.any():
            return undefined(f"the answers to a prompt do not differ in {name}", n)

        def statistic(rows: np.ndarray) -> float:
            return spearman(x[rows], reward[rows], [column[rows] for column in fixed])

        problem = f"{' and '.join(given) or 'too few answers'} alone explain it"
        return estimate(statistic, prompt, problem=problem, resamples=resamples, seed=seed)

    return tuple(Level(name, related(name), None if name == LENGTH else related(name, (LENGTH,))) for name in counted)


def within(values: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """`values - their mean over the answers to the same prompt` [S]: the level of a prompt's rewards is free."""
    _, codes, counts = np.unique(prompt, return_inverse=True, return_counts=True)
    centred = values - (np.bincount(codes, weights=values) / counts)[codes]
    return np.where(np.abs(centred) <= 1e-12 * np.maximum(1.0, np.abs(values)), 0.0, centred)
