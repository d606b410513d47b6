"""What every shape is made of: turns in order, prompts and answers, dialogues in one text, comparisons. All raise
`RowError` with the column; nothing is repaired silently."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from assent.data.formats.values import text
from assent.data.records import Example, Feedback, Message, Origin, Pair, Response, RowError

# Which role may follow which; None is the start.
FOLLOWS = {
    None: {"system", "developer", "user"},
    "system": {"developer", "user"},
    "developer": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


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
    return tuple(map(as_context, turns))


def as_context(turn: Message) -> Message:
    """A turn of a prompt: whether it might be trained does not matter there."""
    return turn if turn.trained else replace(turn, trained=True)


def check_answer(turns: Sequence[Message], column: str, after: str) -> tuple[Message, ...]:
    """An answer: ordered turns that follow role `after`, from assistant to assistant."""
    if not turns:
        raise RowError(column, "no answer: nothing comes after the prompt")
    check_order(turns, column, after=after)
    if turns[-1].role != "assistant":
        raise RowError(column, f"ends with a {turns[-1].role} turn; expected the assistant's answer")
    return tuple(turns)


def split_first(turns: Sequence[Message], column: str) -> tuple[tuple[Message, ...], Response]:
    """A whole conversation as prompt and everything from the first assistant turn on."""
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
    both = list(zip(map(as_context, chosen), map(as_context, rejected), strict=False))
    common = next((index for index, (one, other) in enumerate(both) if one != other), len(both))
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


def answered_dialogue(value: object, column: str) -> tuple[Message, ...]:
    """A dialogue whose last turn is an answer."""
    if isinstance(value, str) and value.rstrip().endswith(ASSISTANT):
        raise RowError(column, "the answer is empty: nothing stands behind the last Assistant:")
    return dialogue(value, column)


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


def with_system(turns: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The turns after the system message of the column `system`, which may be empty or stand there already."""
    if not system.strip():
        return turns
    given = [turn.content for turn in turns if turn.role in ("system", "developer")]
    if system in given:
        return turns
    if given:
        raise RowError("system", "there is a system turn in the conversation as well, with another text")
    return (Message("system", system), *turns)


def pair_example(
    prompt: tuple[Message, ...],
    chosen: Response,
    rejected: Response,
    origin: Origin,
    strength: float | None = None,
    more: tuple[Feedback, ...] = (),
) -> Example:
    """The record of one comparison, chosen first. Equal answers are refused: they teach nothing."""
    if same_answer(chosen, rejected):
        raise RowError("rejected", "equal to chosen")
    return Example(prompt, (chosen, rejected), (Pair(0, 1, strength), *more), origin)


def same_answer(one: Response, other: Response) -> bool:
    """Whether two responses say the same: blanks around texts, the ids of calls and the spelling of their arguments as
    JSON make no difference."""
    return list(map(_said, one.messages)) == list(map(_said, other.messages))


def _said(turn: Message) -> tuple[object, ...]:
    calls = [(call.name, json.loads(call.arguments)) for call in turn.tool_calls]
    return turn.role, turn.content.strip(), (turn.reasoning or "").strip(), calls, turn.name
