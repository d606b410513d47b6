"""Answers of one tokenizer as another model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response, RowError
from assent.data.tree import Branch, TokenTree
from assent.errors import DataError
from assent.rewards.group import Group

LISTED = 5
"""Prompts in an error."""


class Reading:
    """How a model with the tokenizer and template of `chat` reads answers that a policy with `policy_chat` sampled.
    Where the two speak alike it reads the sampled tokens themselves; otherwise the answers' text in its own words.
    `max_length` is the longest prompt with its answer."""

    def __init__(self, chat: Chat, policy_chat: Chat, max_length: int) -> None:
        self.chat = chat
        self.same_tokens = chat.speaks_like(policy_chat)
        self.max_length = max_length

    def check(self, who: str, examples: Sequence[Example]) -> None:
        """Raises DataError for prompts that are too long for `who`, or that its chat template refuses."""
        if self.same_tokens:
            return
        _, problems = self.chat.trees([_without_variables(e) for e in examples], self.max_length)
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems[:LISTED])
            raise DataError(f"{who} cannot read {len(problems)} of {len(examples)} prompts:\n{listed}")

    def tree(self, group: Group) -> tuple[TokenTree | None, Sequence[int]]:
        """What the model reads, and which of the answers that is: not those that its template cannot write."""
        every = range(len(group))
        if self.same_tokens:
            assert len(group.ids) == len(group) and len(group.prompt_ids), "the sampled tokens are kept"
            branches = tuple(Branch(np.asarray(ids), np.ones(len(ids), bool)) for ids in group.ids)
            return TokenTree(np.asarray(group.prompt_ids), branches), every
        try:
            return self._reword(group, every), every
        except RowError:
            kept = [index for index in every if self._can_read(group, index)]
            return self._reword(group, kept) if kept else None, kept

    def sequences(self, group: Group) -> list[list[int] | None]:
        """The same as token ids of prompt and answer, one list for each answer; None for what it cannot write."""
        tree, kept = self.tree(group)
        made: list[list[int] | None] = [None] * len(group)
        if tree is not None:
            prompt = tree.prompt.tolist()
            for index, branch in zip(kept, tree.branches, strict=True):
                made[index] = prompt + branch.ids.tolist()
        return made

    def _can_read(self, group: Group, index: int) -> bool:
        try:
            self._reword(group, [index])
        except RowError:
            return False
        return True

    def _reword(self, group: Group, indices: Sequence[int]) -> TokenTree:
        answers = tuple(Response((Message("assistant", group.texts[index]),)) for index in indices)
        return self.chat.tree(replace(_without_variables(group.example), responses=answers), self.max_length)


def _without_variables(example: Example) -> Example:
    """The prompt with its tools; a row's template variables are for the policy's template."""
    return replace(example, responses=(), feedback=(), template_kwargs={})
