"""What the rest of the system sees of a Hugging Face model: log-probs of trained tokens, or scalars at chosen tokens,
of a `TreeBatch`. FSDP wraps these modules, so their `forward` is the only way in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assent.data.tree import TreeBatch
from assent.errors import ModelError
from assent.models.attention import TreeAttend
from assent.models.logprobs import token_logprobs


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of the N trained tokens of a batch: log-probabilities and entropies of their predictions, [N] each, fp32."""

    logprobs: Tensor
    entropy: Tensor


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

    def forward(self, batch: TreeBatch, temperature: float = 1.0) -> TokenScores:
        hidden = self.hidden(batch).index_select(0, batch.source)
        head = self.model.get_output_embeddings()
        scale, softcap = logit_transform(self.model)
        logprobs, entropy = token_logprobs(
            hidden,
            head.weight,
            batch.targets,
            bias=getattr(head, "bias", None),
            scale=scale / temperature,
            softcap=softcap,
            dtype=self.dtype,
        )
        return TokenScores(logprobs, entropy)

    def without_adapters(self) -> AbstractContextManager[Any]:
        """The start of a LoRA policy: its adapters are off inside this context."""
        return self.model.disable_adapter()


class ScoreModel(Backbone):
    """A sequence-classification model read at chosen tokens: a reward model at each response's last token
    (`batch.last`), a critic at the states that predict the trained tokens (`batch.source`)."""

    def forward(self, batch: TreeBatch, index: Tensor) -> Tensor:
        hidden = self.hidden(batch).index_select(0, index)
        with self.autocast():
            return self.model.score(hidden).float().squeeze(-1)


def logit_transform(model: PreTrainedModel) -> tuple[float, float | None]:
    """(scale, softcap) that the architecture applies to its output logits: Cohere multiplies, Granite divides, Gemma 2
    caps."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def verify(policy: Policy, tolerance: float = 1e-3) -> None:
    """Compares the tree forward with the model's own padded forward on a small random tree. Raises ModelError where
    they differ by more than `tolerance` in log-probability, so that no architecture is trained inexactly."""
    import numpy as np

    from assent.data.tree import Branch, TokenTree, collate

    vocab = policy.model.config.get_text_config().vocab_size
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocab, size) for size in (5, 4, 6)]
    branches = tuple(Branch(ids, np.ones(len(ids), bool)) for ids in rows[1:])
    batch = collate([TokenTree(rows[0], branches)]).to(policy.device)
    exact = Policy(policy.model, precision="fp32", tree=True)
    got = exact(batch).logprobs.cpu()
    previous = policy.model.config._attn_implementation
    policy.model.set_attn_implementation("eager")
    try:
        want = []
        for ids in rows[1:]:
            full = torch.from_numpy(np.concatenate([rows[0], ids]))[None].to(policy.device)
            logits = policy.model(input_ids=full, use_cache=False).logits[0].float()
            logp = logits.log_softmax(-1)[len(rows[0]) - 1 : -1]
            want.append(logp.gather(1, full[0, len(rows[0]) :, None]).squeeze(1).cpu())
    finally:
        policy.model.set_attn_implementation(previous)
    worst = (got - torch.cat(want)).abs().max().item()
    if not worst <= tolerance:
        raise ModelError(
            f"{type(policy.model).__name__}: sharing prompts changes its log-probabilities by {worst:.2g} "
            f"(allowed {tolerance:g}). Use --model.layout flat."
        )
