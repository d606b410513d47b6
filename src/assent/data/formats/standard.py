"""Whether a row's prompt is text or messages, which TRL calls standard and conversational data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from assent.data.formats.fields import ASSISTANT, HUMAN, is_dialogue
from assent.data.formats.values import Row
from assent.data.records import Example, Message

TEXT = ("prompt", "instruction", "question", "context")
"""Columns that are a prompt, or the beginning of one."""


def with_prompt_text(example: Example, row: Row, required: Sequence[str]) -> Example:
    """The example with the prompt's text where the row has text: the column `prompt` as it is; what an instruction or
    a question was made to; and of dialogues in one text (hh-rlhf) what both have in common. `required` are the columns
    of the row's shape: a text beside a conversation is not the prompt."""
    if example.prompt_text is not None or not example.prompt:
        return example
    columns = [column for column in TEXT if column in required and isinstance(row.get(column), str)]
    if "prompt" in columns:
        return replace(example, prompt_text=row["prompt"])
    if columns:
        return replace(example, prompt_text=joined_text(example.prompt))
    if "prompt" not in required and is_dialogue(row.get("chosen")):
        turns = "".join(f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content}" for turn in example.prompt)
        return replace(example, prompt_text=turns + ASSISTANT)
    return example


def joined_text(messages: Sequence[Message]) -> str:
    """The contents of messages, with an empty line between them."""
    return "\n\n".join(message.content for message in messages)
