"""Final hidden states of a few tokens: the last layer computes its keys and values of all tokens, and the rest
(queries, output, MLP) only of those that are read. It does so by its own code, which runs twice."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from assent.data.tree import Segment, TreeBatch
from assent.errors import ModelError
from assent.models.attention import TreeAttend

FEW = 4
"""At most one token of so many is few: more would not repay the second run."""


class ReadAttend(TreeAttend):
    """Attention of a pass that is read at the packed tokens `index` [n], in any order: as of a tree, and in the last
    layer from those tokens alone."""

    def __init__(self, batch: TreeBatch, index: Tensor) -> None:
        super().__init__(batch.segments, batch.num_tokens)
        self.index = index
        self._order = index.argsort()
        self._masks: list[Tensor | None] | None = None

    def read(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, Hq, n, D] of the tokens that are read, key and value [1, Hkv, T, D] of all: [1, n, Hq, D]."""
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:  # as in the other layers
            query, key, value = query.float(), key.float(), value.float()
        if self._masks is None:
            tokens = self.index[self._order].tolist()
            self._masks = [_mask(segment, tokens, query) for segment in self.segments]
        rows = [0 if mask is None else len(mask) for mask in self._masks]
        sizes = [segment.end - segment.start for segment in self.segments]
        parts = zip(
            query.index_select(2, self._order).split(rows, 2), key.split(sizes, 2), value.split(sizes, 2), self._masks
        )
        grouped = query.shape[1] != key.shape[1]
        out = [
            nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
            for q, k, v, mask in parts
            if mask is not None
        ]
        return torch.cat(out, 2).index_select(2, self._order.argsort()).transpose(1, 2)


def _mask(segment: Segment, tokens: Sequence[int], like: Tensor) -> Tensor | None:
    """What the tokens (in order) that lie in a tree see of it, [n, L]: 0, or -inf for what they do not. None without
    such tokens."""
    own = tokens[bisect_left(tokens, segment.start) : bisect_left(tokens, segment.end)]
    if not own:
        return None
    seen = torch.zeros(len(own), segment.end - segment.start, dtype=torch.bool)
    for row, token in zip(seen, own, strict=True):
        row[: min(token + 1, segment.prompt_end) - segment.start] = True
        begin = max((start for start, _ in segment.branches if start <= token), default=token + 1)
        row[begin - segment.start : token + 1 - segment.start] = True
    return torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, float("-inf")).to(like.device)


def shorten(layer: nn.Module) -> None:
    """From now on the layer, the last of a decoder, gives only the tokens that are read where it is handed a
    `ReadAttend`. Where that is exact is to be measured."""
    layer.forward = MethodType(_forward, layer)


class _Reached(Exception):
    """A layer has its keys and values."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value


def _reach(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    raise _Reached(key, value)


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    whole, attend = type(self).forward, kwargs.get("attend")
    if not isinstance(attend, ReadAttend):
        return whole(self, *args, **kwargs)
    try:
        whole(self, *args, **{**kwargs, "attend": _reach})
    except _Reached as reached:
        key, value = reached.key, reached.value
    else:
        raise ModelError("its last layer has no attention")

    def read(module: nn.Module, query: Tensor, own_key: Tensor, own_value: Tensor, scaling: float) -> Tensor:
        return attend.read(query, key, value, scaling)

    few = _rows(args, attend), _rows(kwargs, attend)
    return whole(self, *few[0], **{**few[1], "attend": read})


def _rows(value: Any, attend: ReadAttend) -> Any:
    """Of tensors [1, T, ...] in the arguments of a layer the tokens that are read, [1, n, ...]; others as they are."""
    if isinstance(value, Tensor):
        packed = value.ndim > 1 and value.shape[:2] == (1, attend.num_tokens)
        return value.index_select(1, attend.index) if packed else value
    if type(value) in (tuple, list):
        return type(value)(_rows(item, attend) for item in value)
    if type(value) is dict:
        return {name: _rows(item, attend) for name, item in value.items()}
    return value
