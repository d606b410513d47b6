"""Marks around the texts of a conversation, to find them again in what a chat template writes.

A mark is a number between two noncharacters. Each text gets one before and one behind its core: all of it but white
space and tags ("<think>") at its ends, which templates look for, move and write anew. A template may change white
space, and may write a text as JSON; everything else must come out as it went in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from assent.data.records import RowError

if TYPE_CHECKING:
    from assent.data.template import Conversation

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters; one that the conversation does not hold, nor spells as JSON would, is taken."""

WORDS = 10_000
"""Names and numbers in the arguments of one call: each is looked for."""

TAG = re.compile(r"<[^<>\n]{1,80}>|\[/?[A-Z_]{2,}\]|◁/?\w+▷|/(no_)?think\b|/nothink\b")
THOUGHT_ENDS = re.compile(r"</(?:\w+:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]|<channel\|>|◁/think▷")
"""Where an answer's own text ends its reasoning."""
EMPTY_THOUGHT = re.compile(r"<\|?((?:\w+:)?(?:think|thinking|thought|reasoning))>\s*</\1>\s*|\[THINK\]\s*\[/THINK\]\s*")


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the conversation: whose, what, and its parts before, inside and behind the marks. `message` is None
    for tools. `optional` texts may be left out."""

    message: int | None
    what: str
    before: str
    core: str
    behind: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message's texts stand: from the first to the end of the last; `core` is where the first begins behind
    its tags."""

    start: int
    core: int
    end: int


class _Marker:
    """Puts marks around texts and remembers them."""

    def __init__(self, texts: list[Text], mark: str, middle: bool) -> None:
        self.texts, self.mark, self.middle = texts, mark, middle

    def __call__(self, text: str, message: int | None, what: str, optional: bool = False) -> str:
        skipped = 0
        if optional and what == "content":  # its reasoning may be left out, the rest not
            ends = [match.end() for match in THOUGHT_ENDS.finditer(text)]
            skipped, optional = (ends or [0])[-1], False
        start, end = _core(text, skipped, self.middle)
        if start == end:
            return text
        number = 2 * len(self.texts)
        self.texts.append(Text(message, what, text[skipped:start], text[start:end], text[end:], optional))
        left, right = (f"{self.mark}{n}{self.mark}" for n in (number, number + 1))
        return text[:start] + left + text[start:end] + right + text[end:]

    def inside(self, value: Any, message: int | None, what: str, optional: bool) -> Any:
        """The texts of a JSON value."""
        if isinstance(value, str):
            return self(value, message, what, optional)
        if isinstance(value, dict):
            return {key: self.inside(item, message, what, optional) for key, item in value.items()}
        return [self.inside(item, message, what, optional) for item in value] if isinstance(value, list) else value


