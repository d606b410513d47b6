"""What each task sees of the examples: exact responses, exact pairs, and every example accounted for."""

from __future__ import annotations

import logging
import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assent.data.formats import load_examples
from assent.data.records import Binary, Critique, Example, Message, Origin, Pair, Problem, Ranking, Rating, Response
from assent.data.views import binary_view, pair_view, prompt_view, ranking_view, rating_view, sft_view
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
        (example(""), "responses", "no answer: the row ends with a user turn", True),
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


@pytest.mark.parametrize("view", [pair_view, ranking_view, rating_view])
def test_where_all_are_ties_it_says_so(view):
    ties = [example("ab", Ranking(((0, 1),))), example("cd", helpful(0, 2), helpful(1, 2), row=2)]
    with pytest.raises(
        DataError, match="rows.jsonl: all 2 comparisons are ties, so nothing says which answers are better"
    ):
        view(ties)
    with pytest.raises(DataError, match="This file has .*The first row: "):  # of two kinds, the general sentence
        view([*ties, example("a")])


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
            "only one rated answer to this prompt: a comparison needs two",
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
        (pair_view, example("a", Binary(0, True)), "yes/no labels", "fit: sft, kto, ppo (its prompts)."),
        (pair_view, example("a"), "demonstrations", "fit: sft, ppo (its prompts)."),
        (pair_view, example("a", helpful(0, 2)), "ratings", "fit: sft, reward-attributes, kto, ppo (its"),
        (sft_view, example("a", Binary(0, False)), "yes/no labels", "fit: kto, ppo (its prompts)."),
        (binary_view, example("a"), "demonstrations", "fit: sft, ppo (its prompts)."),
        (ranking_view, example("ab", Binary(0, True), Binary(1, False)), "yes/no labels", "fit: sft, kto, ppo (its"),
        (rating_view, example("ab", Binary(0, True), Binary(1, False)), "yes/no labels", "fit: sft, kto, ppo (its"),
        (
            ranking_view,
            example("abc", Pair(0, 1), Pair(0, 2)),
            "pairs",
            "fit: sft, reward, dpo and every other pairwise objective, kto, nca, ppo (its prompts).",
        ),
        (
            rating_view,
            example("abc", Pair(0, 1), Pair(1, 2)),
            "pairs",
            "fit: sft, reward, dpo and every other pairwise objective, kto, ppo (its prompts).",
        ),
        (
            prompt_view,
            example("ab", Ranking(((0,), (1,))), prompt=()),
            "rankings",
            "fit: sft, reward, dpo and every other pairwise objective, kto, reward-ranking, pl-dpo, nca.",
        ),
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
    views = (sft_view, pair_view, prompt_view, binary_view, ranking_view, rating_view)
    assert all(view([]) == ([], []) for view in views)


# ---- yes/no labels


def labels(item: Example) -> dict[str, bool]:
    """Of a projection: exactly one label for each response, in order."""
    assert [label.response for label in item.feedback] == list(range(len(item.responses)))
    return {item.responses[label.response].text: label.label for label in item.feedback}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (example("a", Binary(0, True)), {"a": True}),
        (example("a", Binary(0, False)), {"a": False}),
        (example("abc", Binary(2, True), Binary(0, False)), {"a": False, "c": True}),  # b is not judged
        (example("a", Binary(0, True), Binary(0, False), Binary(0, False)), {"a": False}),  # the majority
        (example("ab", Binary(0, True), Binary(0, False), Binary(1, True)), {"b": True}),  # a is undecided
        (example("ab", Binary(0, False), Pair(0, 1), helpful(1, 4)), {"a": False}),  # labels count, nothing else
        (example("ab", Pair(1, 0)), {"a": False, "b": True}),
        (example("abc", Pair(0, 1), Pair(1, 2)), {"a": True, "c": False}),  # b wins one and loses one
        (example("ab", Pair(1, 0), helpful(0, 4), helpful(1, 0)), {"a": False, "b": True}),
        (example("abc", Ranking(((1,), (0, 2)))), {"a": False, "b": True, "c": False}),
        (example("abcd", Ranking(((3,), (1, 2), (0,)))), {"a": False, "d": True}),
        (example("abc", helpful(0, 2), helpful(1, 3), helpful(2, 3.5)), {"a": False, "b": True, "c": True}),
        (example("ab", helpful(1, 1)), {"b": False}),
        (example("ab", helpful(0, 4), helpful(0, 1), helpful(1, 3)), {"a": False, "b": True}),  # means 2.5 and 3
        (example("ab", Rating(0, {"x": 1, "y": 1}), Rating(1, {"x": 3, "y": 1})), {"a": False, "b": True}),  # sums
    ],
)
def test_binary_view(item, expected):
    (kept,), problems = binary_view([item], threshold=3.0)
    assert labels(kept) == expected and all(isinstance(label, Binary) for label in kept.feedback)
    assert kept.prompt == PROMPT and kept.origin == item.origin and kept.meta == item.meta
    assert problems == []


