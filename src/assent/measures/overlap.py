"""How much of the right answers stands in a policy's answers: BLEU, chrF, ROUGE, METEOR, and equality.

BLEU and chrF of a corpus come from counts of each answer that are summed, so that drawing prompts anew tokenises
nothing again. An answer to a prompt without right answers has no number, and is counted.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assent.measures.answers import Answers
from assent.measures.extras import extra
from assent.measures.numbers import final_number, gold_number
from assent.measures.shapes import Column, Each, Measure, Statistic, Whole
from assent.measures.texts import unspaced, words

References = Sequence[Sequence[str]]
"""S tuples of right answers, as many of each answer as there are."""
ORDER = 4
"""Longest n-grams of BLEU, words."""
CHARACTERS = 6
"""Longest n-grams of chrF, characters."""
BETA = 2.0
"""How much more chrF asks for recall than for precision."""
NONE = "the prompt has no right answer"
UNSEEN = "right answers are not in letters a to z, and ROUGE sees no others"
UNSPLIT = "right answers are in a script without blanks between words, which BLEU's tokenizer 13a does not split"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


# ---------------------------------------------------------------------------------------------------------------- BLEU


@dataclass(frozen=True, slots=True)
class Bleu:
    """What BLEU counts of S answers: n-grams that stand in a right answer and all of them, [S, 4] each, and the words
    of the answer and of the right answer that is nearest in length, [S] each."""

    matched: np.ndarray
    total: np.ndarray
    words: np.ndarray
    reference_words: np.ndarray

    def corpus(self, rows: np.ndarray) -> float:
        """BLEU of a set of rows, 0 to 100, from the summed counts (Papineni et al. 2002):

            exp(min(0, 1 - r / c)) * exp(mean_n log(matched_n / total_n))

        c and r the words of the answers and of their right ones. NaN without rows."""
        return self._score(rows, effective=False) if len(rows) else math.nan

    def sentences(self) -> np.ndarray:
        """BLEU of each answer alone [S], 0 to 100, over the orders that it is long enough for. A single sentence's
        BLEU says little; it is for ordering and looking at answers."""
        return np.array([self._score(np.array([row]), effective=True) for row in range(len(self.words))])

    def _score(self, rows: np.ndarray, *, effective: bool) -> float:
        metric = extra("sacrebleu.metrics", "bleu").BLEU
        score = metric.compute_bleu(
            self.matched[rows].sum(0).tolist(),
            self.total[rows].sum(0).tolist(),
            int(self.words[rows].sum()),
            int(self.reference_words[rows].sum()),
            smooth_method="exp",
            effective_order=effective,
        )
        return float(score.score)


def bleu(texts: Sequence[str], references: References, *, tokenize: str = "13a") -> Bleu:
    """The counts, as sacrebleu makes them (mixed case, tokenizer 13a, exponential smoothing). 13a splits at blanks
    and punctuation: `tokenize` "zh" or "char" is for languages that write without blanks. An answer without
    references counts nothing."""
    metric = extra("sacrebleu.metrics", "bleu").BLEU(tokenize=tokenize, effective_order=True)
    matched, total = np.zeros((len(texts), ORDER), np.int64), np.zeros((len(texts), ORDER), np.int64)
    words, reference_words = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    for row, (text, given) in enumerate(zip(texts, references, strict=True)):
        if given:
            found = metric.sentence_score(text, list(given))
            matched[row], total[row] = found.counts, found.totals
            words[row], reference_words[row] = found.sys_len, found.ref_len
    return Bleu(matched, total, words, reference_words)


# ---------------------------------------------------------------------------------------------------------------- chrF


def chrf_counts(texts: Sequence[str], references: References) -> np.ndarray:
    """[S, 6, 3]: for each order the n-grams of characters (blanks aside) of the answer, of the right answer that it is
    most like, and those that both have. An n-gram of the answer counts only where the right answer is long enough to
    have one."""
    counts = np.zeros((len(texts), CHARACTERS, 3), np.int64)
    for row, (text, given) in enumerate(zip(texts, references, strict=True)):
        best, ours = -1.0, _ngrams(text)
        for reference in given:
            theirs = _ngrams(reference)
            found = np.array(
                [
                    (sum(mine.values()) if right else 0, sum(right.values()), (mine & right).total())
                    for mine, right in zip(ours, theirs, strict=True)
                ]
            )
            if (score := chrf_score(found)) > best:
                best, counts[row] = score, found
    return counts


def chrf_score(counts: np.ndarray) -> float:
    """chrF of counts [6, 3], 0 to 100: (1 + β²) P R / (β² P + R), β 2, precision and recall the means over the orders
    that both have (Popović 2015)."""
    ours, theirs, both = counts.T.astype(np.float64)
    there = (ours > 0) & (theirs > 0)
    if not both.any():
        return 0.0
    precision, recall = (both[there] / ours[there]).mean(), (both[there] / theirs[there]).mean()
    return float(100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall))


def _ngrams(text: str) -> list[Counter[str]]:
    line = "".join(text.split())
    return [Counter(line[i : i + n] for i in range(len(line) - n + 1)) for n in range(1, CHARACTERS + 1)]


# ---------------------------------------------------------------------------------------------- ROUGE, METEOR, equality


def rouge(texts: Sequence[str], references: References, kind: str, *, stem: bool = False) -> np.ndarray:
    """ROUGE [S] as rouge-score gives it: F1 of n-grams ("rouge1", "rouge2") or of the longest common subsequence
    ("rougeL"), the best of several references (Lin 2004). 0 to 1.

    Its words are made of a to z and 0 to 9 alone; NaN where no reference is mostly written so, else other languages
    would get 0 in silence. `stem`: Porter stems are compared."""
    scorer = extra("rouge_score.rouge_scorer", kind).RougeScorer([kind], use_stemmer=stem)
    values = np.full(len(texts), math.nan)
    for row, (text, given) in enumerate(zip(texts, references, strict=True)):
        readable = [reference for reference in given if _readable(reference)]
        if readable:
            values[row] = scorer.score_multi(readable, text)[kind].fmeasure
    return values


def _readable(text: str) -> bool:
    """Whether half of its letters and digits, or more, are of a to z and 0 to 9."""
    letters = [letter for letter in text.lower() if letter.isalnum()]
    return 0 < len(letters) <= 2 * sum(letter.isascii() for letter in letters)


class _NoSynonyms:
    """In place of WordNet, which is no package but a download."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


