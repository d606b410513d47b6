"""Numbers that models give for trees of tokens: packed, in micro-batches, the work shared by all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.data.packing import window
from assent.data.tree import TokenTree, TreeBatch
from assent.distributed import World, gather_objects


@dataclass(frozen=True, slots=True)
class BatchColumns:
    """What a model gives for one batch: [N] per trained token, [S] or [S, K] per response, in the batch's order."""

    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    per_response: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """The same for all trees in their order, float32: [N] over all trained tokens, [S] or [S, K] over all responses."""

    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_response: Mapping[str, np.ndarray] = field(default_factory=dict)


@torch.no_grad()
def columns_of(
    trees: Sequence[TokenTree],
    score: Callable[[TreeBatch], BatchColumns],
    *,
    micro_tokens: int,
    flat: bool,
    world: World,
) -> Columns:
    """What `score` computes on packed batches of the trees. Every rank must call it with the same trees; it does its
    share, and gets all columns."""
    numbered = [replace(tree, key=key) for key, tree in enumerate(trees)]
    made = window(numbered, micro_tokens=micro_tokens, flat=flat, rank=world.rank, ranks=world.size)
    own: list[tuple[tuple[int, ...], dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for batch in made.batches:
        fields = score(batch.to(world.device))
        own.append((batch.keys, _arrays(fields.per_token), _arrays(fields.per_response)))
    parts = [part for rank in gather_objects(own) for part in rank]
    tokens = np.cumsum([0, *(tree.num_trained for tree in trees)])
    responses = np.cumsum([0, *(len(tree.branches) for tree in trees)])
    return Columns(
        _merged([(keys, values) for keys, values, _ in parts], tokens),
        _merged([(keys, values) for keys, _, values in parts], responses),
    )


def _arrays(fields: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: x.detach().float().cpu().numpy() for name, x in fields.items()}


def _merged(parts: Sequence[tuple[tuple[int, ...], dict[str, Any]]], start: np.ndarray) -> dict[str, np.ndarray]:
    """Whole columns from those of batches; the numbers of tree `key` stand at start[key] to start[key + 1]."""
    columns = {name: np.zeros((start[-1], *part.shape[1:]), np.float32) for name, part in parts[0][1].items()}
    for keys, values in parts:
        if keys:
            where = np.concatenate([np.arange(start[key], start[key + 1]) for key in keys])
            for name, column in columns.items():
                column[where] = values[name]
    return columns
