"""One turn of a conversation, and what goes with it: tools, calls of tools, variables of the chat template."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from assent.data.formats.fates import MESSAGE, REASONING, SWITCHES, WEIGHTS, Fate, is_empty
from assent.data.formats.values import Row, boolean, in_words, json_value, listed, number, text, zero_or_one
from assent.data.records import Message, Response, RowError, ToolCall
from assent.data.steering import read_attributes

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
RESERVED = (
    *("messages", "conversation", "conversations", "tools", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
)
"""What decides how a conversation is rendered and is no variable of a template."""
MAY_BE_NULL = ("default", "const", "example", "examples", "enum")


def message(value: object, column: str) -> Message:
    """One turn: {role, content} (OpenAI) or {from, value} (ShareGPT), or both where the other's keys are None."""
    if not isinstance(value, Mapping):
        raise RowError(column, f"expected a message with role and content, got {in_words(value)}")
    role_key, said = _either(value, ("role", "from"), column)
    content_key, content = _either(value, ("content", "value"), column)
    if not isinstance(said, str) or said not in ROLES:
        got = f"unknown role {said!r}" if isinstance(said, str) else f"expected a role, got {in_words(said)}"
        raise RowError(f"{column}.{role_key}", f"{got}; known: {', '.join(ROLES)}")
    role = ROLES[said]
    for key, field in value.items():
        if MESSAGE.get(key, (Fate.REFUSED,))[0] is Fate.REFUSED and not is_empty(field):
            raise RowError(f"{column}.{key}", _unknown(key))
    reasoning = _reasoning(value, column)
    calls = tool_calls(value.get("tool_calls"), f"{column}.tool_calls")
    labels = attributes(value.get("attributes"), f"{column}.attributes")
    call_id, name = (_word(value, key, column) for key in ("tool_call_id", "name"))
    for key, given, owner in (
        ("reasoning", reasoning, "assistant"),
        ("tool_calls", calls, "assistant"),
        ("attributes", labels, "assistant"),
        ("tool_call_id", call_id, "tool"),
    ):
        if given and role != owner:
            raise RowError(f"{column}.{key}", f"only {owner} turns have this; the role is {said!r}")
    # A system prompt or a tool's result may be empty; a question may not, an answer only beside calls or thoughts.
    may_be_blank = role in ("system", "developer", "tool") or bool(calls or reasoning)
    if content is None and (calls or reasoning):
        content = ""
    content = _joined_parts(content, f"{column}.{content_key}")
    words = text(content, f"{column}.{content_key}", blank=may_be_blank)
    return Message(role, words, reasoning, calls, name, call_id, _trained(value, role, column), labels)


def messages(value: object, column: str) -> tuple[Message, ...]:
    """A list of turns, or its JSON; their order is for `check_order` to accept."""
    if isinstance(value, str) and value.lstrip().startswith("[") and "{" in value:
        value = json_value(value, column)
    return tuple(message(item, f"{column}[{index}]") for index, item in enumerate(listed(value, column)))


def _either(value: Row, keys: tuple[str, str], column: str) -> tuple[str, Any]:
    """The key of the two that has a value, and the value; the first key where none has."""
    given = [key for key in keys if value.get(key) is not None]
    if len(given) == 2 and value[keys[0]] != value[keys[1]]:
        raise RowError(f"{column}.{keys[1]}", f"is not the same as {keys[0]}; which one is right?")
    present = given or [key for key in keys if key in value] or list(keys)
    return present[0], value.get(present[0])


def _unknown(key: str) -> str:
    known = ", ".join(name for name, (fate, _) in MESSAGE.items() if fate is not Fate.PASSED)
    instead = "; write the call as tool_calls" if key == "function_call" else ""
    return f"a message has no use for this, and it is not empty{instead}. Known: {known}"


