"""A reward model as a source of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.distributed import World
from assent.models.annotate import BatchColumns, columns_of
from assent.models.attribution import attributed
from assent.models.policy import ScoreModel
from assent.rewards.ensemble import with_spread
from assent.rewards.group import Group, Scores
from assent.rewards.reading import REWARD, Numbers, Reading, scores_of


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
        scorer.require_reward(f"The reward model '{name}'")
        self.name = name
        self.scorer = scorer
        self.reading = Reading(chat, policy_chat, max_length)
        self.micro_tokens = micro_tokens
        self.world = world

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError for prompts that are too long for it or that its chat template refuses."""
        self.reading.check(f"The reward model '{self.name}'", examples)

    def score(self, groups: Sequence[Group]) -> Scores:
        read = [self.reading.read(group) for group in groups]
        scores, found = scores_of(f"The reward model '{self.name}'", groups, read, self._numbers)
        return self._with_outputs(scores, found)

    def of_trees(self, trees: Sequence[TokenTree]) -> Scores:
        """The rewards of all branches of trees of its own tokenizer, in order."""
        found = self._numbers(trees)
        return self._with_outputs(Scores(found[REWARD].astype(np.float64)), found)

    def attributed(self, trees: Sequence[TokenTree]) -> tuple[np.ndarray, np.ndarray]:
        """The rewards of all branches of trees of its own tokenizer, [S], and what each trained token adds to them to
        first order, [N]."""

        def numbers(batch: TreeBatch) -> BatchColumns:
            reward, parts = attributed(self.scorer, batch)
            return BatchColumns({REWARD: parts}, {REWARD: reward})

        flat = not self.scorer.tree
        found = columns_of(trees, numbers, micro_tokens=self.micro_tokens, flat=flat, world=self.world)
        return found.per_response[REWARD], found.per_token[REWARD]

    @property
    def members(self) -> tuple[str, ...]:
        """The parts that are rewards of an ensemble's members: of heads that were trained for the same reward."""
        return self.scorer.rule.names if self.scorer.rule.ensemble else ()

    def _with_outputs(self, scores: Scores, found: Numbers) -> Scores:
        names = self.scorer.rule.names
        if len(names) == 1:
            return scores
        parts, shares = (
            dict(zip(names, found.get(which, np.full((len(scores.values), len(names)), np.nan)).T, strict=True))
            for which in ("outputs", "shares")
        )
        scores = replace(scores, parts=parts, shares=shares)
        return with_spread(scores, np.stack([*parts.values()])) if self.members else scores

    def _numbers(self, trees: Sequence[TokenTree]) -> Numbers:
        """The reward [S], outputs [S, K] and what each adds to the reward [S, K], over all trees."""

        def numbers(batch: TreeBatch) -> BatchColumns:
            found = self.scorer.rewards(batch)
            return BatchColumns(per_response={REWARD: found.reward, "outputs": found.outputs, "shares": found.shares})

        flat = not self.scorer.tree
        return columns_of(trees, numbers, micro_tokens=self.micro_tokens, flat=flat, world=self.world).per_response
