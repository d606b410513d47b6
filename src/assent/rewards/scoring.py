"""The answers of a data set, scored by any source of rewards outside of a training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TokenTree
from assent.data.turns import choose_turns
from assent.rewards.group import Group, GroupReward, Scores, in_order
from assent.rewards.reading import LONG, Read, fitting, readable

CHUNK = 512
"""Answers that are read and scored together, about: what is in memory at once."""
TOKENS, CHARACTERS = "tokens", "characters"
"""The columns in which the lengths of answers are: tokens where there is a tokenizer."""


def score_examples(source: GroupReward, examples: Sequence[Example], chat: Chat | None, *, max_length: int) -> Scores:
    """The rewards of all responses of all examples, in order; as a column their lengths (`TOKENS` or `CHARACTERS`).
    An answer that is longer than `max_length` tokens with its prompt, or that the chat template cannot write, is
    unscored: it is neither cut nor asked about. Every rank must call it alike. Raises what the source raises."""
    pieces = [scores for _, scores in scored_chunks(source, examples, chat, max_length=max_length)]
    return in_order(pieces) if pieces else Scores(np.zeros(0))


def scored_chunks(
    source: GroupReward, examples: Sequence[Example], chat: Chat | None, *, max_length: int, size: int = CHUNK
) -> Iterator[tuple[Sequence[Example], Scores]]:
    """The same in portions of about `size` answers: some of the examples, and the scores of all of their responses."""
    for start, end in portions(examples, size):
        portion = examples[start:end]
        read = _read(choose_turns(portion, "all"), chat, max_length)
        yield portion, _whole(source, read, TOKENS if chat else CHARACTERS)


def portions(examples: Sequence[Example], size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Where each run of examples begins and ends that have about `size` answers together."""
    start = answers = 0
    for index, example in enumerate(examples):
        if answers and answers + len(example.responses) > size:
            yield start, index
            start, answers = index, 0
        answers += len(example.responses)
    if start < len(examples):
        yield start, len(examples)


def _read(examples: Sequence[Example], chat: Chat | None, max_length: int) -> list[tuple[Example, Read, list[int]]]:
    """Each example with its answers as tokens, as far as they can be read, and the lengths of those that can; without
    a chat all can, and no tree holds them."""
    if chat is None:
        sizes = [[len(response.text) for response in example.responses] for example in examples]
        return [(e, Read(None, (None,) * len(e.responses)), own) for e, own in zip(examples, sizes, strict=True)]
    bare = [replace(example, feedback=()) for example in examples]
    quick = [example for example in bare if chat.too_long(example, max_length) is None]
    trees, _ = chat.trees(quick, LONG)
    ready = {id(quick[tree.key]): tree for tree in trees}
    found = []
    for example, own in zip(examples, bare, strict=True):
        tree = ready.get(id(own))
        read = fitting(tree, max_length) if tree is not None else readable(chat, own, max_length)
        found.append((example, read, [] if read.tree is None else [len(branch) for branch in read.tree.branches]))
    return found


def _whole(source: GroupReward, read: Sequence[tuple[Example, Read, list[int]]], unit: str) -> Scores:
    """The scores of all answers, of those that are not read too."""
    groups = [group_of(example, one.kept, lengths, one.tree) for example, one, lengths in read if one.kept]
    asked = source.score(groups) if groups else Scores(np.zeros(0))
    why = [reason for _, one, _ in read for reason in one.why]
    there = np.array([reason is None for reason in why], bool)
    if there.all():
        return replace(asked, columns={**asked.columns, unit: [size for *_, sizes in read for size in sizes]})

    def spread(numbers: np.ndarray) -> np.ndarray:
        whole = np.full(len(why), np.nan)
        whole[there] = numbers
        return whole

    def listed(values: Sequence[object]) -> list[object]:
        given = iter(values)
        return [next(given) if reason is None else None for reason in why]

    reasons = iter(asked.reasons())
    failures = Counter(asked.failures) + Counter(reason for reason in why if reason is not None)
    columns = {**asked.columns, unit: [size for *_, sizes in read for size in sizes]}
    return Scores(
        spread(asked.values),
        {name: spread(own) for name, own in asked.parts.items()},
        dict(failures),
        columns={name: listed(own) for name, own in columns.items()},
        metrics=asked.metrics,
        why=[next(reasons) if reason is None else reason for reason in why],
        shares={name: spread(own) for name, own in asked.shares.items()},
    )


def group_of(example: Example, kept: Sequence[int], lengths: Sequence[int], tree: TokenTree | None) -> Group:
    """These answers of an example, as sources are shown them; `tree` has them as tokens."""
    responses = tuple(example.responses[index] for index in kept)
    return Group(
        replace(example, feedback=()),
        texts=tuple(response.text for response in responses),
        finished=tuple(response.finished for response in responses),
        lengths=tuple(lengths),
        ids=() if tree is None else tuple(branch.ids for branch in tree.branches),
        prompt_ids=() if tree is None else tree.prompt,
        responses=responses,
        tree=tree,
    )
