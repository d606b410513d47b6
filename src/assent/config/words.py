"""A configuration as the words of a command line that gives it again."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from assent.config import settings


def command_of(name: str, config: Any, positional: Sequence[str] = (), leave: Collection[str] = ()) -> str:
    """`assent NAME` with the values of the options `positional`, and every other option that is not as it would be
    without it; `leave` are left out. What the command line reads from it is the same configuration."""
    words = ["assent", name]
    for place in positional:
        value = settings.value_of(config, place)
        words += value if isinstance(value, tuple) else [value]
    for option in settings.options(type(config)):
        value = settings.value_of(config, option.name)
        if option.name in positional or option.name in leave or value == option.default:
            continue
        flag, plain = f"--{option.name}", value is True or value is False
        words += [flag if value is not False else f"--{_negated(option.name)}"]
        words += [] if plain else _values(value)
    return shlex.join(words)


def _negated(name: str) -> str:
    section, dot, last = name.rpartition(".")
    return f"{section}{dot}no_{last}"


def _values(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}:{_word(entry)}" for key, entry in value.items()]
    if isinstance(value, tuple | list):
        return [_word(entry) for entry in value]
    return [_word(value)]


def _word(value: Any) -> str:
    if value is None:
        return "None"
    return str(value).lower() if isinstance(value, bool) else str(value)
