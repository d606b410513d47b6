"""One turn, its tools and calls: read as they are from every way in which they are written, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from assent.data.formats import FORMATS, RowError, load_examples, to_row
from assent.data.formats.fields import same_answer
from assent.data.formats.message import message, messages, template_kwargs, tools
from assent.data.records import Example, Message, Origin, Response, ToolCall
from assent.data.views import pair_view, prompt_view, sft_view
from assent.errors import DataError

ORIGIN = Origin("rows.jsonl", 1)
ASK = {"role": "user", "content": "Weather in Rome?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "", "tool_call_id": "c1", "name": "weather"}
SAY = {"role": "assistant", "content": "Sunny.", "reasoning_content": "It said so."}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", None], "default": None}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}]


def test_a_conversation_with_tools():
    row = {"messages": [ASK, CALLING, RESULT, SAY], "tools": TOOLS}
    example = FORMATS["messages"].parse(row, ORIGIN)
    arguments = '{"city": "Rome", "days": 1}'
    assert example.prompt == (Message("user", "Weather in Rome?"),)
    assert example.responses[0].messages == (
        Message("assistant", "", tool_calls=(ToolCall("weather", arguments, "c1"),)),
        Message("tool", "", name="weather", tool_call_id="c1"),
        Message("assistant", "Sunny.", reasoning="It said so."),
    )
    assert json.loads(example.tools) == TOOLS


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"name": "weather", "arguments": {"city": "Rome", "days": 1}, "id": "c1"},
        {**CALL, "index": 0, "extra": None},
        {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 1}'}},
    ],
)
def test_ways_to_write_a_call(call):
    expected = (ToolCall("weather", '{"city": "Rome", "days": 1}', "c1"),)
    for written in ([call], json.dumps([call])):
        assert message({"role": "assistant", "tool_calls": written}, "m").tool_calls == expected


def test_arguments_as_text_stay_as_they_are():
    written = '{"city":  "Rome", "x": null}'
    call = {"function": {"name": "f", "arguments": written}}
    assert message({"role": "assistant", "tool_calls": [call]}, "m").tool_calls[0].arguments == written
    empty = {"function": {"name": "f", "arguments": ""}}
    assert message({"role": "assistant", "tool_calls": [empty]}, "m").tool_calls[0].arguments == "{}"


@pytest.mark.parametrize(
    ("turn", "column", "reason"),
    [
        ({**CALLING, "tool_calls": [{**CALL, "type": "web"}]}, "m.tool_calls[0].type", "expected 'function'"),
        (
            {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "m.tool_calls[0].function.arguments",
            "got a list",
        ),
        (
            {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "m.tool_calls[0].function.arguments",
            "not valid JSON",
        ),
        ({**CALLING, "tool_calls": [{**CALL, "cost": 7}]}, "m.tool_calls[0].cost", "no use for this"),
        ({**CALLING, "tool_calls": "f()"}, "m.tool_calls", "not valid JSON"),
        ({**CALLING, "role": "user", "content": "x"}, "m.tool_calls", "only assistant turns"),
        ({**ASK, "reasoning": "x"}, "m.reasoning", "only assistant turns"),
        ({**SAY, "thinking": "other"}, "m.thinking", "not the same as reasoning_content"),
        ({**SAY, "weight": 0, "train": True}, "m.weight", "contradicts train"),
        ({**SAY, "weight": 0.5}, "m.weight", "expected 0 or 1, got the number 0.5"),
        ({**ASK, "train": True}, "m.train", "only answers are trained"),
        ({**SAY, "value": "other"}, "m.value", "is not the same as content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "m.content[0]", "type 'image_url'"),
        ({"role": "user", "content": [{"text": "x"}]}, "m.content[0]", "has no type"),
        ({"role": "user", "content": ["x"]}, "m.content[0]", "expected a part"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "image": "y"}]}, "m.content[0].image", "no use"),
        ({"role": "user", "content": {"a": 1}}, "m.content", "expected a string, got an object"),
        ({"role": "assistant", "content": ""}, "m.content", "expected text"),
    ],
)
def test_what_is_refused(turn, column, reason):
    with pytest.raises(RowError) as wrong:
        message(turn, "m")
    assert wrong.value.column == column and reason in wrong.value.reason


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "value": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "text", "text": "a", "value": None, "image_url": None, "cache_control": {"type": "x"}}], "a"),
    ],
)
def test_text_parts_are_read_exactly(parts, text):
    assert message({"role": "user", "content": parts}, "m") == Message("user", text)
    assert message({"from": "human", "value": parts}, "m") == Message("user", text)


def test_the_union_of_both_ways_to_write_messages():
    turns = [
        {"role": "user", "content": "q", "from": None, "value": None},
        {"role": None, "content": None, "from": "gpt", "value": "a"},
    ]
    assert messages(turns, "m") == (Message("user", "q"), Message("assistant", "a"))
    both = {"role": "user", "content": "q", "from": "user", "value": "q"}
    assert message(both, "m") == Message("user", "q")


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ("developer", "developer"),
        ("function", "tool"),
        ("ipython", "tool"),
        ("observation", "tool"),
        ("model", "assistant"),
    ],
)
def test_roles(said, role):
    assert message({"role": said, "content": "x"}, "m").role == role


@pytest.mark.parametrize(
    ("value", "column", "reason"),
    [
        ("x", "tools", "not valid JSON"),
        ({"a": 1}, "tools", "expected a list, got an object"),
        ('{"a": 1}', "tools", "expected a list, got an object"),
        ([7], "tools[0]", "expected a tool as an object"),
        ([{"x": float("nan")}], "tools", "cannot be written as JSON"),
        ('[{"x": NaN}]', "tools", "cannot be written as JSON"),
        ([{"x": "\ud800"}], "tools", "broken Unicode"),
        ('[{"x": 1' + "0" * 5000 + "}]", "tools", "too many digits"),
        ("[" * 100_000, "tools", "nested too deeply"),
    ],
)
def test_tools_that_cannot_be(value, column, reason):
    with pytest.raises(RowError) as wrong:
        tools(value)
    assert wrong.value.column == column and reason in wrong.value.reason


def test_tools_lose_what_arrow_adds_and_nothing_else():
    filled = [{"function": {"name": "f", "parameters": {"properties": {"a": {"default": None, "x": None}, "b": None}}}}]
    expected = [{"function": {"name": "f", "parameters": {"properties": {"a": {"default": None}}}}}]
    assert json.loads(tools(filled)) == expected
    text = json.dumps(filled)
    assert tools(text) == text
    assert tools([json.dumps(TOOLS[0])]) == json.dumps(TOOLS)


def test_template_variables():
    assert template_kwargs({"enable_thinking": False}) == {"enable_thinking": False}
    assert template_kwargs('{"a": [1]}') == {"a": [1]}
    for name in ("messages", "tools", "tokenize", "add_generation_prompt"):
        with pytest.raises(RowError, match="no variable of a chat template") as wrong:
            template_kwargs({name: 1})
        assert wrong.value.column == f"chat_template_kwargs.{name}"


def test_thoughts_beside_an_answer():
    row = {"prompt": "q", "completion": "a", "reasoning": "because"}
    assert FORMATS["completion"].parse(row, ORIGIN).responses[0].messages == (Message("assistant", "a", "because"),)
    with pytest.raises(RowError, match="is a switch"):
        FORMATS["completion"].parse({**row, "reasoning": "on"}, ORIGIN)
    with pytest.raises(RowError, match="not the same as"):
        FORMATS["completion"].parse({**row, "thinking": "other"}, ORIGIN)
    judged = FORMATS["preference"].parse({"prompt": "q", "chosen": "a", "rejected": "b", "reasoning": "why"}, ORIGIN)
    assert judged.meta == {"reasoning": "why"}  # of the judge


def test_system_beside_a_conversation():
    row = {"prompt": [ASK], "chosen": [SAY], "rejected": [{**SAY, "content": "Rain."}], "system": "Be brief."}
    assert FORMATS["preference"].parse(row, ORIGIN).prompt[0] == Message("system", "Be brief.")
    same = {**row, "prompt": [{"role": "system", "content": "Be brief."}, ASK]}
    assert FORMATS["preference"].parse(same, ORIGIN) == FORMATS["preference"].parse(row, ORIGIN)
    other = {**row, "prompt": [{"role": "system", "content": "Ramble."}, ASK]}
    with pytest.raises(RowError, match="there is a system turn in the conversation as well") as wrong:
        FORMATS["preference"].parse(other, ORIGIN)
    assert wrong.value.column == "system"


def test_answers_that_differ_in_calls_or_thoughts_are_two():
    plain = Response((Message("assistant", "a"),))
    call = ToolCall("f", '{"x": 1}', "c1")
    calling = Response((Message("assistant", "a", tool_calls=(call,)),))
    again = Response((Message("assistant", "a ", tool_calls=(replace(call, arguments='{"x":1}', id="c2"),)),))
    assert same_answer(calling, again) and not same_answer(plain, calling)
    assert not same_answer(plain, Response((Message("assistant", "a", "why"),)))


def test_a_weight_in_the_prompt_changes_nothing():
    past = [ASK, {**SAY, "weight": 0}, {"role": "user", "content": "And Oslo?"}]
    row = {"messages": [*past, {"role": "assistant", "content": "Snow.", "weight": 1}], "label": True}
    example = FORMATS["messages-binary"].parse(row, ORIGIN)
    assert all(turn.trained for turn in example.prompt)
    implicit = {"chosen": [*past, SAY], "rejected": [ASK, SAY, past[2], {**SAY, "content": "Rain."}]}
    assert len(FORMATS["preference-implicit"].parse(implicit, ORIGIN).prompt) == 3


def test_turns_without_weight_are_read_only_and_a_row_of_such_alone_is_not_trained():
    row = {"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY]}
    example = FORMATS["messages"].parse(row, ORIGIN)
    assert [turn.trained for turn in example.responses[0].messages] == [False, True, True]
    nothing = FORMATS["messages"].parse({"messages": [ASK, {**SAY, "train": False}]}, ORIGIN)
    kept, problems = sft_view([example, nothing])
    assert kept == [example] and [problem.reason for problem in problems] == [
        "no turn is trained: all have weight 0 or train false"
    ]


def test_messages_as_json_text():
    row = {"messages": json.dumps([ASK, CALLING, RESULT, SAY]), "tools": json.dumps(TOOLS)}
    lists = {"messages": [ASK, CALLING, RESULT, SAY], "tools": TOOLS}
    one, other = (FORMATS["messages"].parse(each, ORIGIN) for each in (row, lists))
    assert replace(one, tools=None) == replace(other, tools=None) and json.loads(one.tools) == json.loads(other.tools)
    with pytest.raises(RowError, match="not valid JSON") as wrong:
        FORMATS["messages"].parse({"messages": "[{'role': 'user'}]"}, ORIGIN)
    assert wrong.value.column == "messages"


def test_a_conversation_that_ends_with_a_question_is_a_prompt(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [ASK, SAY, ASK], "ground_truth": "x"}, {"messages": [ASK, SAY]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(path)
    assert loaded.problems == [] and loaded.examples[0].responses == ()
    assert [len(example.prompt) for example in prompt_view(loaded.examples)[0]] == [3, 1]
    kept, (problem,) = sft_view(loaded.examples)
    assert len(kept) == 1 and problem.reason == "no answer: the row ends with a user turn" and problem.fault
    with pytest.raises(DataError, match="comparisons are needed"):
        pair_view(loaded.examples)


def test_arrow_files_mean_the_same(tmp_path):
    """A parquet file fills the keys of every object with None where only a neighbour has them."""
    rows = [
        {"messages": [ASK, CALLING, RESULT, SAY], "tools": TOOLS, "chat_template_kwargs": {"a": 1}, "extra": {"k": 1}},
        {
            "messages": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": None, "tool_calls": [{"function": {"name": "f", "arguments": {"z": "1"}}}]},
            ],
            "tools": [{"type": "function", "function": {"name": "g", "parameters": {"required": ["z"]}}}],
            "chat_template_kwargs": {"b": "x"},
            "extra": {"l": 2},
        },
    ]
    text, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    expected, found = load_examples(text), load_examples(table)
    assert expected.problems == found.problems == []
    strip = {"default": None}
    for one, other in zip(expected.examples, found.examples, strict=True):
        assert (one.prompt, one.template_kwargs) == (other.prompt, other.template_kwargs)
        for mine, its in zip(one.responses[0].messages, other.responses[0].messages, strict=True):
            calls = [[(c.name, json.loads(c.arguments), c.id) for c in turn.tool_calls] for turn in (mine, its)]
            assert calls[0] == calls[1]
            assert replace(mine, tool_calls=()) == replace(its, tool_calls=())
        written = json.loads(one.tools)
        for tool in written:
            for entry in tool["function"]["parameters"].get("properties", {}).values():
                for key in strip:
                    entry.pop(key, None)
        assert written == json.loads(other.tools)
    assert found.examples[0].meta == {"extra": {"k": 1, "l": None}}  # what is kept is kept as it was


# Our own shape loses nothing.

WORDS = st.text(st.sampled_from('ab "\\\n\u2028é🥚'), min_size=1, max_size=5).filter(str.strip)
IDS = st.none() | WORDS
JSON = st.none() | st.booleans() | st.integers() | WORDS | st.lists(WORDS, max_size=2)
OBJECTS = st.dictionaries(WORDS, JSON, max_size=2)
CALLS = st.builds(ToolCall, WORDS, OBJECTS.map(json.dumps), IDS)
ANSWERS = st.builds(
    lambda content, reasoning, calls, name, trained: Message(
        "assistant", content, reasoning, tuple(calls), name, None, trained
    ),
    WORDS,
    IDS,
    st.lists(CALLS, max_size=2),
    IDS,
    st.booleans(),
)
QUESTIONS = st.builds(lambda content, name: Message("user", content, name=name), WORDS, IDS)
RESULTS = st.builds(
    lambda content, name, call: Message("tool", content, name=name, tool_call_id=call), WORDS | st.just(""), IDS, IDS
)
STARTS = st.lists(st.builds(Message, st.just("system"), WORDS), max_size=1)
TOOL_TEXTS = st.none() | st.lists(OBJECTS.map(lambda tool: {"name": "f", **tool}), min_size=1, max_size=2).map(
    json.dumps
)
NAMES = WORDS.map(lambda word: "v" + word)


@settings(deadline=None)
@given(
    STARTS,
    QUESTIONS,
    st.lists(st.tuples(ANSWERS, RESULTS), max_size=2),
    ANSWERS,
    TOOL_TEXTS,
    st.dictionaries(NAMES, JSON, max_size=2),
    OBJECTS,
)
def test_our_own_shape_gives_back_every_field(start, question, exchanges, last, listed, variables, meta):
    answer = Response((*(turn for exchange in exchanges for turn in exchange), last), "m")
    variables = {name: value for name, value in variables.items() if value not in ({}, [], "")}
    example = Example((*start, question), (answer,), (), ORIGIN, meta, listed, variables)
    written = json.loads(json.dumps(to_row(example)))
    assert FORMATS["assent"].parse(written, ORIGIN) == example
