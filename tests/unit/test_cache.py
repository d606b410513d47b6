from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assent.rollout.cache import _WINDOW, SlotCache

HEADS, GROUP, WIDTH = 2, 3, 8


class Reference:
    """A cache of lists: every sequence's keys and values [Hkv, n, D], and attention by the formula."""

    def __init__(self) -> None:
        self.sequences: dict[int, tuple[Tensor, Tensor]] = {}

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> dict[int, Tensor]:
        out = {}
        for slot, (keys, values) in self.sequences.items():
            keys, values = torch.cat([keys, key[slot]], 1), torch.cat([values, value[slot]], 1)
            self.sequences[slot] = keys, values
            q = query[slot].view(HEADS, GROUP, WIDTH).double()
            weights = (q @ keys.double().transpose(1, 2) * scaling).softmax(-1)
            out[slot] = (weights @ values.double()).view(HEADS * GROUP, WIDTH)
        return out


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.05)]
)
def test_a_step_is_the_formula_whatever_enters_leaves_moves_and_grows(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    cache, reference = SlotCache(4, 20, 24, torch.device("cpu")), Reference()
    columns = cache.columns

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def admit(slots: list[int], length: int) -> None:
        prompt = random(HEADS, length, WIDTH), random(HEADS, length, WIDTH)
        cache.admit(slots, {0: prompt})
        reference.sequences |= dict.fromkeys(slots, prompt)
        cache.active = max(cache.active, *(slot + 1 for slot in slots))

    widths = set()
    admit([0, 2], 3)
    admit([1], 20)
    for step in range(150):
        if step == 30:
            admit([3], 17)
        if step == 50:
            cache.release([1])
            del reference.sequences[1]
            cache.move([3], [1])
            reference.sequences[1] = reference.sequences.pop(3)
            cache.active = 3
        if step == 70:  # the longest leave: what is kept of the cache shrinks
            cache.release([0, 2])
            reference.sequences = {1: reference.sequences[1]}
            admit([0], 1)
        cache.begin_step()
        query, (key, value) = random(cache.active, HEADS * GROUP, 1, WIDTH), random(2, cache.active, HEADS, 1, WIDTH)
        got = cache(module, query, key, value, 0.5)
        widths.add(cache._step_mask.shape[-1])
        cache.end_step()
        for slot, want in reference.step(query, key, value, 0.5).items():
            assert got.shape == (cache.active, 1, HEADS * GROUP, WIDTH)
            assert (got[slot, 0].double() - want).abs().max() < tolerance, (step, slot)
    assert cache.columns > columns, "the cache was to grow"
    assert all(width % _WINDOW == 0 for width in widths) and len(widths) > 3


def test_keys_and_values_keep_their_precision() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bf16 products")
    cache = SlotCache(1, 4, 4, torch.device("cpu"))
    prompt = torch.zeros(HEADS, 4, WIDTH, dtype=torch.bfloat16)
    cache.admit([0], {0: (prompt, prompt)})
    assert cache._keys[0].dtype == cache._values[0].dtype == torch.bfloat16