GOOD_LABEL = example("x", Binary(0, True), row=99)


@pytest.mark.parametrize(
    ("item", "column", "reason", "fault"),
    [
        (example("a", Binary(0, True), Binary(0, False)), "label", "as many labels say yes as no", False),
        (example("ab", Ranking(((0, 1),))), "feedback", "tie", False),
        (example("ab", Pair(0, 1), Pair(1, 0)), "feedback", "every answer both wins and loses", False),
        (example("aa", Binary(0, True), Binary(1, False)), "responses", "equal answers are judged differently", True),
        (example("a"), "feedback", "no feedback that judges answers", True),
        (example("a", Critique(0, "fine")), "feedback", "no feedback that judges answers", True),
    ],
)
def test_binary_view_problems(item, column, reason, fault):
    assert binary_view([GOOD_LABEL, item]) == ([GOOD_LABEL], [Problem(item.origin, column, reason, fault)])


def test_equal_answers_may_have_equal_labels():
    item = example("aa", Binary(0, True), Binary(1, True))
    assert binary_view([item]) == ([item], [])


def test_ratings_are_no_labels_without_a_threshold():
    item = example("ab", helpful(0, 4), helpful(1, 1))
    with pytest.raises(DataError, match=r"^rows.jsonl: ratings say .*with --threshold 3, answers rated 3 or more are"):
        binary_view([GOOD_LABEL, item])
    assert len(binary_view([GOOD_LABEL, item], threshold=0.0)[0]) == 2


# ---- rankings


def levels(item: Example) -> list[str]:
    """Of a projection: the answers of each level, best first; every response is in one."""
    (ranking,) = item.feedback
    assert sorted(index for level in ranking.levels for index in level) == list(range(len(item.responses)))
    return ["".join(item.responses[index].text for index in level) for level in ranking.levels]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (example("abc", Ranking(((1,), (0, 2)))), ["b", "ac"]),
        (example("abcd", Ranking(((3,), (1,)))), ["d", "b"]),  # a and c are not ranked
        (example("ab", Pair(1, 0)), ["b", "a"]),
        (example("ab", Pair(1, 0), Pair(1, 0)), ["b", "a"]),
        (example("abcd", Pair(3, 1), Pair(0, 1), Pair(3, 0)), ["d", "a", "b"]),
        (example("ab", Pair(1, 0), helpful(0, 4), helpful(1, 0)), ["b", "a"]),
        (example("abcd", helpful(0, 2), helpful(1, 4), helpful(3, 2)), ["b", "ad"]),
        (example("ab", Rating(0, {"x": 1, "y": 4}), Rating(1, {"x": 3, "y": 1})), ["a", "b"]),
    ],
)
def test_ranking_view(item, expected):
    (kept,), problems = ranking_view([item])
    assert levels(kept) == expected
    assert kept.prompt == PROMPT and kept.origin == item.origin and kept.meta == item.meta
    assert problems == []


def test_each_annotators_ranking_is_an_example():
    one, tie, other = Ranking(((1,), (0,)), "x"), Ranking(((0, 2),), "t"), Ranking(((2,), (0, 1)), "y")
    kept, problems = ranking_view([example("abc", one, Pair(0, 2, annotator="z"), tie, other)])
    assert [levels(item) for item in kept] == [["b", "a"], ["c", "ab"], ["a", "c"]] and problems == []
    assert [item.feedback[0].annotator for item in kept] == ["x", "y", None]


