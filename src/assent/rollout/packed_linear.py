"""Linear layers for decoding: a step multiplies a few rows with every weight, so weights are laid out for that once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_ROWS = 32  # the batch that oneDNN lays the weight out for; others give the same numbers


@contextmanager
def packed_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the linear layers of `model` multiply in `dtype` with copies of their weights, repacked for oneDNN on a
    CPU. Autocast would cast (and oneDNN repack) frozen weights again in every step. The copies are made on entry, so
    weights that a trainer has changed in place are always current."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)) and _is_plain(module)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.forward = _multiply(layer, dtype)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward in (nn.Linear.forward, Conv1D.forward) and "forward" not in vars(module)


def _multiply(layer: nn.Linear | Conv1D, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight: Tensor = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    weight = weight.to(dtype)
    bias: Tensor | None = None if layer.bias is None else layer.bias.to(dtype)
    if not _can_pack(weight):
        return lambda x: F.linear(x.to(dtype), weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x.to(dtype), packed, bias, "none", [], "")


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    native = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return native or weight.dtype == torch.float32
