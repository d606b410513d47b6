"""Overlap with right answers: the numbers of sacrebleu, rouge-score and nltk, and of formulas written out here."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from assent.errors import ConfigError
from assent.measures import overlap
from assent.measures.answers import Answers, Prompts
from assent.measures.estimates import estimate
from assent.measures.extras import COMMAND
from assent.measures.shapes import Each, Whole

TEXTS = (
    "The cat sat on the mat, near the door.",
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "Paris",
    "",
    "completely different words here",
    "the the the the",
)
REFERENCES = (
    ("The cat is sitting on the mat near a door.", "A cat sat on the mat by the door."),
    ("It is a guide to action that ensures that the military will forever heed Party commands",),
    ("Paris", "The capital of France is Paris."),
    ("something",),
    ("nothing shared at all", "no overlap"),
    ("the cat",),
)


def answers(texts: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> Answers:
    blank = ("",) * len(texts)
    return Answers("p", Prompts(blank, blank, references, blank), np.arange(len(texts)), texts)


def value(name: str, given: Answers) -> float:
    row = next(row for row in overlap.ROWS if row.name == name)
    if isinstance(row, Each):
        return float(np.nanmean(row.of(given).values))
    assert isinstance(row, Whole)
    found = row.prepare(given)
    return found.of(np.array([n for n, why in enumerate(found.reasons) if not why]))


def streams(references: tuple[tuple[str, ...], ...]) -> list[list[str | None]]:
    most = max(map(len, references))
    return [[given[n] if n < len(given) else None for given in references] for n in range(most)]


def test_corpus_bleu_and_chrf_are_sacrebleus():
    from sacrebleu.metrics import BLEU, CHRF

    given = answers(TEXTS, REFERENCES)
    assert value("bleu", given) == pytest.approx(BLEU().corpus_score(TEXTS, streams(REFERENCES)).score, abs=1e-9)
    assert value("chrf", given) == pytest.approx(CHRF().corpus_score(TEXTS, streams(REFERENCES)).score, abs=1e-9)
    assert value("bleu", given) > 10 and value("chrf", given) > 10
    # Of any set of rows, from counts: as sacrebleu has them, repeated ones too.
    rows = np.array([1, 1, 0, 4])
    texts, references = [TEXTS[n] for n in rows], tuple(REFERENCES[n] for n in rows)
    counts = overlap.bleu(TEXTS, REFERENCES)
    assert counts.corpus(rows) == pytest.approx(BLEU().corpus_score(texts, streams(references)).score, abs=1e-9)
    assert math.isnan(counts.corpus(np.zeros(0, np.int64)))


def test_sentence_scores_are_sacrebleus():
    from sacrebleu.metrics import BLEU, CHRF

    sentence, chrf = BLEU(effective_order=True), CHRF()
    ours, counts = overlap.bleu(TEXTS, REFERENCES).sentences(), overlap.chrf_counts(TEXTS, REFERENCES)
    for row, (text, given) in enumerate(zip(TEXTS, REFERENCES, strict=True)):
        assert ours[row] == pytest.approx(sentence.sentence_score(text, list(given)).score, abs=1e-9)
        assert overlap.chrf_score(counts[row]) == pytest.approx(chrf.sentence_score(text, list(given)).score, abs=1e-9)


def test_bleu_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; 5 words against 6.
    found = overlap.bleu(["a b c d x"], [["a b c d e f"]])
    expected = 100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert found.corpus(np.array([0])) == pytest.approx(expected)


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_scores(kind: str, stem: bool):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=stem)
    ours = overlap.rouge(TEXTS, REFERENCES, kind, stem=stem)
    for row, (text, given) in enumerate(zip(TEXTS, REFERENCES, strict=True)):
        assert ours[row] == scorer.score_multi(given, text)[kind].fmeasure
    assert ours[1] > ours[4]


def test_rouge_by_hand():
    # 2 of 3 words of the answer, 2 of 4 of the reference.
    assert overlap.rouge(["a b x"], [["a b c d"]], "rouge1")[0] == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )


def test_meteor_has_stems_and_no_synonyms():
    same = overlap.meteor(["the cats sat"], [["the cat sat"]])[0]
    assert same == pytest.approx(1 - 0.5 * (1 / 3) ** 3)  # all match, in one chunk
    # precision 2/3, recall 2/4, two chunks of two matches
    turned = overlap.meteor(["b a x"], [["a b c d"]])[0]
    assert turned == pytest.approx((2 / 3) * (2 / 4) / (0.9 * 2 / 3 + 0.1 * 2 / 4) * 0.5)
    assert overlap.meteor(["automobile"], [["car"]])[0] == 0  # WordNet would match
    assert overlap.meteor(["nothing", "the cats sat"], [["x", "nothing"], []])[0] > 0
    assert math.isnan(overlap.meteor(["a"], [[]])[0])


def test_exact_and_numeric_matches():
    texts = (" Paris\n", "paris.", "The Paris", "It costs 12, so 3 * 4 = 12", "12.0", "none", "5")
    references = (("Paris",), ("Paris",), ("Paris",), ("#### 12",), ("12", "13"), ("7",), ())
    strict, plain = (overlap.exact_match(texts, references, strict=strict) for strict in (True, False))
    assert strict[:3].tolist() == [1, 0, 0] and plain[:3].tolist() == [1, 1, 1]
    assert math.isnan(strict[6]) and math.isnan(plain[6])
    numbers = overlap.numeric_match(texts, references)
    assert np.isnan(numbers[:3]).all() and numbers[3:6].tolist() == [1, 1, 0] and math.isnan(numbers[6])


def test_what_cannot_be_measured_is_counted_and_never_zero():
    given = answers(("東京です。", "Tokyo", "x"), (("東京です。",), ("Tokyo",), ()))
    for row in overlap.ROWS:
        reasons = row.of(given).reasons if isinstance(row, Each) else row.prepare(given).reasons
        assert reasons[2] == overlap.NONE, row.name
        blind = row.name in ("bleu", "sentence-bleu", "rouge-1", "rouge-2", "rouge-l", "numeric-match")
        assert bool(reasons[0]) == blind, row.name
    assert value("rouge-1", given) == 1.0 and value("chrf", given) == pytest.approx(100)
    # An answer in another script than the right one is wrong, not unmeasured.
    assert value("rouge-1", answers(("東京",), (("Tokyo",),))) == 0
    assert value("bleu", answers(("",), (("Tokyo",),))) == 0


def test_bleu_has_an_interval_from_its_counts():
    rng = np.random.default_rng(0)
    pool = "the a cat dog sat ran on under mat tree and".split()
    texts = tuple(" ".join(rng.choice(pool, 12)) for _ in range(60))
    references = tuple((" ".join([*text.split()[:6], *rng.choice(pool, 6)]),) for text in texts)
    statistic = next(row for row in overlap.ROWS if row.name == "bleu").prepare(answers(texts, references))
    found = estimate(statistic.of, statistic.prompt)
    assert found.low < found.value < found.high < found.value + 15


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    for module, call in (
        ("sacrebleu.metrics", lambda: overlap.bleu(["a"], [["a"]])),
        ("rouge_score.rouge_scorer", lambda: overlap.rouge(["a"], [["a"]], "rouge1")),
        ("nltk.translate.meteor_score", lambda: overlap.meteor(["a"], [["a"]])),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match="needs the package") as raised:
            call()
        assert COMMAND in str(raised.value)
