"""The models of an online method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from assent.algorithms.references import Reference
from assent.data.tree import TreeBatch
from assent.models.policy import Policy, ScoreModel, TokenScores


@dataclass(frozen=True, slots=True)
class Models:
    """`critic` None: the method has none, or it is a value head of the policy. `reference` None: no KL."""

    policy: Policy
    critic: ScoreModel | None
    reference: Reference | None

    @property
    def tree(self) -> bool:
        """Whether all models can share prompts."""
        return all(model.tree for model in (self.policy, self.critic, self.reference) if model is not None)

    @property
    def has_critic(self) -> bool:
        return self.critic is not None or self.policy.value_head is not None

    def values(self, batch: TreeBatch, scores: TokenScores) -> Tensor:
        """Values of the states before the trained tokens, [N]; `scores` are the policy's of the same batch."""
        if self.critic is not None:
            return self.critic(batch, batch.source)
        assert scores.values is not None
        return scores.values
