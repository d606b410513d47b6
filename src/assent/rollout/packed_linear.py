"""Linear layers for decoding: a step multiplies a few rows with every weight, so weights are laid out for that once,
and layers that are given the same input (queries, keys and values; gate and up) become one product."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_ROWS = 32  # the batch that oneDNN lays the weight out for; others give the same numbers


class PackedLinears:
    """Inside `with`, the linear layers of `model` multiply in `dtype` with copies of their weights, repacked for oneDNN
    on a CPU. Autocast would cast (and oneDNN repack) frozen weights again in every step. The copies are made anew each
    time, so weights that a trainer has changed in place are always current; which layers share an input stays known."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        modules = [
            module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)) and _is_plain(module)
        ]
        self.products: list[_Product] = []
        self._first = _FirstPass(self.products)
        self._layers = [_Linear(module, dtype, self._first) for module in modules]

    def settle(self) -> None:
        """Ends the first pass now, and not when a second one begins."""
        self._first.settle()

    def __enter__(self) -> None:
        _opened.products = self.products
        for layer in self._layers:
            layer.module.forward = layer  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        _opened.products = []
        for layer in self._layers:
            vars(layer.module).pop("forward", None)
            layer.kept = None
        for product in self.products:
            product.release()


class _Opened(threading.local):
    """Inside `with PackedLinears`, its products."""

    products: list[_Product] = []


_opened = _Opened()
# A packed weight is no tensor that a compiler can trace, so the product is an operator that knows it by a number.
_library = torch.library.Library("assent", "FRAGMENT")
_library.define("packed_linear(Tensor x, int product, int width) -> Tensor")
_library.impl("packed_linear", lambda x, product, width: _opened.products[product].multiply(x), "CPU")
torch.library.register_fake(
    "assent::packed_linear", lambda x, product, width: x.new_empty(*x.shape[:-1], width), lib=_library
)


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of `dtype` itself; a CPU without bf16 instructions converts them."""
    if device.type != "cpu" or dtype in (torch.float32, torch.float64):
        return True
    has_onednn = torch.backends.mkldnn.is_available()
    return dtype == torch.bfloat16 and has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Linear:
    """The forward of one layer: by itself in the first pass over the model, as a part of its product after it."""

    def __init__(self, module: nn.Linear | Conv1D, dtype: torch.dtype, first: _FirstPass) -> None:
        self.module, self.dtype = module, dtype
        self.packs = _can_pack(module.weight.device, dtype)
        self.first = first
        self.kept: tuple[Tensor, Tensor | None] | None = None
        self.product: _Product | None = None
        self.part = 0

    def cast(self) -> tuple[Tensor, Tensor | None]:
        """Weight [N, K] and bias [N] as they are multiplied."""
        with torch.no_grad():
            weight: Tensor = self.module.weight.t() if isinstance(self.module, Conv1D) else self.module.weight
            bias: Tensor | None = self.module.bias
            return weight.to(self.dtype), None if bias is None else bias.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packs and self.product is None:
            self.first.note(self, x)
        if self.product is not None:
            return self.product(x, self.part)
        if not self.packs and self.kept is None:
            self.kept = self.cast()
        return F.linear(x.to(self.dtype), *(self.kept or self.cast()))


class _FirstPass:
    """Notes which layers are called one after the other with the same input, until one of them is called again: then
    each such group becomes a product. A layer that was left out (an expert without tokens) is noted when it comes."""

    def __init__(self, products: list[_Product]) -> None:
        self._products = products
        self._groups: list[list[_Linear]] = []
        self._noted: set[_Linear] = set()
        self._input: Tensor | None = None
        self._version = 0

    def note(self, layer: _Linear, x: Tensor) -> None:
        if layer in self._noted:
            self.settle()
            return
        if self._input is x and self._version == x._version:
            self._groups[-1].append(layer)
        else:
            self._groups.append([layer])
            self._input, self._version = x, x._version
        self._noted.add(layer)

    def settle(self) -> None:
        self._products += [_Product(group, len(self._products) + i) for i, group in enumerate(self._groups)]
        self._groups, self._noted, self._input = [], set(), None


class _Product:
    """One product for layers that are called one after the other with the same input: the first call computes all of
    it, the others take their parts. Whoever comes with another input has it computed again, so nothing rests on the
    layers being called as in the first pass."""

    def __init__(self, layers: list[_Linear], number: int) -> None:
        self.layers, self.number = layers, number
        self.dtype = layers[0].dtype
        self.widths = [_width(layer.module) for layer in layers]
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self._input: Tensor | None = None
        self._version = 0
        self._parts: list[Tensor | None] = []
        for part, layer in enumerate(layers):
            layer.product, layer.part = self, part

    def __call__(self, x: Tensor, part: int) -> Tensor:
        if len(self.widths) == 1:
            return self._multiply(x)
        known = x is self._input and _version(x) == self._version
        if not known or self._parts[part] is None:
            self._input, self._version = x, _version(x)
            self._parts = list(self._multiply(x).split(self.widths, -1))
        out, self._parts[part] = self._parts[part], None  # given away once: its owner may change it in place
        assert out is not None
        if part == len(self.widths) - 1:
            self._input, self._parts = None, []
        return out

    def _multiply(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            out: Tensor = torch.ops.assent.packed_linear(x.to(self.dtype), self.number, sum(self.widths))
            return out
        return self.multiply(x.to(self.dtype))

    def multiply(self, x: Tensor) -> Tensor:
        """The whole product [..., sum of widths] of `x` as it is multiplied."""
        if self.weight is None:
            self._pack()
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def release(self) -> None:
        self.weight = self.bias = self._input = None
        self._parts = []

    def _pack(self) -> None:
        weights, biases = zip(*(layer.cast() for layer in self.layers), strict=True)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights), _ROWS)
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            self.bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])


def _version(x: Tensor) -> int:
    """Counts the changes of `x` in place; while a compiler traces, which sees those by itself, always 0."""
    return 0 if torch.compiler.is_compiling() else x._version


def _width(module: nn.Linear | Conv1D) -> int:
    return module.weight.shape[1 if isinstance(module, Conv1D) else 0]


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward in (nn.Linear.forward, Conv1D.forward) and "forward" not in vars(module)


def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    packable = dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
    return device.type == "cpu" and packable and is_native(dtype, device)
