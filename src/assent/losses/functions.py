"""Losses and advantages as functions of named tensors: the positional parameters of a function are the tensors that it
asks for, the keyword-only ones its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor


class Quantity(NamedTuple):
    """A tensor that functions may ask for: the letter of its length, and what it is."""

    size: str
    words: str


@cache
def inputs_of(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """The tensors that a function asks for."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return tuple(name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds)


@cache
def options_of(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """The options that a function has."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return tuple(name for name, p in inspect.signature(function).parameters.items() if p.kind == kind)


@dataclass(frozen=True, slots=True)
class TensorFunction:
    """A function with its options."""

    call: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        return inputs_of(self.call)

    @property
    def takes(self) -> tuple[str, ...]:
        """The options that it has."""
        return options_of(self.call)

    def __call__(self, tensors: Mapping[str, Tensor | None], **more: Any) -> Tensor:
        """Its value for those of `tensors` that it asks for; `more` are options that are only known now."""
        return self.call(**{name: tensors[name] for name in self.inputs}, **{**self.options, **more})


def with_options(function: Callable[..., Tensor], options: Mapping[str, Any]) -> TensorFunction:
    """The function with those of the options that it has."""
    return TensorFunction(function, {name: options[name] for name in options_of(function) if name in options})
