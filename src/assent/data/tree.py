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
from dataclasses import dataclass, field

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
    """A prompt and its branches as token ids, with per-response floats (`per_response`, one array of length
    len(branches) for each name) and preference pairs as branch indices (chosen, rejected, margin).
    `key` identifies the example in its data set, for logs and caches."""

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

    def flat(self) -> list[TokenTree]:
        """The same responses as one-branch trees, each with its own copy of the prompt (pairs are dropped: the batch
        that packs them keeps them by response index)."""
        return [
            TokenTree(
                prompt=self.prompt,
                branches=(branch,),
                per_response={name: values[i : i + 1] for name, values in self.per_response.items()},
                key=self.key,
            )
            for i, branch in enumerate(self.branches)
        ]


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
    per_response       name -> [S] float32
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

    def to(self, device: torch.device | str) -> TreeBatch:
        def move(value):
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, Mapping):
                return {name: move(item) for name, item in value.items()}
            return value

        return TreeBatch(**{name: move(getattr(self, name)) for name in self.__dataclass_fields__})


def collate(trees: Sequence[TokenTree], flat: bool = False) -> TreeBatch:
    """Packs trees into one `TreeBatch`, in the order given. With `flat` each response gets its own copy of the prompt
    (for models that a tree cannot express exactly); responses, pairs and fields keep their order, so every loss is
    the same number."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    source: list[np.ndarray] = []
    label: list[np.ndarray] = []
    response: list[np.ndarray] = []
    last: list[int] = []
    prompt: list[int] = []
    pairs: list[tuple[int, int]] = []
    margin: list[float] = []
    segments: list[Segment] = []
    offset = 0
    num_responses = 0
    for index, tree in enumerate(trees):
        assert len(tree.prompt) > 0, "a tree needs at least one prompt token to predict from"
        width = len(tree.prompt)
        first_response = num_responses
        prompt_start, branch_spans = offset, []

        def put_prompt(tree=tree, width=width):
            nonlocal offset
            tokens.append(tree.prompt)
            positions.append(np.arange(width))
            offset += width

        if not flat:
            put_prompt()
        for branch in tree.branches:
            if flat:
                prompt_start = offset
                put_prompt()
            start = offset
            tokens.append(branch.ids)
            positions.append(np.arange(width, width + len(branch)))
            where = np.flatnonzero(branch.trained)
            label.append(start + where)
            source.append(np.where(where == 0, prompt_start + width - 1, start + where - 1))
            response.append(np.full(len(where), num_responses))
            offset += len(branch)
            last.append(offset - 1)
            prompt.append(index)
            num_responses += 1
            if flat:
                segments.append(Segment(prompt_start, start, ((start, offset),)))
            else:
                branch_spans.append((start, offset))
        if not flat:
            segments.append(Segment(prompt_start, prompt_start + width, tuple(branch_spans)))
        for chosen, rejected, gap in tree.pairs:
            pairs.append((first_response + chosen, first_response + rejected))
            margin.append(gap)

    def ints(parts) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.int64)

    def floats(parts) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)) if parts else torch.zeros(0)

    branches = [branch for tree in trees for branch in tree.branches]
    token_names = branches[0].per_token if branches else {}
    response_names = trees[0].per_response if trees else {}
    return TreeBatch(
        tokens=ints(tokens),
        positions=ints(positions),
        source=ints(source),
        label=ints(label),
        response=ints(response),
        last=torch.tensor(last, dtype=torch.int64),
        prompt=torch.tensor(prompt, dtype=torch.int64),
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        margin=torch.tensor(margin, dtype=torch.float32),
        segments=tuple(segments),
        keys=tuple(tree.key for tree in trees),
        per_token={name: floats([branch.per_token[name] for branch in branches]) for name in token_names},
        per_response={name: floats([tree.per_response[name] for tree in trees]) for name in response_names},
    )
