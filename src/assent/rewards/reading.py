"""Answers of one tokenizer as another model reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response, RowError
from assent.data.tree import Branch, TokenTree
from assent.errors import DataError
from assent.rewards.group import UNREADABLE, Group, Scores, combined

LISTED = 5
"""Prompts in an error."""
LONG = 1 << 24
"""Tokens, more than any row that is read has."""
REWARD = "reward"
"""What the number of an answer is called among others."""


class Read(NamedTuple):
    """Answers to one prompt as a model reads them: those that it can read, in order, and of each why it cannot (None
    where it can)."""

    tree: TokenTree | None
    why: tuple[str | None, ...]

    @property
    def kept(self) -> list[int]:
        """Which of the answers the branches of the tree are."""
        return [index for index, reason in enumerate(self.why) if reason is None]


def readable(chat: Chat, example: Example, max_length: int) -> Read:
    """The answers of an example as tokens, but for those that are longer than `max_length` with their prompt, which are
    never cut, and those that the chat template cannot write."""
    example = replace(example, feedback=())
    count = len(example.responses)
    if error := chat.too_long(example, max_length):
        return Read(None, (_words(error),) * count) if count == 1 else _one_by_one(chat, example, max_length)
    try:
        return fitting(chat.tree(example, LONG), max_length)
    except RowError as error:
        return Read(None, (_words(error),) * count) if count == 1 else _one_by_one(chat, example, max_length)


def fitting(tree: TokenTree, max_length: int) -> Read:
    """The tree without the branches that are longer than `max_length` with their prompt."""
    lengths = [len(tree.prompt) + len(branch) for branch in tree.branches]
    if max(lengths, default=0) <= max_length:
        return Read(tree, (None,) * len(lengths))
    why = tuple(
        f"{length:,} tokens with its prompt: longer than {max_length:,} (--max_length)" if length > max_length else None
        for length in lengths
    )
    kept = tuple(branch for branch, reason in zip(tree.branches, why, strict=True) if reason is None)
    return Read(replace(tree, branches=kept) if kept else None, why)


def _one_by_one(chat: Chat, example: Example, max_length: int) -> Read:
    """Each answer on its own, and then those that can be read together."""
    why = [readable(chat, replace(example, responses=(one,)), max_length).why[0] for one in example.responses]
    kept = [index for index, reason in enumerate(why) if reason is None]
    if not kept or len(kept) == len(why):  # none, or they cannot be read together: the template treats them unlike
        return Read(None, tuple(reason or UNREADABLE for reason in why))
    again = readable(chat, replace(example, responses=tuple(example.responses[index] for index in kept)), max_length)
    for index, reason in zip(kept, again.why, strict=True):
        why[index] = reason
    return Read(again.tree, tuple(why))


def _words(error: RowError) -> str:
    return str(error).replace("--data.max_length", "--max_length")


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

    def read(self, group: Group) -> Read:
        """What the model reads of the group. An answer of a data set that is too long is not cut but left out."""
        every = (None,) * len(group)
        if group.responses and self.same_tokens and group.tree is not None:
            return fitting(group.tree, self.max_length)
        if group.responses:
            example = replace(_without_variables(group.example), responses=group.responses)
            return readable(self.chat, example, self.max_length)
        if self.same_tokens:
            assert len(group.ids) == len(group) and len(group.prompt_ids), "the sampled tokens are kept"
            branches = tuple(Branch(np.asarray(ids), np.ones(len(ids), bool)) for ids in group.ids)
            return Read(TokenTree(np.asarray(group.prompt_ids), branches), every)
        try:
            return Read(self._reword(group, range(len(group))), every)
        except RowError:
            why = tuple(None if self._can_read(group, index) else UNREADABLE for index in range(len(group)))
            kept = [index for index, reason in enumerate(why) if reason is None]
            return Read(self._reword(group, kept) if kept else None, why)

    def sequences(self, group: Group) -> list[list[int] | None]:
        """The same as token ids of prompt and answer, one list for each answer; None for what it cannot write."""
        read = self.read(group)
        made: list[list[int] | None] = [None] * len(group)
        if read.tree is not None:
            prompt = read.tree.prompt.tolist()
            for index, branch in zip(read.kept, read.tree.branches, strict=True):
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


Numbers = Mapping[str, np.ndarray]


def scores_of(
    who: str, groups: Sequence[Group], read: Sequence[Read], ask: Callable[[list[TokenTree]], Numbers]
) -> tuple[Scores, dict[str, np.ndarray]]:
    """What `ask` gives for the trees of all groups, "reward" and perhaps more by name, over all answers, [S] or
    [S, K]: the scores, and the rest; answers that were not read are unscored. Raises NonFiniteReward as `checked`."""
    trees = [one.tree for one in read if one.tree is not None]
    why = [reason for one in read for reason in one.why]
    there = np.array([reason is None for reason in why], bool)
    found: dict[str, np.ndarray] = {}
    for name, numbers in (ask(trees) if trees else {REWARD: np.zeros(0)}).items():
        found[name] = np.full((len(why), *numbers.shape[1:]), np.nan)
        found[name][there] = numbers
    values = combined(who, groups, found.pop(REWARD), there)
    failures = Counter(reason for reason in why if reason is not None)
    return Scores(values, failures=dict(failures), why=why if failures else ()), found
