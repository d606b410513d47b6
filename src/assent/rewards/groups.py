"""Rollouts as sources of rewards are shown them."""

from __future__ import annotations

from collections.abc import Sequence

from assent.data.chat import Chat
from assent.data.records import Example
from assent.rewards.group import Group, Progress
from assent.rollout.rollout import Rollout


def groups_of(
    rollout: Rollout, examples: Sequence[Example], chat: Chat, progress: Progress | None = None
) -> list[Group]:
    """A group for each prompt, whose `examples` [P] are given; `chat` is the policy's."""
    ends = rollout.sizes.cumsum()
    answers, finished = rollout.answers, rollout.finished.tolist()
    groups = []
    for prompt, example, size, end in zip(rollout.prompts, examples, rollout.sizes, ends, strict=True):
        here = slice(end - size, end)
        ids, done = answers[here] if size else [], finished[here]
        groups.append(
            Group(
                example,
                texts=tuple(chat.decode(one, prompt, finished=ended) for one, ended in zip(ids, done, strict=True)),
                finished=tuple(done),
                lengths=tuple(map(len, ids)),
                ids=tuple(ids),
                prompt_ids=prompt,
                progress=progress or Progress(),
            )
        )
    return groups
