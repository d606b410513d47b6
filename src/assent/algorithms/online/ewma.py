"""PPO-EWMA: an average of the policy's weights that the clip is centred on, in place of the policy that sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from assent import distributed
from assent.data.tree import TreeBatch
from assent.models.policy import Policy
from assent.models.references import deferred_weights, mix


class EwmaPolicy:
    """theta_prox = sum_i decay^i theta_(t - i) / sum_i decay^i over the policies so far (arXiv 2110.00641).

    `model` is another load of the policy; it begins as its copy."""

    def __init__(self, model: Policy, policy: Policy, decay: float) -> None:
        self.model, self.policy, self.decay = model, policy, decay
        self.weight = 1.0
        mix(model, policy, 1.0)

    def follow(self) -> None:
        """Takes in the policy as it is after an optimiser step."""
        self.weight = self.decay * self.weight + 1.0
        mix(self.model, self.policy, 1.0 / self.weight)

    @torch.no_grad()
    def logprobs(self, batch: TreeBatch, temperature: float) -> Tensor:
        """Log-probs of the trained tokens, [N]."""
        return self.model(batch, temperature).logprobs

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "model": deferred_weights(self.model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight = float(state["weight"])
        distributed.load_full_state_dict(self.model, state["model"])
