"""Answers to other prompts, as KTO's reference point needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assent.data.packing import order
from assent.data.tree import Branch, TokenTree
from assent.errors import DataError

MISMATCHED = "mismatched"
"""The field [S] that is 1 at answers to other prompts."""
STREAM = 2  # of `order`, beside the epochs' and the rollouts'


def with_mismatched(trees: Sequence[TokenTree], seed: int, max_length: int) -> list[TokenTree]:
    """Each tree with one more branch: the answer of a tree with another prompt. The field "mismatched" is 1 there and 0
    at the own answers; other fields are NaN there.

    KTO (arXiv 2402.01306) measures how far the policy has drifted from its reference by log(pi/pi_ref) of answers that
    belong to other prompts. As a branch of the same tree such an answer costs its own tokens only: the prompt is there
    already, and one pass gives both kinds. The choice depends on `seed` alone and is the same in every epoch, so that
    the reference's log-probs of it can be cached.

    Trees stand in a random order, those of one prompt together, and each takes its answer from the tree that stands m
    places on, m the size of the largest such group; where one prompt has more than half of the trees, its own go round
    the others' answers evenly. So every answer serves once wherever that is possible. A longer one is cut, so that
    prompt and answer have at most `max_length` tokens.

    Raises `DataError` when all prompts are the same.
    """
    if not trees:
        return []
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index in order(len(trees), seed=seed, epoch=0, stream=STREAM).tolist():
        groups[np.asarray(trees[index].prompt, np.int64).tobytes()].append(index)
    largest = max(len(group) for group in groups.values())
    others = len(trees) - largest
    if not others:
        raise DataError(
            "KTO estimates how far the policy has moved from its reference by answers to other prompts; all "
            f"{len(trees)} prompts of these data are the same. Add examples with other prompts, or use bco."
        )
    queue = [index for group in groups.values() for index in group]
    made = list(trees)
    start = 0
    for group in groups.values():
        for offset, index in enumerate(group):
            place = (start + largest + offset % others) % len(trees)
            answers = trees[queue[place]].branches
            made[index] = _joined(trees[index], answers[place % len(answers)], max_length)
        start += len(group)
    return made


def _joined(tree: TokenTree, answer: Branch, max_length: int) -> TokenTree:
    """The tree with the answer as its last branch."""
    assert not answer.per_token, "fields of tokens belong to the prompt that they were computed with"
    trained = answer.trained[: max_length - len(tree.prompt)]
    end = np.flatnonzero(trained)[-1] + 1  # no untrained token stands last, as in every branch
    last = Branch(answer.ids[:end], trained[:end])
    own = {name: np.append(values, np.float32(np.nan)) for name, values in tree.per_response.items()}
    mismatched = np.append(np.zeros(len(tree.branches), np.float32), np.float32(1))
    return replace(tree, branches=(*tree.branches, last), per_response={**own, MISMATCHED: mismatched})
