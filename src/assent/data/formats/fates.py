"""What becomes of each field: of a message, and of the columns that rows of any shape may have. `table` says it of each
shape's own columns. The readers follow these tables, docs/formats.md is made from them, and a test walks them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Fate(StrEnum):
    """What becomes of a field."""

    TEXT = "text of the conversation"
    TOOLS = "tools, for the chat template"
    VARIABLES = "variables of the chat template"
    ATTRIBUTES = "what the turn is said to be, for a model that is steered by it"
    MASK = "says which turns are trained"
    FEEDBACK = "feedback"
    CHECKED = "compared with the conversation, else no use"
    SHOWN = "shown to reward functions as it is"
    META = "kept for rewards, rules and the curriculum"
    ENTRIES = "its entries are kept, as columns are"
    PASSED = "no use"
    REFUSED = "refused"


def is_empty(value: object) -> bool:
    """Whether a field says nothing: None, false, or empty (also as text, as in a csv file)."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    if isinstance(value, list | tuple):
        return all(is_empty(item) for item in value)
    return value is None or value is False or value == {}


# ------------------------------------------------------------------------------------------------ keys of a message

REASONING = ("reasoning_content", "reasoning", "thinking")
SWITCHES = ("train", "trained", "training", "trainable", "loss")
WEIGHTS = ("weight", "loss_scale")
ABOUT = (
    *("id", "uuid", "message_id", "turn_id", "turn_identifier", "parent_id", "index", "turn", "source", "model"),
    *("model_name", "generator", "timestamp", "created", "created_at", "date", "time", "language", "lang", "country"),
    *("state", "hashed_ip", "header", "toxic", "redacted", "metadata", "finish_reason", "stop_reason", "usage"),
    *("tokens", "num_tokens", "token_count", "annotations", "cache_control"),
)

MESSAGE: Mapping[str, tuple[Fate, str]] = {
    "role": (Fate.TEXT, "who speaks"),
    "from": (Fate.TEXT, "the same as `role`"),
    "content": (Fate.TEXT, "text, or a list of parts {type: text, text} that are put together as they are"),
    "value": (Fate.TEXT, "the same as `content`"),
    **dict.fromkeys(REASONING, (Fate.TEXT, "what the assistant thought before its answer")),
    "tool_calls": (Fate.TEXT, "[{id, type: function, function: {name, arguments}}]; arguments an object or its JSON"),
    "tool_call_id": (Fate.TEXT, "which call a tool's result answers"),
    "name": (Fate.TEXT, "whose message it is; of a tool's result, the tool"),
    "attributes": (Fate.ATTRIBUTES, "of an assistant turn: {name: value}, or helpfulness:4,verbosity:0 as text"),
    **dict.fromkeys(SWITCHES, (Fate.MASK, "true or false (or 1, 0): false for an assistant turn that is only read")),
    **dict.fromkeys(WEIGHTS, (Fate.MASK, "1 or 0: 0 for an assistant turn that is only read; fractions are refused")),
    **dict.fromkeys(ABOUT, (Fate.PASSED, "says something about the message, not to the model")),
}
"""Keys of a message. Any other one that is not empty is refused by name."""

# ------------------------------------------------------------------------------------------------ columns of a row

MEDIA = ("images", "image", "audios", "audio", "videos", "video")
INSTEAD = {
    **dict.fromkeys(MEDIA, "assent reads text only: leave these rows out, or remove the column"),
    "functions": "where it lists tools, name it with --data.columns tools:functions",
    "system_prompt": "name it with --data.columns system:system_prompt",
    "system_message": "name it with --data.columns system:system_message",
    "documents": "put them into the messages, or into chat_template_kwargs",
}
"""Columns that belong to the conversation but have no place in it as they are, and what to do."""

SHARED: Mapping[str, tuple[Fate, str]] = {
    "system": (Fate.TEXT, "a system message, put first"),
    "tools": (Fate.TOOLS, "a list of tools, or its JSON"),
    "chat_template_kwargs": (Fate.VARIABLES, "an object {name: value}, or its JSON"),
    **{name: (Fate.REFUSED, advice) for name, advice in INSTEAD.items()},
}
"""Columns of every shape that has messages. Any other column is kept."""
