"""Items as JSON, as a database keeps them; from rows, and with what annotators said of them back to rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from assent.data.formats.load import moved
from assent.data.formats.message import messages
from assent.data.formats.native import message_row, response_of, response_row
from assent.data.formats.values import in_words
from assent.data.jsonl import plain_json
from assent.data.records import (
    ANNOTATED,
    Binary,
    Example,
    Feedback,
    Message,
    Origin,
    Pair,
    Ranking,
    Response,
    RowError,
)
from assent.people.kinds import KINDS, Value, changed
from assent.people.task import ANSWERS, Item, TaskDefinition

END_OF_TIME = 253_402_300_800.0
"""The end of the year 9999, which no date is beyond."""
WRITTEN = "written by "
"""Before the name of the annotator who wrote an answer: its source."""


@dataclass(frozen=True, slots=True)
class Label:
    """What one annotator said of an item; `shown` is the order in which answers stood, `seconds` how long it took, `at`
    when (UTC seconds)."""

    value: Value
    annotator: str
    shown: tuple[int, ...] = ()
    seconds: float | None = None
    at: float | None = None


def seconds_of(said: object, where: str) -> float | None:
    """How long something took, or when it was. Raises RowError for what is neither."""
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said < END_OF_TIME:
        raise RowError(where, f"expected a number of seconds, got {in_words(said)}")
    return float(said)


# ---- JSON


def item_row(item: Item) -> dict[str, Any]:
    """An item as JSON; `item_of` reads it back to an equal one."""
    row: dict[str, Any] = {
        "prompt": [message_row(turn) for turn in item.prompt],
        "responses": list(item.responses),
        "sources": list(item.sources),
        "meta": plain_json(item.meta),
    }
    more = {
        "topic": item.topic,
        "overlap": item.overlap,
        "answers": [response_row(each) for each in item.answers] or None,
        "tools": item.tools,
        "template_kwargs": dict(item.template_kwargs) or None,
        "prompt_text": item.prompt_text,
    }
    return row | {name: value for name, value in more.items() if value is not None}


def item_of(row: Mapping[str, Any]) -> Item:
    """The item of such a row."""
    return Item(
        prompt=messages(row["prompt"], "prompt"),
        responses=tuple(row["responses"]),
        sources=tuple(row.get("sources") or ()),
        meta=dict(row.get("meta") or {}),
        topic=row.get("topic"),
        overlap=row.get("overlap"),
        answers=tuple(response_of(each, "answers") for each in row.get("answers") or ()),
        tools=row.get("tools"),
        template_kwargs=dict(row.get("template_kwargs") or {}),
        prompt_text=row.get("prompt_text"),
    )


# ---- from rows


def item_from(example: Example, task: TaskDefinition) -> Item:
    """The item that a row is to annotators. Raises RowError where it cannot be shown, or has not the answers that its
    kind needs."""
    prompt, answers = last_answers(example)
    texts = tuple(response.text for response in answers)
    fewest, most = ANSWERS[task.kind]
    if not fewest <= len(texts) <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        found = "1 answer" if len(texts) == 1 else f"{len(texts)} answers"
        hint = "" if texts else ". Give them in the row, or name `policies` in the task that write them"
        raise RowError("responses", f"{found}; a task of kind {task.kind} shows {wanted}{hint}")
    same = {text.strip(): index for index, text in enumerate(texts)}
    if len(same) < len(texts):
        twice = next(index for index, text in enumerate(texts) if same[text.strip()] != index)
        raise RowError("responses", f"answers {twice + 1} and {same[texts[twice].strip()] + 1} are the same")
    for name, text in (*(("prompt", turn.content) for turn in prompt), *(("responses", text) for text in texts)):
        if "\0" in text:
            raise RowError(name, "has a NUL character, which databases cannot hold")
    topic, overlap = example.meta.get(task.topic), _overlap(example.meta.get("overlap"))
    plain = tuple(Response((Message("assistant", each.text),), each.source) for each in answers)
    return Item(
        prompt, texts, tuple(each.source for each in answers), _columns(example.meta),
        None if topic is None else str(topic), overlap, () if plain == answers else answers, example.tools,
        dict(example.template_kwargs), example.prompt_text,
    )  # fmt: skip


def _overlap(said: Any) -> int | None:
    """How many annotators a row asks for: in a table of text as text, in one with gaps as 3.0. Raises RowError."""
    if said is None or said == "" or said != said:
        return None
    number = int(said) if isinstance(said, str) and said.strip().isdecimal() and len(said) < 10 else said
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < 2**31:
        raise RowError("overlap", f"expected a whole number of annotators, at least 1; got {str(said)[:40]!r}")
    return number


def _columns(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A row's columns as JSON has them (dates and the like are their text), without what annotators of another task
    said. Raises RowError for what no database could hold."""
    kept = {}
    for name, value in meta.items():
        if name != ANNOTATED:
            text = json.dumps(plain_json(value), default=partial(_as_text, name))
            if "\\u0000" in text:
                raise RowError(name, "has a NUL character, which databases cannot hold")
            kept[name] = json.loads(text)
    return kept