GOOD_RANKING = example("xy", Ranking(((1,), (0,))), row=99)
GOOD_RATING = example("xy", Rating(0, {"rating": 1.0}), Rating(1, {"rating": 0.5}), row=99)
UNORDERED = "the pairs do not rank their {} answers: every two must be compared, without contradiction"
NO_BEST = "the pairs name no best answer: it must be compared with every other one and win"
SAME = "equal answers are judged differently"
COMPARE_NOTHING = [
    (example("ab", Ranking(((0, 1),))), "feedback", "tie", False),
    (example("ab", helpful(0, 2), helpful(1, 2)), "feedback", "tie", False),
    (example("ab", helpful(1, 2)), "feedback", "only one rated answer to this prompt: a comparison needs two", False),
    (example("aa", helpful(0, 2), helpful(1, 3)), "responses", SAME, True),
    (example("aba", Ranking(((0,), (1,), (2,)))), "responses", SAME, True),
    (example("ab", Binary(0, True), Binary(1, False)), "feedback", "yes/no labels compare nothing", True),
    (example("ab"), "feedback", "no feedback that compares answers", True),
]


@pytest.mark.parametrize(
    ("item", "column", "reason", "fault"),
    [
        *COMPARE_NOTHING,
        (example("abc", Pair(0, 1), Pair(0, 2)), "feedback", UNORDERED.format(3), True),  # b and c are not compared
        (example("abc", Pair(0, 1), Pair(1, 2)), "feedback", UNORDERED.format(3), True),
        (example("abc", Pair(0, 1), Pair(1, 2), Pair(2, 0)), "feedback", UNORDERED.format(3), True),
        (example("ab", Pair(0, 1), Pair(1, 0)), "feedback", UNORDERED.format(2), True),
    ],
)
def test_ranking_view_problems(item, column, reason, fault):
    assert ranking_view([GOOD_RANKING, item]) == ([GOOD_RANKING], [Problem(item.origin, column, reason, fault)])


@given(st.permutations(range(5)), st.data())
def test_pairs_of_an_order_are_its_ranking_whatever_their_order(order, data):
    pairs_of_it = data.draw(st.permutations([Pair(*two) for two in combinations(order, 2)]))
    (kept,), _ = ranking_view([example("abcde", *pairs_of_it)])
    assert levels(kept) == ["abcde"[index] for index in order]
    assert ranking_view([GOOD_RANKING, example("abcde", *pairs_of_it[1:])])[1][0].reason == UNORDERED.format(5)


# ---- ratings


def ratings_of(item: Example) -> dict[str, float]:
    """Of a projection: exactly one number for each response, in order."""
    assert [rating.response for rating in item.feedback] == list(range(len(item.responses)))
    assert all(set(rating.scores) == {"rating"} for rating in item.feedback)
    return {item.responses[rating.response].text: rating.scores["rating"] for rating in item.feedback}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (example("ab", helpful(0, 2, x=9), helpful(1, 3, x=0)), {"a": 2.0, "b": 3.0}),
        (example("abc", helpful(0, 2), helpful(2, 3), helpful(2, 4)), {"a": 2.0, "c": 3.5}),
        (example("ab", Rating(0, {"x": 1, "y": 4}), Rating(1, {"x": 3, "y": 1})), {"a": 5.0, "b": 4.0}),
        (example("ab", Pair(0, 1), helpful(0, 1), helpful(1, 2)), {"a": 1.0, "b": 2.0}),  # numbers say more than pairs
        (example("abcd", Ranking(((2,), (0,), (1,)))), {"a": -math.inf, "b": -math.inf, "c": 0.0}),
        (example("abc", Ranking(((2, 0), (1,)))), {"a": 0.0, "b": -math.inf, "c": 0.0}),
        (example("ab", Pair(1, 0)), {"a": -math.inf, "b": 0.0}),
        (example("abc", Pair(1, 0), Pair(1, 2)), {"a": -math.inf, "b": 0.0, "c": -math.inf}),
        (example("abc", Pair(1, 0), Pair(1, 2), Pair(0, 2)), {"a": -math.inf, "b": 0.0, "c": -math.inf}),
        (example("abc", Pair(1, 0), Pair(2, 0)), {"a": -math.inf, "b": 0.0, "c": 0.0}),
    ],
)
def test_rating_view(item, expected):
    (kept,), problems = rating_view([item])
    assert ratings_of(kept) == expected
    assert kept.prompt == PROMPT and kept.origin == item.origin and kept.meta == item.meta
    assert problems == []


