"""What values of options may be: types with a range, and the words for it."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt, MinLen, Predicate

LARGEST_INT = 2**63 - 1
LEAST, MOST = 2.0**-126, 3.4028234663852886e38
"""What float32, in which models are trained, holds at full precision."""

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Finite = Annotated[float, Predicate(math.isfinite)]
Share = Annotated[float, Interval(ge=0, le=1)]
NonzeroShare = Annotated[float, Interval(gt=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Length = Annotated[int, Ge(2)]
Seed = Annotated[int, Interval(ge=0, le=LARGEST_INT)]
Named = Annotated[str, MinLen(1)]
Names = Annotated[tuple[str, ...], MinLen(1)]


class Range(NamedTuple):
    """`words` completes the sentence "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


def range_of(hint: Any) -> Range | None:
    """The range that stands in the annotation of an option; None where there is none. A number in a range is finite."""
    marks = list(_marks(hint))
    if not marks:
        return None
    if isinstance(marks[0], MinLen):
        return Range("given, not empty", lambda value: len(value) > 0)
    return Range(_words(*marks), lambda value: -math.inf < value < math.inf and all(_holds(m, value) for m in marks))


def _marks(hint: Any) -> Iterator[Any]:
    """The single bounds of a type, or of an arm of `X | None`."""
    if get_origin(hint) is Annotated:
        for mark in hint.__metadata__:
            yield from mark if isinstance(mark, Interval) else [mark] if isinstance(mark, BaseMetadata) else ()
    elif get_origin(hint) in (Union, types.UnionType):
        for arm in get_args(hint):
            yield from _marks(arm)


def _holds(mark: Any, value: Any) -> bool:
    match mark:
        case Gt(gt):
            return value > gt
        case Ge(ge):
            return value >= ge
        case Lt(lt):
            return value < lt
        case Le(le):
            return value <= le
        case Predicate(function):
            return function(value)
    raise AssertionError(mark)


def _words(*marks: Any) -> str:
    match marks:
        case (Predicate(math.isfinite),):
            return "a finite number"
        case (Gt(0),):
            return "> 0"
        case (Ge(0),):
            return ">= 0"
        case (Gt(low),):
            return f"above {low}"
        case (Ge(low),):
            return f"at least {low}"
        case Gt(low), Lt(high):
            return f"between {low} and {high}, both excluded"
        case Gt(low), Le(high):
            return f"above {low} and at most {high}"
        case Ge(low), Lt(high):
            return f"at least {low} and below {high}"
        case Ge(low), Le(high):
            return f"from {low} to {'2**63 - 1' if high == LARGEST_INT else high}"
    raise AssertionError(marks)


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
