"""Ranges that the values of options may be asked to keep to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """`words` completes the sentence "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("> 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Rule(">= 0", lambda v: 0 <= v < math.inf)
FINITE = Rule("a finite number", math.isfinite)
COUNT = Rule("at least 1", lambda v: v >= 1)
SHARE = Rule("from 0 to 1", lambda v: 0 <= v <= 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda v: 0 <= v < 1)
BELOW_HALF = Rule("at least 0 and below 0.5", lambda v: 0 <= v < 0.5)
INSIDE = Rule("between 0 and 1, both excluded", lambda v: 0 < v < 1)
UP_TO_ONE = Rule("above 0 and at most 1", lambda v: 0 < v <= 1)
SEED = Rule("from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63)
LENGTH = Rule("at least 2", lambda v: v >= 2)
NAMED = Rule("given, not empty", lambda v: len(v) > 0)
