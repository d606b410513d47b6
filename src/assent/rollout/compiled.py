"""A decoding step compiled as a whole: norms, rotary embeddings, activations and casts become few kernels.

Products with packed weights and the attention over the cache are left to `assent.rollout.opaque`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from transformers import PreTrainedModel

from assent.errors import ModelError
from assent.rollout import opaque
from assent.rollout.cache import two_products


class CompiledStep:
    """From the last tokens of at least two sequences and their positions, [B, 1] each, to logits [B, V]. Compiled when
    it is first called, once for all B. Raises ModelError where that fails."""

    def __init__(self, model: PreTrainedModel) -> None:
        def step(ids: Tensor, positions: Tensor) -> Tensor:
            out: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, attend=_attend).logits[:, 0]
            return out

        self._step = _compiled(step)

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        assert len(ids) > 1, "a compiler makes one sequence a case of its own"
        for tensor in (ids, positions):
            torch._dynamo.mark_dynamic(tensor, 0)
        return self._step(ids, positions)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return opaque.attention(query, key, value, int(module.layer_idx), scaling)  # type: ignore[arg-type]


class CompiledAttention:
    """What `cache.two_products` computes, in fp32 and by one kernel, which neither copies its window of the cache nor
    is held up by the start of two products. Compiled for each shape of a model's heads, once for all batches and
    windows."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[float, int, int, int, int], Callable[..., Tensor]] = {}

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
        if len(query) == 1:
            return two_products(query, keys, values, mask, scaling)
        shape = (scaling, *query.shape[1:], values.shape[-1])
        kernel = self._kernels.get(shape)
        if kernel is None:
            kernel = self._kernels[shape] = _compiled(partial(_one_pass, scaling=scaling))
            for tensor in (query, keys, values, mask):
                torch._dynamo.mark_dynamic(tensor, 0)
            for tensor, dim in ((keys, 3), (values, 2), (mask, 3)):
                torch._dynamo.mark_dynamic(tensor, dim)
        return kernel(query, keys, values, mask)


def _one_pass(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scaling: float) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    rows, values = keys.transpose(2, 3).to(wide), values.to(wide)
    out = []
    for one in query.to(wide).unbind(2):  # the queries of a group one by one: keys and values are then read in order
        scores = (one[:, :, None] * rows).sum(-1) * scaling + mask[:, 0]
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        out.append((weights[..., None] * values).sum(-2) / weights.sum(-1, keepdim=True))
    return torch.stack(out, 2)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled as a whole when it is first called. Without guards, which cost a tenth of a small model's step: whatever
    they would watch is the same in every call. As a function with code of its own, because compilations belong to code,
    and there is room for a few only."""

    def call(*args: Tensor) -> Tensor:
        return function(*args)

    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    guards = torch.compiler.skip_all_guards_unsafe
    options: dict[str, str | int | bool | Callable[..., Any]] = {"guard_filter_fn": guards}
    compiled: Callable[..., Tensor] = torch.compile(own, fullgraph=True, options=options)

    def checked(*args: Tensor) -> Tensor:
        try:
            return compiled(*args)
        except (TorchDynamoException, InductorError, ConstraintViolationError) as error:
            reason = " ".join(str(error).partition("Set TORCH")[0].split())[:300]
            raise ModelError(
                f"--engine.compile: the decoding step could not be compiled ({reason}). It needs a C++ compiler "
                "(Debian: apt install g++) and a model that takes no branches by its data. Leave the option off to "
                "sample without."
            ) from error

    return checked
