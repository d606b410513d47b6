"""Other names of columns: told with the option that reads them, and that option works; dots lead into objects."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from assent.data.columns import column, column_names, has_column
from assent.data.formats import load_examples
from assent.data.records import Message
from assent.errors import DataError

ASK = [{"role": "user", "content": "q"}]


def say(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def write(folder: Path, *rows: dict) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def proposed(error: DataError) -> dict[str, str]:
    """The column map of the option that an error shows."""
    words = shlex.split(re.search(r"--data\.columns ([^\n]*)", str(error))[1])
    return dict(word.split(":", 1) for word in words)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen_response": "good", "rejected_response": "bad"},
        {"prompt": "q", "good": "good", "bad": "bad", "id": 7},
        {"prompt": "q", "preferred": "good", "dispreferred": "bad"},
        {"question": "q", "response_j": "good", "response_k": "bad"},
        {"Question": "q", "Chosen": "good", "Rejected": "bad"},
        {"prompt": "q", "winner": "good", "loser": "bad", "chosen_score": 4, "rejected_score": 2},
        {"prompt": "q", "chosenAnswer": "good", "rejectedAnswer": "bad"},
        {"prompt": "q", "y_w": "good", "y_l": "bad"},
        {"instruction": "q", "chosen_response": "good", "rejected_response": "bad"},
        {"chosen_messages": ASK + say("good"), "rejected_messages": ASK + say("bad")},
        {"prompt": "q", "chosen_messages": ASK + say("good"), "rejected_messages": ASK + say("bad")},
        {"prompt": ASK, "chosen_response": say("good"), "rejected_response": say("bad")},
        {"conversation": [{"from": "human", "value": "q"}], "chosen": say("good")[0], "rejected": say("bad")[0]},
        {"my prompt": "q", "prompt": "q", "better-answer": "good", "worse answer": "bad"},
    ],
)
def test_pairs_under_other_names_are_told_with_an_option_that_reads_them(row, tmp_path):
    path = write(tmp_path, row, row)
    try:
        loaded = load_examples(path)
    except DataError as error:
        loaded = load_examples(path, columns=proposed(error))
    assert loaded.problems == []
    for example in loaded.examples:
        assert example.prompt == (Message("user", "q"),)
        assert [response.text for response in example.responses] == ["good", "bad"]
        assert len(example.feedback) == 1


def test_prompts_beside_a_pair_can_be_asked_for_by_name(tmp_path):
    path = write(tmp_path, {"prompt": "q", "good": "a", "bad": "b"})
    with pytest.raises(
        DataError, match=r"'good' and 'bad' look like a better and a worse answer.*\n.*--data.format prompt"
    ):
        load_examples(path)
    example = load_examples(path, format="prompt").examples[0]
    assert example.meta == {"good": "a", "bad": "b"} and not example.responses


@pytest.mark.parametrize(
    "names", [("answer_a", "answer_b"), ("response_0", "response_1"), ("completion_a", "completion_b")]
)
def test_two_answers_without_a_verdict_are_not_guessed(names, tmp_path):
    path = write(tmp_path, {"prompt": "q", names[0]: "a", names[1]: "b", "winner": names[0]})
    with pytest.raises(DataError, match="look like two answers") as wrong:
        load_examples(path)
    assert f"response_1:{names[0]} response_2:{names[1]} preference_strength:FOUND" in str(wrong.value)
    signed = write(tmp_path, {"prompt": "q", names[0]: "a", names[1]: "b", "winner": -2})
    columns = proposed(wrong.value) | {"preference_strength": "winner"}
    assert load_examples(signed, columns=columns).examples[0].feedback[0].chosen == 0


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": "q", "response": "a"}, {"completion": "response"}),
        ({"query": "q", "answer": "a"}, {"prompt": "query", "completion": "answer"}),
        ({"instruction": "q", "response": "a"}, {"prompt": "instruction", "completion": "response"}),
        ({"dialog": [*ASK, *say("a")]}, {"messages": "dialog"}),
        ({"question": "q", "id": 3}, {"prompt": "question"}),
    ],
)
def test_other_shapes_under_other_names(row, mapping, tmp_path):
    path = write(tmp_path, row)
    with pytest.raises(DataError, match="unknown shape") as wrong:
        load_examples(path)
    assert proposed(wrong.value) == mapping
    assert load_examples(path, columns=mapping).examples[0].prompt == (Message("user", "q"),)


# Dots.

VERL = {
    "data_source": "gsm8k",
    "prompt": ASK,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "18"},
    "extra_info": {"index": 3, "a.b": "dotted", "parts": [{"x": "y"}]},
}


def test_columns_by_dots():
    assert column(VERL, "reward_model.ground_truth") == "18"
    assert column(VERL, "extra_info.a.b") == "dotted"
    assert column(VERL, "extra_info.parts.0.x") == "y"
    assert column({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert column(VERL, "reward_model.nothing") is None and column(VERL, "prompt.7", "none") == "none"
    assert has_column(VERL, "extra_info.index") and not has_column(VERL, "extra_info.index.x")
    assert column_names([{"a": {"b": {"c": 1}}, "d": {}}]) == ["a.b.c", "d"]


def test_a_nested_column_can_be_named(tmp_path):
    path = write(tmp_path, VERL)
    example = load_examples(path, columns={"answer": "reward_model.ground_truth"}).examples[0]
    assert example.meta["answer"] == "18" and example.meta["reward_model"]["ground_truth"] == "18"
    assert (
        load_examples(path, columns={"ground_truth": "reward_model.ground_truth"}).examples[0].meta["ground_truth"]
        == "18"
    )
    with pytest.raises(DataError, match=r"no column 'reward_model.ground'; did you mean 'reward_model.ground_truth'\?"):
        load_examples(path, columns={"answer": "reward_model.ground"})
    nested = write(tmp_path, {"data": {"q": "q", "a": "a"}})
    columns = {"prompt": "data.q", "completion": "data.a"}
    assert load_examples(nested, columns=columns).examples[0].responses[0].text == "a"


def test_an_option_that_would_not_help_is_not_shown(tmp_path):
    path = write(tmp_path, {"prompt": ASK, "good": "a", "bad": "b"})
    with pytest.raises(DataError, match="look like a better and a worse answer") as wrong:
        load_examples(path)
    assert "--data.columns" not in str(wrong.value) and "docs/formats.md" in str(wrong.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": False},
            "kto_tag",
        ),
        ({"instruction": "q", "output": "a", "label": False}, "kto_tag"),
        ({"messages": [*ASK, *say("a")], "kto_tag": False}, "label"),
        ({"prompt": "q", "completion": "a", "desirable": False}, "label"),
    ],
)
def test_a_verdict_under_another_name_is_not_overlooked(row, expected, tmp_path):
    path = write(tmp_path, row)
    with pytest.raises(DataError, match="looks like a verdict on the answer") as wrong:
        load_examples(path)
    columns = proposed(wrong.value)
    assert list(columns) == [expected]
    assert load_examples(path, columns=columns).examples[0].feedback[0].label is False
    chosen = re.search(r"--data\.format (\S+)", str(wrong.value))[1]
    assert load_examples(path, format=chosen).examples[0].feedback == ()


@pytest.mark.parametrize(
    "extra", [{"chosen_score": 4, "rejected_score": 2}, {"label": "math"}, {"good": True}, {"a": "x"}]
)
def test_other_columns_beside_a_prompt_are_no_pair(extra, tmp_path):
    assert load_examples(write(tmp_path, {"prompt": "q", **extra}), format="prompt").examples[0].meta == extra
    assert load_examples(write(tmp_path, {"prompt": "q", **extra})).format == "prompt"
