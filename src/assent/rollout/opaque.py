"""Two operators that a compiler takes as they are while it traces a decoding step: the product with packed weights and
the attention over the cache. What they work on is not theirs to pass along: the thread that samples opens it first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Product(Protocol):
    """Packed weights of one or more layers."""

    def multiply(self, x: Tensor) -> Tensor: ...


class Cache(Protocol):
    """Keys and values of what is being decoded."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor: ...


class _Opened(threading.local):
    products: Sequence[Product] = ()
    cache: Cache | None = None


_opened = _Opened()


@contextmanager
def opened(products: Sequence[Product], cache: Cache) -> Iterator[None]:
    """Inside, the operators of this thread work on these."""
    _opened.products, _opened.cache = products, cache
    try:
        yield
    finally:
        _opened.products, _opened.cache = (), None


def linear(x: Tensor, product: int, width: int) -> Tensor:
    """`x` [..., K] times the packed weights of a product: [..., width]."""
    out: Tensor = torch.ops.assent.packed_linear(x, product, width)
    return out


def attention(query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float) -> Tensor:
    """query [B, Hq, 1, D], key and value [B, Hkv, 1, D] of a new token each -> [B, 1, Hq, D]."""
    out: Tensor = torch.ops.assent.decode_attention(query, key, value, layer, scaling)
    return out


def _linear(x: Tensor, product: int, width: int) -> Tensor:
    return _opened.products[product].multiply(x)


def _attention(query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float) -> Tensor:
    assert _opened.cache is not None
    return _opened.cache.attend(layer, query, key, value, scaling)


_library = torch.library.Library("assent", "FRAGMENT")
_library.define("packed_linear(Tensor x, int product, int width) -> Tensor")
_library.define("decode_attention(Tensor query, Tensor key, Tensor value, int layer, float scaling) -> Tensor")
for _device in ("CPU", "CUDA"):
    _library.impl("packed_linear", _linear, _device)
    _library.impl("decode_attention", _attention, _device)
torch.library.register_fake(
    "assent::packed_linear", lambda x, product, width: x.new_empty(*x.shape[:-1], width), lib=_library
)
torch.library.register_fake(
    "assent::decode_attention",
    lambda query, key, value, layer, scaling: value.new_empty(query.shape[0], 1, query.shape[1], value.shape[-1]),
    lib=_library,
)