def test_each_annotators_best_answer_is_an_example():
    kept, _ = rating_view([example("abc", Ranking(((1,), (0,))), Ranking(((2,), (0, 1))), Pair(0, 2))])
    assert [ratings_of(item) for item in kept] == [
        {"a": -math.inf, "b": 0.0},
        {"a": -math.inf, "b": -math.inf, "c": 0.0},
        {"a": 0.0, "c": -math.inf},
    ]


@pytest.mark.parametrize(
    ("item", "column", "reason", "fault"),
    [
        *COMPARE_NOTHING[:4],
        *COMPARE_NOTHING[5:],
        (example("aba", Ranking(((0,), (1, 2)))), "responses", SAME, True),
        (example("abc", Pair(0, 1), Pair(1, 2)), "feedback", NO_BEST, True),  # a and c are not compared
        (example("abcd", Pair(0, 1), Pair(2, 3)), "feedback", NO_BEST, True),
        (example("abc", Pair(0, 1), Pair(1, 2), Pair(2, 0)), "feedback", NO_BEST, True),
    ],
)
def test_rating_view_problems(item, column, reason, fault):
    assert rating_view([GOOD_RATING, item]) == ([GOOD_RATING], [Problem(item.origin, column, reason, fault)])


# ---- what is said of conversions

PAIRS = example("ab", Pair(0, 1))
RANKS = example("ab", Ranking(((0,), (1,))))
RATED = example("ab", helpful(0, 1), helpful(1, 3))
LABELS = example("ab", Binary(0, True), Binary(1, False))


@pytest.mark.parametrize(
    ("view", "item", "said"),
    [
        (sft_view, GOOD, None),
        (sft_view, PAIRS, "pairs are read as demonstrations: for each prompt the answer that wins most"),
        (sft_view, RANKS, "rankings are read as demonstrations: for each prompt the best"),
        (sft_view, RATED, "ratings are read as demonstrations: for each prompt the answer of the highest overall"),
        (sft_view, LABELS, "yes/no labels are read as demonstrations: the desirable answers"),
        (pair_view, PAIRS, None),
        (pair_view, example("ab", Pair(0, 1), helpful(0, 3), helpful(1, 1)), None),
        (pair_view, RANKS, "rankings are read as pairs: every two answers of different levels"),
        (pair_view, RATED, "ratings are read as pairs: every two answers to a prompt that differ"),
        (binary_view, LABELS, None),
        (binary_view, PAIRS, "pairs are read as yes/no labels: answers that only win"),
        (binary_view, RANKS, "rankings are read as yes/no labels: the best level"),
        (
            lambda examples: binary_view(examples, 2.0),
            RATED,
            "ratings are read as yes/no labels: answers whose overall",
        ),
        (ranking_view, RANKS, None),
        (ranking_view, PAIRS, "pairs are read as rankings"),
        (ranking_view, RATED, "ratings are read as rankings: by overall rating"),
        (rating_view, RATED, None),
        (rating_view, PAIRS, "pairs are read as ratings: 0 for the best"),
        (rating_view, RANKS, "rankings are read as ratings: 0 for the best level"),
        (prompt_view, RATED, None),
    ],
)
def test_a_conversion_is_said_once(view, item, said, caplog):
    with caplog.at_level(logging.WARNING):
        view([item, item])
    assert len(caplog.messages) == (said is not None)
    if said:
        assert caplog.messages[0].startswith(f"rows.jsonl: {said}")


def test_what_is_not_used_is_not_said(caplog):
    with caplog.at_level(logging.WARNING):
        pair_view([PAIRS, example("ab", helpful(0, 1), helpful(1, 1))])
    assert caplog.messages == []


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
    if name == "kto_en_demo.json":
        assert binary_view(examples) == (examples, [])
    if pair is None:
        with pytest.raises(DataError, match="comparisons are needed"):
            pair_view(examples)
    else:
        kept, problems = pair_view(examples)
        assert (len(kept), len(problems)) == pair
        assert kept == examples
        assert all(labels(item) for item in binary_view(kept)[0]) and len(ranking_view(kept)[0]) == len(kept)
        chosen = sft_view(examples)[0]
        assert [item.responses[0] for item in chosen] == [item.responses[0] for item in examples]
