"""What a run tells a person beside its progress: labelled lines, numbers rounded, commands to copy."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

LABEL = 12
"""Columns that a label takes."""


@dataclass(frozen=True, slots=True)
class Line:
    """A label and what there is to say; without a label it belongs to the one above. A `command` is never broken into
    lines, so that it can be copied."""

    label: str
    text: str
    command: bool = False


def layout(facts: Sequence[Line], width: int | None = None) -> str:
    """The facts as aligned lines of at most `width` columns; one line each where that is None."""
    lines: list[str] = []
    for fact in facts:
        start = f"{fact.label:<{LABEL}}"
        if width is None or fact.command:
            lines.append(start + fact.text)
        else:
            room = max(width, 2 * LABEL)
            lines += textwrap.wrap(
                start + fact.text, room, subsequent_indent=" " * LABEL, break_long_words=False, break_on_hyphens=False
            )
    return "\n".join(lines)


def rounded(number: float) -> str:
    """A count as people say it: 9,120; 54 k; 1.2 M; 135 M; 7.6 B."""
    if number < 9_999.5:
        return f"{number:,.0f}"
    for scale, unit in ((1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T")):
        if number < 999.5 * scale or unit == "T":
            value = number / scale
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"
    raise AssertionError


def percent(share: float) -> str:
    """A share with two digits: 0.91 %, 12 %; 100 % and 0 % only where it is that."""
    value = 100 * share
    if 99 < value < 100:
        return f"{min(value, 99.9):.1f} %"
    return f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def number(value: float) -> str:
    """An option as short as it can be said: 0.5, 1e-05."""
    return f"{value:.4g}"


def measured(value: float) -> str:
    """A measured number with three digits: 6.00, 0.512, 43.2, 1,204."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def plural(count: int, one: str, several: str = "") -> str:
    """ "1 step", "2,000 steps"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
