"""Comparisons of two policies' answers, and how often one wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from assent.measures.answers import Answers
from assent.measures.estimates import Estimate, undefined
from assent.measures.shapes import Duels, Measure, Versus
from assent.statistics import share_interval


def same_prompt(ours: Answers, theirs: Answers) -> np.ndarray:
    """[M, 2]: every answer of one policy with every one of the other to the same prompt."""
    others: dict[int, list[int]] = {}
    for index, prompt in enumerate(theirs.prompt.tolist()):
        others.setdefault(prompt, []).append(index)
    pairs = [(i, j) for i, prompt in enumerate(ours.prompt.tolist()) for j in others.get(prompt, ())]
    return np.array(pairs, np.int64).reshape(-1, 2)


def duels_by_score(source: str, ours: Answers, theirs: Answers) -> Duels:
    """The higher score wins, equal ones tie; a comparison with an unscored side is a failure. Two answers
    that are the same tie as well: a model that reads them in different batches may round their scores apart."""
    pairs = same_prompt(ours, theirs)
    sides = [
        (answers.scores[source][pairs[:, side]], _reasons(answers, source, pairs[:, side]))
        for side, answers in enumerate((ours, theirs))
    ]
    (mine, my_reasons), (its, its_reasons) = sides
    same = np.array([_told(ours, i) == _told(theirs, j) for i, j in pairs.tolist()], bool)
    outcome = np.where(np.isnan(mine - its), np.nan, (np.sign(np.where(same, 0.0, mine - its)) + 1) / 2)
    reasons = tuple((a or b) if math.isnan(o) else "" for a, b, o in zip(my_reasons, its_reasons, outcome, strict=True))
    return Duels(source, ours, theirs, pairs, outcome, reasons)


def _told(answers: Answers, index: int) -> tuple[str, bool]:
    """An answer, and whether it came to its end, which a score may depend on."""
    return answers.texts[index], answers.finished is None or bool(answers.finished[index])


def _reasons(answers: Answers, source: str, indices: np.ndarray) -> Sequence[str]:
    told = answers.unscored.get(source)
    return [""] * len(indices) if told is None else [told[index] for index in indices.tolist()]


def reversed_duels(duels: Duels) -> Duels:
    """The same from the other side: a win is a loss."""
    return Duels(duels.by, duels.theirs, duels.ours, duels.pairs[:, ::-1], 1 - duels.outcome, duels.reasons)


def win_rate(duels: Duels) -> Estimate:
    """(wins + ties / 2) / comparisons, Wilson's interval with the effective number of comparisons."""
    rate = share_interval(duels.outcome, duels.prompt.tolist())
    if not rate.n:
        return undefined("no comparison has a verdict")
    return Estimate(rate.mean, rate.low, rate.high, rate.n)


WINS = Versus(
    name="win-rate",
    about="Share of comparisons with the baseline's answers to the same prompts that are won, a tie counting half: by "
    "each score, by a judge asked in both orders, or by people.",
    unit="share",
    better="higher",
    of=win_rate,
)
ROWS: tuple[Measure, ...] = (WINS,)