def _as_text(column: str, value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        raise RowError(column, "holds bytes, which are no text: remove the column")
    return str(value)


def last_answers(example: Example) -> tuple[tuple[Message, ...], tuple[Response, ...]]:
    """Prompt and answers of one message each: of one answer, earlier turns are part of the prompt."""
    prompt, answers = example.prompt, example.responses
    if len(answers) == 1 and len(answers[0].messages) > 1:
        before = tuple(replace(turn, trained=True) for turn in answers[0].messages[:-1])
        prompt, answers = (*prompt, *before), (replace(answers[0], messages=answers[0].messages[-1:]),)
    if not prompt:
        raise RowError("prompt", "plain text has no prompt")
    for index, response in enumerate(answers):
        if len(response.messages) > 1:
            raise RowError(
                f"responses[{index}]", "is several messages, which cannot stand side by side; give their last ones"
            )
        if response.messages[0].tool_calls:
            raise RowError(f"responses[{index}]", "calls tools, which annotators are not shown")
    return prompt, answers


def known_value(example: Example, item: Item, task: TaskDefinition) -> Value:
    """The known answer that a row's feedback is. Raises RowError where it is none."""
    value = KINDS[task.kind].value(example.feedback, item, task)
    if value is None:
        found = ", ".join(sorted({type(each).__name__.lower() for each in example.feedback})) or "none"
        raise RowError("feedback", f"is not one answer to a task of kind {task.kind} (there is: {found})")
    return value


# ---- to rows


def example_of(item: Item, labels: Sequence[Label], task: TaskDefinition, origin: Origin | None = None) -> Example:
    """The row of an item with all that annotators said: feedback for trainers, and in `meta.annotated` each answer as
    it was given. What annotators wrote stands behind the item's own answers."""
    kind = KINDS[task.kind]
    responses = list(item.answers or _plain(item))
    feedback: list[Feedback] = []
    for label in labels:
        written = len(item.responses)
        if task.kind == "edit" and changed(label.value, item):
            source = WRITTEN + label.annotator
            responses.append(Response((Message("assistant", label.value["text"]),), source))
            written = len(responses) - 1
        own = {len(item.responses): written}
        said = kind.feedback(label.value, item, label.annotator, label.shown)
        feedback += [moved(each, partial(_place, own)) for each in said]
    return Example(
        item.prompt, tuple(responses), _all_bad(feedback, task), origin or Origin("<label>", 0),
        {**item.meta, ANNOTATED: [annotated(label) for label in labels]} if labels else dict(item.meta),
        item.tools, dict(item.template_kwargs), item.prompt_text,
    )  # fmt: skip


def _place(own: Mapping[int, int], answer: int) -> int:
    """Where an answer stands that stood behind the item's own."""
    return own.get(answer, answer)


def _plain(item: Item) -> Iterable[Response]:
    sources = item.sources or (None,) * len(item.responses)
    return [
        Response((Message("assistant", text),), source) for text, source in zip(item.responses, sources, strict=True)
    ]


def _all_bad(feedback: Sequence[Feedback], task: TaskDefinition) -> tuple[Feedback, ...]:
    """Without the labels of "both bad" and "none is good" where somebody else found an answer good: what trains on
    labels would see them alone, and not the comparison."""
    if task.kind in ("pair", "best"):
        bad = {each.annotator for each in feedback if isinstance(each, Binary)}
        if any(isinstance(each, Pair | Ranking) and each.annotator not in bad for each in feedback):
            return tuple(each for each in feedback if not isinstance(each, Binary))
    return tuple(feedback)


def annotated(label: Label) -> dict[str, Any]:
    """A label as a row of the column `annotated`."""
    more = {"shown": list(label.shown) or None, "seconds": label.seconds, "at": label.at}
    return {"annotator": label.annotator, "value": plain_json(label.value)} | {
        name: value for name, value in more.items() if value is not None
    }