class _Stems:
    """A stemmer that stems each word once: nltk's takes most of the time of METEOR."""

    def __init__(self, stemmer: Any) -> None:
        self._stemmer = stemmer
        self._known: dict[str, str] = {}

    def stem(self, word: str) -> str:
        if (stem := self._known.get(word)) is None:
            stem = self._known[word] = self._stemmer.stem(word)
        return stem


def meteor(texts: Sequence[str], references: References) -> np.ndarray:
    """METEOR [S] with exact and stem matches only, the best of several references, 0 to 1: F of precision and recall
    of words, α 0.9, times 1 - 0.5 (chunks / matches)³ (Lavie & Agarwal 2007), as nltk gives it with an empty WordNet.
    With synonyms it would be higher: not to be compared with such numbers. NaN without references."""
    module = extra("nltk.translate.meteor_score", "meteor")
    stems = _Stems(extra("nltk.stem", "meteor").PorterStemmer())
    values = np.full(len(texts), math.nan)
    for row, (text, given) in enumerate(zip(texts, references, strict=True)):
        if given:
            theirs = [words(reference) for reference in given]
            values[row] = module.meteor_score(theirs, words(text), stemmer=stems, wordnet=_NoSynonyms())
    return values


def plain(text: str) -> str:
    """What is left of a text for comparing it: NFKC, lower case, without punctuation and English articles, one blank
    between words (SQuAD, arXiv 1606.05250)."""
    lowered = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def exact_match(texts: Sequence[str], references: References, *, strict: bool = True) -> np.ndarray:
    """1 where the answer is a right answer, else 0, [S]: to the letter, blanks around them aside, or (not `strict`)
    after `plain`. NaN without references."""
    form: Callable[[str], str] = str.strip if strict else plain
    return np.array(
        [
            float(form(text) in {form(reference) for reference in given}) if given else math.nan
            for text, given in zip(texts, references, strict=True)
        ]
    )


def numeric_match(texts: Sequence[str], references: References) -> np.ndarray:
    """1 where the number that the answer ends on is that of a right answer, else 0, [S]; numbers are compared as
    fractions, see `measures.numbers`. NaN where no right answer has a number; an answer without one is wrong."""
    values = np.full(len(texts), math.nan)
    for row, (text, given) in enumerate(zip(texts, references, strict=True)):
        right = {number for number in map(_gold, given) if number is not None}
        if right:
            values[row] = float(final_number(text) in right)
    return values


def _gold(reference: str) -> object:
    try:
        return gold_number(reference)
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------------------------- rows


