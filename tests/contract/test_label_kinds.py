"""What all kinds of tasks must satisfy: valid values come back from their feedback, others are refused in words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.config.settings import hints_of
from assent.data.formats import to_row
from assent.data.formats.native import native
from assent.data.records import ANNOTATED, Binary, Critique, Message, Origin, Pair, Ranking, Rating
from assent.people.items import Label, example_of, item_of, item_row
from assent.people.kinds import COMMENT, KINDS, TEXT, LabelError
from assent.people.task import ANSWERS, HELPSTEER, Attribute, Item, KindName, TaskDefinition

LABELS = ("wrong", "rude: or worse", "10 to 20")


def task_of(kind: str, **options: Any) -> TaskDefinition:
    own = {"attributes": {"attributes": dict(HELPSTEER)}, "spans": {"labels": LABELS}}.get(kind, {})
    return TaskDefinition(**{"name": "t", "kind": kind, "items": "x", **own, **options})


def item_with(count: int) -> Item:
    texts = tuple(f'Answer {number}: it is "Paris"\n\\ — or so 🙂 {"x" * number}' for number in range(count))
    return Item((Message("user", "2+2?"),), texts, tuple(f"policy {n}" for n in range(count)))


TASKS = {kind: task_of(kind) for kind in KINDS}


@st.composite
def asked(draw, kind: str, count: int | None = None):
    """(item, value) that a task of the kind allows."""
    fewest, most = ANSWERS[kind]
    item = item_with(count or draw(st.integers(max(fewest, 1), min(most, 5))))
    answers = range(len(item.responses))
    match kind:
        case "pair":
            verdict = draw(st.sampled_from(["better", "tie", "both_bad", "cannot_judge"]))
            better = verdict == "better"
            value = {
                "verdict": verdict,
                "better": draw(st.sampled_from([0, 1])) if better else None,
                "strength": draw(st.integers(1, 3)) if better else None,
            }
        case "ranking":
            order = draw(st.permutations(answers))
            cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1), max_size=len(order) - 1)))
            value = {"levels": [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)])]}
        case "best":
            value = {"best": draw(st.one_of(st.none(), st.sampled_from(answers)))}
        case "attributes":
            value = {"scores": [{name: draw(st.integers(0, 4)) for name in HELPSTEER} for _ in answers]}
        case "yesno":
            value = {
                "labels": draw(
                    st.lists(st.sampled_from([True, False, None]), min_size=len(answers), max_size=len(answers))
                )
            }
        case "edit":
            letters = st.characters(exclude_categories=("Cs", "Cc"))
            words = draw(st.text(letters, min_size=1, max_size=30).filter(str.strip))
            value = {"text": words, "from": draw(st.one_of(st.none(), st.sampled_from(answers)))}
        case "spans":
            spans = []
            for answer in answers:
                size = len(item.responses[answer])
                ends = sorted(draw(st.sets(st.integers(0, size), max_size=6)))
                for start, end in zip(ends[::2], ends[1::2]):
                    comment = draw(st.sampled_from([{}, {"comment": 'is "Lyon": 3 to 4\nreally'}]))
                    spans.append(
                        {
                            "answer": answer,
                            "start": start,
                            "end": end,
                            "label": draw(st.sampled_from(LABELS)),
                            **comment,
                        }
                    )
            value = {"spans": spans}
    return item, value


def by_kind(test):
    return pytest.mark.parametrize("kind", KINDS)(test)


def test_the_table_has_every_kind():
    assert set(KINDS) == set(ANSWERS) == set(hints_of(TaskDefinition)["kind"].__args__) == set(KindName.__args__)
    assert all(kind.name == name and kind.about and kind.question for name, kind in KINDS.items())


@by_kind
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_valid_value_is_its_feedback_and_back(kind: str, data):
    row, task = KINDS[kind], TASKS[kind]
    item, value = data.draw(asked(kind))
    row.check(value, item, task)
    shown = tuple(data.draw(st.permutations(range(len(item.responses)))))
    feedback = row.feedback(value, item, "ann", shown)
    assert all(each.annotator == "ann" for each in feedback)
    back = row.value(feedback, item, task)
    silent = kind == "edit" or value.get("verdict") == "cannot_judge" or value.get("spans") == []
    silent = silent or set(value.get("labels", [True])) == {None}
    assert back == (None if silent else value)
    assert row.differs(value, value, task) == 0 and row.right(value, value, task)
    assert row.summary(value, item, shown) and row.summary(value, item, ())


@by_kind
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_two_values_differ_by_a_share_and_the_same_both_ways(kind: str, data):
    row, task = KINDS[kind], TASKS[kind]
    item, one = data.draw(asked(kind))
    _, other = data.draw(asked(kind, len(item.responses)))
    gap = row.differs(one, other, task)
    assert 0 <= gap <= 1
    if kind != "edit":
        assert math.isclose(gap, row.differs(other, one, task))
        assert not (gap == 0) or row.right(one, other, task)


@by_kind
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_an_exported_row_keeps_the_value_the_sides_and_the_names(kind: str, data):
    item, value = data.draw(asked(kind))
    item = replace(item, meta={"id": 3}, topic="sums", overlap=2)
    assert item_of(item_row(item)) == item
    labels = [
        Label({**value, "comment": "why"}, name, (*range(len(item.responses)),)[::-1], 3.5, 1.8e9)
        for name in ("ann", "bob")
    ]
    example = example_of(item, labels, TASKS[kind])
    again = native(to_row(example), Origin("x", 1))
    assert replace(again, origin=example.origin) == example
    assert [each["value"] for each in again.meta[ANNOTATED]] == [{**value, "comment": "why"}] * 2
    assert [each["shown"] for each in again.meta[ANNOTATED]] == [[*range(len(item.responses))][::-1]] * 2
    assert again.meta["id"] == 3 and {each.annotator for each in again.feedback} <= {"ann", "bob"}
    KINDS[kind].check(again.meta[ANNOTATED][0]["value"], item, TASKS[kind])


VALID = {
    "pair": {"verdict": "better", "better": 1, "strength": 2},
    "ranking": {"levels": [[1], [0]]},
    "best": {"best": 1},
    "attributes": {"scores": [dict.fromkeys(HELPSTEER, 3)] * 2},
    "yesno": {"labels": [True, False]},
    "edit": {"text": "better", "from": 0},
    "spans": {"spans": [{"answer": 0, "start": 0, "end": 6, "label": "wrong"}]},
}
SPAN = VALID["spans"]["spans"][0]
BAD = {
    "pair": [
        ({}, "verdict must be one of better, tie, both_bad, cannot_judge. Got nothing"),
        ({**VALID["pair"], "verdict": "beter"}, "Perhaps you meant 'better'"),
        ({**VALID["pair"], "better": 2}, "better answer must be a whole number from 0 to 1. Got 2"),
        ({**VALID["pair"], "better": True}, "whole number from 0 to 1. Got true"),
        ({**VALID["pair"], "better": None}, "Got nothing"),
        ({**VALID["pair"], "strength": 4}, "strength must be a whole number from 1 to 3. Got 4"),
        ({**VALID["pair"], "strength": 0}, "from 1 to 3"),
        ({**VALID["pair"], "strength": None}, "from 1 to 3. Got nothing"),
        ({**VALID["pair"], "strength": math.nan}, "Got nan"),
        ({**VALID["pair"], "strength": 2.0}, "Got 2.0"),
        ({"verdict": "tie", "strength": 1}, "The verdict tie has no 'strength'. Got 1"),
        ({"verdict": "tie", "better": 0}, "The verdict tie has no 'better'"),
    ],
    "ranking": [
        ({"levels": [[0]]}, "answer 2 is not in the ranking"),
        ({"levels": [[0], [1], [0]]}, "answer 1 is in it more than once"),
        ({"levels": [[0], [1], []]}, "level of the ranking is empty"),
        ({"levels": [[0], [2]]}, "whole number from 0 to 1. Got 2"),
        ({"levels": [0, 1]}, "must be a list. Got 0"),
        ({"levels": None}, "must be a list. Got nothing"),
    ],
    "best": [({}, "best answer is missing"), ({"best": 2}, "from 0 to 1. Got 2"), ({"best": "1"}, "Got '1'")],
    "attributes": [
        ({"scores": [dict.fromkeys(HELPSTEER, 3)]}, "one entry for each of the 2 answers. Got 1"),
        ({"scores": [dict.fromkeys(HELPSTEER, 3), {"helpfulness": 3}]}, "Answer 2 has no rating in correctness"),
        ({"scores": [dict.fromkeys(HELPSTEER, 3) | {"helpfullness": 1}] * 2}, "Perhaps you meant 'helpfulness'"),
        ({"scores": [dict.fromkeys(HELPSTEER, 5)] * 2}, "helpfulness of answer 1 must be a whole number from 0"),
        ({"scores": [dict.fromkeys(HELPSTEER, math.nan)] * 2}, "Got nan"),
        ({"scores": [dict.fromkeys(HELPSTEER, "3")] * 2}, "Got '3'"),
        ({"scores": [3, 3]}, "The scores of answer 1 must be named numbers. Got 3"),
    ],
    "yesno": [
        ({"labels": [True]}, "one entry for each of the 2 answers. Got 1"),
        ({"labels": [True, 1]}, "label of answer 2 must be true or false. Got 1"),
        ({"labels": "yes"}, "must be a list. Got 'yes'"),
    ],
    "edit": [
        ({"text": " \n", "from": 0}, "The text is empty"),
        ({"text": "x" * (TEXT + 1), "from": 0}, "has 50,001 characters; at most 50,000 are kept"),
        ({"text": "a\0b", "from": 0}, "no text, at place 2"),
        ({"text": "a\ud800", "from": 0}, "no text, at place 2"),
        ({"text": "a", "from": 2}, "from 0 to 1. Got 2"),
        ({"text": 3, "from": None}, "The text must be text. Got 3"),
    ],
    "spans": [
        ({"spans": [{**SPAN, "answer": 2}]}, "from 0 to 1. Got 2"),
        ({"spans": [{**SPAN, "end": 999}]}, "span's end must be a whole number from 1 to"),
        ({"spans": [{**SPAN, "start": -1}]}, "span's start must be"),
        ({"spans": [{**SPAN, "start": 6}]}, "span's end must be a whole number from 7"),
        ({"spans": [SPAN, {**SPAN, "start": 5, "end": 8}]}, "overlap in answer 1: 0 to 6, and 5 to 8"),
        ({"spans": [{**SPAN, "label": "worng"}]}, "Got 'worng'. Perhaps you meant 'wrong'"),
        ({"spans": [{**SPAN, "text": "x"}]}, "A span has no field 'text'"),
        ({"spans": [{**SPAN, "comment": "x" * (COMMENT + 1)}]}, "span's comment has 10,001 characters"),
        ({"spans": [3]}, "A span is an object with"),
        ({"spans": [{**SPAN, "start": place, "end": place + 1} for place in range(10)] * 51}, "at most 500 are kept"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "words"), [(k, v, w) for k, cases in BAD.items() for v, w in cases])
def test_a_wrong_value_is_refused_in_words(kind: str, value: Any, words: str):
    with pytest.raises(LabelError) as raised:
        KINDS[kind].check(value, item_with(2), TASKS[kind])
    assert words in str(raised.value)


@by_kind
def test_what_every_kind_refuses(kind: str):
    item, check, valid = item_with(2), KINDS[kind].check, VALID[kind]
    check(valid, item, TASKS[kind])
    check({**valid, "comment": "x" * COMMENT}, item, TASKS[kind])
    for value in (None, [], "x", 3, [valid]):
        with pytest.raises(LabelError, match="An answer to this task is an object with"):
            check(value, item, TASKS[kind])
    for more, words in (
        ({"coment": "x"}, "no field 'coment'. Perhaps you meant 'comment'"),
        ({"comment": "x" * 100_000}, "comment has 100,000 characters; at most 10,000"),
        ({"comment": ["x"]}, "comment must be text. Got a list"),
        ({"comment": "\ud800"}, "no text, at place 1"),
    ):
        with pytest.raises(LabelError) as raised:
            check({**valid, **more}, item, TASKS[kind])
        assert words in str(raised.value)
    with pytest.raises(LabelError, match="asks for no comments"):
        check({**valid, "comment": "x"}, item, replace(TASKS[kind], comment="off"))
    check({**valid, "comment": " "}, item, replace(TASKS[kind], comment="off"))
    for missing in ({}, {"comment": " "}, {"comment": None}):
        with pytest.raises(LabelError, match="A comment is missing"):
            check({**valid, **missing}, item, replace(TASKS[kind], comment="required"))


@pytest.mark.parametrize(
    ("kind", "option", "value", "words"),
    [
        ("pair", {"ties": False}, {"verdict": "tie"}, "one of better, both_bad, cannot_judge"),
        ("pair", {"both_bad": False}, {"verdict": "both_bad"}, "one of better, tie, cannot_judge"),
        ("pair", {"cannot_judge": False}, {"verdict": "cannot_judge"}, "one of better, tie, both_bad"),
        ("pair", {"strength": 0}, VALID["pair"], "asks for no strengths. Got 2"),
        ("pair", {"strength": 1}, VALID["pair"], "from 1 to 1. Got 2"),
        ("ranking", {"ties": False}, {"levels": [[0, 1]]}, "no ties"),
        ("best", {"both_bad": False}, {"best": None}, "always has a best answer"),
        ("yesno", {"cannot_judge": False}, {"labels": [True, None]}, "Answer 2 has no label"),
        ("attributes", {"attributes": {"a": Attribute(1, 2)}}, {"scores": [{"a": 1}, {"a": 0}]}, "a of answer 2 must"),
    ],
)  # fmt: skip
def test_a_task_says_what_it_allows(kind: str, option: dict, value: dict, words: str):
    with pytest.raises(LabelError) as raised:
        KINDS[kind].check(value, item_with(2), task_of(kind, **option))
    assert words in str(raised.value)


# ---- what trainers read


def feedback(kind: str, value: dict, count: int = 2, shown: tuple[int, ...] = ()) -> tuple:
    return KINDS[kind].feedback(value, item_with(count), "ann", shown)


def test_pairs_keep_strength_and_side():
    assert feedback("pair", VALID["pair"], shown=(1, 0)) == (Pair(1, 0, 2.0, "ann", first="chosen"),)
    assert feedback("pair", VALID["pair"], shown=(0, 1)) == (Pair(1, 0, 2.0, "ann", first="rejected"),)
    assert feedback("pair", {"verdict": "better", "better": 0}) == (Pair(0, 1, None, "ann"),)
    assert feedback("pair", {"verdict": "tie"}) == (Ranking(((0, 1),), "ann"),)
    assert feedback("pair", {"verdict": "cannot_judge"}) == ()
    both = (Ranking(((0, 1),), "ann"), Binary(0, False, "ann"), Binary(1, False, "ann"))
    assert feedback("pair", {"verdict": "both_bad"}) == both


def test_the_best_is_compared_with_each_other_and_they_are_not():
    found = feedback("best", {"best": 1}, 3, (2, 1, 0))
    assert found == (Pair(1, 0, None, "ann", first="chosen"), Pair(1, 2, None, "ann", first="rejected"))
    assert feedback("best", {"best": None})[0] == Ranking(((0, 1),), "ann")


def test_ratings_labels_and_critiques():
    scores = {"scores": [{"a": 1}, {"a": 4}]}
    assert feedback("attributes", scores) == (Rating(0, {"a": 1.0}, "ann"), Rating(1, {"a": 4.0}, "ann"))
    assert feedback("yesno", {"labels": [None, False]}) == (Binary(1, False, "ann"),)
    assert feedback("spans", {"spans": [{**SPAN, "comment": "no"}]}) == (
        Critique(0, 'wrong, 0 to 6: "Answer": no', "ann"),
    )


def test_a_mark_that_does_not_stand_there_is_no_span():
    moved = (Critique(1, 'wrong, 1 to 7: "Answer": no', "ann"),)
    assert KINDS["spans"].value(moved, item_with(2), TASKS["spans"]) is None
    assert KINDS["spans"].value((Critique(1, "it is wrong"),), item_with(2), TASKS["spans"]) is None


def test_what_was_written_is_an_answer_and_better_than_its_origin():
    item, task = item_with(2), TASKS["edit"]
    labels = [Label({"text": f"new {name}", "from": 1}, name) for name in ("ann", "bob")]
    labels.append(Label({"text": item.responses[0], "from": 0}, "cat"))  # left as it is
    labels.append(Label({"text": "all mine", "from": None}, "dan"))
    made = example_of(item, labels, task)
    assert [each.text for each in made.responses] == [*item.responses, "new ann", "new bob", "all mine"]
    assert [each.source for each in made.responses][2:] == ["written by ann", "written by bob", "written by dan"]
    assert made.feedback == (
        Pair(2, 1, None, "ann"), Binary(2, True, "ann"), Pair(3, 1, None, "bob"), Binary(3, True, "bob"),
        Binary(0, True, "cat"), Binary(4, True, "dan"),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pair", "best"])
def test_bad_answers_are_labelled_so_unless_somebody_found_one_good(kind: str):
    item, task = item_with(2), TASKS[kind]
    bad = {"verdict": "both_bad"} if kind == "pair" else {"best": None}
    alone = example_of(item, [Label(bad, "ann"), Label(bad, "bob")], task)
    assert sum(isinstance(each, Binary) for each in alone.feedback) == 4
    beside = example_of(item, [Label(bad, "ann"), Label(VALID[kind], "bob")], task)
    assert [type(each) for each in beside.feedback] == [Ranking, Pair]


# ---- how far apart, and what is right


@pytest.mark.parametrize(
    ("kind", "one", "other", "gap", "right"),
    [
        ("pair", VALID["pair"], {"verdict": "better", "better": 0, "strength": 2}, 1.0, False),
        ("pair", VALID["pair"], {"verdict": "better", "better": 1, "strength": 1}, 0.125, True),
        ("pair", VALID["pair"], {"verdict": "better", "better": 1, "strength": None}, 0.0, True),
        ("pair", VALID["pair"], {"verdict": "tie"}, 0.5, False),
        ("pair", {"verdict": "tie"}, {"verdict": "both_bad"}, 0.25, False),
        ("ranking", {"levels": [[0], [1], [2]]}, {"levels": [[2], [1], [0]]}, 1.0, False),
        ("ranking", {"levels": [[0], [1], [2]]}, {"levels": [[0], [2], [1]]}, 1 / 3, False),
        ("ranking", {"levels": [[0], [1], [2]]}, {"levels": [[0], [1, 2]]}, 1 / 6, True),
        ("ranking", {"levels": [[0], [1, 2]]}, {"levels": [[0], [1], [2]]}, 1 / 6, False),
        ("best", {"best": 0}, {"best": 1}, 1.0, False),
        ("best", {"best": 0}, {"best": None}, 0.5, False),
        ("yesno", {"labels": [True, False]}, {"labels": [True, True]}, 0.5, False),
        ("yesno", {"labels": [True, False]}, {"labels": [True, None]}, 0.25, True),
        ("yesno", {"labels": [True, None]}, {"labels": [True, False]}, 0.25, False),
        ("edit", {"text": "a b c d"}, {"text": "a b x y"}, 0.5, False),
        ("spans", {"spans": [SPAN]}, {"spans": []}, 1.0, False),
        ("spans", {"spans": [SPAN]}, {"spans": [{**SPAN, "start": 3}]}, 0.5, True),
        ("spans", {"spans": [SPAN]}, {"spans": [{**SPAN, "label": LABELS[1]}]}, 1.0, False),
        ("spans", {"spans": [{**SPAN, "end": 1}]}, {"spans": [SPAN]}, 5 / 6, False),
    ],
)
def test_known_distances(kind: str, one: dict, other: dict, gap: float, right: bool):
    assert KINDS[kind].differs(one, other, TASKS[kind]) == pytest.approx(gap)
    assert KINDS[kind].right(one, other, TASKS[kind]) is right


def test_ratings_differ_by_their_widest_gap_and_are_right_within_a_step():
    task = task_of("attributes", attributes={"a": Attribute(0, 4), "b": Attribute(0, 10)})
    differs, right = KINDS["attributes"].differs, KINDS["attributes"].right
    one, other = {"scores": [{"a": 4, "b": 2}]}, {"scores": [{"a": 3, "b": 4}]}
    assert differs(one, other, task) == 0.25 and right(one, other, task)
    assert not right({"scores": [{"a": 4, "b": 2}]}, {"scores": [{"a": 2, "b": 2}]}, task)
    assert not right({"scores": [{"a": 4, "b": 2}]}, {"scores": [{"a": 4, "b": 5}]}, task)


def test_values_in_words():
    item = item_with(3)
    said = {
        ("pair", (1, 0)): (VALID["pair"], "A is better"),
        ("pair", ()): (VALID["pair"], "Answer 2 is better"),
        ("ranking", (2, 1, 0)): ({"levels": [[2], [0, 1]]}, "A > C = B"),
        ("best", (2, 1, 0)): ({"best": 2}, "A is best"),
        ("yesno", (2, 1, 0)): ({"labels": [True, None, False]}, "A no, B cannot be judged, C yes"),
        ("attributes", ()): ({"scores": [{"a": 1, "b": 2}]}, "Answer 1: a 1, b 2"),
        ("edit", (1, 0, 2)): ({"text": "x" * 1200, "from": 0}, "B rewritten: 1,200 characters"),
        ("spans", ()): ({"spans": [SPAN, SPAN]}, "2 wrong"),
    }
    for (kind, shown), (value, words) in said.items():
        assert KINDS[kind].summary(value, item, shown) == words