def _joined_parts(content: object, column: str) -> object:
    """The text of a list of text parts, as it is; anything else unchanged."""
    if not isinstance(content, list | tuple) or not content:
        return content
    parts = []
    for index, part in enumerate(content):
        where = f"{column}[{index}]"
        if not isinstance(part, Mapping):
            raise RowError(where, f"expected a part {{type: text, text}}, got {in_words(part)}")
        kind = part.get("type")
        if kind != "text":
            what = f"parts of type {kind!r} cannot be read" if isinstance(kind, str) else "this part has no type"
            raise RowError(where, f"{what}; only text parts can")
        other = [key for key, value in part.items() if key not in ("type", "text", "value") and not is_empty(value)]
        other = [key for key in other if MESSAGE.get(key, (Fate.REFUSED,))[0] is not Fate.PASSED]
        if other:
            raise RowError(f"{where}.{other[0]}", "a text part has no use for this, and it is not empty")
        key, value = _either(part, ("text", "value"), where)
        parts.append(text(value, f"{where}.{key}", blank=True))
    return "".join(parts)


def _reasoning(value: Row, column: str) -> str | None:
    found = {key: text(value[key], f"{column}.{key}") for key in REASONING if not is_empty(value.get(key))}
    for key, thought in found.items():
        if thought != next(iter(found.values())):
            raise RowError(f"{column}.{key}", f"is not the same as {next(iter(found))}; which one is right?")
    return next(iter(found.values()), None)


def with_thoughts(response: Response, row: Row, columns: Collection[str] = REASONING) -> Response:
    """The answer with what was thought before it, where a column of the row beside it has that."""
    found = {name: row[name] for name in columns if not is_empty(row.get(name))}
    if not found:
        return response
    for name, value in found.items():
        if text(value, name).strip().lower() in ("on", "off"):
            raise RowError(name, "is a switch, no text of thoughts; give such a one in chat_template_kwargs")
        if value != next(iter(found.values())):
            raise RowError(name, f"is not the same as {next(iter(found))}; which one is right?")
    name, thought = next(iter(found.items()))
    first, *others = response.messages
    if first.reasoning not in (None, thought):
        raise RowError(name, "the answer's message has another reasoning")
    return replace(response, messages=(replace(first, reasoning=thought), *others))


def _word(value: Row, key: str, column: str) -> str | None:
    """An optional short text; a number as ids may be is read as its digits."""
    given = value.get(key)
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    return None if given is None or given == "" else text(given, f"{column}.{key}")


def attributes(value: object, column: str) -> tuple[tuple[str, float], ...]:
    """What a turn is said to be: {name: value}, or NeMo's text "quality:4,toxicity:0"."""
    if is_empty(value):
        return ()
    if isinstance(value, str):
        try:
            return tuple(read_attributes(value).items())
        except ValueError as error:
            raise RowError(column, str(error)) from None
    if not isinstance(value, Mapping):
        raise RowError(column, f"expected {{name: value}} or its text, got {in_words(value)}")
    return tuple((text(name, column), number(each, f"{column}.{name}")) for name, each in without_nulls(value).items())


def _trained(value: Row, role: str, column: str) -> bool:
    """Whether the turn is trained; only assistant turns can be."""
    says: dict[str, bool] = {}
    for key in SWITCHES:
        if value.get(key) is not None:
            says[key] = boolean(value[key], f"{column}.{key}")
    for key in WEIGHTS:
        if value.get(key) is not None:
            weight = number(value[key], f"{column}.{key}")
            says[key] = zero_or_one(weight, f"{column}.{key}", "a turn is trained or it is not")
    if len(set(says.values())) > 1:
        keys = list(says)
        other = next(key for key in keys if says[key] != says[keys[0]])
        raise RowError(f"{column}.{other}", f"contradicts {keys[0]}")
    if role != "assistant":
        if wanted := [key for key, trained in says.items() if trained]:
            raise RowError(f"{column}.{wanted[0]}", f"asks to train a turn of role {role!r}; only answers are trained")
        return True
    return all(says.values())


# ------------------------------------------------------------------------------------------------ tools


