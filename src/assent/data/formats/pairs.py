"""TRL's shapes, standard (strings) and conversational (lists of messages), and the public preference sets near them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assent.data.formats.fields import (
    answer,
    answered_dialogue,
    as_context,
    check_answer,
    check_prompt,
    is_dialogue,
    pair_example,
    split_common,
    text_prompt,
)
from assent.data.formats.message import messages, with_thoughts
from assent.data.formats.values import Row, boolean, get, in_words, number, optional_number, text
from assent.data.records import Binary, Example, Feedback, Message, Origin, Rating, Response, RowError

STRENGTH = ("margin", "score_chosen", "score_rejected")
THOUGHTS = ("reasoning_content", "thinking")
"""Columns of what was thought before an answer that is judged; `reasoning` may be the judge's."""


def _prompt(row: Row) -> tuple[Message, ...]:
    value = get(row, "prompt")
    if isinstance(value, list | tuple):
        return check_prompt(messages(value, "prompt"), "prompt")
    return text_prompt(value, "prompt")


def _answer(row: Row, column: str, prompt: Sequence[Message]) -> Response:
    """The answer in `column`, of the same kind (string or messages) as the prompt. A list that begins with the whole
    prompt is a transcript: the answer is what follows."""
    value = get(row, column)
    if isinstance(row["prompt"], str):
        if isinstance(value, list | tuple) and value:
            raise RowError(column, "mixed types: a list where prompt is a string; write both as messages")
        return answer(value, column)
    if isinstance(value, str) and value.strip():
        raise RowError(column, "mixed types: a string where prompt is a list; write both as messages")
    turns = messages(value, column)
    if turns[0].role != "assistant":
        if tuple(map(as_context, turns[: len(prompt)])) != tuple(prompt):
            raise RowError(column, f"begins with a {turns[0].role} turn but not with the prompt")
        turns = turns[len(prompt) :]
    return Response(check_answer(turns, column, prompt[-1].role))


def strength_of(row: Row) -> tuple[float | None, tuple[Feedback, ...]]:
    """`margin`, or the gap of `score_chosen` and `score_rejected`, which are also kept as ratings."""
    margin = optional_number(row, "margin", low=0.0)
    if row.get("score_chosen") is None and row.get("score_rejected") is None:
        return margin, ()
    high, low = (number(get(row, column), column) for column in ("score_chosen", "score_rejected"))
    if high < low:
        raise RowError("score_chosen", f"{high:g} is below score_rejected {low:g}: the scores contradict the pair")
    return (high - low if margin is None else margin), (Rating(0, {"score": high}), Rating(1, {"score": low}))


def prompt_only(row: Row, origin: Origin) -> Example:
    return Example(_prompt(row), (), (), origin)


def prompt_completion(row: Row, origin: Origin) -> Example:
    prompt = _prompt(row)
    return Example(prompt, (with_thoughts(_answer(row, "completion", prompt), row),), (), origin)


def binary(row: Row, origin: Origin) -> Example:
    prompt = _prompt(row)
    response = with_thoughts(_answer(row, "completion", prompt), row, THOUGHTS)
    return Example(prompt, (response,), (Binary(0, boolean(get(row, "label"), "label")),), origin)


def begins_with_prompt(row: Row) -> bool:
    """Whether prompt, chosen and rejected are strings and both answers repeat the prompt."""
    prompt, *answers = (row.get(column) for column in ("prompt", "chosen", "rejected"))
    if not isinstance(prompt, str) or not prompt.strip():
        return False
    return all(isinstance(answer, str) and answer.strip() and answer.startswith(prompt) for answer in answers)


def preference(row: Row, origin: Origin) -> Example:
    prompt = _prompt(row)
    if begins_with_prompt(row):
        # "Hi" / "Hi there" may be an answer or a transcript; only the other rows of the file can tell.
        raise RowError("chosen", "chosen and rejected both begin with the prompt, unlike the other rows of the file")
    chosen, rejected = _answer(row, "chosen", prompt), _answer(row, "rejected", prompt)
    return pair_example(prompt, chosen, rejected, origin, *strength_of(row))


def preference_transcripts(row: Row, origin: Origin) -> Example:
    """Strings `chosen` and `rejected` repeat the string `prompt`; it is taken off them, never doubled."""
    whole = text(get(row, "prompt"), "prompt")

    def continuation(column: str) -> Response:
        transcript = text(get(row, column), column)
        if not transcript.startswith(whole):
            raise RowError(column, "does not begin with the prompt, unlike the other rows of the file")
        return answer(transcript.removeprefix(whole).strip(), column)

    chosen, rejected = continuation("chosen"), continuation("rejected")
    return pair_example(_prompt(row), chosen, rejected, origin, *strength_of(row))


def preference_implicit(row: Row, origin: Origin) -> Example:
    """Two whole conversations; the prompt is their common leading messages."""
    prompt, chosen, rejected = split_common(_conversation(row, "chosen"), _conversation(row, "rejected"))
    return pair_example(prompt, chosen, rejected, origin, *strength_of(row))


def preference_redundant(row: Row, origin: Origin) -> Example:
    """Whole conversations beside a string prompt that repeats one of their user turns (UltraFeedback-binarized,
    Tulu 3). The string is checked, not prepended."""
    repeated = text(get(row, "prompt"), "prompt").strip()
    example = preference_implicit(row, origin)
    if all(turn.role != "user" or turn.content.strip() != repeated for turn in example.prompt):
        raise RowError("prompt", "is none of the user turns that chosen and rejected share; which one is right?")
    return example


def _conversation(row: Row, column: str) -> tuple[Message, ...]:
    value = get(row, column)
    if isinstance(value, str) and value.strip():
        other = "rejected" if column == "chosen" else "chosen"
        kind = "mixed types: " if isinstance(row.get(other), list | tuple) else ""
        raise RowError(column, f"{kind}expected a list of messages, got {in_words(value)}")
    return messages(value, column)


def hh_rlhf(row: Row, origin: Origin) -> Example:
    """Two dialogues as strings. The prompt ends at the last "\\n\\nAssistant:" they share; answers are compared as
    whole turns, so equal first words stay where they are."""
    prompt, chosen, rejected = split_common(
        answered_dialogue(get(row, "chosen"), "chosen"), answered_dialogue(get(row, "rejected"), "rejected")
    )
    return pair_example(prompt, chosen, rejected, origin, *strength_of(row))


def plain_text(row: Row, origin: Origin) -> Example:
    """Text without roles: no prompt, and one response whose only message has the role "text": all of it is trained,
    without chat template."""
    response = Response((Message("text", text(get(row, "text"), "text")),))
    return Example((), (response,), (), origin)


# ---- which of the shapes with the same columns a row has


def _list_of_text(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def dialogues(row: Row) -> bool:
    return is_dialogue(row["chosen"]) and is_dialogue(row["rejected"])


def has_rejected_answer(row: Row) -> bool:
    return row.get("rejected_response") is not None or row.get("rejected_messages") is not None


def _transcript(value: object) -> bool:
    """A list of messages that brings its own prompt."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def redundant_prompt(row: Row) -> bool:
    return isinstance(row["prompt"], str) and _transcript(row["chosen"]) and _transcript(row["rejected"])


def several_answers(row: Row) -> bool:
    return _list_of_text(row["chosen"]) and _list_of_text(row["rejected"])


def plain_preference(row: Row) -> bool:
    return not (begins_with_prompt(row) or redundant_prompt(row) or several_answers(row))
