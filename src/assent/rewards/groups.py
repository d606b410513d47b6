"""Sampled answers as sources of rewards are shown them."""

from __future__ import annotations

from collections.abc import Sequence

from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TokenTree
from assent.rewards.group import Group, Progress


def groups_of(
    trees: Sequence[TokenTree], examples: Sequence[Example], chat: Chat, progress: Progress | None = None
) -> list[Group]:
    """Rollout trees as sources of rewards are shown them; `chat` is the policy's."""
    return [
        Group(
            example,
            texts=tuple(
                chat.decode(branch.ids, tree.prompt, finished=bool(ended))
                for branch, ended in zip(tree.branches, tree.per_response["finished"], strict=True)
            ),
            finished=tuple(bool(finished) for finished in tree.per_response["finished"]),
            lengths=tuple(len(branch) for branch in tree.branches),
            ids=tuple(branch.ids for branch in tree.branches),
            prompt_ids=tree.prompt,
            progress=progress or Progress(),
        )
        for tree, example in zip(trees, examples, strict=True)
    ]
