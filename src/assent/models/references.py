"""What a policy is compared with: a frozen copy, itself without adapters, or a copy that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from assent import distributed
from assent.data.tree import TreeBatch
from assent.deferred import Deferred
from assent.models.policy import Anchor, Policy

FIELD = "reference"
"""The per-token field that holds the reference's log-probs, where they are known already."""


class Reference:
    """A reference that does not change. `model` None means: the policy without its adapters."""

    def __init__(self, policy: Policy, model: Policy | None) -> None:
        self.policy = policy
        self.model = model

    @property
    def tree(self) -> bool:
        """Whether it shares prompts."""
        return self.model is None or self.model.tree

    @torch.no_grad()
    def logprobs(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """Log-probs of the trained tokens, [N]."""
        if FIELD in batch.per_token:
            return batch.per_token[FIELD]
        with self._active():
            return (self.model or self.policy)(batch, temperature).logprobs

    def anchor(self, batch: TreeBatch, temperature: float = 1.0) -> Anchor:
        """What a KL over the whole vocabulary needs of it."""
        with self._active():
            return (self.model or self.policy).anchor(batch, temperature)

    def _active(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.model is not None else self.policy.without_adapters()

    def follow(self, step: int) -> None:
        """Called after optimiser step `step` (from 1)."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class FollowingReference(Reference):
    """theta_ref <- rate * theta + (1 - rate) * theta_ref after every `every`-th step (arXiv 2404.09656)."""

    def __init__(self, policy: Policy, model: Policy, rate: float, every: int) -> None:
        super().__init__(policy, model)
        self.rate, self.every = rate, every
        mix(model, policy, 1.0, "lora_")  # adapters of two loads are drawn independently

    @torch.no_grad()
    def logprobs(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """As it is now: log-probs that a batch brings along would be those of a reference that has moved since."""
        assert self.model is not None
        return self.model(batch, temperature).logprobs

    def follow(self, step: int) -> None:
        if step % self.every == 0:
            assert self.model is not None
            mix(self.model, self.policy, self.rate)

    def state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return {"model": deferred_weights(self.model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self.model is not None
        distributed.load_full_state_dict(self.model, state["model"])


def deferred_weights(model: Policy) -> Deferred:
    """All weights of a model that changes only with an update, for a state."""

    def gather() -> dict[str, Tensor]:
        distributed.reshard(model)
        return distributed.full_state_dict(model)

    return Deferred(gather)


@torch.no_grad()
def mix(model: Policy, policy: Policy, rate: float, part: str = "") -> None:
    """Moves those parameters of `model` with `part` in their names towards the policy's: all the way at rate 1."""
    distributed.reshard(model)
    distributed.reshard(policy)
    for (name, mine), other in zip(model.model.named_parameters(), policy.model.parameters(), strict=True):
        local, new = distributed.local_part(mine), distributed.local_part(other)
        if part in name and local.is_floating_point():
            local.lerp_(new, rate) if rate < 1 else local.copy_(new)
