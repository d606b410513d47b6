"""What every shape is made of: checked text, numbers, turns and the order of turns. All raise `RowError` with the
column; nothing is repaired silently."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from assent.data.records import Example, Feedback, Message, Origin, Pair, Response, RowError

Row = Mapping[str, Any]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
# Which role may follow which; None is the start.
FOLLOWS = {
    None: {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def describe(value: object) -> str:
    """A value in words, for messages: what was found instead of what was expected."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        if not value.strip():
            return "only white space" if value else "an empty string"
        return f"the string {value[:20]!r}" + ("…" if len(value) > 20 else "")
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else type(value).__name__


def get(row: Row, column: str) -> Any:
    if column not in row:
        raise RowError(column, "missing")
    return row[column]


def text(value: object, column: str, blank: bool = False) -> str:
    """`value` unchanged if it is usable text: a string, not blank unless `blank`, and writable as UTF-8."""
    if not isinstance(value, str):
        raise RowError(column, f"expected a string, got {describe(value)}")
    if not blank and not value.strip():
        raise RowError(column, f"expected text, got {describe(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(column, f"half of a surrogate pair at character {error.start + 1}: broken Unicode") from error
    return value


def optional_text(row: Row, column: str) -> str:
    """The text of a column that may be absent, None or empty: then ""."""
    value = row.get(column)
    return "" if value is None else text(value, column, blank=True)


def number(value: object, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(column, f"expected a number, got {describe(value)}")
    if not low <= value <= high:
        raise RowError(column, f"expected a number from {low:g} to {high:g}, got {value:g}")
    return float(value)


def optional_number(row: Row, column: str, low: float = -math.inf) -> float | None:
    """The number of a column that may be absent or None."""
    return None if row.get(column) is None else number(row[column], column, low)


def boolean(value: object, column: str) -> bool:
    if not isinstance(value, bool):
        raise RowError(column, f"expected true or false, got {describe(value)}")
    return value


def listed(value: object, column: str) -> Sequence[Any]:
    """A list with something in it."""
    if not isinstance(value, list | tuple):
        raise RowError(column, f"expected a list, got {describe(value)}")
    if not value:
        raise RowError(column, "expected a list with entries, got an empty list")
    return value


def message(value: object, column: str) -> Message:
    """One turn: {role, content} (OpenAI) or {from, value} (ShareGPT)."""
    if not isinstance(value, Mapping):
        raise RowError(column, f"expected a message with role and content, got {describe(value)}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    role = value.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        got = f"unknown role {role!r}" if isinstance(role, str) else f"expected a role, got {describe(role)}"
        raise RowError(f"{column}.{role_key}", f"{got}; known: {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise RowError(f"{column}.tool_calls", "structured tool calls are not supported; write the call as content")
    content = value.get(content_key)
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(text(part.get("text"), f"{column}.{content_key}", blank=True) for part in content)
    # A system prompt or a tool's result may be empty; a question or an answer may not.
    may_be_blank = ROLES[role] in ("system", "tool")
    return Message(ROLES[role], text(content, f"{column}.{content_key}", blank=may_be_blank))


def messages(value: object, column: str) -> tuple[Message, ...]:
    """A list of turns, in an order that `check_order` accepts after what precedes them."""
    return tuple(message(item, f"{column}[{index}]") for index, item in enumerate(listed(value, column)))


def check_order(turns: Sequence[Message], column: str, after: str | None = None) -> None:
    """System first, then user and assistant by turns, tools after the assistant that called them."""
    for index, turn in enumerate(turns):
        if turn.role not in FOLLOWS[after]:
            place = "at the start" if after is None else f"after {after!r}"
            expected = " or ".join(sorted(FOLLOWS[after]))
            raise RowError(f"{column}[{index}]", f"role {turn.role!r} {place}; expected {expected}")
        after = turn.role


def check_prompt(turns: Sequence[Message], column: str) -> tuple[Message, ...]:
    """A prompt: ordered turns, the last of which asks for an answer."""
    if not turns:
        raise RowError(column, "no prompt: nothing comes before the answer")
    check_order(turns, column)
    if turns[-1].role not in ("user", "tool"):
        raise RowError(column, f"the prompt ends with role {turns[-1].role!r}; expected user")
    return tuple(turns)


def check_answer(turns: Sequence[Message], column: str, after: str) -> tuple[Message, ...]:
    """An answer: ordered turns that follow role `after`, from assistant to assistant."""
    if not turns:
        raise RowError(column, "no answer: nothing comes after the prompt")
    check_order(turns, column, after=after)
    if turns[-1].role != "assistant":
        raise RowError(column, f"ends with a {turns[-1].role} turn; expected the assistant's answer")
    return tuple(turns)


def split_first(turns: Sequence[Message], column: str) -> tuple[tuple[Message, ...], Response]:
    """A whole conversation as prompt and everything from the first assistant turn on (all of it is trained)."""
    return _split(turns, next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns)), column)


def split_last(turns: Sequence[Message], column: str) -> tuple[tuple[Message, ...], Response]:
    """A conversation as everything before its last turn, and that turn: the answer that is judged."""
    return _split(turns, len(turns) - 1, column)


def _split(turns: Sequence[Message], cut: int, column: str) -> tuple[tuple[Message, ...], Response]:
    check_order(turns, column)
    if turns[-1].role != "assistant":
        raise RowError(column, f"the conversation ends with a {turns[-1].role} turn; expected the assistant's answer")
    prompt = check_prompt(turns[:cut], column)
    return prompt, Response(check_answer(turns[cut:], column, prompt[-1].role))


def split_common(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], Response, Response]:
    """Two whole conversations as their common leading messages and the two continuations. Whole messages are compared,
    never characters: answers that begin with the same words keep them."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(chosen) == len(rejected):
        raise RowError("rejected", "equal to chosen")
    for column, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            raise RowError(column, f"the conversation ends with a {turns[-1].role} turn; expected the answer")
        if common == len(turns):
            raise RowError(column, "is the beginning of the other conversation: the prompts differ")
        if turns[common].role != "assistant":
            raise RowError(f"{column}[{common}]", f"the prompts differ in this {turns[common].role} turn")
    prompt = check_prompt(chosen[:common], "chosen")
    last = prompt[-1].role
    return (
        prompt,
        Response(check_answer(chosen[common:], "chosen", last)),
        Response(check_answer(rejected[common:], "rejected", last)),
    )


def dialogue(value: object, column: str) -> tuple[Message, ...]:
    """An hh-rlhf string ("\\n\\nHuman: …\\n\\nAssistant: …") as turns, stripped of the blanks around them. A last
    "Assistant:" with nothing behind it is the place for an answer, not a turn."""
    transcript = "\n\n" + text(value, column).strip()
    if not transcript.startswith(HUMAN):
        raise RowError(column, 'expected a dialogue that begins with "\\n\\nHuman:"')
    pieces = re.split(r"\n\n(Human|Assistant):", transcript)[1:]
    turns = []
    for index, (name, content) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        is_last = 2 * index + 2 == len(pieces)
        if not content.strip() and not (is_last and name == "Assistant"):
            raise RowError(column, f"empty {name} turn")
        if content.strip():
            turns.append(Message("user" if name == "Human" else "assistant", content.strip()))
    return tuple(turns)


def is_dialogue(value: object) -> bool:
    """Whether a string is written as an hh-rlhf dialogue."""
    return isinstance(value, str) and ("\n\n" + value.lstrip()).startswith(HUMAN) and ASSISTANT in value


def text_prompt(value: object, column: str) -> tuple[Message, ...]:
    """A string prompt: one user message, or the turns of a dialogue that ends in "\\n\\nAssistant:"."""
    if is_dialogue(value) and str(value).rstrip().endswith(ASSISTANT):
        return check_prompt(dialogue(value, column), column)
    return (Message("user", text(value, column)),)


def answer(value: object, column: str, source: str | None = None) -> Response:
    """A string answer: one assistant message."""
    return Response((Message("assistant", text(value, column)),), source)


def with_system(turns: tuple[Message, ...], row: Row) -> tuple[Message, ...]:
    """The turns after the system message of the column `system`, where there is one."""
    system = optional_text(row, "system")
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        raise RowError("system", "there is a system turn in the conversation as well")
    return (Message("system", system), *turns)


def rest(row: Row, used: Collection[str]) -> dict[str, Any]:
    """Columns that the record has no field for; they travel as `meta`."""
    return {name: value for name, value in row.items() if name not in used and value is not None}


def pair_example(
    prompt: tuple[Message, ...],
    chosen: Response,
    rejected: Response,
    origin: Origin,
    strength: float | None = None,
    more: tuple[Feedback, ...] = (),
    meta: Mapping[str, Any] | None = None,
) -> Example:
    """The record of one comparison, chosen first. Equal answers are refused: they teach nothing."""
    if same_answer(chosen, rejected):
        raise RowError("rejected", "equal to chosen")
    return Example(prompt, (chosen, rejected), (Pair(0, 1, strength), *more), origin, meta or {})


def same_answer(one: Response, other: Response) -> bool:
    """Whether two responses differ in nothing but the blanks around their messages."""
    return [(m.role, m.content.strip()) for m in one.messages] == [(m.role, m.content.strip()) for m in other.messages]
