"""From the trees of one optimiser step to balanced, packed micro-batches: a `Window` with its global counts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from assent.data.tree import Segment, TokenTree, TreeBatch, collate


@dataclass(frozen=True, slots=True)
class Counts:
    """How much one optimiser step holds over all ranks and micro-batches. Every loss is sum / one of these."""

    prompts: int
    responses: int
    pairs: int
    tokens: int
    """Trained tokens."""
    ratings: int = 0
    """Numbers that annotators gave: of each response, one for each attribute that somebody rated."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """Further micro-batches of a step, with the loss that is minimised on each of them."""

    batches: tuple[TreeBatch, ...]
    loss: Callable[[TreeBatch], Any]


@dataclass(frozen=True, slots=True)
class Window:
    """All micro-batches of one optimiser step on this rank, the step's global counts, and data that are mixed in.
    `metrics` and `samples` are what making the window already told (a rollout's rewards and answers), for the logs."""

    batches: tuple[TreeBatch, ...]
    counts: Counts
    mixed: Mixed | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[dict[str, object], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Packed tokens on this rank."""
        mixed = () if self.mixed is None else self.mixed.batches
        return sum(batch.num_tokens for batch in (*self.batches, *mixed))


def order(size: int, *, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The order of an epoch, [size]: a function of its arguments alone, so a resumed run continues it. `stream` tells
    independent uses of one seed apart."""
    return np.random.Generator(np.random.Philox(key=[seed, (stream << 48) + epoch])).permutation(size)


def count(trees: Sequence[TokenTree]) -> Counts:
    """The counts of a step."""
    return Counts(
        prompts=len(trees),
        responses=sum(len(tree.branches) for tree in trees),
        pairs=sum(len(tree.pairs) for tree in trees),
        tokens=sum(tree.num_trained for tree in trees),
        ratings=sum(np.count_nonzero(~np.isnan(tree.per_response.get("ratings", np.nan))) for tree in trees),
    )


def packed_size(tree: TokenTree, flat: bool) -> int:
    """Tokens a tree takes in a packed stream."""
    return tree.num_tokens + (len(tree.prompt) * (len(tree.branches) - 1) if flat else 0)


def plan(sizes: Sequence[int], *, micro_tokens: int, ranks: int) -> list[list[list[int]]]:
    """Which trees go into which micro-batch of which rank: `plan[rank][micro]` lists indices into `sizes`.

    Trees go, longest first, to the rank with the least work; a rank's trees then fill micro-batches of at most
    `micro_tokens` (a longer tree is alone in one). All ranks get the same number of micro-batches, some of them
    perhaps empty, because sharded forward passes must run in step.
    """
    longest_first = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    heap = [(0, rank) for rank in range(ranks)]
    by_rank: list[list[int]] = [[] for _ in range(ranks)]
    for index in longest_first:
        work, rank = heapq.heappop(heap)
        by_rank[rank].append(index)
        heapq.heappush(heap, (work + sizes[index], rank))
    packed = [_fill(indices, sizes, micro_tokens) for indices in by_rank]
    most = max(len(micros) for micros in packed)
    return [micros + [[] for _ in range(most - len(micros))] for micros in packed]


def _fill(indices: Sequence[int], sizes: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Spreads trees (longest first) over as few micro-batches as the budget allows, evenly filled."""
    total = sum(sizes[i] for i in indices)
    num = max(1, -(-total // micro_tokens))
    while True:
        micros: list[list[int]] = [[] for _ in range(num)]
        heap = [(0, m) for m in range(num)]
        for index in indices:
            work, m = heapq.heappop(heap)
            micros[m].append(index)
            heapq.heappush(heap, (work + sizes[index], m))
        used = [micro for micro in micros if micro]
        if all(len(micro) == 1 or sum(sizes[i] for i in micro) <= micro_tokens for micro in used):
            return [sorted(micro) for micro in used]
        num += 1


def window(
    trees: Sequence[TokenTree], *, micro_tokens: int, flat: bool = False, rank: int = 0, ranks: int = 1
) -> Window:
    """Packs the trees of one optimiser step for this rank. Every rank passes the same trees and gets its own share."""
    sizes = [packed_size(tree, flat) for tree in trees]
    micros = plan(sizes, micro_tokens=micro_tokens, ranks=ranks)[rank]
    template = trees[0]
    batches = [collate([trees[i] for i in micro], flat) if micro else idle(template) for micro in micros]
    return Window(tuple(batches), count(trees))


def idle(template: TokenTree) -> TreeBatch:
    """A micro-batch of one token that nothing is trained on, with the template's fields: it keeps a rank in step."""
    none = torch.zeros(0, dtype=torch.int64)
    empty = torch.zeros(0)
    return TreeBatch(
        tokens=torch.from_numpy(template.prompt[:1].astype(np.int64)),
        positions=torch.zeros(1, dtype=torch.int64),
        source=none,
        label=none,
        response=none,
        last=none,
        prompt=none,
        pairs=none.reshape(0, 2),
        margin=empty,
        segments=(Segment(0, 1, ()),),
        keys=(),
        per_token=dict.fromkeys(template.branches[0].per_token, empty),
        per_response={name: empty.new_zeros(0, *values.shape[1:]) for name, values in template.per_response.items()},
    )


class EpochStream:
    """Windows of `batch_size` trees in a fresh order each epoch, without end; the last window of an epoch may be
    smaller. Its whole state is the number of windows given, so a resumed run neither skips nor repeats a row."""

    def __init__(
        self,
        trees: Sequence[TokenTree],
        *,
        batch_size: int,
        micro_tokens: int,
        seed: int,
        flat: bool,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.trees = trees
        self.batch_size = batch_size
        self.micro_tokens, self.flat, self.rank, self.ranks = micro_tokens, flat, rank, ranks
        self.seed = seed
        self.given = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.trees) // self.batch_size)

    def __iter__(self) -> Iterator[Window]:
        while True:
            epoch, step = divmod(self.given, self.steps_per_epoch)
            indices = order(len(self.trees), seed=self.seed, epoch=epoch)
            chosen = indices[step * self.batch_size : (step + 1) * self.batch_size]
            self.given += 1
            yield self.pack([self.trees[i] for i in chosen])

    def pack(self, trees: Sequence[TokenTree]) -> Window:
        """A window of any trees, packed for this rank like the stream's own."""
        return window(trees, micro_tokens=self.micro_tokens, flat=self.flat, rank=self.rank, ranks=self.ranks)

    def state_dict(self) -> dict[str, object]:
        return {"given": self.given}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.given = int(state["given"])  # type: ignore[call-overload]
