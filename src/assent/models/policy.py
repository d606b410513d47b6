"""What the rest of the system sees of a Hugging Face model: log-probs of trained tokens, or scalars at chosen tokens,
of a `TreeBatch`. FSDP wraps these modules, so their `forward` is the only way in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.models.attention import TreeAttend
from assent.models.logprobs import Direction, token_kl, token_logprobs


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of the N trained tokens of a batch, [N] each, fp32: log-probabilities, and of their predictions p the entropy,
    collision = log sum_v p(v)^2 (a constant) and KL to an anchor. Zeros where they were not asked for. `values` are
    those of a critic that shares the policy's layers, None where there is none."""

    logprobs: Tensor
    entropy: Tensor
    collision: Tensor
    kl: Tensor
    values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A model's predictions of the N trained tokens of a batch, as constants: hidden [N, h] and the output head, weight
    [V, h] and bias [V], with `scale` and `softcap` as in `token_kl`. The logits [N, V] never exist."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


class Backbone(nn.Module):
    """A Hugging Face model without its head. `tree` says whether prompts are shared (see models.attention); without
    it the batch must be flat, and the model runs its own attention on padded rows."""

    def __init__(self, model: PreTrainedModel, *, precision: str, tree: bool) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.tree = tree

    @property
    def plain(self) -> PreTrainedModel:
        """The Hugging Face model itself; LoRA adapters are inside its layers, not around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else next(self.model.parameters()).dtype

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder layers, the units of sharding and of activation checkpointing."""
        lists = [m for m in self.plain.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
        return list(lists[0]) if lists else []

    @property
    def heads(self) -> list[nn.Module]:
        """Linear layers that give scalars from hidden states. They are computed in fp32, also where sharding gathers
        other weights in bf16."""
        return []

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Final hidden states, [T, h]."""
        base = self.plain.base_model
        with self.autocast():
            if self.tree:
                attend = TreeAttend(batch.segments, batch.num_tokens)
                out = base(
                    input_ids=batch.tokens[None], position_ids=batch.positions[None], use_cache=False, attend=attend
                )
                return out.last_hidden_state[0]
            return self._padded_hidden(base, batch)

    def _padded_hidden(self, base: nn.Module, batch: TreeBatch) -> Tensor:
        spans = [(segment.start, segment.end) for segment in batch.segments]
        length = max(end - start for start, end in spans)
        index = torch.zeros(len(spans), length, dtype=torch.int64)
        mask = torch.zeros(len(spans), length, dtype=torch.int64)
        for row, (start, end) in enumerate(spans):
            index[row, : end - start] = torch.arange(start, end)
            mask[row, : end - start] = 1
        index, mask = index.to(batch.tokens.device), mask.to(batch.tokens.device)
        out = base(input_ids=batch.tokens[index] * mask, attention_mask=mask, use_cache=False)
        return out.last_hidden_state[mask.bool()]


class Policy(Backbone):
    """A causal language model. `policy(batch, temperature)` gives the scores of the trained tokens under
    softmax(logits / temperature)."""

    value_head: nn.Linear | None

    def __init__(self, model: PreTrainedModel, *, precision: str, tree: bool) -> None:
        super().__init__(model, precision=precision, tree=tree)
        self.value_head = None

    @property
    def heads(self) -> list[nn.Module]:
        return [] if self.value_head is None else [self.value_head]

    def add_value_head(self) -> None:
        """A critic on the last hidden states; it begins at 0 everywhere. Before the module is sharded."""
        self.value_head = nn.Linear(self.plain.config.get_text_config().hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        batch: TreeBatch,
        temperature: float = 1.0,
        *,
        entropy: bool = False,
        collision: bool = False,
        anchor: Anchor | None = None,
        direction: Direction = "forward",
        states: bool = False,
        head_only: bool = False,
    ) -> TokenScores | Tensor:
        """`entropy`, `collision` and `anchor` ask for what costs extra; `direction` is that of `token_kl`, forward:
        KL(anchor || policy). With `states`: only the hidden states [N, h] that predict the trained tokens. With
        `head_only`, gradients reach the value head alone."""
        trains = torch.is_grad_enabled()
        with torch.set_grad_enabled(trains and not head_only):
            hidden = self.hidden(batch).index_select(0, batch.source)
        if states:
            return hidden
        values = None
        if self.value_head is not None:
            values = _scalars(self.value_head, hidden)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        scale, softcap = logit_transform(self.model)
        own: dict[str, Any] = {"bias": bias, "scale": scale / temperature, "softcap": softcap, "dtype": self.dtype}
        with torch.set_grad_enabled(trains and not head_only):
            scores = token_logprobs(hidden, head.weight, batch.targets, **own, entropy=entropy, collision=collision)
        if anchor is None:
            return TokenScores(*scores, kl=torch.zeros_like(scores[0]), values=values)
        kl = token_kl(
            hidden,
            head.weight,
            anchor.hidden,
            anchor.weight,
            **own,
            direction=direction,
            other_bias=anchor.bias,
            other_scale=anchor.scale,
            other_softcap=anchor.softcap,
        )
        return TokenScores(*scores, kl=kl, values=values)

    @torch.no_grad()
    def anchor(self, batch: TreeBatch, temperature: float = 1.0) -> Anchor:
        """This model's predictions for another (or itself, later) to be compared with. Every rank must call it. Of a
        LoRA policy's start: inside `without_adapters()`."""
        hidden = self(batch, states=True)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        scale, softcap = logit_transform(self.model)
        whole_bias = None if bias is None else _whole(bias)
        return Anchor(hidden, _whole(head.weight), whole_bias, scale / temperature, softcap)

    def without_adapters(self) -> AbstractContextManager[Any]:
        """The start of a LoRA policy: its adapters are off inside this context."""
        return self.model.disable_adapter()


class ScoreModel(Backbone):
    """A decoder with a linear head of one output, read at chosen tokens: a reward model at each response's last token
    (`batch.last`), a critic at the states that predict the trained tokens (`batch.source`)."""

    def __init__(self, model: PreTrainedModel, *, precision: str, tree: bool, head: str = "score") -> None:
        """`head` names the linear layer that reads the hidden states."""
        super().__init__(model, precision=precision, tree=tree)
        self.head_name = head

    @property
    def head(self) -> Any:
        return getattr(self.plain, self.head_name)

    @property
    def heads(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, batch: TreeBatch, index: Tensor) -> Tensor:
        return _scalars(self.head, self.hidden(batch).index_select(0, index))


def _scalars(head: Any, hidden: Tensor) -> Tensor:
    """[N, h] -> [N], in the precision of the head's weights, which are fp32 always: rounded to bf16, near answers
    tie."""
    return head(hidden.to(head.weight.dtype)).float().squeeze(-1)


def _whole(weight: Tensor) -> Tensor:
    """All of a weight, on every rank, also where FSDP shards it outside of `forward`."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()


def logit_transform(model: PreTrainedModel) -> tuple[float, float | None]:
    """(scale, softcap) that the architecture applies to its output logits: Cohere multiplies, Granite divides, Gemma 2
    caps."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def verify(backbone: Backbone, tolerance: float = 1e-2) -> None:
    """Compares a small random tree with the model's own forward over each of its sequences, in fp32. Raises ModelError
    where a final hidden state differs by more than `tolerance` of their root mean square (a token too many or too few
    in an attention changes them by about that size), so that no architecture is trained inexactly."""
    vocab = backbone.plain.config.get_text_config().vocab_size
    rng = np.random.default_rng(0)
    prompt, *answers = (rng.integers(0, vocab, size) for size in (5, 4, 6))
    tree = TokenTree(prompt, tuple(Branch(ids, np.ones(len(ids), bool)) for ids in answers))
    batch = collate([tree]).to(backbone.device)
    got = Backbone(backbone.model, precision="fp32", tree=True).hidden(batch)
    previous = backbone.plain.config._attn_implementation
    backbone.plain.set_attn_implementation("eager")
    try:
        rows = [torch.from_numpy(np.concatenate([prompt, ids]))[None].to(backbone.device) for ids in answers]
        want = [backbone.plain.base_model(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows]
    finally:
        backbone.plain.set_attn_implementation(previous)
    exact = torch.cat([want[0], want[1][len(prompt) :]])
    worst = ((got - exact).abs().max() / exact.square().mean().sqrt()).item()
    if not worst <= tolerance:
        raise ModelError(
            f"{type(backbone.plain).__name__}: sharing prompts changes its hidden states by {worst:.2g} of their size "
            f"(allowed {tolerance:g}). Use --model.layout flat."
        )
