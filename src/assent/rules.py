"""Ranges that the values of options may be asked to keep to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """`words` completes the sentence "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


LEAST, MOST = 2.0**-126, 3.4028234663852886e38
"""What float32, in which models are trained, holds at full precision."""


def in_float32(value: float) -> bool:
    """Whether it is 0, or neither too small nor too large for float32."""
    return value == 0 or LEAST <= abs(value) <= MOST


def beyond(value: object) -> str | None:
    """What a number must be that the machine's cannot hold; None for all others."""
    if isinstance(value, float) and not in_float32(value):
        return f"a number that float32 holds: 0, or in size from {LEAST:.3g} to {MOST:.3g}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "below 2**63 in size"
    return None


POSITIVE = Rule("> 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Rule(">= 0", lambda v: 0 <= v < math.inf)
FINITE = Rule("a finite number", math.isfinite)
COUNT = Rule("at least 1", lambda v: v >= 1)
SHARE = Rule("from 0 to 1", lambda v: 0 <= v <= 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda v: 0 <= v < 1)
BELOW_HALF = Rule("at least 0 and below 0.5", lambda v: 0 <= v < 0.5)
INSIDE = Rule("between 0 and 1, both excluded", lambda v: 0 < v < 1)
UP_TO_ONE = Rule("above 0 and at most 1", lambda v: 0 < v <= 1)
THREADS = Rule("from 0 to 1024", lambda v: 0 <= v <= 1024)
SEED = Rule("from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63)
LENGTH = Rule("at least 2", lambda v: v >= 2)
NAMED = Rule("given, not empty", lambda v: len(v) > 0)
