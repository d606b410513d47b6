"""What is too long by its characters alone, before a template or a tokenizer works through it.

A token stands for a few characters; the longest of a vocabulary, a run of blanks perhaps, for a hundred. A row with
more characters than `max_length` of the longest ones, four times over (a tokenizer may compose characters, a template
leave out blanks and earlier thoughts), is taken as too long without being tokenised. Its answer is not cut either:
where, only the tokens would tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from assent.data.records import Example, Message, RowError

SLACK = 4
TURNS = 4096
"""Most messages of a row: a template writes all before each trained one, so time grows with their square."""


def characters(example: Example) -> int:
    """Characters of the prompt, its tools and the longest response."""
    longest = max((_characters(response.messages) for response in example.responses), default=0)
    return _characters(example.prompt) + len(example.tools or "") + longest


def _characters(messages: Sequence[Message]) -> int:
    return sum(
        len(turn.content) + len(turn.reasoning or "") + sum(len(call.arguments) for call in turn.tool_calls)
        for turn in messages
    )


def turns(example: Example) -> int:
    """Messages of the prompt and the longest response."""
    return len(example.prompt) + max((len(response.messages) for response in example.responses), default=0)


def too_long(example: Example, longest: int, max_length: int) -> RowError | None:
    """The error of a row that is too long by its characters or turns; `longest` is the longest token of the vocabulary
    in characters."""
    limit = SLACK * longest * max_length
    if (count := characters(example)) > limit:
        return RowError(None, f"has {count:,} characters: {max_length:,} tokens (--data.max_length) hold {limit:,}")
    if (count := turns(example)) > TURNS:
        return RowError(None, f"has {count:,} turns; at most {TURNS:,} are read")
    return None
