"""What a source of rewards is: asked for whole groups of responses, so that models, rules and judges are one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch


class RewardSource(Protocol):
    """Rewards for rollouts."""

    @property
    def tree(self) -> bool:
        """Whether it reads batches with shared prompts."""
        ...

    def trees(self, prompts: Sequence[Example], trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What it reads for each rollout tree: the same prompts and responses, in the same order."""
        ...

    def score(self, batch: TreeBatch) -> Tensor:
        """One reward for each response of a batch of such trees, [S]."""
        ...
