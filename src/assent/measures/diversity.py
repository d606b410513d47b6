"""How varied answers are: distinct n-grams, self-BLEU, repetition and loops.

Words are `texts.words`: lower case, marks of punctuation one by one, in scripts without blanks each letter. No number
here is comparable with one over other words, and distinct-n falls with the number of answers: compare policies on the
same prompts with equally many answers each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from assent.measures.answers import Answers
from assent.measures.shapes import Column, Each, Measure, Statistic, Whole
from assent.measures.texts import words

Gram = tuple[str, ...]
ORDER = 4
"""Longest n-grams of self-BLEU."""
OTHERS = 10
"""How many other prompts' answers are the references of one answer: more of them mean a higher self-BLEU."""
PERIOD = 60
"""Longest phrase, in words, whose immediate repetition is looked for."""
COPIES = 3
"""How often in a row a phrase stands where it is a loop: twice is style."""
SHORT = "it is shorter than the n-grams"
ALONE = "the prompt has one answer"


def ngrams(tokens: Sequence[str], n: int) -> list[Gram]:
    """All n-grams in their order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


# ------------------------------------------------------------------------------------------------------------ distinct


def distinct(texts: Sequence[str], prompt: np.ndarray, n: int) -> Callable[[np.ndarray], float]:
    """distinct-n of a set of rows: different n-grams / all n-grams, over all answers together (Li et al., arXiv
    1510.03055). NaN where there is no n-gram.

    A prompt that is drawn twice brings no new n-grams, so a bootstrap would put its interval below the value. Where
    rows are repeated, the number is therefore what the jackknife by prompts says of it: the value of all plus the mean
    over the drawn prompts of (P - 1) (value of all - value without that prompt), centred."""
    counts = [Counter(ngrams(words(text), n)) for text in texts]
    codes = np.unique(prompt, return_inverse=True)[1]
    every = np.arange(len(texts))
    value, influence = _jackknife(counts, codes)

    def of(rows: np.ndarray) -> float:
        unique, times = np.unique(rows, return_counts=True)
        if len(unique) == len(rows):
            return value if len(rows) == len(every) else _distinct([counts[row] for row in rows])
        drawn = np.unique(codes[unique], return_index=True)
        return value + float(np.average(influence[drawn[0]], weights=times[drawn[1]]))

    return of


def _distinct(counts: Sequence[Counter[Gram]]) -> float:
    total = sum(count.total() for count in counts)
    return len(set().union(*counts)) / total if total else math.nan


def _jackknife(counts: Sequence[Counter[Gram]], codes: np.ndarray) -> tuple[float, np.ndarray]:
    """distinct-n of all, and how far each prompt moves it: centred, (P - 1) times the difference to being without."""
    size = int(codes.max(initial=-1)) + 1
    sums: list[Counter[Gram]] = [Counter() for _ in range(size)]
    for code, count in zip(codes, counts, strict=True):
        sums[code] += count
    holders = Counter(gram for each in sums for gram in each)
    different, total = len(holders), sum(each.total() for each in sums)
    if not total:
        return math.nan, np.zeros(size)
    own = np.array([sum(holders[gram] == 1 for gram in each) for each in sums], np.float64)
    rest = total - np.array([each.total() for each in sums], np.float64)
    without = np.divide(different - own, rest, out=np.full(size, different / total), where=rest > 0)
    influence = (size - 1) * (different / total - without)
    return different / total, influence - influence.mean()


# ----------------------------------------------------------------------------------------------------------- self-BLEU


class _Counted(NamedTuple):
    """A text's words, counted: how many, and its n-grams of each order."""

    size: int
    grams: tuple[Counter[Gram], ...]


def _counted(text: Sequence[str]) -> _Counted:
    return _Counted(len(text), tuple(Counter(ngrams(text, n)) for n in range(1, min(ORDER, len(text)) + 1)))


def bleu_against(text: Sequence[str], others: Sequence[Sequence[str]]) -> float:
    """Sentence BLEU of words against several references, 0 to 1: up to 4-grams, over the orders that the text has,
    exponential smoothing (sacrebleu's sentence score). NaN of an empty text."""
    return _bleu(_counted(text), [_counted(other) for other in others])


def _bleu(text: _Counted, others: Sequence[_Counted]) -> float:
    if not text.size:
        return math.nan
    logs, smooth = [], 1.0
    for order, mine in enumerate(text.grams):
        there = [other.grams[order] for other in others if len(other.grams) > order]
        matched = sum(min(count, max((grams[gram] for grams in there), default=0)) for gram, count in mine.items())
        if order == 0 and not matched:
            return 0.0
        if not matched:
            smooth *= 2
        logs.append(math.log((matched or 1 / smooth) / mine.total()))
    nearest = min((other.size for other in others), key=lambda size: (abs(size - text.size), size))
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - nearest / text.size))


