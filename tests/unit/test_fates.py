"""The table of fields is true: a value in any field of any shape becomes what the table says, and nothing else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from assent.data.formats import FORMATS, RowError, detect
from assent.data.formats.fates import MEDIA, MESSAGE, REASONING, SHARED, Fate
from assent.data.formats.shape import Format
from assent.data.records import Example, Message, Origin

ORIGIN = Origin("rows.jsonl", 1)
MARK = "a mark"
SHAPES = list(FORMATS.values())
WITH_MESSAGES = [fmt for fmt in SHAPES if fmt.name != "text"]
TOOL = {"type": "function", "function": {"name": MARK, "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": MARK}}}


def names(shapes: list[Format]) -> list[str]:
    return [fmt.name for fmt in shapes]


def turns(example: Example) -> list[Message]:
    return [*example.prompt, *(turn for response in example.responses for turn in response.messages)]


def said(example: Example) -> str:
    return json.dumps(
        [[t.role, t.content, t.reasoning, t.name, t.tool_call_id, [[c.name, c.arguments, c.id] for c in t.tool_calls]]
         for t in turns(example)]
    )  # fmt: skip


def marked(value: Any) -> Any:
    """The value with the mark in its last text."""
    if isinstance(value, str):
        return value + " " + MARK
    if isinstance(value, list):
        return [*value[:-1], marked(value[-1])]
    for key in ("messages", "completion", "response", "content", "value"):
        if key in value:
            return {**value, key: marked(value[key])}
    raise AssertionError(value)


OTHER_FEEDBACK = {
    "kto_tag": lambda value: not value,
    "label": lambda value: not value,
    "preference_strength": lambda value: -value,
    "overall_preference": lambda value: -value,
    "individual_preference": lambda value: [{"score": 2}, *value[1:]],
    "feedback": lambda value: [{**value[0], "chosen": 1, "rejected": 0}],
    "score_rejected": lambda value: value - 1,
}


@pytest.mark.parametrize("fmt", SHAPES, ids=names(SHAPES))
def test_the_example_row_is_of_its_shape(fmt: Format):
    assert detect([fmt.example]) == fmt.name
    example = fmt.parse(fmt.example, ORIGIN)
    assert example == fmt.parse(json.loads(json.dumps(fmt.example)), ORIGIN)
    assert set(fmt.required) <= set(fmt.fields) or fmt.name == "prompt"


FIELDS = [(fmt, name) for fmt in SHAPES for name, (fate, _) in fmt.fields.items() if fate is not Fate.REFUSED]


@pytest.mark.parametrize(("fmt", "name"), FIELDS, ids=[f"{fmt.name}-{name}" for fmt, name in FIELDS])
def test_every_column_of_every_shape(fmt: Format, name: str):
    row = dict(copy.deepcopy(fmt.example))
    if name in REASONING:  # one name of three
        row = {key: value for key, value in row.items() if key not in REASONING}
    if name == "rejected_messages":
        row.pop("rejected_response")
        row[name] = [*row["messages"][:-1], {"role": "assistant", "content": "5"}]
    row.setdefault(name, [{"role": "user", "content": "x"}] if name == "messages" else "x")
    before = fmt.parse(row, ORIGIN)
    fate, about = fmt.fields[name]
    assert about
    if fate is Fate.ENTRIES:
        assert fmt.parse({**row, name: {"deep": MARK}}, ORIGIN).meta == {"deep": MARK}
        return
    if fate is Fate.FEEDBACK:
        if name == "score_chosen" or name == "margin" or isinstance(row[name], int) and name not in OTHER_FEEDBACK:
            change = lambda value: value + 1  # noqa: E731
        else:
            change = OTHER_FEEDBACK[name]
        after = fmt.parse({**row, name: change(row[name])}, ORIGIN)
        assert after.feedback != before.feedback
        assert replace(after, feedback=()) == replace(before, feedback=())
        assert name not in after.meta
        return
    changed = {**row, name: marked(row[name])}
    if fate is Fate.SHOWN:
        assert fmt.parse(changed, ORIGIN) == replace(before, prompt_text=changed[name])
        return
    if fate is Fate.CHECKED:
        with pytest.raises(RowError) as wrong:
            fmt.parse(changed, ORIGIN)
        assert wrong.value.column == name
        return
    if fmt.name == "preference-transcripts" and name == "prompt":
        changed |= {
            column: marked(row["prompt"]) + row[column].removeprefix(row["prompt"]) for column in ("chosen", "rejected")
        }
    if fmt.name == "gsm8k" and name == "answer":
        changed[name] = f"{MARK} {row[name]}"
    after = fmt.parse(changed, ORIGIN)
    in_text, in_meta = MARK in said(after), MARK in json.dumps(after.meta)
    assert in_text == (fate is Fate.TEXT), said(after)
    assert in_meta == (fate is Fate.META or (fmt.name, name) == ("gsm8k", "answer"))
    if fate is Fate.PASSED:
        assert after == before
    assert after.feedback == before.feedback


@pytest.mark.parametrize("fmt", SHAPES, ids=names(SHAPES))
def test_columns_that_every_shape_may_have(fmt: Format):
    row = {key: value for key, value in fmt.example.items() if key not in SHARED}
    plain = fmt.parse(row, ORIGIN)
    for name, (fate, _) in SHARED.items():
        given = {Fate.TEXT: MARK, Fate.TOOLS: [TOOL], Fate.VARIABLES: {"mode": MARK}, Fate.REFUSED: [MARK]}[fate]
        for nothing in (None, "") if fate is Fate.TEXT else (None, "", [], "[]", {}):
            assert fmt.parse({**row, name: nothing}, ORIGIN) == plain, (name, nothing)
        if fmt.fate(name)[0] is Fate.REFUSED:
            with pytest.raises(RowError) as wrong:
                fmt.parse({**row, name: given}, ORIGIN)
            assert wrong.value.column == name and wrong.value.reason
            continue
        after = fmt.parse({**row, name: given}, ORIGIN)
        assert name not in after.meta
        if fate is Fate.TEXT:
            assert after == replace(plain, prompt=(Message("system", MARK), *plain.prompt))
        elif fate is Fate.TOOLS:
            assert after == replace(plain, tools=json.dumps([TOOL]))
            assert fmt.parse({**row, name: json.dumps([TOOL])}, ORIGIN) == after
        else:
            assert after == replace(plain, template_kwargs={"mode": MARK})
            assert fmt.parse({**row, name: json.dumps({"mode": MARK})}, ORIGIN) == after


@pytest.mark.parametrize("fmt", SHAPES, ids=names(SHAPES))
def test_any_other_column_is_kept(fmt: Format):
    after = fmt.parse({**fmt.example, "anything": {"deep": [1, None, MARK]}, "none": None}, ORIGIN)
    assert after.meta["anything"] == {"deep": [1, None, MARK]}
    assert "none" not in after.meta
    assert MARK not in said(after)


def test_plain_text_has_no_place_for_what_belongs_to_messages():
    assert {fmt.name for fmt in SHAPES if fmt.fate("tools")[0] is Fate.REFUSED} == {"text"}
    assert all(fmt.fate(name)[0] is Fate.REFUSED for fmt in SHAPES for name in MEDIA)


# Keys of a message, wherever messages stand.

GIVEN = {
    "content": MARK,
    "value": MARK,
    "role": "model",
    "from": "gpt",
    "tool_calls": [CALL],
    "name": MARK,
    **dict.fromkeys(REASONING, MARK),
}


def conversation(**last: Any) -> Example:
    turn = {"role": "assistant", "content": "4", **last}
    turn = {key: value for key, value in turn.items() if not (value is ... or (key == "role" and "from" in last))}
    row = {"messages": [{"role": "user", "content": "2+2?"}, turn]}
    return FORMATS["messages"].parse(row, ORIGIN)


@pytest.mark.parametrize("key", list(MESSAGE))
def test_every_key_of_a_message(key: str):
    fate, about = MESSAGE[key]
    plain = conversation()
    assert about
    if fate is Fate.MASK:
        assert (
            conversation(**{key: 1})
            == plain
            == conversation(**{key: True if "weight" not in key and key != "loss_scale" else 1.0})
        )
        assert conversation(**{key: 0}).responses[0].messages[0].trained is False
        for wrong in (0.5, 2, "yes"):
            with pytest.raises(RowError) as refused:
                conversation(**{key: wrong})
            assert refused.value.column == f"messages[1].{key}"
        return
    if fate is Fate.PASSED:
        assert conversation(**{key: MARK}) == plain
        return
    if key == "tool_call_id":
        with pytest.raises(RowError, match="only tool turns have this"):
            conversation(tool_call_id="c1")
        return
    if fate is Fate.ATTRIBUTES:
        after = conversation(**{key: {"quality": 4, "toxicity": 0}})
        assert after.responses[0].messages[0].attributes == (("quality", 4.0), ("toxicity", 0.0))
        assert after == conversation(**{key: "quality:4, toxicity=0"})
        for wrong in ("quality", "quality:high", "quality:1,quality:2", 4, {"quality": "x"}):
            with pytest.raises(RowError) as refused:
                conversation(**{key: wrong})
            assert refused.value.column.startswith(f"messages[1].{key}")
        return
    after = conversation(**{key: GIVEN[key]}, **({"content": ...} if key == "value" else {}))
    if key in ("role", "from"):
        assert after == plain
    else:
        assert MARK in said(after), said(after)


@pytest.mark.parametrize("key", ["prefix", "audio", "refusal", "function_call", "channel", "images", "anything"])
def test_another_key_of_a_message_is_refused_by_name(key: str):
    for nothing in (None, "", [], {}, False):
        assert conversation(**{key: nothing}) == conversation()
    with pytest.raises(RowError, match="a message has no use for this") as wrong:
        conversation(**{key: "x"})
    assert wrong.value.column == f"messages[1].{key}"
