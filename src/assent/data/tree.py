"""Trees of token ids, and `TreeBatch`, the one batch type of the whole system.

Feedback is one prompt with several responses, so a batch stores the prompt once and lets every response attend to its
prompt and to itself. Worked example: prompt `p0 p1 p2`, chosen `c0 c1`, rejected `r0 r1 r2`:

    tokens     p0 p1 p2 c0 c1 r0 r1 r2
    positions   0  1  2  3  4  3  4  5
    label       3  4  5  6  7      (where the trained tokens are)
    source      2  3  2  5  6      (whose hidden state predicts them; the first token of *each* response reads p2)
    response    0  0  1  1  1
    last        4  7
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Branch:
    """One response as token ids. `trained[i]` says whether token i carries a loss (assistant tokens and their EOS).
    `per_token` holds float arrays with one value per *trained* token (old log-probs, advantages, ...)."""

    ids: np.ndarray
    trained: np.ndarray
    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A prompt and its branches as token ids, with per-response floats (`per_response`, an array
    [len(branches)] or [len(branches), K] for each name) and preference pairs as branch indices (chosen, rejected,
    margin). `key` identifies the example in its data set, for logs and caches."""

    prompt: np.ndarray
    branches: tuple[Branch, ...]
    pairs: tuple[tuple[int, int, float], ...] = ()
    per_response: Mapping[str, np.ndarray] = field(default_factory=dict)
    key: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(branch) for branch in self.branches)

    @property
    def num_trained(self) -> int:
        return sum(int(branch.trained.sum()) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Segment:
    """Where one tree lies in the packed stream: [start, prompt_end) is the prompt, each (start, end) of `branches` one
    response. Plain integers: attention loops over them without touching the device."""

    start: int
    prompt_end: int
    branches: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        return self.branches[-1][1] if self.branches else self.prompt_end


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Packed trees. T packed tokens, N trained tokens, S responses, M pairs.

    tokens, positions  [T] int64   packed ids and their positions in their own sequence
    source, label      [N] int64   index into T of the predicting state, and of the trained token itself
    response           [N] int64   which response each trained token belongs to
    last               [S] int64   index into T of each response's last token (where a reward model reads its score)
    prompt             [S] int64   which tree each response belongs to
    pairs              [M, 2]      response indices (chosen, rejected); margin [M] float32 (0 where unknown)
    per_token          name -> [N] float32
    per_response       name -> [S] float32, or [S, K] ("ratings": K attributes, NaN where nobody rated)
    segments           one per tree, in stream order
    keys               `TokenTree.key` of each tree
    """

    tokens: Tensor
    positions: Tensor
    source: Tensor
    label: Tensor
    response: Tensor
    last: Tensor
    prompt: Tensor
    pairs: Tensor
    margin: Tensor
    segments: tuple[Segment, ...]
    keys: tuple[int, ...]
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    per_response: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_responses(self) -> int:
        return len(self.last)

    @property
    def targets(self) -> Tensor:
        """Ids of the trained tokens, [N]."""
        return self.tokens[self.label]

    def sum_by_response(self, values: Tensor) -> Tensor:
        """Adds per-token values [N] up per response, [S]."""
        return values.new_zeros(self.num_responses).index_add(0, self.response, values)

    def tokens_by_response(self) -> Tensor:
        """Trained tokens in each response, [S], float32."""
        return torch.bincount(self.response, minlength=self.num_responses).to(torch.float32)

    def by_tree(self, values: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number of the values in each tree, [P] float64 each; `response` says whose they are."""
        tree = self.prompt[response]
        none = torch.zeros(len(self.keys), dtype=torch.float64, device=values.device)
        return none.index_add(0, tree, values.double()), none.index_add(0, tree, torch.ones_like(values).double())

    def select(self, keep: Tensor) -> TreeBatch:
        """The batch of only those responses where `keep` [S] bool holds, as if collated alone: with the prompts of the
        trees that keep one, and the pairs that keep both. Without any it is one token that nothing is trained on; a
        batch without responses stays as it is."""
        assert keep.dtype == torch.bool and keep.shape == self.last.shape, "one bool for each response"
        if not self.num_responses:
            return self
        segments, stays = _select_segments(self.segments, keep.tolist())
        here = torch.cat([torch.arange(start, end) for start, end in stays]).to(self.tokens.device)
        place = torch.zeros_like(self.tokens).index_copy(0, here, torch.arange(len(here), device=here.device))
        number = keep.cumsum(0) - 1
        trained = keep[self.response]
        whole = keep[self.pairs].all(1)
        trees, prompt = torch.unique(self.prompt[keep], return_inverse=True)
        return TreeBatch(
            tokens=self.tokens[here],
            positions=self.positions[here],
            source=place[self.source[trained]],
            label=place[self.label[trained]],
            response=number[self.response[trained]],
            last=place[self.last[keep]],
            prompt=prompt,
            pairs=number[self.pairs[whole]],
            margin=self.margin[whole],
            segments=segments,
            keys=tuple(self.keys[index] for index in trees.tolist()),
            per_token={name: values[trained] for name, values in self.per_token.items()},
            per_response={name: values[keep] for name, values in self.per_response.items()},
        )

    def to(self, device: torch.device | str) -> TreeBatch:
        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, Mapping):
                return {name: move(item) for name, item in value.items()}
            return value

        return TreeBatch(**{name: move(getattr(self, name)) for name in self.__dataclass_fields__})


