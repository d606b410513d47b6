"""States of which a part is made only when they are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Deferred:
    """A part of a state that is made when it is written down, from what has not changed until then. Every rank must
    make it."""

    make: Callable[[], Any]


def resolved(state: Any) -> Any:
    """The state with all that was deferred."""
    if isinstance(state, Deferred):
        return state.make()
    if isinstance(state, Mapping):
        return {name: resolved(value) for name, value in state.items()}
    return state
