"""The attention that every model runs on: transformers calls it under the name "assent", and it hands the layer's
queries, keys and values to an `attend` object that knows which token may see which (a packed tree here, the decoding
cache in `assent.rollout`). No mask is ever built on the CPU: a tree is cut into rectangles that need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from assent.data.tree import Segment
from assent.errors import ModelError
from assent.models.folders import rope_limit
from assent.models.parts import decoder_of, plain_of

NAME = "assent"


class Attend(Protocol):
    """Which token sees which. query [B, Hq, T, D], key and value [B, Hkv, T, D] -> [B, T, Hq, D]."""

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor: ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    attend: Attend | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if attend is None:  # its layers do not hand on what they are called with, or somebody called it who does not attend
        raise ModelError("its layers do not pass on what the attention over shared prompts needs")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return attend(module, query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)


def install(model: PreTrainedModel) -> None:
    """Makes a model call `attend` objects. Raises ValueError where its code has no attention interface."""
    use_attention(model, NAME)


def attention_of(model: PreTrainedModel) -> str:
    """The name of the attention that the decoder of a model runs on."""
    name: str = _decoder(model).config._attn_implementation
    return name


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Changes it; other parts of a composite model keep theirs. Raises ValueError where the decoder has no such."""
    _decoder(model).set_attn_implementation(name)


def _decoder(model: PreTrainedModel) -> Any:
    plain = plain_of(model)
    decoder = decoder_of(plain)
    return decoder if isinstance(decoder, PreTrainedModel) else plain


def inexact_reason(model: PreTrainedModel, max_length: int) -> str | None:
    """Why a packed tree cannot be computed exactly by this model, or None where it can.

    A tree is exact where attention is the only mixing over time and sees the whole past: not with recurrent or
    convolutional layers, attention sinks, capped attention logits, learned relative biases, or windows shorter than
    the longest sequence.
    """
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} has no attention interface"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    uses_window = "sliding_attention" in kinds or not getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) and uses_window and window is not None and window < max_length:
        return f"its attention window of {window} tokens is shorter than the longest sequence of {max_length}"
    limit = rope_limit(config)
    if limit is not None and limit < max_length:
        return f"its rotary embedding changes with the longest sequence of a batch beyond {limit} tokens"
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers of kind {', '.join(sorted(others))}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention logits"
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return "its attention has sinks"
    return None