def with_token_field(trees: Sequence[TokenTree], name: str, values: np.ndarray) -> list[TokenTree]:
    """The trees with one more per-token field, `values` [N] over all of their trained tokens."""
    branches = [branch for tree in trees for branch in tree.branches]
    cuts = np.cumsum([int(branch.trained.sum()) for branch in branches])[:-1]
    parts = iter(np.split(values, cuts))
    return [
        replace(tree, branches=tuple(replace(b, per_token={**b.per_token, name: next(parts)}) for b in tree.branches))
        for tree in trees
    ]


def collate(trees: Sequence[TokenTree], flat: bool = False) -> TreeBatch:
    """Packs trees into one `TreeBatch`, in the order given. With `flat` each response gets its own copy of the prompt
    (for models that a tree cannot express exactly); responses, pairs and fields keep their order, so every loss is
    the same number."""
    stream = _Stream()
    pairs: list[tuple[int, int]] = []
    margin: list[float] = []
    for index, tree in enumerate(trees):
        assert len(tree.prompt) > 0, "a tree needs at least one prompt token to predict from"
        first = len(stream.last)
        for group in [(branch,) for branch in tree.branches] if flat else [tree.branches]:
            stream.add(tree.prompt, group, index)
        for chosen, rejected, gap in tree.pairs:
            pairs.append((first + chosen, first + rejected))
            margin.append(gap)
    branches = [branch for tree in trees for branch in tree.branches]
    token_names = branches[0].per_token if branches else {}
    response_names = trees[0].per_response if trees else {}
    return TreeBatch(
        tokens=_ints(stream.tokens),
        positions=_ints(stream.positions),
        source=_ints(stream.source),
        label=_ints(stream.label),
        response=_ints(stream.response),
        last=torch.tensor(stream.last, dtype=torch.int64),
        prompt=torch.tensor(stream.prompt, dtype=torch.int64),
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        margin=torch.tensor(margin, dtype=torch.float32),
        segments=tuple(stream.segments),
        keys=tuple(tree.key for tree in trees),
        per_token={name: _floats([branch.per_token[name] for branch in branches]) for name in token_names},
        per_response={name: _floats([tree.per_response[name] for tree in trees]) for name in response_names},
    )


class _Stream:
    """The packed stream while it grows."""

    def __init__(self) -> None:
        self.length = 0
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.source: list[np.ndarray] = []
        self.label: list[np.ndarray] = []
        self.response: list[np.ndarray] = []
        self.last: list[int] = []
        self.prompt: list[int] = []
        self.segments: list[Segment] = []

    def add(self, prompt: np.ndarray, branches: Sequence[Branch], index: int) -> None:
        """Appends the prompt of tree `index` and these of its branches."""
        start, _ = self._put(prompt, 0)
        prompt_end = self.length
        spans = []
        for branch in branches:
            assert len(branch) > 0, "a response has at least one token"
            begin, end = self._put(branch.ids, len(prompt))
            where = np.flatnonzero(branch.trained)
            self.label.append(begin + where)
            self.source.append(np.where(where == 0, prompt_end - 1, begin + where - 1))
            self.response.append(np.full(len(where), len(self.last)))
            self.last.append(end - 1)
            self.prompt.append(index)
            spans.append((begin, end))
        self.segments.append(Segment(start, prompt_end, tuple(spans)))

    def _put(self, ids: np.ndarray, position: int) -> tuple[int, int]:
        start = self.length
        self.tokens.append(ids)
        self.positions.append(np.arange(position, position + len(ids)))
        self.length += len(ids)
        return start, self.length


def _select_segments(
    segments: Sequence[Segment], keep: Sequence[bool]
) -> tuple[tuple[Segment, ...], list[tuple[int, int]]]:
    """The segments of the kept responses where they will lie, and the spans of the stream that they come from. Without
    any: a prompt of the first token."""
    kept: list[Segment] = []
    stays: list[tuple[int, int]] = []
    end = 0

    def move(span: tuple[int, int]) -> tuple[int, int]:
        nonlocal end
        stays.append(span)
        start, end = end, end + span[1] - span[0]
        return start, end

    verdicts = iter(keep)
    for segment in segments:
        branches = [span for span in segment.branches if next(verdicts)]
        if branches:
            start, prompt_end = move((segment.start, segment.prompt_end))
            kept.append(Segment(start, prompt_end, tuple(move(span) for span in branches)))
    if not kept:
        kept.append(Segment(*move((0, 1)), ()))
    return tuple(kept), stays


def _ints(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.int64)


def _floats(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32)) if parts else torch.zeros(0)
