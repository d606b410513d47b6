"""Numbers and times as people read them, for the templates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits: 34 s, 5 min, 2 h 5 min."""
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def moment(seconds: float | None) -> str:
    """A time, in UTC: 2026-11-30 17:05."""
    return "–" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def count(number: int, one: str, several: str = "") -> str:
    """1 item, 2,000 items."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def share(value: float | None, digits: int = 0) -> str:
    """0.25 as 25 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits; – for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "moment": moment,
    "count": count,
    "share": share,
    "number": number,
}
