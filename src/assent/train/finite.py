"""Numbers of a run that must be finite: of a step, of an evaluation, of what is saved. One that is not ends the run
with its name, and is never saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from assent.distributed import any_true, gather_objects
from assent.errors import NonFiniteError
from assent.models.finite import not_finite, too_large

DIVERGED = "The weights have diverged, and are not saved. Lower --optim.lr."


def require_numbers(when: str, metrics: Mapping[str, float], advice: str) -> None:
    """Raises NonFiniteError that names the first of these numbers that is not finite; `when` begins the message, and
    `advice` is its last sentence."""
    bad = [(name, value) for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        name, value = bad[0]
        others = ", ".join(other for other, _ in bad[1:6])
        raise NonFiniteError(f"{when}: {name} is {value}{others and f' (and {others})'}. {advice}")


def require_evaluated(step: int, metrics: Mapping[str, float]) -> None:
    """`require_numbers` of an evaluation. An interval of one value has no bounds (`_low`, `_high`)."""
    known = {name: value for name, value in metrics.items() if not name.endswith(("_low", "_high"))}
    require_numbers(f"step {step}", known, DIVERGED)


def require_answers(step: int, model: str, said: Tensor) -> None:
    """Raises NonFiniteError where what a model says of a few tokens (log-probs, scores) is not finite: its weights may
    be numbers that no product of them can hold."""
    bad = said[~said.isfinite()]
    if len(bad):
        raise NonFiniteError(f"step {step}: {model} gives {bad[0].item()} for a few ordinary tokens. {DIVERGED}")


def require_updated(step: int, modules: Mapping[str, nn.Module]) -> None:
    """Raises NonFiniteError, on every rank, where an update has made a weight that is not finite, or too large to be
    computed with. Every rank must call it."""
    trained = [(name, x) for name, x in _named(modules) if x.requires_grad]
    own = too_large(trained)
    if any_true(own is not None):
        found = [words for words in gather_objects(own) if words is not None]
        raise NonFiniteError(
            f"step {step}: the update was too large: {found[0]}. These weights are not saved. Lower --optim.lr; look "
            "at --optim.eps, --optim.weight_decay and --optim.max_grad_norm as well."
        )


def require_saved(step: int, state: Mapping[str, Any]) -> None:
    """Raises NonFiniteError where what is to be saved holds a number that is not finite. Arrays are not looked at: they
    are data, in which NaN stands for what is not known."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, value in _leaves(state):
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            numbers[name] = value
    words = not_finite(tensors.items())
    if words is None:
        words = next((f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)), None)
    if words is not None:
        raise NonFiniteError(
            f"step {step}: {words}, so this state is not saved. Lower --optim.lr, or look at the rows of this step."
        )


def _named(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            yield f"{name}.{key}", parameter


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, Tensor | float]]:
    """All tensors and numbers in nested mappings and lists, with their names."""
    if isinstance(value, Tensor | float):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
