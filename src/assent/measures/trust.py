"""How far a reward can be trusted, on one set of judged answers: every measure of this package together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from assent.measures.accuracy import Accuracy, accuracy, by_label, length_classes, strength_bins
from assent.measures.best_of import Point, best_of_n
from assent.measures.bias import Bias, bias
from assent.measures.calibration import Calibration, calibration
from assent.measures.disagreement import Disagreement, auroc, disagreement
from assent.measures.edits import Sensitivity
from assent.measures.estimates import RESAMPLES, Estimate, estimate, undefined
from assent.measures.judged import Judged
from assent.measures.texts import length

STRENGTH, LENGTH = "strength", "better answer"
"""Parts of the pairs beside those by a column of the data."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What there was to measure, and what was left out of it."""

    prompts: int
    answers: int
    unscored: int
    failures: Mapping[str, int]
    """Why answers are unscored, and how many."""
    pairs: int
    pairs_scored: int
    label_ties: int
    """Comparisons that people left open."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The measures of one set; a part is None, or empty, where the data cannot have it."""

    counts: Counts
    accuracy: Accuracy | None
    parts: Mapping[str, Mapping[str, Accuracy]]
    """Accuracy of each part of the pairs, by what they are told apart."""
    tied: Estimate | None
    """The chance that a decided pair has the greater |gap| of two pairs, one decided by people and one left open."""
    calibration: Calibration | None
    bias: Bias
    sensitivity: tuple[Sensitivity, ...] = ()
    disagreement: Disagreement | None = None
    best_of: tuple[Point, ...] = ()
    gold: str = ""
    """What the gold reward is, in words; "" where there is none."""
    notes: tuple[str, ...] = field(default=())
    """What could not be measured, and why."""


def measure(
    judged: Judged,
    *,
    failures: Mapping[str, int] | None = None,
    sensitivity: Sequence[Sensitivity] = (),
    gold: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Trust:
    """Everything that these data allow. `sensitivity` was measured apart (it asks for more rewards); `gold` says what
    `judged.gold` is."""
    gap, prompt = judged.gap(judged.rewards), judged.pair_prompt
    scored = ~np.isnan(gap)
    counts = Counts(
        prompts=len(np.unique(judged.prompt)),
        answers=len(judged.rewards),
        unscored=int(np.isnan(judged.rewards).sum()),
        failures=dict(failures or {}),
        pairs=len(gap),
        pairs_scored=int(scored.sum()),
        label_ties=len(judged.ties),
    )
    members = None if judged.members is None else np.stack([judged.gap(member) for member in judged.members])
    return Trust(
        counts,
        accuracy(gap, prompt) if len(gap) else None,
        _parts(judged, gap),
        _tied(judged, gap, resamples=resamples, seed=seed) if len(judged.ties) else None,
        calibration(gap, prompt, seed=seed) if len(gap) else None,
        bias(judged, resamples=resamples, seed=seed),
        tuple(sensitivity),
        None if members is None or not len(gap) else disagreement(gap, members, prompt, resamples=resamples, seed=seed),
        () if judged.gold is None else best_of_n(judged.rewards, judged.gold, judged.prompt),
        gold if judged.gold is not None else "",
        tuple(_notes(judged, counts)),
    )


def _parts(judged: Judged, gap: np.ndarray) -> dict[str, dict[str, Accuracy]]:
    if not len(gap):
        return {}
    prompt = judged.pair_prompt
    sizes = np.array([length(text) for text in judged.texts])
    classes = length_classes(sizes[judged.pairs[:, 0]], sizes[judged.pairs[:, 1]])
    found = {LENGTH: by_label(gap, prompt, classes)}
    order = np.argsort(judged.strength, kind="stable")  # so that the weakest come first
    bins = strength_bins(judged.strength)
    found[STRENGTH] = by_label(gap[order], prompt[order], [bins[index] for index in order])
    found |= {name: by_label(gap, prompt, labels) for name, labels in judged.groups.items()}
    return {name: parts for name, parts in found.items() if len(parts) > 1 or (parts and name == LENGTH)}


def _tied(judged: Judged, gap: np.ndarray, *, resamples: int, seed: int) -> Estimate:
    open_gap = judged.rewards[judged.ties[:, 0]] - judged.rewards[judged.ties[:, 1]]
    size = np.abs(np.concatenate([gap, open_gap]))
    decided = np.arange(len(size)) < len(gap)
    prompt = np.concatenate([judged.pair_prompt, judged.prompt[judged.ties[:, 0]]])
    there = ~np.isnan(size)
    size, decided, prompt = size[there], decided[there], prompt[there]
    if decided.all() or not decided.any():
        return undefined("there are no scored pairs of both kinds", len(size))
    return estimate(lambda rows: auroc(size[rows], decided[rows]), prompt, resamples=resamples, seed=seed)


def _notes(judged: Judged, counts: Counts) -> list[str]:
    notes = []
    known = judged.rewards[~np.isnan(judged.rewards)]
    if not counts.pairs:
        why = f"all {counts.label_ties:,} comparisons are ties" if counts.label_ties else "no pair is labelled"
        notes.append(f"{why}: accuracy, calibration and what depends on labels are not measured")
    if counts.pairs and not counts.pairs_scored:
        notes.append("no pair has two scored answers")
    if len(known) > 1 and not np.ptp(known):
        notes.append(f"all {len(known)} rewards are equal ({known[0]:g}): no correlation is defined")
    if judged.gold is not None:
        sizes = np.unique(np.bincount(np.unique(judged.prompt, return_inverse=True)[1]))
        if len(sizes) > 1:
            notes.append(
                f"prompts have {sizes.min()} to {sizes.max()} answers: each point of the best-of-n curve has the "
                "prompts with n or more, and its gains are over the same prompts"
            )
    return notes


def as_json(trust: Trust) -> dict[str, object]:
    """The same as plain JSON; what is not defined is null."""
    found = without_nan(asdict(trust))
    assert isinstance(found, dict)
    return found


def without_nan(value: object) -> object:
    """With None in place of numbers that are not finite, in nested JSON."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
