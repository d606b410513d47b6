"""GRM's regulariser: the hidden states that a reward is read from stay fit to write answers (arXiv 2406.10216).

The output head is that of the language model which the reward model was made of: it reads the same forward pass as
the reward head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assent.config import RewardSection
from assent.data.dataset import Prepared
from assent.data.tree import TreeBatch, with_token_field
from assent.errors import ModelError
from assent.losses import dpo, likelihood_regulariser
from assent.models.head import Linear, head_logprobs, head_of
from assent.models.policy import ScoreModel
from assent.models.references import FIELD, Reference
from assent.train.references import reference_logprobs
from assent.train.session import Session


class RegularisedScoreModel(ScoreModel):
    """A reward model beside the output head of a language model that reads the same hidden states, as a constant. It is
    in no checkpoint and in no folder that is written."""

    language_weight: Tensor
    language_bias: Tensor | None

    def __init__(self, model: PreTrainedModel, *, language: Linear, **options: Any) -> None:
        """`options` are those of `ScoreModel`."""
        super().__init__(model, **options)
        self.transform = language.transform
        self.register_buffer("language_weight", language.weight.detach().to(self.dtype), persistent=False)
        bias = None if language.bias is None else language.bias.detach()
        self.register_buffer("language_bias", bias, persistent=False)

    def forward(self, batch: TreeBatch, index: Tensor, *, states: bool = False, tokens: Tensor | None = None) -> Any:
        """As `ScoreModel`; with `tokens` the outputs at `index`, and the log-probs of `with_logprobs`."""
        if tokens is None:
            return super().forward(batch, index, states=states)
        hidden = self.hidden(batch)
        outputs, read = self.outputs(hidden.index_select(0, index)), hidden.index_select(0, batch.source[tokens])
        head = Linear(self.language_weight, self.language_bias, self.transform)
        return outputs, head_logprobs(head, read, batch.targets[tokens], 1.0, self.dtype)[0]

    def with_logprobs(self, batch: TreeBatch, index: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards at the packed tokens `index` [n], and the log-probs of those trained tokens of the batch whose
        numbers are `tokens`, from one forward pass."""
        outputs, logprobs = self(batch, index, tokens=tokens)
        return self.rule.reward(outputs), logprobs


def language_of(session: Session, data: Prepared, kind: str) -> tuple[Linear, Prepared]:
    """The output head of the run's model; and the data, for `kind` dpo with the log-probs of that model as a field of
    their tokens. The model itself is not kept. Raises ModelError where there is no such head, or it is no product that
    can be read apart from the model."""
    try:
        policy = session.reference(None)
    except ModelError as error:
        raise ModelError(f"--reward.regulariser {kind} needs the output head of a language model. {error}") from error
    head = head_of(policy.plain, policy.transform, policy.dtype, constant=True)
    if not isinstance(head, Linear):
        raise ModelError(
            f"--reward.regulariser {kind}: the output head of {session.config.model.path} is more than a product with "
            "its weight, and cannot stand beside a reward head. Use --reward.regulariser none."
        )
    if kind == "dpo":
        values = reference_logprobs(session, Reference(policy, policy), [*data.train, *data.eval])
        trees = with_token_field([*data.train, *data.eval], FIELD, values)
        data = replace(data, train=trees[: len(data.train)], eval=trees[len(data.train) :])
    return replace(head, weight=head.weight.clone()), data


def regulariser(
    section: RewardSection, scorer: RegularisedScoreModel, batch: TreeBatch, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Rewards at the packed tokens `index`, and the regulariser's loss of each pair [M], from one forward pass."""
    chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
    tokens = torch.arange(len(batch.label), device=batch.label.device)
    if section.regulariser == "sft":
        tokens = tokens[torch.isin(batch.response, chosen)]
    rewards, logprobs = scorer.with_logprobs(batch, index, tokens)
    whole = logprobs.new_zeros(batch.num_responses).index_add(0, batch.response[tokens], logprobs)
    if section.regulariser == "sft":
        return rewards, likelihood_regulariser(whole[chosen], beta=section.regulariser_beta)
    reference = batch.sum_by_response(batch.per_token[FIELD])
    both = whole[chosen], whole[rejected], reference[chosen], reference[rejected]
    return rewards, dpo(*both, beta=section.regulariser_beta)
