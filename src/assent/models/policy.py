"""What the rest of the system sees of a Hugging Face model: log-probs of trained tokens, or scalars at chosen tokens,
of a `TreeBatch`. FSDP wraps these modules, so their `forward` is the only way in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from assent.data.tree import TreeBatch
from assent.models.attention import TreeAttend
from assent.models.divergences import Divergence
from assent.models.head import Head, Transform, head_divergence, head_kl, head_logprobs, head_of, measure
from assent.models.logprobs import Direction
from assent.models.parts import blocks_of, decoder_of, plain_of
from assent.models.readout import FEW, ReadAttend
from assent.models.reward_head import SCALAR, HeadRule, Scored


class TokenScores(NamedTuple):
    """Of the N trained tokens of a batch, [N] each, fp32: log-probabilities, and of their predictions p the entropy,
    collision = log sum_v p(v)^2 (a constant) and KL to an anchor. Zeros where they were not asked for. `values` are
    those of a critic that shares the policy's layers, `divergence` is that from a teacher, None where there is none. A
    tuple: FSDP must find the tensors in what `forward` returns, and older versions look into no dataclass."""

    logprobs: Tensor
    entropy: Tensor
    collision: Tensor
    kl: Tensor
    values: Tensor | None = None
    divergence: Divergence | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A model's predictions of the N trained tokens of a batch, as constants: hidden [N, h], the output head, and the
    temperature that divides its logits. The logits [N, V] never exist. Matrix products run in `dtype`."""

    hidden: Tensor
    head: Head
    temperature: float
    dtype: torch.dtype

    def logprobs(self, targets: Tensor) -> Tensor:
        """Log-probs of the tokens `targets` [N]: [N]."""
        return head_logprobs(self.head, self.hidden, targets, self.temperature, self.dtype)[0]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher's predictions, and the `beta` of the divergence from them (`models.divergences`)."""

    anchor: Anchor
    beta: float


class Backbone(nn.Module):
    """A Hugging Face model without its head. `tree` says whether prompts are shared (see models.attention); without
    it the batch must be flat, and the model runs its own attention on padded rows. `short` says whether the last layer
    can be computed for a few tokens alone (see models.readout)."""

    def __init__(self, model: PreTrainedModel, *, precision: str, tree: bool) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.tree = tree
        self.short = False

    @property
    def plain(self) -> PreTrainedModel:
        """The Hugging Face model itself; LoRA adapters are inside its layers, not around it."""
        return plain_of(self.model)

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
        return blocks_of(self.plain)

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
        if self.tree:
            return self._packed_hidden(batch, TreeAttend(batch.segments, batch.num_tokens))
        with self.autocast():
            return self._padded_hidden(decoder_of(self.plain), batch)

    def hidden_at(self, batch: TreeBatch, index: Tensor) -> Tensor:
        """The same at the packed tokens `index` [n]: [n, h]."""
        if self.tree and self.short and 0 < FEW * len(index) <= batch.num_tokens:
            return self._packed_hidden(batch, ReadAttend(batch, index))
        return self.hidden(batch).index_select(0, index)

    def _packed_hidden(self, batch: TreeBatch, attend: TreeAttend) -> Tensor:
        with self.autocast():
            out = decoder_of(self.plain)(
                input_ids=batch.tokens[None], position_ids=batch.positions[None], use_cache=False, attend=attend
            )
            return out.last_hidden_state[0]

    def _padded_hidden(self, decoder: nn.Module, batch: TreeBatch) -> Tensor:
        spans = [(segment.start, segment.end) for segment in batch.segments]
        length = max(end - start for start, end in spans)
        index = torch.zeros(len(spans), length, dtype=torch.int64)
        mask = torch.zeros(len(spans), length, dtype=torch.int64)
        for row, (start, end) in enumerate(spans):
            index[row, : end - start] = torch.arange(start, end)
            mask[row, : end - start] = 1
        index, mask = index.to(batch.tokens.device), mask.to(batch.tokens.device)
        out = decoder(input_ids=batch.tokens[index] * mask, attention_mask=mask, use_cache=False)
        return out.last_hidden_state[mask.bool()]