def _core(text: str, skipped: int, middle: bool) -> tuple[int, int]:
    blank = TAG.sub(lambda match: " " * len(match[0]), text[skipped:])
    if not blank.strip():
        blank = text[skipped:]
    if middle:
        words = list(re.finditer(r"\w+", blank))
        if words:
            return skipped + words[len(words) // 2].start(), skipped + words[len(words) // 2].end()
    start = skipped + len(blank) - len(blank.lstrip())
    return start, max(start, skipped + len(blank.rstrip()))


def collect(talk: Conversation, texts: list[Text], rendered: str, middle: bool) -> Conversation:
    """The conversation with marks around its texts, which are added to `texts`."""
    mark = _mark(rendered)
    marker = _Marker(texts, mark, middle)
    messages = []
    for index, message in enumerate(talk.messages):
        context = index in talk.context and message["role"] == "assistant"
        made = dict(message)
        keys = [key for key in ("reasoning_content", "thinking", "reasoning") if key in message]
        if keys:
            made |= dict.fromkeys(keys, marker(message[keys[0]], index, "reasoning_content", context))
        content = message["content"]
        if isinstance(content, list):
            made["content"] = [part | {"text": marker(part["text"], index, "content", context)} for part in content]
        else:
            made["content"] = marker(content, index, "content", context)
        if "tool_calls" in message:
            made["tool_calls"] = [_marked_call(call, marker, index) for call in message["tool_calls"]]
        messages.append(made)
    tools = talk.tools and [_marked_tool(tool, marker) for tool in talk.tools]
    return replace(talk, messages=messages, tools=tools)


def _marked_call(call: dict[str, Any], marker: _Marker, index: int) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    made = {
        "name": marker(function["name"], index, "tool_calls"),
        "arguments": marker.inside(arguments, index, "tool_calls", False),
    }
    return call | {"function": function | made}


def _marked_tool(tool: Any, marker: _Marker) -> Any:
    """Tools are written in many ways; each must at least be named."""
    if not isinstance(tool, dict):
        return tool
    if isinstance(tool.get("function"), dict):
        return tool | {"function": _marked_tool(tool["function"], marker)}
    return tool | {"name": marker(tool["name"], None, "tools")} if isinstance(tool.get("name"), str) else tool


def placed(marked: str | None, texts: list[Text], rendered: str, talk: Conversation) -> list[Place | None] | None:
    """Where each message's texts stand in `rendered`, of which `marked` is the same with marks; None where the marks
    changed what is written. Without `marked`, texts are looked for one behind the other."""
    if marked is None:
        found = _in_order(texts, rendered)
    else:
        parts = _pattern(_mark(rendered)).split(marked)  # text, a number, text, ...
        if "".join(parts[::2]) != rendered:
            return None
        found, place = {}, 0
        for text_before, number in zip(parts[::2], parts[1::2]):
            place += len(text_before)
            found.setdefault(int(number), []).append(place)
    spans: list[list[tuple[int, int, int]]] = [[] for _ in talk.messages]
    for index, text in enumerate(texts):
        starts, ends = found.get(2 * index, []), found.get(2 * index + 1, [])
        if not starts and text.optional:
            continue
        span = _span(rendered, starts[0], ends[0], text) if starts and ends else None
        if span is None:
            raise _lost(text, talk)
        if text.message is not None:
            if len(starts) > 1 and text.what != "tool_calls" and _trained(text, talk):
                raise RowError(_name(text), "the chat template writes it more than once")
            spans[text.message].append(span)
    places = [Place(min(own)[0], min(own)[1], max(end for *_, end in own)) if own else None for own in spans]
    _check_plain(talk, places, rendered)
    return places


def _mark(rendered: str) -> str:
    for mark in MARKS:
        if mark not in rendered and f"\\u{ord(mark):04x}" not in rendered:
            return mark
    raise RowError(None, f"the text holds every noncharacter from U+{ord(MARKS[0]):04X} to U+{ord(MARKS[-1]):04X}")


@cache
def _pattern(mark: str) -> re.Pattern[str]:
    """The number between two marks, which a template may write as JSON does."""
    either = f"(?:{mark}|\\\\u{ord(mark):04x})"
    return re.compile(rf"{either}(\d+){either}")


def _trained(text: Text, talk: Conversation) -> bool:
    assert text.message is not None
    return text.message not in talk.context and talk.messages[text.message]["role"] == "assistant"


def _in_order(texts: list[Text], rendered: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    position = 0
    for number, text in enumerate(texts):
        start = rendered.find(text.core, 0 if text.message is None else position)
        if start >= 0:
            found[2 * number], found[2 * number + 1] = [start], [start + len(text.core)]
            position = position if text.message is None else start + len(text.core)
    return found


FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: repr(text)[1:-1],
)
"""How a text may be written: as it is, as JSON, or as a Python literal (which is how Jinja writes texts in lists)."""


def _span(rendered: str, start: int, end: int, text: Text) -> tuple[int, int, int] | None:
    """Beginning, core and end of a text, where it is all there but for white space."""
    for form in FORMS:
        core = form(text.core)
        if rendered[start:end] == core or _dense(rendered[start:end]) == _dense(core):
            before, behind = form(text.before), form(text.behind)
            first: int | None = start - len(before)
            if not rendered.startswith(before, first):
                first = _reach(rendered, start, _dense(before)[::-1], -1)
            last: int | None = end + len(behind)
            if not rendered.startswith(behind, end):
                last = _reach(rendered, end, _dense(behind), 1)
            if first is not None and last is not None:
                return first, start, last
    return None


def _reach(rendered: str, position: int, letters: str, step: int) -> int | None:
    """Where these letters, with white space anywhere between, end; None where others stand there."""
    for letter in letters:
        index = position if step > 0 else position - 1
        while 0 <= index < len(rendered) and rendered[index].isspace():
            index += step
        if not 0 <= index < len(rendered) or rendered[index] != letter:
            return None
        position = index + 1 if step > 0 else index
    return position


def _dense(text: str) -> str:
    return "".join(text.split())


def _check_plain(talk: Conversation, places: list[Place | None], rendered: str) -> None:
    """Arguments that are no texts, their names, and the names of tools' parameters have no marks: they must be written
    somewhere in the message, or among the tools."""
    for index, message in enumerate(talk.messages):
        place = places[index]
        for call in message.get("tool_calls", []):
            region = rendered[place.start : _next_start(places, index, len(rendered))] if place else rendered
            words = dict.fromkeys(_words(call["function"]["arguments"]))
            if len(words) > WORDS:
                raise RowError(f"messages[{index}].tool_calls", f"more than {WORDS:,} names and numbers in one call")
            for word in words:
                if word not in region:
                    raise RowError(f"messages[{index}].tool_calls", f"the chat template leaves out its argument {word}")
    for tool in talk.tools or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        parameters = function.get("parameters") if isinstance(function, dict) else None
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        for name in properties if isinstance(properties, dict) else ():
            if name not in rendered:
                raise RowError("tools", f"the chat template leaves out the parameter '{name}'")


def _next_start(places: list[Place | None], index: int, end: int) -> int:
    return min([place.start for place in places[index + 1 :] if place is not None], default=end)


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in (key, *_words(item))]
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [] if isinstance(value, str | bool | type(None)) else [json.dumps(value)]


def _name(text: Text) -> str:
    if text.message is None:
        return "tools"
    return f"messages[{text.message}]" + ("" if text.what == "content" else f".{text.what}")


def _lost(text: Text, talk: Conversation) -> RowError:
    if text.what != "content":
        return RowError(_name(text), f"the chat template leaves out or changes {text.core!r:.60}")
    assert text.message is not None
    role = talk.messages[text.message]["role"]
    turn = sum(message["role"] == role for message in talk.messages[: text.message + 1])
    return RowError(_name(text), f"the chat template drops or changes text of {role} turn {turn}")
