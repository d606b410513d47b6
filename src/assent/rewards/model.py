"""A reward model as the source of rewards, asked for a whole group of responses at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.data.tree import TokenTree, TreeBatch
from assent.models.policy import ScoreModel


class ModelReward:
    """A frozen reward model with its own tokenizer and chat template. Where those are the policy's, it reads the
    sampled tokens themselves; otherwise the answers' text in its own words."""

    def __init__(self, scorer: ScoreModel, chat: Chat, policy_chat: Chat, max_length: int) -> None:
        self.scorer = scorer
        self.chat = chat
        self.policy_chat = policy_chat
        self.max_length = max_length
        self.same_tokens = chat.speaks_like(policy_chat)

    @property
    def tree(self) -> bool:
        return self.scorer.tree

    def trees(self, prompts: Sequence[Example], trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What the reward model reads for each rollout tree: the same prompts and responses, in the same order."""
        if self.same_tokens:
            return list(trees)
        return [self._reword(example, tree) for example, tree in zip(prompts, trees, strict=True)]

    def _reword(self, example: Example, tree: TokenTree) -> TokenTree:
        answers = tuple(
            Response((Message("assistant", self.policy_chat.decode(branch.ids)),)) for branch in tree.branches
        )
        return self.chat.tree(Example(example.prompt, answers), self.max_length, tree.key)

    @torch.no_grad()
    def score(self, batch: TreeBatch) -> Tensor:
        """One reward for each response of a batch of such trees, [S]."""
        return self.scorer(batch, batch.last)
