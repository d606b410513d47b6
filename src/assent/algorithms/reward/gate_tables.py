"""What a frozen reward model says of all prompts and answers, as tables, and windows of rows of them: the backbone
reads each prompt and answer once, packed, and the gate is trained on numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from assent.data.packing import EpochStream, Window, count, idle
from assent.data.tree import Branch, TokenTree, TreeBatch
from assent.models.annotate import BatchColumns, columns_of
from assent.models.gate import prompt_positions
from assent.models.policy import ScoreModel
from assent.train.session import Session

Fields = Callable[[TreeBatch], BatchColumns]


@dataclass(frozen=True, slots=True)
class Tables:
    """What the frozen backbone says of P prompts and S responses: states [P, h], outputs [S, K], lengths [S] in
    tokens, fp32. `trees` stand for the trees it was computed of: their tokens are rows of these tables."""

    states: Tensor
    outputs: Tensor
    lengths: Tensor
    trees: tuple[TokenTree, ...]


def tables_of(session: Session, scorer: ScoreModel, trees: Sequence[TokenTree]) -> Tables:
    """One packed pass over the trees, shared by all ranks; each prompt is computed once."""

    def fields(batch: TreeBatch) -> BatchColumns:
        here = batch.num_responses
        outputs, states = scorer(batch, torch.cat([batch.last, prompt_positions(batch)]), states=True)
        return BatchColumns(per_response={"outputs": outputs[:here], "prompt": states[here:]})

    found = columns(session, scorer, trees, fields)
    starts = np.cumsum([0, *(len(tree.branches) for tree in trees)])
    lengths = [len(branch) for tree in trees for branch in tree.branches]
    rows = tuple(_rows(tree, p, int(start)) for p, (tree, start) in enumerate(zip(trees, starts, strict=False)))
    device = session.world.device
    return Tables(
        torch.from_numpy(found["prompt"][starts[:-1]]).to(device),
        torch.from_numpy(found["outputs"]).to(device),
        torch.tensor(lengths, dtype=torch.float32, device=device),
        rows,
    )


def columns(
    session: Session, scorer: ScoreModel, trees: Sequence[TokenTree], fields: Fields
) -> Mapping[str, np.ndarray]:
    """What `fields` gives of the trees' batches, shared by all ranks."""
    micro_tokens, flat = session.config.train.micro_tokens, not scorer.tree
    return columns_of(trees, fields, micro_tokens=micro_tokens, flat=flat, world=session.world).per_response


def _rows(tree: TokenTree, prompt: int, first: int) -> TokenTree:
    """The tree with row numbers as its tokens."""
    branches = tuple(Branch(np.array([first + i]), np.zeros(1, bool)) for i in range(len(tree.branches)))
    return TokenTree(np.array([prompt]), branches, tree.pairs, key=tree.key)


def joined(first: Tables, second: Tables) -> tuple[Tables, list[TokenTree]]:
    """One set of tables, and the trees of the second as rows of it; those of the first are unchanged."""
    p, s = len(first.states), len(first.outputs)
    moved = [
        replace(t, prompt=t.prompt + p, branches=tuple(replace(b, ids=b.ids + s) for b in t.branches))
        for t in second.trees
    ]
    both = Tables(
        torch.cat([first.states, second.states]),
        torch.cat([first.outputs, second.outputs]),
        torch.cat([first.lengths, second.lengths]),
        (*first.trees, *moved),
    )
    return both, moved


class RowStream(EpochStream):
    """Windows of trees whose tokens are rows of tables: one micro-batch, first the rows of the prompts, then those of
    the responses. Nothing is packed, since the backbone has read them already."""

    def pack(self, trees: Sequence[TokenTree]) -> Window:
        own = trees[self.rank :: self.ranks]
        if not own:
            return Window((idle(trees[0]),), count(trees))
        sizes = np.array([len(tree.branches) for tree in own])
        starts = np.cumsum(sizes) - sizes
        first = np.array([tree.branches[0].ids[0] for tree in own])
        rows = np.repeat(first - starts, sizes) + np.arange(sizes.sum())
        prompts = np.array([tree.prompt[0] for tree in own])
        pairs = [(a + c, a + r, gap) for a, tree in zip(starts.tolist(), own, strict=True) for c, r, gap in tree.pairs]
        none = torch.zeros(0, dtype=torch.int64)
        tokens = torch.from_numpy(np.concatenate([prompts, rows]))
        batch = TreeBatch(
            tokens=tokens,
            positions=torch.zeros_like(tokens),
            source=none,
            label=none,
            response=none,
            last=len(own) + torch.arange(len(rows)),
            prompt=torch.from_numpy(np.repeat(np.arange(len(own)), sizes)),
            pairs=torch.tensor([pair[:2] for pair in pairs], dtype=torch.int64).reshape(-1, 2),
            margin=torch.tensor([pair[2] for pair in pairs], dtype=torch.float32),
            segments=(),
            keys=tuple(tree.key for tree in own),
        )
        return Window((batch,), count(trees))


def gaps_of(tables: Tables) -> np.ndarray:
    """Outputs of the chosen minus those of the rejected response of all pairs, [M, K]."""
    rows = [(t.branches[c].ids[0], t.branches[r].ids[0]) for t in tables.trees for c, r, _ in t.pairs]
    chosen, rejected = np.array(rows).T
    outputs = tables.outputs.cpu().numpy()
    return outputs[chosen] - outputs[rejected]
