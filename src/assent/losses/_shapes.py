"""The checks that every loss makes before it computes anything."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(function: str, size: str, **tensors: Tensor | None) -> None:
    """Raises ValueError, with every name and shape, unless all tensors are vectors of one length. `size` is the letter
    of that length in the docstring of `function`; None stands for an optional tensor that was not given."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{function}: expected the same shape [{size}] for all of {', '.join(shapes)}; got {got}.")


def check_sorted(function: str, response: Tensor) -> None:
    """Raises ValueError unless the tokens of each response stand side by side, in the order of the responses."""
    if bool(torch.any(response[1:] < response[:-1])):
        raise ValueError(f"{function}: `response` must not decrease: the tokens of one response stand side by side.")
