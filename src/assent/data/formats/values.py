"""Checked values: text, numbers, yes and no, lists. All raise `RowError` with the column; none repairs anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from assent.data.records import RowError

Row = Mapping[str, Any]

LARGEST = 1e30
"""Numbers beyond this are no scores: their sums and differences would not fit 32 bits."""


def in_words(value: object) -> str:
    """A value in words, for messages: what was found instead of what was expected."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    if isinstance(value, int | float | Decimal):
        digits = str(value)
        return f"the number {digits}" if len(digits) <= 30 else f"a number of {len(digits)} digits"
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
        raise RowError(column, f"expected a string, got {in_words(value)}")
    if not blank and not value.strip():
        raise RowError(column, f"expected text, got {in_words(value)}")
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
    """A finite number in [low, high], of a size that sums and differences of such numbers fit 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not _is_finite(value):
        raise RowError(column, f"expected a number, got {in_words(value)}")
    if not -LARGEST <= value <= LARGEST:
        raise RowError(column, f"expected a number below {LARGEST:g}, got {in_words(value)}")
    if not low <= value <= high:
        raise RowError(column, f"expected a number from {low:g} to {high:g}, got {value:g}")
    return float(value)


def _is_finite(value: int | float | Decimal) -> bool:
    """Of any size: a whole number too large for a float is finite as well."""
    return True if isinstance(value, int) else value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)


def optional_number(row: Row, column: str, low: float = -math.inf) -> float | None:
    """The number of a column that may be absent or None."""
    return None if row.get(column) is None else number(row[column], column, low)


def boolean(value: object, column: str) -> bool:
    """Yes or no: true, false, or the numbers 1 and 0."""
    if isinstance(value, int | float | Decimal) and value in (0, 1):
        return bool(value)
    raise RowError(column, f"expected true or false, got {in_words(value)}")


def zero_or_one(value: float, column: str, why: str) -> bool:
    """A weight of 0 or 1 as no or yes."""
    if value not in (0, 1):
        raise RowError(column, f"expected 0 or 1, got {in_words(value)}: {why}")
    return bool(value)


def listed(value: object, column: str) -> Sequence[Any]:
    """A list with something in it."""
    if not isinstance(value, list | tuple):
        raise RowError(column, f"expected a list, got {in_words(value)}")
    if not value:
        raise RowError(column, "expected a list with entries, got an empty list")
    return value


def json_value(value: str, column: str) -> Any:
    """What a text holds as JSON."""
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(column, f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except ValueError:
        raise RowError(column, "holds a whole number of too many digits") from None
    except RecursionError:
        raise RowError(column, "is nested too deeply") from None
