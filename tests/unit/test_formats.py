"""Every shape, read from tiny rows into exact records; which shape a file has; and all rows accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assent.data.formats import FORMATS, RowError, detect, load_examples, to_row
from assent.data.formats.detect import fitting
from assent.data.records import (
    Binary,
    Critique,
    Example,
    Message,
    Origin,
    Pair,
    Ranking,
    Rating,
    Response,
)
from assent.data.views import pair_view
from assent.errors import DataError

ORIGIN = Origin("rows.jsonl", 1)


def turns(*pairs: str) -> tuple[Message, ...]:
    """turns("user", "q", "assistant", "a")"""
    return tuple(Message(role, content) for role, content in zip(pairs[::2], pairs[1::2]))


def said(text: str, source: str | None = None) -> Response:
    return Response(turns("assistant", text), source)


def openai(*pairs: str) -> list[dict]:
    return [{"role": role, "content": content} for role, content in zip(pairs[::2], pairs[1::2])]


def gpt(*pairs: str) -> list[dict]:
    return [{"from": role, "value": content} for role, content in zip(pairs[::2], pairs[1::2])]


def example(prompt, responses=(), feedback=(), /, **meta) -> Example:
    return Example(prompt, tuple(responses), tuple(feedback), ORIGIN, meta)


Q = turns("user", "q")
SYSTEM_Q = turns("system", "s", "user", "q")
PAST_Q = turns("user", "p", "assistant", "r", "user", "q")
PAIR = (said("good"), said("bad"))
HELPSTEER = {"helpfulness": 4, "correctness": 3, "coherence": 2, "complexity": 1, "verbosity": 0}
HH = "\n\nHuman: Is it?\n\nAssistant:"

HELPSTEER3_VOTES = [{"score": -3, "reasoning": "Clearer."}, {"score": 1, "reasoning": "Shorter."}, {"score": 0}]
Q_AND = ("user", "q")


def labelled(text: str, quality: float, toxicity: float) -> Message:
    return Message("assistant", text, attributes=(("quality", quality), ("toxicity", toxicity)))


def steerlm(kind: str, *labels: str | None) -> dict:
    """As NeMo writes it."""
    said = [("User", "q", None), ("Assistant", "a", labels[0]), ("User", "more", None), ("Assistant", "b", labels[1])]
    talk = [{"from": who, "value": text, "label": label} for who, text, label in said]
    return {"system": "s", "mask": "User", "type": kind, "conversations": talk}


SHAPES = [
    ("sharegpt", {"conversations": gpt("human", "q", "gpt", "a")}, example(Q, [said("a")])),
    (
        "sharegpt",
        {"conversations": gpt("human", "p", "gpt", "r", "human", "q", "gpt", "a"), "system": "s", "tool": "t"},
        example(
            turns("system", "s", "user", "p"),
            [Response(turns("assistant", "r", "user", "q", "assistant", "a"))],
            tool="t",
        ),
    ),
    (
        "sharegpt",
        {"conversations": gpt("human", "q", "function_call", "f()", "observation", "7", "gpt", "seven")},
        example(Q, [Response(turns("assistant", "f()", "tool", "7", "assistant", "seven"))]),
    ),
    (
        "steerlm",
        steerlm("VALUE_TO_TEXT", "quality:4,toxicity:0", "quality:1,toxicity:3"),
        example(
            turns("system", "s", *Q_AND),
            [Response((labelled("a", 4, 0), Message("user", "more"), labelled("b", 1, 3)))],
        ),
    ),
    (
        "steerlm",
        steerlm("TEXT_TO_VALUE", None, "quality:1,toxicity:3"),
        example(
            turns("system", "s", *Q_AND, "assistant", "a", "user", "more"),
            [said("b")],
            [Rating(0, {"quality": 1.0, "toxicity": 3.0})],
        ),
    ),
    (
        "sharegpt-preference",
        {
            "conversations": gpt("system", "s", "human", "q"),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        example(SYSTEM_Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "sharegpt-binary",
        {"conversations": gpt("human", "p", "gpt", "r", "human", "q", "gpt", "a"), "kto_tag": False},
        example(PAST_Q, [said("a")], [Binary(0, False)]),
    ),
    ("messages", {"messages": openai("system", "s", "user", "q", "assistant", "a")}, example(SYSTEM_Q, [said("a")])),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *openai("assistant", "a")]},
        example(Q, [said("a")]),
    ),
    (
        "messages",
        {"prompt": "q", "prompt_id": "7", "messages": openai("user", "q", "assistant", "a")},
        example(Q, [said("a")], prompt="q", prompt_id="7"),
    ),
    (
        "messages-binary",
        {"messages": openai("user", "p", "assistant", "r", "user", "q", "assistant", "a"), "label": True},
        example(PAST_Q, [said("a")], [Binary(0, True)]),
    ),
    (
        "messages-preference",
        {"messages": openai("user", "q", "assistant", "good"), "rejected_response": "bad"},
        example(Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "messages-preference",
        {
            "messages": openai("user", "q", "assistant", "good"),
            "rejected_messages": openai("user", "q", "assistant", "bad"),
        },
        example(Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "alpaca",
        {"instruction": "q", "input": "", "output": "a", "text": "rendered"},
        example(Q, [said("a")], text="rendered"),
    ),
    (
        "alpaca",
        {"instruction": "do", "input": "this", "output": "a", "system": "s", "history": [["p", "r"]]},
        example(turns("system", "s", "user", "p", "assistant", "r", "user", "do\nthis"), [said("a")]),
    ),
    (
        "alpaca-preference",
        {"instruction": "q", "input": None, "chosen": "good", "rejected": "bad"},
        example(Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "alpaca-binary",
        {"instruction": "q", "input": "", "output": "a", "kto_tag": True},
        example(Q, [said("a")], [Binary(0, True)]),
    ),
    ("prompt", {"prompt": "q", "solution": "7"}, example(Q, solution="7")),
    ("prompt", {"prompt": openai("system", "s", "user", "q")}, example(SYSTEM_Q)),
    ("completion", {"prompt": "q", "completion": " a\n"}, example(Q, [said(" a\n")])),
    (
        "completion",
        {"prompt": openai("system", "s", "user", "q"), "completion": openai("assistant", "a")},
        example(SYSTEM_Q, [said("a")]),
    ),
    (
        "binary",
        {"prompt": "q", "completion": "a", "label": False},
        example(Q, [said("a")], [Binary(0, False)]),
    ),
    (
        "binary",
        {"prompt": openai("user", "q"), "completion": openai("assistant", "a"), "label": True},
        example(Q, [said("a")], [Binary(0, True)]),
    ),
    (
        "preference",
        {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2},
        example(Q, PAIR, [Pair(0, 1, 2.0)]),
    ),
    (
        "preference",
        {"prompt": openai("user", "q"), "chosen": openai("assistant", "good"), "rejected": openai("assistant", "bad")},
        example(Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "preference",  # messages that repeat the prompt: it is not doubled
        {
            "prompt": openai("user", "q"),
            "chosen": openai("user", "q", "assistant", "good"),
            "rejected": openai("user", "q", "assistant", "bad"),
        },
        example(Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "preference",  # a prompt written as an hh-rlhf dialogue is that dialogue
        {"prompt": "\n\nHuman: p\n\nAssistant: r\n\nHuman: q\n\nAssistant:", "chosen": "good", "rejected": "bad"},
        example(PAST_Q, PAIR, [Pair(0, 1)]),
    ),
    (
        "preference-transcripts",
        {"prompt": "What is 2+2?", "chosen": "What is 2+2? 4", "rejected": "What is 2+2? 5"},
        example(turns("user", "What is 2+2?"), [said("4"), said("5")], [Pair(0, 1)]),
    ),
    (
        "preference-transcripts",
        {"prompt": HH, "chosen": HH + " Yes", "rejected": HH + " Yes it is"},
        example(turns("user", "Is it?"), [said("Yes"), said("Yes it is")], [Pair(0, 1)]),
    ),
    (
        "preference-implicit",
        {
            "chosen": openai("user", "p", "assistant", "r", "user", "q", "assistant", "good"),
            "rejected": openai("user", "p", "assistant", "r", "user", "q", "assistant", "bad"),
            "source": "web",
        },
        example(PAST_Q, PAIR, [Pair(0, 1)], source="web"),
    ),
    (
        "preference-implicit",  # conversations that part early: later turns belong to the answers
        {
            "chosen": openai("user", "q", "assistant", "good"),
            "rejected": openai("user", "q", "assistant", "bad", "user", "why?", "assistant", "worse"),
        },
        example(
            Q,
            [said("good"), Response(turns("assistant", "bad", "user", "why?", "assistant", "worse"))],
            [Pair(0, 1)],
        ),
    ),
    (
        "ultrafeedback-binarized",
        {
            "prompt": "q",
            "prompt_id": "7",
            "chosen": openai("user", "q", "assistant", "good"),
            "rejected": openai("user", "q", "assistant", "bad"),
            "messages": openai("user", "q", "assistant", "good"),
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        example(Q, PAIR, [Pair(0, 1, 2.5), Rating(0, {"score": 8.5}), Rating(1, {"score": 6.0})], prompt_id="7"),
    ),
    (
        "hh-rlhf",  # a common beginning of the answers stays in the answers
        {"chosen": HH + " Yes", "rejected": HH + " Yes it is"},
        example(turns("user", "Is it?"), [said("Yes"), said("Yes it is")], [Pair(0, 1)]),
    ),
    (
        "hh-rlhf",  # the last common "Assistant:", not the first
        {
            "chosen": "\n\nHuman: p\n\nAssistant: r\n\nHuman: q\n\nAssistant: good ",
            "rejected": "\n\nHuman: p\n\nAssistant: r\n\nHuman: q\n\nAssistant: bye",
        },
        example(PAST_Q, [said("good"), said("bye")], [Pair(0, 1)]),
    ),
    (
        "best-of",
        {"prompt": "q", "chosen": ["4"], "rejected": ["5", "6"]},
        example(Q, [said("4"), said("5"), said("6")], [Ranking(((0,), (1, 2)))]),
    ),
    (
        "answers",
        {"prompt": "q", "responses": ["a", openai("assistant", "b"), {"messages": openai("assistant", "c")}]},
        example(Q, [said("a"), said("b"), said("c")], []),
    ),
    (
        "answers",
        {"prompt": openai("user", "p", "assistant", "r", "user", "q"), "responses": ["a"]},
        example(PAST_Q, [said("a")], []),
    ),
    (
        "assent",
        {"prompt": "q", "responses": ["a", "b"], "feedback": [{"kind": "pair", "chosen": 1, "rejected": 0}]},
        example(Q, [said("a"), said("b")], [Pair(1, 0)]),
    ),
    (
        "ranked",
        {
            "context": openai("user", "q"),
            "completions": [
                {"rank": 1, "completion": openai("assistant", "b")},
                {"rank": 0, "completion": openai("assistant", "a")},
                {"rank": 1, "completion": openai("assistant", "c")},
            ],
        },
        example(Q, [said("b"), said("a"), said("c")], [Ranking(((1,), (0, 2)))]),
    ),
    (
        "helpsteer2",
        {"prompt": "p\n<extra_id_1>Assistant\nr\n<extra_id_1>User\nq", "response": "a", **HELPSTEER},
        example(PAST_Q, [said("a")], [Rating(0, {name: float(score) for name, score in HELPSTEER.items()})]),
    ),
    (
        "helpsteer2-preference",
        {"split": "train", "prompt": "q", "response_1": "bad", "response_2": "good", "preference_strength": 2},
        example(Q, [said("bad"), said("good")], [Pair(1, 0, 2.0)], split="train"),
    ),
    (
        "helpsteer2-preference",
        {"prompt": "q", "response_1": "good", "response_2": "bad", "preference_strength": -3},
        example(Q, PAIR, [Pair(0, 1, 3.0)]),
    ),
    (
        "helpsteer3-preference",
        {
            "domain": "code",
            "context": openai("user", "q"),
            "response1": "one",
            "response2": "two",
            "overall_preference": 0,
        },
        example(Q, [said("one"), said("two")], [Ranking(((0, 1),))], domain="code"),
    ),
    (
        "helpsteer3-votes",
        {
            "domain": "code",
            "context": openai("user", "q"),
            "response1": "one",
            "response2": "two",
            "individual_preference": HELPSTEER3_VOTES,
        },
        example(
            Q,
            [said("one"), said("two")],
            [Pair(0, 1, 3.0), Pair(1, 0, 1.0), Ranking(((0, 1),))],
            domain="code",
            individual_preference=[{"reasoning": "Clearer."}, {"reasoning": "Shorter."}, {}],
        ),
    ),
    (
        "ultrafeedback",
        {
            "instruction": "q",
            "completions": [
                {
                    "model": "m",
                    "response": "a",
                    "annotations": {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}},
                    "critique": "fine",
                },
                {"model": None, "response": "b", "annotations": {"helpfulness": {"Rating": "2"}}},
            ],
        },
        example(
            Q,
            [said("a", "m"), said("b")],
            [Rating(0, {"helpfulness": 4.0}), Critique(0, "fine"), Rating(1, {"helpfulness": 2.0})],
        ),
    ),
    (
        "gsm8k",
        {"question": "q", "answer": "16 - 3 = <<16-3=13>>13 eggs\n#### $1,013."},
        example(
            Q,
            [said("16 - 3 = 13 eggs\n#### $1,013.")],
            answer="16 - 3 = <<16-3=13>>13 eggs\n#### $1,013.",
            final_answer="1013",
        ),
    ),
    ("text", {"text": "once"}, example((), [Response(turns("text", "once"))])),
    (
        "assent",
        {
            "prompt": openai("user", "q"),
            "responses": [
                {"messages": openai("assistant", "a"), "source": "m"},
                {"messages": openai("assistant", "b")},
            ],
            "feedback": [{"kind": "pair", "chosen": 1, "rejected": 0, "strength": 2, "annotator": "x"}],
            "meta": {"id": 7},
        },
        example(Q, [said("a", "m"), said("b")], [Pair(1, 0, 2.0, "x")], id=7),
    ),
]
IDS = [f"{name}-{index}" for index, (name, _, _) in enumerate(SHAPES)]


@pytest.mark.parametrize(("name", "row", "expected"), SHAPES, ids=IDS)
def test_shape_is_detected_and_read_exactly(name, row, expected):
    assert detect([row]) == name
    assert FORMATS[name].parse(row, ORIGIN) == expected


@pytest.mark.parametrize(("name", "row", "expected"), SHAPES, ids=IDS)
def test_every_record_survives_our_own_shape(name, row, expected):
    written = json.loads(json.dumps(to_row(expected)))
    assert detect([written]) == "assent"
    assert FORMATS["assent"].parse(written, ORIGIN) == expected


@pytest.mark.parametrize(("name", "row", "expected"), SHAPES, ids=IDS)
def test_columns_that_other_formats_fill_with_none_change_nothing(name, row, expected):
    """A parquet file has every column in every row; None is "absent"."""
    padded = dict.fromkeys(("system", "tools", "label", "margin", "messages", "text", "kto_tag")) | row
    assert detect([padded]) == name
    assert FORMATS[name].parse(padded, ORIGIN) == expected


def test_votes_of_helpsteer3_are_read_where_they_are_asked_for(tmp_path):
    """Its rows have both: the overall preference by default; by name the votes, which --reward.votes makes shares."""
    row = {
        "context": openai("user", "q"), "response1": "one", "response2": "two", "overall_preference": -1,
        "individual_preference": HELPSTEER3_VOTES,
    }  # fmt: skip
    bad = {**row, "individual_preference": [{"score": 4}]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (row, bad, {**row, "individual_preference": [2]})))
    assert [e.feedback for e in load_examples(file).examples] == [(Pair(0, 1, 1.0),)] * 3
    loaded = load_examples(file, format="helpsteer3-votes")
    assert [str(problem).partition("rows.jsonl:")[2] for problem in loaded.problems] == [
        "2: individual_preference[0].score: expected a number from -3 to 3, got 4",
        "3: individual_preference[0]: expected an object with score, got the number 2",
    ]
    ((voted,), _) = pair_view(loaded.examples, votes=True, ties=True)
    assert voted.feedback == (Pair(0, 1, 2.0, share=1 / 3, tie=1 - 2 / 3),)


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        ({"mask": "Assistant"}, "mask", "expected User"),
        ({"type": "TEXT"}, "type", "expected VALUE_TO_TEXT or TEXT_TO_VALUE"),
        (steerlm("VALUE_TO_TEXT", "quality:4", None), "conversations[3].label", "expected name:value"),
        (steerlm("TEXT_TO_VALUE", "quality:4", None), "conversations[3].label", "ratings of the last answer"),
        (steerlm("VALUE_TO_TEXT", "quality:good", "quality:4"), "conversations[1].attributes", "must be a number"),
        (steerlm("VALUE_TO_TEXT", "quality:4,quality:3", "quality:4"), "conversations[1].attributes", "given twice"),
        (steerlm("VALUE_TO_TEXT", "quality 4", "quality:4"), "conversations[1].attributes", "expected NAME=VALUE"),
        ({"conversations": [["User", "q"]]}, "conversations[0]", "expected a message"),
    ],
)
def test_bad_steerlm_rows_are_named(change, column, words):
    row = steerlm("VALUE_TO_TEXT", "quality:4,toxicity:0", "quality:1,toxicity:3") | change
    with pytest.raises(RowError, match=words) as wrong:
        FORMATS["steerlm"].parse(row, ORIGIN)
    assert wrong.value.column == column


def test_table_covers_every_shape_under_its_own_name():
    assert set(FORMATS) == {name for name, _, _ in SHAPES}
    assert all(fmt.name == name and fmt.description for name, fmt in FORMATS.items())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["", " ", "a", "q", "\ud800", HH]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "kind", "messages", "Rating", "rank", "completion", "a"]
            ),
            inner | st.sampled_from(["user", "assistant", "gpt", "human", "pair", "rating", "ranking"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.data())
def test_no_value_whatsoever_breaks_a_parser(data):
    name, row, _ = data.draw(st.sampled_from(SHAPES))
    row = dict(row)
    for column in data.draw(st.sets(st.sampled_from(sorted(row)), min_size=1)):
        row[column] = data.draw(VALUES)
    fitting(row)
    try:
        parsed = FORMATS[name].parse(row, ORIGIN)
    except RowError as error:
        assert error.reason
        return
    for response in parsed.responses:
        assert response.text.strip()
        assert response.messages[-1].role in ("assistant", "text")
    assert not parsed.prompt or parsed.prompt[-1].role in ("user", "tool")


WORDS = st.text(st.sampled_from("ab \n.é"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), WORDS)
def test_hh_dialogue_round_trip(exchanges, other):
    exchanges = [(question.strip(), reply.strip()) for question, reply in exchanges]
    *past, (question, chosen) = exchanges
    if other.strip() == chosen:
        return
    prompt = "".join(f"\n\nHuman: {q}\n\nAssistant: {a}" for q, a in past) + f"\n\nHuman: {question}\n\nAssistant: "
    parsed = FORMATS["hh-rlhf"].parse({"chosen": prompt + chosen, "rejected": prompt + other}, ORIGIN)
    flat = [part for q, a in past for part in ("user", q, "assistant", a)]
    assert parsed.prompt == turns(*flat, "user", question)
    assert [response.text for response in parsed.responses] == [chosen, other.strip()]


# Detection over a whole file.


def test_bad_rows_do_not_outvote_the_shape():
    good = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    bad = [{**good, "chosen": None}, {**good, "rejected": None}, {"prompt": "q"}]
    assert detect([*bad, good, good]) == "preference"


def test_unknown_shape_lists_columns_and_nearest_shapes():
    with pytest.raises(DataError) as caught:
        detect([{"prompt": "q", "response": "a"}], "rows.jsonl")
    text = str(caught.value)
    assert text.startswith("rows.jsonl: unknown shape. Columns found: prompt, response.")
    assert "\n  completion: " in text and "missing: completion" in text
    assert "--data.format" in text and "--data.columns" in text


def test_ambiguous_shape_asks_for_a_choice():
    row = {"conversations": gpt("human", "q", "gpt", "a"), "messages": openai("user", "q", "assistant", "a")}
    with pytest.raises(DataError, match="fit several shapes; choose one with --data.format") as caught:
        detect([row])
    assert "\n  sharegpt: " in str(caught.value) and "\n  messages: " in str(caught.value)


def test_prompt_beside_an_answer_is_not_read_as_prompts_only():
    with pytest.raises(DataError, match="unknown shape"):
        detect([{"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scores": [1, 0.5]}, "scores: a number for each answer looks like a judgement"),
        ({"good": [True, False]}, "good: a number for each answer looks like a judgement"),
        ({"responses": ["a", 5]}, r"responses\[1\]: expected text, messages, or an object with messages"),
        ({"responses": ["a", ""]}, r"responses\[1\]: expected text, got an empty string"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_answers_without_a_judgement(more, words):
    """Numbers for each answer are not left unread; words and other lists are columns."""
    row = {"prompt": "q", "responses": ["a", "b"], "tags": ["x", "y"], "ids": [1, 2, 3]}
    assert FORMATS["answers"].parse(row, ORIGIN).meta == {"tags": ["x", "y"], "ids": [1, 2, 3]}
    with pytest.raises(RowError, match=words):
        FORMATS["answers"].parse(row | more, ORIGIN)


# Loading.


def write(path: Path, rows: list[object]) -> Path:
    path = path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_load_accounts_for_every_row(tmp_path):
    good = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    path = write(tmp_path, [good, "{broken", {**good, "chosen": ""}, [], good])
    loaded = load_examples(path)
    assert (loaded.format, loaded.num_rows, loaded.rows_used) == ("preference", 5, 2)
    assert [item.origin.row for item in loaded.examples] == [1, 5]
    assert [str(problem) for problem in loaded.problems] == [
        f"{path}:2: not valid JSON: Expecting property name enclosed in double quotes at column 2",
        f"{path}:3: chosen: expected text, got an empty string",
        f"{path}:4: expected an object {{...}}, got list",
    ]
    assert load_examples(path, limit=2).num_rows == 2


def test_load_merges_consecutive_ratings_of_one_prompt(tmp_path):
    def row(prompt: str, response: str, helpfulness: int | None) -> dict:
        return {"prompt": prompt, "response": response, **HELPSTEER, "helpfulness": helpfulness}

    path = write(
        tmp_path, [row("q", "a", 1), row("q", "b", 3), row("r", "c", 2), row("r", "d", None), row("q", "e", 0)]
    )
    loaded = load_examples(path)
    assert (loaded.format, loaded.num_rows, loaded.rows_used) == ("helpsteer2", 5, 4)
    assert [[response.text for response in item.responses] for item in loaded.examples] == [["a", "b"], ["c"], ["e"]]
    assert [(item.response, item.scores["helpfulness"]) for item in loaded.examples[0].feedback] == [(0, 1), (1, 3)]
    assert [str(problem.origin) for problem in loaded.problems] == [f"{path}:4"]


def test_rows_of_other_shapes_are_not_merged(tmp_path):
    row = {"prompt": "q", "completion": "a"}
    assert len(load_examples(write(tmp_path, [row, row])).examples) == 2


def test_column_map(tmp_path):
    path = write(tmp_path, [{"question": "q", "rejected": "good", "chosen": "bad", "id": 7}])
    swapped = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    loaded = load_examples(path, columns=swapped)
    assert loaded.examples[0].prompt == Q
    assert loaded.examples[0].responses == PAIR
    assert loaded.examples[0].meta == {"id": 7}
    with pytest.raises(DataError, match=r"no shape has a column 'promt'; did you mean 'prompt'\?"):
        load_examples(path, columns={"promt": "question"})
    with pytest.raises(DataError, match=r"prompt:questoin: .* has no column 'questoin'; did you mean 'question'\?"):
        load_examples(path, columns={"prompt": "questoin"})


def test_format_override(tmp_path):
    path = write(tmp_path, [{"prompt": "q", "completion": "a", "text": "once"}] * 2)
    assert load_examples(path, format="text").examples[0].responses[0].text == "once"
    with pytest.raises(DataError, match=r"unknown format 'sharegtp'; did you mean 'sharegpt'\?"):
        load_examples(path, format="sharegtp")
    with pytest.raises(
        DataError, match=r"shape 'preference' needs the column chosen, rejected.*--data.columns chosen:"
    ):
        load_examples(path, format="preference")


def test_csv_cells_get_their_types(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        'prompt,completion,label\nq,42,true\nq,"[1, 2]",FALSE\nq,a,1\nq,a,\n"[{\'role\': 1}]",a,true\nq,b,0\n'
    )
    loaded = load_examples(path)
    assert [item.responses[0].text for item in loaded.examples] == ["42", "[1, 2]", "a", "b"]
    assert [item.feedback[0].label for item in loaded.examples] == [True, False, True, False]
    assert [(problem.origin.row, problem.column) for problem in loaded.problems] == [(4, "label"), (5, "prompt")]
    messages = tmp_path / "messages.csv"
    cell = json.dumps(openai("user", "q", "assistant", "a")).replace('"', '""')
    messages.write_text(f'messages\n"{cell}"\n')
    assert load_examples(messages).examples == [
        Example(Q, (said("a"),), (), Origin(str(messages), 1), {}),
    ]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_file_without_rows(text, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="is empty|no rows"):
        load_examples(path)


def test_file_without_a_readable_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(
        DataError, match=r"no row can be read. The first: .*rows.jsonl:1: not valid JSON: Expecting value at column 1"
    ):
        load_examples(path)


@pytest.mark.parametrize(
    ("name", "shape", "num_rows", "turns_in_longest_prompt"),
    [
        ("dpo_en_demo.json", "sharegpt-preference", 300, 13),
        ("kto_en_demo.json", "messages-binary", 300, 11),
        ("alpaca_en_demo.json", "alpaca", 999, 1),
        ("gsm8k_test.jsonl", "gsm8k", 1319, 1),
    ],
)
def test_real_files_load_without_a_problem(real_data, name, shape, num_rows, turns_in_longest_prompt):
    loaded = load_examples(real_data / name)
    assert loaded.format == shape
    assert loaded.problems == []
    assert loaded.num_rows == loaded.rows_used == len(loaded.examples) == num_rows
    assert max(len(item.prompt) for item in loaded.examples) == turns_in_longest_prompt


def test_real_rows_hold_their_exact_text(real_data):
    rows = json.loads((real_data / "dpo_en_demo.json").read_text(encoding="utf-8"))
    for row, item in zip(rows, load_examples(real_data / "dpo_en_demo.json").examples, strict=True):
        assert [turn.content for turn in item.prompt] == [turn["value"] for turn in row["conversations"]]
        assert [response.text for response in item.responses] == [row["chosen"]["value"], row["rejected"]["value"]]
        assert item.feedback == (Pair(0, 1),)
    final = [item.meta["final_answer"] for item in load_examples(real_data / "gsm8k_test.jsonl").examples]
    assert final[:5] == ["18", "3", "70000", "540", "20"]
    assert all(float(answer) is not None for answer in final)
