"""assent's own jsonl shape: the whole `Example`, nothing lost. Every other shape can be exported to it.

{"prompt": [{"role": "user", "content": "2+2?"}],
 "responses": [{"messages": [{"role": "assistant", "content": "4"}], "source": "human"}, ...],
 "feedback": [{"kind": "pair", "chosen": 0, "rejected": 1, "strength": 2.0}, ...],
 "meta": {...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from assent.data.formats.fields import answer, check_answer, check_prompt, same_answer, text_prompt
from assent.data.formats.message import messages
from assent.data.formats.values import Row, boolean, get, in_words, listed, number, text
from assent.data.records import (
    Binary,
    Critique,
    Example,
    Feedback,
    Message,
    Origin,
    Pair,
    Ranking,
    Rating,
    Response,
    RowError,
)

KINDS: dict[str, type[Feedback]] = {
    "pair": Pair,
    "ranking": Ranking,
    "rating": Rating,
    "binary": Binary,
    "critique": Critique,
}


def to_row(example: Example) -> dict[str, Any]:
    """`example` as a JSON object that `native` reads back to an equal record (its origin apart)."""
    names = {cls: name for name, cls in KINDS.items()}
    row: dict[str, Any] = {
        "prompt": [message_row(turn) for turn in example.prompt],
        "responses": [response_row(each) for each in example.responses],
        "feedback": [{"kind": names[type(item)], **_without_none(_fields(item))} for item in example.feedback],
        "meta": dict(example.meta),
    }
    if example.prompt_text is not None:
        row["prompt_text"] = example.prompt_text
    if example.tools is not None:
        row["tools"] = example.tools
    if example.template_kwargs:
        row["chat_template_kwargs"] = dict(example.template_kwargs)
    return row


def response_row(response: Response) -> dict[str, Any]:
    """A response as a JSON object; `response_of` reads it back."""
    turns = [message_row(turn) for turn in response.messages]
    finished = None if response.finished else False
    return _without_none({"messages": turns, "source": response.source, "finished": finished})


def message_row(turn: Message) -> dict[str, Any]:
    """A message as a JSON object, without the fields that it does not use."""
    calls = [_without_none({"name": call.name, "arguments": call.arguments, "id": call.id}) for call in turn.tool_calls]
    optional = {
        "reasoning": turn.reasoning,
        "tool_calls": calls or None,
        "name": turn.name,
        "tool_call_id": turn.tool_call_id,
        "trained": None if turn.trained else False,
        "attributes": dict(turn.attributes) or None,
    }
    return {"role": turn.role, "content": turn.content, **_without_none(optional)}


def _fields(item: Feedback) -> dict[str, Any]:
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def native(row: Row, origin: Origin) -> Example:
    given = listed(row["responses"], "responses") if row.get("responses") else ()
    responses = tuple(response_of(item, f"responses[{index}]") for index, item in enumerate(given))
    is_text = any(turn.role == "text" for response in responses for turn in response.messages)
    if is_text:
        prompt: tuple[Message, ...] = ()
    else:
        asked = get(row, "prompt")
        is_plain = isinstance(asked, str)
        prompt = text_prompt(asked, "prompt") if is_plain else check_prompt(messages(asked, "prompt"), "prompt")
        for index, response in enumerate(responses):
            check_answer(response.messages, f"responses[{index}].messages", prompt[-1].role)
    feedback = tuple(
        _feedback(item, f"feedback[{index}]", responses) for index, item in enumerate(_items(row, "feedback"))
    )
    meta = row.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise RowError("meta", f"expected an object, got {in_words(meta)}")
    prompt_text = None if row.get("prompt_text") is None else text(row["prompt_text"], "prompt_text", blank=True)
    return Example(prompt, responses, feedback, origin, dict(meta), prompt_text=prompt_text)


def _shares(item: Mapping[str, Any], column: str) -> tuple[float | None, float]:
    """`share` and `tie` of a pair: parts of its votes."""
    tie = 0.0 if item.get("tie") is None else number(item["tie"], f"{column}.tie", 0, 1)
    share = None if item.get("share") is None else number(item["share"], f"{column}.share", 0, 1)
    if tie + (share or 0.0) > 1 + 1e-9:
        raise RowError(f"{column}.share", f"expected at most 1 together with tie, got {share} and {tie}")
    return share, tie


def _items(row: Row, column: str) -> list[Mapping[str, Any]]:
    """The objects of a list that may be empty or absent."""
    value = row.get(column)
    items = list(listed(value, column)) if value else []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise RowError(f"{column}[{index}]", f"expected an object, got {in_words(item)}")
    return items


def unjudged(row: Row, origin: Origin) -> Example:
    """The same without feedback: answers that are to be labelled or judged."""
    example = native(row, origin)
    for name, value in row.items():
        if name != "responses" and isinstance(value, list) and len(value) == len(example.responses):
            if all(isinstance(each, int | float) for each in value):
                raise RowError(
                    name, "a number for each answer looks like a judgement, which this shape does not read. Write it "
                    "as feedback (docs/formats.md#assent), or remove the column."
                )  # fmt: skip
    return example


def response_of(item: object, column: str) -> Response:
    """The response of an object as `response_row` makes it, of messages alone, or of plain text. Raises RowError."""
    if isinstance(item, str):
        return answer(item, column)
    if isinstance(item, list):
        return Response(messages(item, column))
    if not isinstance(item, Mapping):
        raise RowError(column, f"expected text, messages, or an object with messages, got {in_words(item)}")
    turns = item.get("messages")
    source = item.get("source")
    if source is not None:
        text(source, f"{column}.source")
    if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], Mapping) and turns[0].get("role") == "text":
        return Response((Message("text", text(turns[0].get("content"), f"{column}.messages[0].content")),), source)
    finished = item.get("finished")
    ended = True if finished is None else boolean(finished, f"{column}.finished")
    return Response(messages(turns, f"{column}.messages"), source, ended)


def _feedback(item: Mapping[str, Any], column: str, responses: tuple[Response, ...]) -> Feedback:
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RowError(f"{column}.kind", f"unknown kind {in_words(kind)}; known: {', '.join(KINDS)}")

    def index(value: object, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(responses):
            expected = f"expected a response index below {len(responses)}"
            raise RowError(f"{column}.{name}", f"{expected}, got {in_words(value)}")
        return value

    annotator = None if item.get("annotator") is None else text(item["annotator"], f"{column}.annotator")
    if kind == "pair":
        chosen, rejected = index(item.get("chosen"), "chosen"), index(item.get("rejected"), "rejected")
        if same_answer(responses[chosen], responses[rejected]):
            raise RowError(f"{column}.rejected", "equal to chosen")
        strength = item.get("strength")
        if (first := item.get("first")) not in (None, "chosen", "rejected"):
            raise RowError(f"{column}.first", f"expected chosen or rejected, got {in_words(first)}")
        gap = None if strength is None else number(strength, f"{column}.strength")
        return Pair(chosen, rejected, gap, annotator, *_shares(item, column), first=first)
    if kind == "ranking":
        levels = tuple(
            tuple(index(value, "levels") for value in listed(level, f"{column}.levels"))
            for level in listed(item.get("levels"), f"{column}.levels")
        )
        flat = [value for level in levels for value in level]
        if len(set(flat)) < len(flat):
            raise RowError(f"{column}.levels", "names a response twice")
        return Ranking(levels, annotator)
    response = index(item.get("response"), "response")
    if kind == "rating":
        scores = item.get("scores")
        if not isinstance(scores, Mapping) or not scores:
            raise RowError(f"{column}.scores", f"expected named numbers, got {in_words(scores)}")
        given = {name: value for name, value in scores.items() if value is not None}
        return Rating(response, {n: number(value, f"{column}.scores.{n}") for n, value in given.items()}, annotator)
    if kind == "binary":
        return Binary(response, boolean(item.get("label"), f"{column}.label"), annotator)
    return Critique(response, text(item.get("text"), f"{column}.text"), annotator)
