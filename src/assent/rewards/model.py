"""A reward model as a source of rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.distributed import World
from assent.models.annotate import BatchColumns, columns_of
from assent.models.policy import ScoreModel
from assent.rewards.group import UNREADABLE, Group, Scores, checked
from assent.rewards.reading import Reading


class ModelReward:
    """A frozen reward model with its own tokenizer and chat template, which reads what `Reading` says. Its forward
    passes are shared by all ranks.

    An answer that its chat template cannot write is unscored. Of several outputs, each is a part under its name."""

    def __init__(
        self,
        name: str,
        scorer: ScoreModel,
        chat: Chat,
        policy_chat: Chat,
        *,
        max_length: int,
        micro_tokens: int,
        world: World,
    ) -> None:
        """`max_length` is the longest prompt with its answer, `micro_tokens` the most packed tokens in one pass. Raises
        ModelError where nobody has said how several outputs become one reward."""
        scorer.rule.require_weights(f"The reward model '{name}'")
        self.name = name
        self.scorer = scorer
        self.reading = Reading(chat, policy_chat, max_length)
        self.micro_tokens = micro_tokens
        self.world = world

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError for prompts that are too long for it or that its chat template refuses."""
        self.reading.check(f"The reward model '{self.name}'", examples)

    def score(self, groups: Sequence[Group]) -> Scores:
        read = [self.reading.tree(group) for group in groups]
        starts = np.cumsum([0, *map(len, groups)]).tolist()
        places = [
            start + index
            for start, (tree, kept) in zip(starts, read, strict=False)
            for index in (kept if tree is not None else ())
        ]
        rewards, outputs = self._scored([tree for tree, _ in read if tree is not None])
        values: list[float | None] = [None] * starts[-1]
        for place, value in zip(places, rewards.tolist(), strict=True):
            values[place] = value
        parts = {name: np.full(len(values), np.nan) for name in self.scorer.rule.names}
        for part, own in zip(parts.values(), outputs.T, strict=True):
            part[places] = own
        unread = values.count(None)
        return Scores(
            checked(f"The reward model '{self.name}'", groups, values),
            parts=parts if len(parts) > 1 else {},
            failures={UNREADABLE: unread} if unread else {},
        )

    def _scored(self, trees: Sequence[TokenTree]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [S] and outputs [S, K] over all trees."""
        if not trees:
            return np.zeros(0), np.zeros((0, len(self.scorer.rule)))

        def scored(batch: TreeBatch) -> BatchColumns:
            found = self.scorer.rewards(batch)
            return BatchColumns(per_response={"reward": found.reward, "outputs": found.outputs})

        flat = not self.scorer.tree
        found = columns_of(trees, scored, micro_tokens=self.micro_tokens, flat=flat, world=self.world).per_response
        return found["reward"], found["outputs"]