def tool_calls(value: object, column: str) -> tuple[ToolCall, ...]:
    """Calls in OpenAI's shape, {id, type, function: {name, arguments}}, or {name, arguments} alone."""
    if isinstance(value, str) and not is_empty(value):
        value = json_value(value, column)
    if is_empty(value):
        return ()
    return tuple(_call(item, f"{column}[{index}]") for index, item in enumerate(listed(value, column)))


def _call(value: object, column: str) -> ToolCall:
    if not isinstance(value, Mapping):
        raise RowError(column, f"expected a call {{id, type, function}}, got {in_words(value)}")
    kind = value.get("type")
    if kind is not None and kind != "function":
        raise RowError(f"{column}.type", f"expected 'function', got {in_words(kind)}")
    nested = value.get("function") is not None
    function = value["function"] if nested else value
    where = f"{column}.function" if nested else column
    if not isinstance(function, Mapping):
        raise RowError(where, f"expected an object with name and arguments, got {in_words(function)}")
    known = {"id", "type", "index", "function"} | (set() if nested else {"name", "arguments"})
    for inside, allowed, place in ((value, known, column), (function, known | {"name", "arguments"}, where)):
        for key, field in inside.items():
            if key not in allowed and not is_empty(field):
                raise RowError(f"{place}.{key}", "a call of a tool has no use for this, and it is not empty")
    arguments = {} if is_empty(function.get("arguments")) else function["arguments"]
    given = json_value(arguments, f"{where}.arguments") if isinstance(arguments, str) else arguments
    if not isinstance(given, Mapping):
        expected = "expected an object of arguments, or its JSON"
        raise RowError(f"{where}.arguments", f"{expected}, got {in_words(given)}")
    written = arguments if isinstance(arguments, str) else json_text(given, f"{where}.arguments")
    return ToolCall(text(function.get("name"), f"{where}.name"), written, _word(value, "id", column))


def tools(value: object, column: str = "tools") -> str | None:
    """What an assistant may call, as the text of a JSON list (text stays as it is); None where there is nothing.
    Entries of a schema that are None stand for "absent", but where None can be meant (a default)."""
    if is_empty(value):
        return None
    given = json_value(value, column) if isinstance(value, str) else value
    found = []
    for index, tool in enumerate(listed(given, column)):
        where = f"{column}[{index}]"
        tool = json_value(tool, where) if isinstance(tool, str) else tool
        if not isinstance(tool, Mapping):
            raise RowError(where, f"expected a tool as an object, got {in_words(tool)}")
        found.append(tool if isinstance(value, str) else _without_nulls(tool, MAY_BE_NULL))
    written = json_text(found, column)
    return value if isinstance(value, str) else written


def template_kwargs(value: object, column: str = "chat_template_kwargs") -> Mapping[str, object]:
    """Variables for the chat template."""
    if isinstance(value, str) and not is_empty(value):
        value = json_value(value, column)
    if is_empty(value):
        return {}
    if not isinstance(value, Mapping):
        raise RowError(column, f"expected an object {{name: value}}, got {in_words(value)}")
    for name in value:
        if name in RESERVED:
            raise RowError(f"{column}.{name}", "is no variable of a chat template")
    json_text(value, column)
    return dict(value)


def json_text(value: object, column: str) -> str:
    """JSON as templates and servers write it; what cannot be JSON (NaN, a date, broken Unicode) is an error."""
    try:
        return text(json.dumps(value, ensure_ascii=False, allow_nan=False), column)
    except (TypeError, ValueError) as error:
        raise RowError(column, f"cannot be written as JSON: {error}") from None


def _without_nulls(value: Any, but: tuple[str, ...] = ()) -> Any:
    if isinstance(value, Mapping):
        kept = {name: each for name, each in value.items() if each is not None or name in but}
        return {name: each if name in but else _without_nulls(each, but) for name, each in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_nulls(each, but) for each in value]
    return value


def without_nulls(value: Any) -> Any:
    """Without the keys that an Arrow file adds to objects whose neighbours have them."""
    return _without_nulls(value)