class Policy(Backbone):
    """A causal language model. `policy(batch, temperature)` gives the scores of the trained tokens under
    softmax(logits / temperature)."""

    value_head: nn.Linear | None
    transform: Transform | None
    """What follows the product with the output head's weight, as measured; None: the model's own code is the head."""

    def __init__(self, model: PreTrainedModel, *, precision: str, tree: bool) -> None:
        super().__init__(model, precision=precision, tree=tree)
        self.value_head = None
        self.transform = measure(self.plain)

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
        teacher: Teacher | None = None,
        states: bool = False,
        head_only: bool = False,
    ) -> TokenScores | Tensor:
        """`entropy`, `collision`, `anchor` and `teacher` ask for what costs extra; `direction` is that of `token_kl`,
        forward: KL(anchor || policy); a divergence is of logits over the teacher's temperature. With `states`: only the
        hidden states [N, h] that predict the trained tokens. With `head_only`, gradients reach the value head alone."""
        trains = torch.is_grad_enabled()
        with torch.set_grad_enabled(trains and not head_only):
            hidden = self.hidden(batch).index_select(0, batch.source)
        if states:
            return hidden
        values = None
        if self.value_head is not None:
            values = head_outputs(self.value_head, hidden).sum(-1)  # of one: FSDP warns of views that are returned
        head = head_of(self.plain, self.transform, self.dtype)
        with torch.set_grad_enabled(trains and not head_only):
            scores = head_logprobs(
                head, hidden, batch.targets, temperature, self.dtype, entropy=entropy, collision=collision
            )
        kl, divergence = torch.zeros_like(scores[0]), None
        if anchor is not None:
            kl = head_kl(
                head, hidden, anchor.head, anchor.hidden, temperature, anchor.temperature, self.dtype, direction
            )
        if teacher is not None:
            other = teacher.anchor
            divergence = head_divergence(
                head, hidden, other.head, other.hidden, other.temperature, self.dtype, teacher.beta
            )
        return self._kept(TokenScores(*scores, kl=kl, values=values, divergence=divergence))

    def _kept(self, scores: TokenScores) -> TokenScores:
        """The scores, for whose gradients a sharded head is gathered first, should it have been given back meanwhile:
        nobody has to know what FSDP finds in an output, and when it gives back which weights."""
        if isinstance(self, FSDPModule):
            divergence = None if scores.divergence is None else scores.divergence.loss
            for output in (scores.logprobs, scores.entropy, scores.kl, scores.values, divergence):
                if output is not None and output.requires_grad:
                    output.register_hook(lambda _: self.unshard())
        return scores

    @torch.no_grad()
    def anchor(self, batch: TreeBatch, temperature: float = 1.0) -> Anchor:
        """This model's predictions for another (or itself, later) to be compared with. Every rank must call it. Of a
        LoRA policy's start: inside `without_adapters()`."""
        hidden = self(batch, states=True)
        return Anchor(hidden, head_of(self.plain, self.transform, self.dtype, constant=True), temperature, self.dtype)

    def without_adapters(self) -> AbstractContextManager[Any]:
        """The start of a LoRA policy: its adapters are off inside this context."""
        return self.model.disable_adapter()


class ScoreModel(Backbone):
    """A decoder with a head of K outputs, read at chosen tokens: a reward model at each response's last token
    (`batch.last`), a critic at the states that predict the trained tokens (`batch.source`). `rule` says what the
    outputs are, and how they become one reward. What some read besides stands in classes of their own:
    `models.gated.GatedScoreModel`, and in `algorithms.reward` those that only a training needs."""

    def __init__(
        self, model: PreTrainedModel, *, precision: str, tree: bool, head: str = "score", rule: HeadRule = SCALAR
    ) -> None:
        """`head` names the layer that reads the hidden states."""
        super().__init__(model, precision=precision, tree=tree)
        self.head_name = head
        self.rule = rule

    @property
    def head(self) -> Any:
        return getattr(self.plain, self.head_name)

    @property
    def heads(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, batch: TreeBatch, index: Tensor, *, states: bool = False) -> Any:
        """The outputs at the packed tokens `index` [n]: [n, K] fp32; with `states` also the hidden states [n, h]."""
        read = self.hidden_at(batch, index)
        outputs = self.outputs(read)
        return (outputs, read) if states else outputs

    def outputs(self, states: Tensor) -> Tensor:
        """[n, h] -> [n, K]. Inside `forward` alone, where sharded weights are whole."""
        logits = head_outputs(self.head, states)
        return logits + logits.new_tensor(self.rule.offset) if self.rule.offset else logits

    def scalars(self, batch: TreeBatch, index: Tensor) -> Tensor:
        """What the outputs at the packed tokens `index` [n] become by the rule: [n]."""
        return self.rule.reward(self(batch, index))

    def rewards(self, batch: TreeBatch) -> Scored:
        """The reward of each response, and what it is made of."""
        outputs = self(batch, batch.last)
        parts = self.rule.shares(outputs)
        return Scored(parts.sum(-1), outputs, parts)

    def require_reward(self, who: str) -> None:
        """Raises ModelError where nobody has said how the outputs become one reward."""
        self.rule.require_weights(who)

    def reweigh(self, weights: Mapping[str, float], flag: str = "--rewards.output_weights") -> None:
        """From now on the reward is this sum of outputs, whatever was said before. Raises ConfigError as
        `HeadRule.reweighted`."""
        self.rule = self.rule.reweighted(weights, flag)


def head_outputs(head: Any, hidden: Tensor) -> Tensor:
    """[n, h] -> [n, K], in the precision of the head's weights, which are fp32 always: rounded to bf16, near answers
    tie."""
    return head(hidden.to(next(head.parameters()).dtype)).float()
