"""Columns of a row by name, where a dot leads into an object: "reward_model.ground_truth"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = object()


def column(row: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value of a column. A name that the row has as it is wins over one that dots lead to; a number between dots
    counts the entries of a list from 0.

    >>> column({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")
    '4'
    """
    value = _find(row, name)
    return default if value is _ABSENT else value


def has_column(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row has the column, be it None."""
    return _find(row, name) is not _ABSENT


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of rows in order of appearance; of objects, the names that lead to what they hold."""
    return list(dict.fromkeys(name for row in rows for key, value in row.items() for name in _names(str(key), value)))


def _find(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            head = ".".join(parts[:cut])
            if head in value:
                return _find(value[head], ".".join(parts[cut:]))
        return _ABSENT
    if isinstance(value, list | tuple):
        head, _, rest = name.partition(".")
        if head.isascii() and head.isdecimal() and len(head) < 10 and int(head) < len(value):
            return _find(value[int(head)], rest) if rest else value[int(head)]
    return _ABSENT


def _names(key: str, value: Any, depth: int = 3) -> list[str]:
    if isinstance(value, Mapping) and value and depth:
        return [name for inner, each in value.items() for name in _names(f"{key}.{inner}", each, depth - 1)]
    return [key]
