"""GRM's regulariser: the hidden states that a reward is read from stay fit to write answers (arXiv 2406.10216).

The output head is that of the language model which the reward model was made of, as a constant: it reads the same
forward pass as the reward head, and is in no checkpoint and no saved folder.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from assent.config import RewardSection
from assent.data.dataset import Prepared
from assent.data.tree import TreeBatch, with_token_field
from assent.errors import ModelError
from assent.losses import dpo, likelihood_regulariser
from assent.models.head import Linear, head_of
from assent.models.policy import ScoreModel
from assent.models.references import FIELD, Reference
from assent.train.references import reference_logprobs
from assent.train.session import Session


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


def regulariser(section: RewardSection, scorer: ScoreModel, batch: TreeBatch, index: Tensor) -> tuple[Tensor, Tensor]:
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
