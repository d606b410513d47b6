"""Diversity, repetition, form and pass@k: numbers by hand, by sacrebleu and by the closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from assent.errors import ConfigError
from assent.measures import diversity, form
from assent.measures.answers import Answers, Prompts
from assent.measures.estimates import estimate
from assent.measures.overlap import exact_match
from assent.measures.shapes import Column, Each
from assent.measures.texts import unspaced, words


def answers(texts, prompt, references=None) -> Answers:
    size = max(prompt) + 1
    blank = ("",) * size
    return Answers("p", Prompts(blank, blank, references or ((),) * size, blank), np.array(prompt), tuple(texts))


def row(name: str):
    return next(row for row in diversity.ROWS if row.name == name)


def test_words_are_lower_case_and_split_where_there_are_no_blanks():
    assert words("Don't go, she's 3-D!") == ["don't", "go", ",", "she's", "3", "-", "d", "!"]
    assert words("東京 is OK") == ["東", "京", "is", "ok"]
    assert unspaced("東京です") and unspaced("สวัสดี") and not unspaced("Tokyo 東") and not unspaced("")


def test_distinct_counts_over_all_answers():
    texts, prompt = ["a b a b", "a b c"], np.array([0, 1])
    every = np.arange(2)
    assert diversity.distinct(texts, prompt, 1)(every) == 3 / 7
    assert diversity.distinct(texts, prompt, 2)(every) == 3 / 5  # ab, ba, bc of ab ba ab ab bc
    assert diversity.distinct(texts, prompt, 2)(np.array([0])) == 2 / 3
    assert math.isnan(diversity.distinct(["", "a"], prompt, 2)(every))


def test_the_interval_of_distinct_holds_its_value_and_covers():
    """Drawing prompts twice adds no new n-grams: naively the interval would lie below the value."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 301)
    chances /= chances.sum()

    def sample(rng: np.random.Generator) -> list[str]:
        return [" ".join(f"w{n}" for n in rng.choice(300, 15, p=chances)) for _ in range(40)]

    truth = np.mean([diversity.distinct(sample(rng), np.arange(40), 2)(np.arange(40)) for _ in range(300)])
    hits = 0
    for _ in range(120):
        found = estimate(diversity.distinct(sample(rng), np.arange(40), 2), np.arange(40), resamples=200)
        assert found.low < found.value < found.high
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 120 <= 1.0


def test_self_bleu_is_sacrebleus_sentence_score():
    from sacrebleu.metrics import BLEU

    texts = ["the cat sat on the mat", "the cat sat on a mat today", "dogs run", "the dog sat on the mat", "x", ""]
    metric = BLEU(tokenize="none", effective_order=True)
    for n, text in enumerate(texts[:-1]):
        others = [other for k, other in enumerate(texts) if k != n]
        ours = diversity.bleu_against(words(text), [words(other) for other in others])
        assert 100 * ours == pytest.approx(metric.sentence_score(text, others).score, abs=1e-9), text
    assert math.isnan(diversity.bleu_against([], [["a"]]))


def test_self_bleu_within_a_prompt_and_across_prompts():
    same = answers(["yes it is so", "yes it is so", "no", "some other words"], [0, 0, 1, 2])
    within = row("self-bleu").of(same)
    assert within.values[:2] == pytest.approx([1, 1]) and np.isnan(within.values[2:]).all()
    assert within.reasons == ("", "", diversity.ALONE, diversity.ALONE)
    assert row("self-bleu-across").of(same).values == pytest.approx([0, 0, 0, 0])
    parrot = answers(["I am glad you asked that."] * 3, [0, 1, 2])
    assert row("self-bleu-across").of(parrot).values == pytest.approx([1, 1, 1])
    assert row("self-bleu-across").of(answers(["a", "b"], [0, 0])).reasons == ("there is one prompt",) * 2


