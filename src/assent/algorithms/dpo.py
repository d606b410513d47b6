"""Direct preference optimisation: the policy is its own reward model, held to a frozen reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from assent.algorithms.evaluate import held_out
from assent.algorithms.job import job
from assent.algorithms.run import RunResult, run
from assent.config import DPOConfig, DPOSection
from assent.data.packing import Counts, EpochStream, Window
from assent.data.tree import TreeBatch
from assent.data.views import pair_view
from assent.losses import dpo, implicit_reward
from assent.models.policy import Policy
from assent.train.loop import Loss


class DPO:
    """`reference` None means: the policy without its adapters (LoRA)."""

    def __init__(self, policy: Policy, reference: Policy | None, stream: EpochStream, section: DPOSection) -> None:
        self.policy = policy
        self.reference = reference
        self.stream = stream
        self.section = section
        self.modules = {"policy": policy}

    def windows(self) -> Iterator[Window]:
        return iter(self.stream)

    @torch.no_grad()
    def reference_logprobs(self, batch: TreeBatch) -> Tensor:
        """Log-probs of the trained tokens under the reference, [N]."""
        if self.reference is not None:
            return self.reference(batch).logprobs
        with self.policy.without_adapters():
            return self.policy(batch).logprobs

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        reference = batch.sum_by_response(self.reference_logprobs(batch))
        scores = self.policy(batch)
        policy = batch.sum_by_response(scores.logprobs)
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        beta = self.section.beta
        losses = dpo(policy[chosen], policy[rejected], reference[chosen], reference[rejected], beta=beta)
        rewards = implicit_reward(policy.detach(), reference, beta=beta)
        gap = rewards[chosen] - rewards[rejected]
        pairs, length = len(batch.pairs), batch.tokens_by_response()
        policy = policy.detach()
        return Loss(
            losses.sum() / max(1, counts.pairs),
            {
                "nll": (losses.sum(), pairs),
                "accuracy": ((gap > 0).float().sum(), pairs),
                "margin": (gap.sum(), pairs),
                "reward/chosen": (rewards[chosen].sum(), pairs),
                "reward/rejected": (rewards[rejected].sum(), pairs),
                "logprob/chosen": (policy[chosen].sum(), float(length[chosen].sum())),
                "logprob/rejected": (policy[rejected].sum(), float(length[rejected].sum())),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def train_dpo(config: DPOConfig) -> RunResult:
    """Aligns `config.model` with the pairs of `config.data`; the result is `config.out`/model."""
    current = job(config)
    data = current.prepare(pair_view)
    policy = current.policy()
    own_start = config.model.lora.rank > 0 and config.dpo.reference is None
    reference = None if own_start else current.reference(config.dpo.reference)
    stream = current.stream(data.train, policy)
    algorithm = DPO(policy, reference, stream, config.dpo)
    return run(
        current,
        algorithm,
        total=current.total_steps(stream.steps_per_epoch),
        evaluate=(lambda: held_out(algorithm, data.eval, stream, current.world)) if data.eval else None,
        best=("eval/nll", min),
        final={"model": policy},
    )