def self_bleu_within(texts: Sequence[str], prompt: np.ndarray) -> np.ndarray:
    """Of each answer [S], its BLEU against the other answers to the same prompt (Zhu et al., arXiv 1802.01886): how
    alike several answers to one prompt are. NaN where there is no other, and of empty answers."""
    split = [_counted(words(text)) for text in texts]
    values = np.full(len(texts), math.nan)
    for rows in (np.flatnonzero(prompt == number) for number in np.unique(prompt)):
        for row in rows[: len(rows) if len(rows) > 1 else 0]:
            values[row] = _bleu(split[row], [split[other] for other in rows if other != row])
    return values


def self_bleu_across(texts: Sequence[str], prompt: np.ndarray, *, others: int = OTHERS, seed: int = 0) -> np.ndarray:
    """Of each answer [S], its BLEU against the first answers to `others` other prompts, drawn by seed from the
    prompts' numbers, so that policies are measured against the same prompts: how much a policy says the same whatever
    it is asked. NaN where there are no other prompts, and of empty answers."""
    split = [_counted(words(text)) for text in texts]
    numbers, first = np.unique(prompt, return_index=True)
    values = np.full(len(texts), math.nan)
    for number in numbers if len(numbers) > 1 else ():
        rng = np.random.default_rng([seed, int(number)])
        rest = first[numbers != number]
        chosen = rng.choice(rest, min(others, len(rest)), replace=False)
        for row in np.flatnonzero(prompt == number):
            values[row] = _bleu(split[row], [split[other] for other in chosen])
    return values


# ---------------------------------------------------------------------------------------------------------- repetition


def repetition(text: str, n: int = 4) -> float:
    """Share of an answer's n-grams that stood before in it: 1 - different / all (seq-rep-n, arXiv 1908.04319). NaN of
    fewer than n words."""
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def longest_loop(text: str) -> int:
    """Words of the longest stretch in which one phrase of up to 60 words follows itself three times or more; 0 without
    one. "no no no no" has 4, "to be or to be or to be or what" 9."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], np.int64)
    longest = 0
    for period in range(1, min(PERIOD, len(ids) // COPIES) + 1):
        same = np.flatnonzero(np.r_[True, ids[period:] != ids[:-period], True])
        run = int(np.diff(same).max()) - 1 + period  # words of the stretch: what is repeated and its repetitions
        if run >= COPIES * period:
            longest = max(longest, run)
    return longest


# ---------------------------------------------------------------------------------------------------------------- rows


def _distinct_row(n: int) -> Whole:
    def prepare(answers: Answers) -> Statistic:
        return Statistic(distinct(answers.texts, answers.prompt, n), answers.prompt, ("",) * len(answers))

    return Whole(
        name=f"distinct-{n}",
        about=f"different {n}-grams of words / all, over all answers (1510.03055); falls with the number of answers",
        unit="share",
        prepare=prepare,
    )


def _within(answers: Answers) -> Column:
    values = self_bleu_within(answers.texts, answers.prompt)
    sizes = np.bincount(answers.prompt, minlength=len(answers.prompts))[answers.prompt]
    reasons = [ALONE if size < 2 else "it is empty" for size in sizes]
    return Column(values, tuple(why if math.isnan(value) else "" for value, why in zip(values, reasons, strict=True)))


def _across(answers: Answers) -> Column:
    values = self_bleu_across(answers.texts, answers.prompt)
    reason = "it is empty" if len(np.unique(answers.prompt)) > 1 else "there is one prompt"
    return Column.of(values, reason)


ROWS: tuple[Measure, ...] = (
    *(_distinct_row(n) for n in (1, 2, 3)),
    Each(
        name="self-bleu",
        about="BLEU of an answer against the others to the same prompt, 0 to 1 (1802.01886): how alike they are",
        unit="share",
        better="lower",
        needs=("several",),
        of=_within,
    ),
    Each(
        name="self-bleu-across",
        about=f"BLEU of an answer against those to {OTHERS} other prompts, 0 to 1: sameness whatever is asked",
        unit="share",
        better="lower",
        of=_across,
    ),
    Each(
        name="repetition",
        about="share of an answer's 4-grams that stood before in it (seq-rep-4, 1908.04319)",
        unit="share",
        better="lower",
        of=lambda answers: Column.of([repetition(text) for text in answers.texts], SHORT),
    ),
    Each(
        name="loop",
        about="words of the longest stretch in which a phrase follows itself three times or more",
        unit="words",
        better="lower",
        of=lambda answers: Column.of([float(longest_loop(text)) for text in answers.texts]),
    ),
)
