"""What each task sees of the examples: exact responses, exact pairs, and every example accounted for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assent.data.formats import load_examples
from assent.data.records import Binary, Critique, Example, Message, Origin, Pair, Problem, Ranking, Rating, Response
from assent.data.views import pair_view, prompt_view, sft_view
from assent.errors import DataError

PROMPT = (Message("user", "q"),)


def example(texts: str, *feedback, row: int = 1, prompt=PROMPT) -> Example:
    """One response for each letter."""
    responses = tuple(Response((Message("assistant", letter),)) for letter in texts)
    return Example(prompt, responses, feedback, Origin("rows.jsonl", row), {"id": row})


def texts(item: Example) -> str:
    return "".join(response.text for response in item.responses)


def pairs(item: Example) -> list[tuple[str, str, float | None]]:
    named = [response.text for response in item.responses]
    return [(named[pair.chosen], named[pair.rejected], pair.strength) for pair in item.feedback]


def helpful(index: int, value: float, **others: float) -> Rating:
    return Rating(index, {"helpfulness": value, **others})


GOOD = example("x", row=99)
GOOD_PAIR = example("xy", Pair(0, 1), row=99)


@pytest.mark.parametrize(
    ("item", "answers"),
    [
        (example("a"), ["a"]),
        (example("ab", Pair(1, 0)), ["b"]),
        (example("abc", Pair(0, 1), Pair(2, 0)), ["c"]),
        (example("ab", Pair(1, 0), helpful(0, 4), helpful(1, 1)), ["b"]),  # what was compared counts, not the ratings
        (example("abc", Ranking(((1,), (0, 2)))), ["b"]),
        (example("ab", Ranking(((0, 1),))), ["a"]),  # a tie: both are as good, one is learnt
        (example("ab", helpful(0, 2), helpful(1, 3)), ["b"]),
        (example("ab", helpful(0, 3, verbosity=4), helpful(1, 4, verbosity=0)), ["b"]),
        (example("ab", Rating(0, {"x": 1, "y": 4}), Rating(1, {"x": 3, "y": 1})), ["a"]),  # sums 5 and 4
        (example("ab", helpful(0, 4), helpful(0, 0), helpful(1, 3)), ["b"]),  # means 2 and 3
        (example("a", Binary(0, True)), ["a"]),
        (example("abc", Binary(0, True), Binary(1, False), Binary(2, True)), ["a", "c"]),
        (example("ab", Binary(0, True), Binary(0, False), Binary(1, True)), ["b"]),  # annotators disagree about a
        (example("a", Critique(0, "fine")), ["a"]),
    ],
)
def test_sft_view_takes_the_best_answer(item, answers):
    kept, problems = sft_view([item])
    assert [texts(one) for one in kept] == answers
    assert all(one.feedback == () and one.prompt == PROMPT and one.meta == {"id": 1} for one in kept)
    assert problems == []


@pytest.mark.parametrize(
    ("item", "column", "reason", "fault"),
    [
        (example(""), "responses", "no answer", True),
        (example("ab"), "responses", "2 answers and no feedback: which one is to be learnt?", True),
        (example("a", Binary(0, False)), "label", "no answer is labelled desirable", False),
        (example("a", Binary(0, False), Binary(0, True)), "label", "no answer is labelled desirable", False),
    ],
)
def test_sft_view_problems(item, column, reason, fault):
    assert sft_view([GOOD, item]) == ([GOOD], [Problem(item.origin, column, reason, fault)])


def test_sft_view_keeps_multi_turn_and_plain_text():
    several = Example(PROMPT, (Response(tuple(Message(role, "x") for role in ("assistant", "user", "assistant"))),))
    plain = Example((), (Response((Message("text", "once"),)),))
    assert sft_view([several, plain]) == ([several, plain], [])


@pytest.mark.parametrize(
    ("item", "kept", "expected"),
    [
        (example("ab", Pair(1, 0, 2.0)), "ab", [("b", "a", 2.0)]),
        (example("abc", Pair(2, 1)), "bc", [("c", "b", None)]),  # a response in no pair is not computed
        (example("ab", Pair(0, 1, 1.0), helpful(0, 0), helpful(1, 4)), "ab", [("a", "b", 1.0)]),
        (example("abc", Ranking(((1,), (0, 2)))), "abc", [("b", "a", None), ("b", "c", None)]),
        (
            example("abc", Ranking(((2,), (0,), (1,)))),
            "abc",
            [("c", "a", None), ("c", "b", None), ("a", "b", None)],
        ),
        (example("ab", helpful(0, 1), helpful(1, 4)), "ab", [("b", "a", 3.0)]),
        (example("ab", helpful(0, 4), helpful(1, 1)), "ab", [("a", "b", 3.0)]),
        (example("ab", helpful(0, 3, verbosity=0), helpful(1, 2, verbosity=4)), "ab", [("a", "b", 1.0)]),
        (example("ab", Rating(0, {"x": 1, "y": 4}), Rating(1, {"x": 3, "y": 1})), "ab", [("a", "b", 1.0)]),
        (example("abc", helpful(0, 1), helpful(1, 1), helpful(2, 0)), "abc", [("a", "c", 1.0), ("b", "c", 1.0)]),
        (example("abc", helpful(0, 1), helpful(2, 2)), "ac", [("c", "a", 1.0)]),
        (example("ab", Pair(0, 1), Pair(1, 0)), "ab", [("a", "b", None), ("b", "a", None)]),  # votes stay votes
    ],
)
def test_pair_view(item, kept, expected):
    (result,), problems = pair_view([item])
    assert texts(result) == kept
    assert pairs(result) == expected
    assert result.prompt == PROMPT and result.origin == item.origin and result.meta == item.meta
    assert problems == []


def test_pair_view_keeps_the_annotator():
    (kept,), _ = pair_view([example("ab", Ranking(((1,), (0,)), annotator="x"), Pair(0, 1, annotator="y"))])
    assert [pair.annotator for pair in kept.feedback] == ["y", "x"]


@pytest.mark.parametrize(
    ("item", "column", "reason", "fault"),
    [
        (example("ab", Ranking(((0, 1),))), "feedback", "tie", False),
        (example("ab", helpful(0, 2), helpful(1, 2)), "feedback", "tie", False),
        (
            example("a", helpful(0, 2)),
            "feedback",
            "only one rated answer to this prompt: a pair needs two",
            False,
        ),
        (
            example("ab", Rating(0, {"x": 1}), Rating(1, {"y": 2})),
            "feedback",
            "answers are rated in different attributes",
            True,
        ),
        (example("aa", helpful(0, 1), helpful(1, 2)), "responses", "equal answers in a pair", True),
        (example("ab", Binary(0, True), Binary(1, False)), "feedback", "yes/no labels compare nothing", True),
        (example("a"), "feedback", "no feedback that compares answers", True),
    ],
)
def test_pair_view_problems(item, column, reason, fault):
    kept, problems = pair_view([GOOD_PAIR, item])
    assert kept == [GOOD_PAIR]
    assert problems == [Problem(item.origin, column, reason, fault)]


def test_prompt_view():
    kept, problems = prompt_view([example("ab", Pair(0, 1)), example("")])
    assert [(item.prompt, item.responses, item.feedback, item.meta) for item in kept] == [
        (PROMPT, (), (), {"id": 1})
    ] * 2
    assert problems == []


@pytest.mark.parametrize(
    ("view", "item", "has", "fits"),
    [
        (sft_view, example(""), "prompts without answers", "fit: ppo (its prompts)."),
        (pair_view, example("a", Binary(0, True)), "yes/no labels", "fit: sft, ppo (its prompts)."),
        (pair_view, example("a"), "demonstrations", "fit: sft, ppo (its prompts)."),
        (pair_view, example("a", helpful(0, 2)), "ratings", "fit: sft, ppo (its prompts)."),
        (sft_view, example("a", Binary(0, False)), "yes/no labels", "fit: ppo (its prompts)."),
        (prompt_view, example("a", prompt=()), "plain text", "fit: sft."),
    ],
)
def test_data_of_the_wrong_kind_are_refused_with_what_would_fit(view, item, has, fits):
    with pytest.raises(DataError) as caught:
        view([item])
    assert str(caught.value).startswith("rows.jsonl: ")
    assert f"This file has {has}, which" in str(caught.value)
    assert fits in str(caught.value)


def test_no_examples_are_no_error_of_kind():
    assert sft_view([]) == pair_view([]) == prompt_view([]) == ([], [])


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_pairs_from_ratings_add_up(ratings):
    """Every two responses of different rating make one pair, better first, and the strengths are the gaps."""
    item = example("abcdef"[: len(ratings)], *(helpful(index, value) for index, value in enumerate(ratings)))
    kept, problems = pair_view([GOOD_PAIR, item])
    gaps = [abs(a - b) for i, a in enumerate(ratings) for b in ratings[i + 1 :] if a != b]
    if not gaps:
        assert [problem.reason for problem in problems] == ["tie"]
        return
    by_text = dict(zip("abcdef", ratings))
    found = pairs(kept[1])
    assert len(found) == len(gaps) and math.isclose(sum(gap for *_, gap in found), sum(gaps))
    assert all(by_text[better] - by_text[worse] == gap > 0 for better, worse, gap in found)


@pytest.mark.parametrize(
    ("name", "sft", "pair"),
    [
        ("dpo_en_demo.json", (300, 0), (300, 0)),
        ("kto_en_demo.json", (150, 150), None),
        ("alpaca_en_demo.json", (999, 0), None),
        ("gsm8k_test.jsonl", (1319, 0), None),
    ],
)
def test_real_files(real_data, name, sft, pair):
    examples = load_examples(real_data / name).examples
    kept, problems = sft_view(examples)
    assert (len(kept), len(problems)) == sft
    assert not any(problem.fault for problem in problems)
    assert len(prompt_view(examples)[0]) == len(examples)
    if pair is None:
        with pytest.raises(DataError, match="comparisons are needed"):
            pair_view(examples)
    else:
        kept, problems = pair_view(examples)
        assert (len(kept), len(problems)) == pair
        assert kept == examples
        chosen = sft_view(examples)[0]
        assert [item.responses[0] for item in chosen] == [item.responses[0] for item in examples]
