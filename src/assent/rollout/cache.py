"""Keys and values of the sequences that are being decoded.

One row (slot) per sequence, and one column per decoding step that all slots share: a sequence of n tokens occupies
columns [end - n, end), whatever its n. So a step writes one column slice of every layer, the visible columns of a slot
are all those from its first, and neither positions nor masks are rebuilt from step to step.

    column        0 1 2 3 4 5 | end = 6
    slot 0            p p r r     first = 2
    slot 1        p p p p p r     first = 0
    slot 2              p p r     first = 3

A step looks at a window of columns that ends with its own and begins at or before the earliest one in use, so that its
width is a multiple of `_WINDOW`; a mask hides the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from assent.models.attention import Attend
from assent.rollout.packed_linear import is_native

_WINDOW = 16  # oneDNN prepares each width of a bf16 product at some cost, so there are few
_ROOM = 1.5  # how much a full cache grows, and how empty it must be to be shifted instead
_EXTRA = 64  # columns that it grows by besides
_NONE = 1 << 40  # first column of a free slot: it keeps no column alive


class SlotCache:
    """The cache and, as an `attend` object, the attention of a decoding step over it.

    Slots 0 .. active-1 take part in a step, free ones among them for nothing. Grouped queries are put beside each other
    as rows of one matrix product, so keys and values are never repeated. Keys have the shape [slots, Hkv, D, columns],
    values [slots, Hkv, columns, D].
    """

    def __init__(
        self, slots: int, longest_prompt: int, columns: int, device: torch.device, *, in_order: bool = False
    ) -> None:
        """`in_order`: keys lie column after column whatever their precision, for who reads `windows`."""
        assert columns >= longest_prompt
        self.in_order = in_order
        self.slots = slots
        self.reserve = longest_prompt + _WINDOW  # columns always kept before the current one
        self.columns = columns + _WINDOW
        self.end = self.reserve
        self.active = 0
        self.first = np.full(slots, _NONE)
        self.device = device
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._mask = torch.zeros(slots, self.columns, device=device)
        self._seen = slice(0, 0)
        self._step_mask = self._mask

    def admit(self, slots: Sequence[int], prompt: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Puts one prompt, layer -> (key, value) of [Hkv, T, D] each, into `slots`, ending at the current column."""
        index = torch.tensor(slots, device=self.device)
        length = next(iter(prompt.values()))[0].shape[1]
        start = self.end - length
        assert start >= 0
        for layer, (key, value) in prompt.items():
            keys, values = self._layer(layer, key, value)
            keys[index, :, :, start : self.end] = key.transpose(1, 2).to(keys.dtype)
            values[index, :, start : self.end] = value.to(values.dtype)
        self.first[list(slots)] = start
        self._mask[index, :start] = float("-inf")
        self._mask[index, start:] = 0.0

    def release(self, slots: Sequence[int]) -> None:
        """Marks slots as free."""
        self.first[list(slots)] = _NONE

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies slots over others."""
        low = int(self.first[list(source)].min())
        src, dst = (torch.tensor(x, device=self.device) for x in (source, target))
        for keys, values in zip(self._keys.values(), self._values.values(), strict=True):
            keys[dst, :, :, low : self.end] = keys[src, :, :, low : self.end]
            values[dst, :, low : self.end] = values[src, :, low : self.end]
        self._mask[dst] = self._mask[src]
        self.first[list(target)] = self.first[list(source)]
        self.release(source)

    def begin_step(self) -> None:
        """Makes room for one column and fixes what all layers of this step share."""
        low = int(self.first[: self.active].min())
        if self.end == self.columns:
            kept = max(self.end - low + _WINDOW, self.reserve)
            low -= self.end - kept
            self._make_room(kept)
        end = self.end + 1
        self._seen = slice(end + (low - end) // _WINDOW * _WINDOW, end)
        self._step_mask = self._mask[: self.active, None, None, self._seen]

    def end_step(self) -> None:
        self.end += 1

    def _make_room(self, width: int) -> None:
        """Moves the last `width` columns to the front, of a larger cache where they nearly fill this one."""
        shift = self.end - width
        columns = self.columns if width * _ROOM <= self.columns else int(width * _ROOM) + _EXTRA

        def moved(old: Tensor, axis: int) -> Tensor:
            kept = old.narrow(axis, shift, width)
            if columns == self.columns:
                old.narrow(axis, 0, width).copy_(kept.clone())
                return old
            shape = list(old.shape)
            shape[axis] = columns
            strides = old.stride()
            order = sorted(range(old.ndim), key=lambda dim: -strides[dim])
            new = torch.empty_permuted(shape, order, dtype=old.dtype, device=old.device).zero_()
            new.narrow(axis, 0, width).copy_(kept)
            return new

        for layer in self._keys:
            self._keys[layer] = moved(self._keys[layer], 3)
            self._values[layer] = moved(self._values[layer], 2)
        self._mask = moved(self._mask, 1)
        self._mask[:, width:] = 0.0
        self.first[self.first != _NONE] -= shift
        self.columns, self.end = columns, width

    def windows(self) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """What a step sees, its own column included: the mask [B, 1, 1, W] of 0 and -inf, and by layer keys and values
        [B, Hkv, W, D], views into the cache."""
        keys = {layer: x[: self.active, :, :, self._seen].transpose(2, 3) for layer, x in self._keys.items()}
        values = {layer: x[: self.active, :, self._seen] for layer, x in self._values.items()}
        return self._step_mask, keys, values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [B, Hq, 1, D], key and value [B, Hkv, 1, D] -> [B, 1, Hq, D]."""
        batch, heads, _, width = query.shape
        keys, values = self._layer(int(module.layer_idx), key[0], value[0])  # type: ignore[arg-type]
        keys[:batch, :, :, self.end] = key[:, :, 0]
        values[:batch, :, self.end] = value[:, :, 0]
        grouped = query.reshape(batch, key.shape[1], -1, width).to(keys.dtype)
        widened = keys.dtype != query.dtype
        with torch.autocast(self.device.type, enabled=False) if widened else nullcontext():
            scores = torch.matmul(grouped, keys[:batch, :, :, self._seen])
            weights = torch.add(self._step_mask, scores, alpha=scaling).softmax(-1).to(values.dtype)
            out = torch.matmul(weights, values[:batch, :, self._seen])
        return out.view(batch, 1, heads, value.shape[-1])

    def _layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Storage of a layer, allocated (as zeros: a masked column must hold numbers) when it is first written. Keys
        lie transposed for oneDNN's bf16 product, as they come for the others, which is faster for each."""
        if layer not in self._keys:
            heads, _, width = key.shape
            dtype = key.dtype if is_native(key.dtype, key.device) else torch.promote_types(key.dtype, torch.float32)
            if dtype == torch.bfloat16 and key.device.type == "cpu" and not self.in_order:
                self._keys[layer] = key.new_zeros(self.slots, heads, width, self.columns, dtype=dtype)
            else:
                self._keys[layer] = key.new_zeros(self.slots, heads, self.columns, width, dtype=dtype).transpose(2, 3)
            self._values[layer] = value.new_zeros(self.slots, heads, self.columns, value.shape[-1], dtype=dtype)
        return self._keys[layer], self._values[layer]


class PromptCapture:
    """An `attend` object that keeps the keys and values that another one sees: those of packed prompts."""

    def __init__(self, attend: Attend) -> None:
        self.attend = attend
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.layers[int(module.layer_idx)] = (key[0], value[0])  # type: ignore[arg-type]
        return self.attend(module, query, key, value, scaling)

    def prompt(self, start: int, end: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> (key, value) of [Hkv, T, D] of the prompt at [start, end) of the packed stream."""
        return {layer: (key[:, start:end], value[:, start:end]) for layer, (key, value) in self.layers.items()}