class TreeAttend:
    """Attention over packed trees: a prompt sees itself causally, a response its prompt and itself causally.

    On the CPU a long tree is three kinds of rectangles (prompt and first response on themselves, the other responses on
    the prompt, each of them on itself) computed by the flash kernel without a mask and joined by their log-sum-exps;
    short trees of similar length run side by side as one masked batch, where a call of the kernel would cost more than
    its arithmetic.
    Elsewhere FlexAttention runs the same pattern as a block mask.
    """

    def __init__(self, segments: Sequence[Segment], num_tokens: int) -> None:
        self.segments = tuple(segments)
        self.num_tokens = num_tokens
        self._block_mask: Any = None
        self._plan: _Plan | None = None

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        width = value.shape[-1]
        if query.shape[-1] == width:
            return self._run(query, key, value, scaling)
        wide = max(query.shape[-1], width)  # latent attention has narrower values; zeros change nothing
        query, key, value = (nn.functional.pad(x, (0, wide - x.shape[-1])) for x in (query, key, value))
        return self._run(query, key, value, scaling)[..., :width]

    def _run(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if query.device.type == "cpu":
            if self._plan is None:
                self._plan = _Plan.of(self.segments, query.shape[1] * query.shape[3])
            if query.dtype == torch.bfloat16:  # the CPU's flash kernel is up to three times slower in bf16
                query, key, value = query.float(), key.float(), value.float()
            return _TreeFlash.apply(query, key, value, scaling, self._plan)
        return self._flex(query, key, value, scaling)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if self._block_mask is None:
            self._block_mask = block_mask(self.segments, self.num_tokens, query.device)
        grouped = query.shape[1] != key.shape[1]
        out = _compiled_flex()(query, key, value, block_mask=self._block_mask, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2)


def block_mask(segments: Sequence[Segment], num_tokens: int, device: torch.device | str) -> Any:
    """Which token sees which, as a FlexAttention block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    branch, tree, prompt = _labels(segments, num_tokens, device)

    def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (tree[q] == tree[k]) & ((branch[q] == branch[k]) | prompt[k]) & (q >= k)

    return create_block_mask(visible, None, None, num_tokens, num_tokens, device=str(device))


def _labels(segments: Sequence[Segment], num_tokens: int, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: its branch (prompts count as one), its tree, and whether it is a prompt token. [T] each."""
    branch = torch.full((num_tokens,), -1, dtype=torch.int32)
    tree = torch.full((num_tokens,), -1, dtype=torch.int32)
    prompt = torch.zeros(num_tokens, dtype=torch.bool)
    number = 0
    for index, segment in enumerate(segments):
        tree[segment.start : segment.end] = index
        prompt[segment.start : segment.prompt_end] = True
        for start, end in ((segment.start, segment.prompt_end), *segment.branches):
            branch[start:end] = number
            number += 1
    return branch.to(device), tree.to(device), prompt.to(device)


_flex_cache: list[Any] = []


def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if not _flex_cache:
        _flex_cache.append(torch.compile(flex_attention, dynamic=True))
    return _flex_cache[0]


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


SHORT = 1 << 21
"""A tree of L tokens is short if L * L * width is at most this: its whole square costs less than separate calls."""
STRETCH = 1.2
"""Trees in one masked batch differ in length by at most this factor (or 8 tokens)."""


@dataclass(frozen=True, slots=True)
class _Side:
    """Short trees side by side: `index` [B, L] into the stream (padding repeats the first token), `real` [B, L], and
    the additive mask `bias` [B, 1, L, L]: 0 where a query sees a key, else -inf."""

    index: Tensor
    real: Tensor
    bias: Tensor

    @classmethod
    def of(cls, group: Sequence[Segment]) -> _Side:
        length = max(segment.end - segment.start for segment in group)
        start = torch.tensor([segment.start for segment in group])
        size = torch.tensor([segment.end - segment.start for segment in group])
        prompt = torch.tensor([segment.prompt_end - segment.start for segment in group])
        branch = torch.full((len(group), length), -1, dtype=torch.int32)
        for row, segment in enumerate(group):
            for number, (begin, end) in enumerate(segment.branches):
                branch[row, begin - segment.start : end - segment.start] = number
        where = torch.arange(length)
        real = where < size[:, None]
        index = start[:, None] + where * real
        same = (branch[:, :, None] == branch[:, None, :]) | (where < prompt[:, None])[:, None, :]
        visible = same & (where[:, None] >= where) & real[:, None, :]
        visible[:, :, 0] |= ~real  # padding must see something; its output is dropped
        return cls(index, real, torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))[:, None])

    def gather(self, x: Tensor) -> Tensor:
        """[1, H, T, D] -> [B, H, L, D]."""
        rows, length = self.index.shape
        return x[0].index_select(1, self.index.view(-1)).view(x.shape[1], rows, length, -1).transpose(0, 1)

    def scatter(self, target: Tensor, x: Tensor) -> None:
        """Writes [B, H, L, D] into the stream [1, H, T, D], without the padding."""
        target[0].transpose(0, 1)[self.index[self.real]] = x.transpose(1, 2)[self.real]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a packed stream is computed: rectangles of long trees, and short trees side by side."""

    rectangles: tuple[tuple[int, int, int, int, bool], ...]
    """(query start, query end, key start, key end, causal); a causal one that begins no tree joins what is there."""
    starts: frozenset[int]
    sides: tuple[_Side, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], width: int) -> _Plan:
        short = sorted((s for s in segments if (s.end - s.start) ** 2 * width <= SHORT), key=lambda s: s.end - s.start)
        long = [s for s in segments if (s.end - s.start) ** 2 * width > SHORT]
        groups: list[list[Segment]] = []
        for segment in short:
            size = segment.end - segment.start
            least = groups[-1][0].end - groups[-1][0].start if groups else 0
            if groups and size <= max(least * STRETCH, least + 8):
                groups[-1].append(segment)
            else:
                groups.append([segment])
        return cls(
            tuple(part for segment in long for part in _rectangles(segment)),
            frozenset(segment.start for segment in long),
            tuple(_Side.of(group) for group in groups),
        )


def _rectangles(segment: Segment) -> list[tuple[int, int, int, int, bool]]:
    """The rectangles of one tree; together they are exactly its visibility."""
    first, *others = [end for _, end in segment.branches] or [segment.prompt_end]
    parts = [(segment.start, first, segment.start, first, True)]  # the first response continues the prompt
    if others:
        parts.append((first, segment.end, segment.start, segment.prompt_end, False))
    parts += [(start, end, start, end, True) for start, end in segment.branches[1:]]
    return parts


class _TreeFlash(torch.autograd.Function):
    """Flash attention rectangle by rectangle. Softmax over a row that is spread over two rectangles is put together
    from their log-sum-exps, forward; backward each rectangle uses the row's joint output and log-sum-exp, which makes
    its part of the gradient exact (p = exp(q k - lse), delta = grad_out . out)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, plan: _Plan) -> Tensor:
        _, heads, length, _ = query.shape
        out = query.new_empty(1, length, heads, value.shape[3]).transpose(1, 2)
        stats = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = torch.empty(1, length, heads, dtype=stats).transpose(1, 2)
        for q0, q1, k0, k1, causal in plan.rectangles:
            part, part_lse = _forward(
                query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1], 0.0, causal, scale=scaling
            )
            if causal and k0 not in plan.starts:  # a response on itself joins what it got from the prompt
                joint = torch.logaddexp(lse[:, :, q0:q1], part_lse)
                kept = out[:, :, q0:q1] * (lse[:, :, q0:q1] - joint).exp().unsqueeze(-1)
                part = torch.addcmul(kept, part, (part_lse - joint).exp().unsqueeze(-1))
                part_lse = joint
            out[:, :, q0:q1] = part
            lse[:, :, q0:q1] = part_lse
        side_stats = []
        for side in plan.sides:
            q, k, v = side.gather(query), side.gather(key), side.gather(value)
            part, part_lse = _forward(q, k, v, 0.0, False, attn_mask=side.bias.to(q.dtype), scale=scaling)
            side.scatter(out, part)
            side_stats.append(part_lse)
        ctx.save_for_backward(query, key, value, out, lse, *side_stats)
        ctx.scaling, ctx.plan = scaling, plan
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, *side_stats = ctx.saved_tensors
        grad_out = grads[0].transpose(1, 2)
        inputs = (query, key, value)
        found = tuple(torch.zeros_like(x) for x in inputs)
        for q0, q1, k0, k1, causal in ctx.plan.rectangles:
            rows, columns = (slice(None), slice(None), slice(q0, q1)), (slice(None), slice(None), slice(k0, k1))
            parts = _backward(
                grad_out[rows], query[rows], key[columns], value[columns], out[rows], lse[rows], 0.0, causal,
                scale=ctx.scaling,
            )  # fmt: skip
            for total, part, where in zip(found, parts, (rows, columns, columns), strict=True):
                total[where] += part
        for side, stats in zip(ctx.plan.sides, side_stats, strict=True):
            q, k, v = (side.gather(x) for x in inputs)
            gathered = side.gather(grad_out) * side.real[:, None, :, None]
            parts = _backward(
                gathered, q, k, v, side.gather(out), stats, 0.0, False,
                attn_mask=side.bias.to(q.dtype), scale=ctx.scaling,
            )  # fmt: skip
            for total, part in zip(found, parts, strict=True):
                side.scatter(total, part)
        return (*found, None, None)