def test_references_across_prompts_are_the_same_for_every_policy():
    texts = [f"answer number {n}" for n in range(30)]
    one = diversity.self_bleu_across(texts, np.arange(30))
    assert np.array_equal(one, diversity.self_bleu_across(texts, np.arange(30)))
    doubled = diversity.self_bleu_across([text for text in texts for _ in "ab"], np.repeat(np.arange(30), 2))
    assert np.array_equal(doubled[::2], one)


def test_repetition_and_loops():
    assert diversity.repetition("a b c d e f") == 0
    assert diversity.repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert math.isnan(diversity.repetition("a b c"))
    assert diversity.longest_loop("no no no no") == 4
    assert diversity.longest_loop("to be or to be or to be or what") == 9
    assert diversity.longest_loop("x a b c a b c a b c a b") == 11  # the last copy is cut off
    assert diversity.longest_loop("very very good") == 0 and diversity.longest_loop("") == 0
    stuck = "the rain in spain " * 40
    assert diversity.longest_loop(stuck) == 160 and diversity.repetition(stuck) > 0.9


def test_loops_against_a_plain_search():
    rng = np.random.default_rng(3)

    def plain(tokens: list[str]) -> int:
        best = 0
        for period in range(1, len(tokens) // 3 + 1):
            for start in range(len(tokens)):
                end = start + period
                while end < len(tokens) and tokens[end] == tokens[end - period]:
                    end += 1
                if end - start >= 3 * period:
                    best = max(best, end - start)
        return best

    for _ in range(200):
        tokens = [str(n) for n in rng.integers(0, 2, rng.integers(0, 25))]
        assert diversity.longest_loop(" ".join(tokens)) == plain(tokens)


def test_patterns_and_json():
    given = answers(["<a>1</a>", "nothing"], [0, 1])
    assert form.matches("tagged", r"<a>\d</a>").of(given).values.tolist() == [1, 0]
    for wrong in ("(", "a{99999999999}", "[z-a]"):
        with pytest.raises(ConfigError, match="tagged: .* no pattern"):
            form.matches("tagged", wrong)
    assert form.is_json('{"a": [1, 2]}') and form.is_json('```json\n{"a": 1}\n```') and form.is_json(" 3 ")
    for wrong in ("", "Sure: {}", "{'a': 1}", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1} trailing', "[" * 100_000):
        assert not form.is_json(wrong)
    assert form.is_json('{"a": 1, "b": 2}', ["a"]) and not form.is_json('{"b": 1}', ["a"])
    assert not form.is_json("[1]", ["a"])
    assert isinstance(form.json_with(), Each) and form.json_with(["a"]).of(given).values.tolist() == [0, 0]


def test_pass_at_k_is_the_share_of_all_subsets():
    for n, c in itertools.product(range(1, 7), range(7)):
        for k in range(1, n + 1):
            if c > n:
                continue
            subsets = list(itertools.combinations(range(n), k))
            expected = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
            assert form.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(form.pass_at_k(2, 1, 3))
    assert form.pass_at_k(10_000, 3, 100) == pytest.approx(1 - math.prod((9900 - i) / (10_000 - i) for i in range(3)))


def test_pass_at_k_weighs_prompts_and_counts_those_with_too_few_answers():
    texts = ["4", "5", "4", "4", "7", "9"]
    given = answers(texts, [0, 0, 0, 1, 1, 2], (("4",), ("4",), ("9",)))

    def right(answers: Answers) -> Column:
        references = [answers.reference(n) for n in range(len(answers))]
        return Column.of(exact_match(answers.texts, references), "no right answer")

    found = form.pass_at(2, right, "exact match").prepare(given)
    assert [bool(why) for why in found.reasons] == [False] * 5 + [True]
    rows = np.arange(5)
    assert found.of(rows) == pytest.approx((1 + 1) / 2)  # 1 - C(1, 2) / C(3, 2) = 1; 1 - C(1, 2) / C(2, 2) = 1
    one = form.pass_at(1, right, "exact match").prepare(given)
    assert one.of(np.arange(6)) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert one.of(np.array([0, 1, 2, 0, 1, 2, 3, 4])) == pytest.approx((2 / 3 * 2 + 1 / 2) / 3)
