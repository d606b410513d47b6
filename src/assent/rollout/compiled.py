"""A decoding step compiled as a whole: norms, rotary embeddings, attention over the cache, activations and casts become
few kernels. Products with packed weights stay what they are (`assent.rollout.packed_linear`)."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from transformers import PreTrainedModel

from assent.errors import ModelError
from assent.foreign import brief

Windows = dict[int, Tensor]
"""By layer."""


class CompiledStep:
    """The logits [B, V] of one more token for each of at least two sequences. Compiled when it is first called, once
    for all batches and windows of the cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        def step(ids: Tensor, positions: Tensor, mask: Tensor, keys: Windows, values: Windows) -> Tensor:
            attend = _Windowed(mask, keys, values)
            out: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, attend=attend).logits[:, 0]
            return out

        # A function with code of its own, because compilations belong to code, and there is room for a few only.
        # Without guards, which cost a tenth of a small model's step: what they would watch is the same in every call.
        own = FunctionType(step.__code__.replace(), step.__globals__, closure=step.__closure__)
        guards = torch.compiler.skip_all_guards_unsafe
        options: dict[str, str | int | bool | Callable[..., Any]] = {"guard_filter_fn": guards}
        self._step: Callable[..., Tensor] = torch.compile(own, fullgraph=True, options=options)
        self._is_compiled = False

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, keys: Windows, values: Windows) -> Tensor:
        """ids and positions [B, 1]; mask, keys and values as of `SlotCache.windows`, whose last column is written.
        Raises ModelError where the step cannot be compiled."""
        assert len(ids) > 1, "a compiler makes one sequence a case of its own"
        if self._is_compiled:
            return self._step(ids, positions, mask, keys, values)
        for tensor in (ids, positions, mask, *keys.values(), *values.values()):
            torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_dynamic(mask, 3)
        for tensor in (*keys.values(), *values.values()):
            torch._dynamo.mark_dynamic(tensor, 2)
        try:
            out = self._step(ids, positions, mask, keys, values)
        except (TorchDynamoException, InductorError, ConstraintViolationError) as error:
            reason = brief(str(error).partition("Set TORCH")[0])
            raise ModelError(
                f"--engine.compile: the decoding step could not be compiled ({reason}). It needs a C++ compiler "
                "(Debian: apt install g++) and a model that takes no branches by its data. Leave the option off to "
                "sample without."
            ) from error
        self._is_compiled = True
        return out


class _Windowed:
    """The `attend` object of a compiled step: attention as sums, which a compiler makes one kernel of. It reads keys
    and values in their order in memory, one query of a group after the other."""

    def __init__(self, mask: Tensor, keys: Windows, values: Windows) -> None:
        self.mask, self.keys, self.values = mask, keys, values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [B, Hq, 1, D], key and value [B, Hkv, 1, D] -> [B, 1, Hq, D]."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, -1] = key[:, :, 0]
        values[:, :, -1] = value[:, :, 0]
        wide = torch.promote_types(query.dtype, torch.float32)
        keys, values = keys.to(wide), values.to(wide)
        groups = query.to(wide).view(query.shape[0], key.shape[1], -1, query.shape[-1])
        out = []
        for one in groups.unbind(2):
            scores = (one[:, :, None] * keys).sum(-1) * scaling + self.mask[:, 0]
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            out.append((weights[..., None] * values).sum(-2) / weights.sum(-1, keepdim=True))
        return torch.stack(out, 2).view(query.shape[0], 1, query.shape[1], -1).to(value.dtype)