def _references(answers: Answers) -> list[tuple[str, ...]]:
    return [answers.reference(row) for row in range(len(answers))]


def _reasons(answers: Answers) -> tuple[str, ...]:
    return tuple("" if given else NONE for given in _references(answers))


def _splittable(answers: Answers) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """References without those that 13a does not split, and why none is left."""
    given = _references(answers)
    kept = [tuple(reference for reference in each if not unspaced(reference)) for each in given]
    return kept, tuple("" if left else UNSPLIT if each else NONE for left, each in zip(kept, given))


def _corpus_bleu(answers: Answers) -> Statistic:
    references, reasons = _splittable(answers)
    return Statistic(bleu(answers.texts, references).corpus, answers.prompt, reasons)


def _sentence_bleu(answers: Answers) -> Column:
    references, reasons = _splittable(answers)
    there = np.array([not reason for reason in reasons], bool)
    return Column(np.where(there, bleu(answers.texts, references).sentences(), math.nan), reasons)


def _corpus_chrf(answers: Answers) -> Statistic:
    counts = chrf_counts(answers.texts, _references(answers))

    def of(rows: np.ndarray) -> float:
        return chrf_score(counts[rows].sum(0)) if len(rows) else math.nan

    return Statistic(of, answers.prompt, _reasons(answers))


def _each(
    function: Callable[[Sequence[str], References], np.ndarray], other: str = NONE
) -> Callable[[Answers], Column]:
    """`other`: why there is no value although there are references."""

    def of(answers: Answers) -> Column:
        values = function(answers.texts, _references(answers))
        reasons = [reason or other for reason in _reasons(answers)]
        return Column(values, tuple(why if math.isnan(value) else "" for value, why in zip(values, reasons)))

    return of


plainly = _each(lambda texts, references: exact_match(texts, references, strict=False))
numeric = _each(numeric_match, "no right answer has a number")


def right(answers: Answers) -> Column:
    """1 where an answer ends on the number of a right answer, or, where right answers have none, is one but for case,
    punctuation and articles."""
    number, text = numeric(answers), plainly(answers)
    values = np.where(np.isnan(number.values), text.values, number.values)
    return Column.of(values, NONE)


ROWS: tuple[Measure, ...] = (
    Whole(
        name="bleu",
        package="sacrebleu",
        about="BLEU of all answers together, 0 to 100, as sacrebleu (13a, exponential smoothing)",
        unit="points",
        better="higher",
        needs=("references",),
        prepare=_corpus_bleu,
    ),
    Each(
        name="sentence-bleu",
        on_request=True,
        package="sacrebleu",
        about="mean of the answers' own BLEU, 0 to 100, as sacrebleu's sentence score; not comparable with bleu",
        unit="points",
        better="higher",
        needs=("references",),
        of=_sentence_bleu,
    ),
    Whole(
        name="chrf",
        package="sacrebleu",
        about="chrF of all answers together, 0 to 100: F2 of n-grams of up to 6 characters, as sacrebleu",
        unit="points",
        better="higher",
        needs=("references",),
        prepare=_corpus_chrf,
    ),
    *(
        Each(
            name=name,
            package="rouge_score",
            about=f"{about}, best of several references, as rouge-score without stems",
            unit="share",
            better="higher",
            needs=("references",),
            of=_each(lambda texts, references, kind=kind: rouge(texts, references, kind), UNSEEN),  # type: ignore[misc]
        )
        for name, kind, about in (
            ("rouge-1", "rouge1", "F1 of words"),
            ("rouge-2", "rouge2", "F1 of pairs of words"),
            ("rouge-l", "rougeL", "F1 of the longest common subsequence of words"),
        )
    ),
    Each(
        name="meteor",
        package="nltk",
        about="METEOR with exact and stem matches, no synonyms: not comparable with METEOR that has WordNet",
        unit="share",
        better="higher",
        needs=("references",),
        of=_each(meteor),
    ),
    Each(
        name="exact-match",
        about="share of answers that are a right answer to the letter, blanks around them aside",
        unit="share",
        better="higher",
        needs=("references",),
        of=_each(exact_match),
    ),
    Each(
        name="plain-match",
        about="share of answers that are a right answer but for case, punctuation and articles (SQuAD, 1606.05250)",
        unit="share",
        better="higher",
        needs=("references",),
        of=plainly,
    ),
    Each(
        name="numeric-match",
        about="share of answers that end on the number of a right answer (GSM8K, 2110.14168)",
        unit="share",
        better="higher",
        needs=("references",),
        of=numeric,
    ),
)
