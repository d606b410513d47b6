"""How the trees of a step are shared out: every tree once, within the budget, evenly, in an order that resumes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.data.packing import Counts, EpochStream, idle, order, packed_size, plan, window
from assent.data.tree import Branch, TokenTree, TreeBatch, collate

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def tree(key: int, prompt: int = 3, branches: tuple[int, ...] = (2, 4)) -> TokenTree:
    """Ids that tell whose they are."""
    made = tuple(
        Branch(
            np.full(size, 100 + key),
            np.arange(size) % 3 != 1,
            {"weight": np.full(int((np.arange(size) % 3 != 1).sum()), float(key))},
        )
        for size in branches
    )
    pairs = ((1, 0, 0.5),) if len(branches) > 1 else ()
    return TokenTree(np.full(prompt, 50 + key), made, pairs, {"score": np.arange(len(branches)) + 10.0 * key}, key)


def forest(number: int = 7) -> list[TokenTree]:
    draw = np.random.default_rng(number)
    return [
        tree(i, int(draw.integers(1, 9)), tuple(draw.integers(1, 9, draw.integers(1, 4)).tolist()))
        for i in range(number)
    ]


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 100), st.integers(1, 5))
def test_plan(sizes: list[int], micro_tokens: int, ranks: int) -> None:
    by_rank = plan(sizes, micro_tokens=micro_tokens, ranks=ranks)
    assert len(by_rank) == ranks
    assert sorted(i for micros in by_rank for micro in micros for i in micro) == list(range(len(sizes)))
    assert len({len(micros) for micros in by_rank}) == 1, "sharded forward passes must run in step"
    for micros in by_rank:
        for micro in micros:
            assert len(micro) <= 1 or sum(sizes[i] for i in micro) <= micro_tokens
    work = [sum(sizes[i] for micro in micros for i in micro) for micros in by_rank]
    assert max(work) - min(work) <= max(sizes), "no rank waits for more than one tree"
    assert any(micros[-1] for micros in by_rank), "no forward pass is empty on all ranks"
    assert by_rank == plan(sizes, micro_tokens=micro_tokens, ranks=ranks)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(60, 200))
def test_plan_uses_few_micro_batches(sizes: list[int], micro_tokens: int) -> None:
    """Any two of them together are over the budget, or the first-fit number is met."""
    (micros,) = plan(sizes, micro_tokens=micro_tokens, ranks=1)
    assert len(micros) <= 2 * -(-sum(sizes) // micro_tokens)


def test_plan_shares_known_sizes_evenly() -> None:
    assert plan([5, 4, 3, 2, 1, 1], micro_tokens=8, ranks=2) == [[[0, 3, 4]], [[1, 2, 5]]]
    assert plan([9, 1, 1], micro_tokens=4, ranks=2) == [[[0]], [[1, 2]]]  # a tree over the budget is alone
    assert plan([3], micro_tokens=4, ranks=3) == [[[0]], [[]], [[]]]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_window_holds_every_token_once(flat: bool, ranks: int) -> None:
    trees = forest()
    windows = [window(trees, micro_tokens=30, flat=flat, rank=rank, ranks=ranks) for rank in range(ranks)]
    counts = Counts(
        prompts=len(trees),
        responses=sum(len(t.branches) for t in trees),
        pairs=sum(len(t.pairs) for t in trees),
        tokens=sum(int(b.trained.sum()) for t in trees for b in t.branches),
    )
    batches = [batch for made in windows for batch in made.batches]
    assert all(made.counts == counts for made in windows), "counts are of the whole step, on every rank"
    assert counts.responses == sum(batch.num_responses for batch in batches)
    assert counts.pairs == sum(len(batch.pairs) for batch in batches)
    assert counts.tokens == sum(len(batch.targets) for batch in batches)
    assert sorted(key for batch in batches for key in batch.keys) == list(range(len(trees)))
    sizes = [packed_size(t, flat) for t in trees]
    filler = sum(not batch.keys for batch in batches)
    assert sum(batch.num_tokens for batch in batches) == sum(sizes) + filler
    targets = np.concatenate([batch.targets.numpy() for batch in batches])
    want = np.concatenate([branch.ids[branch.trained] for t in trees for branch in t.branches])
    assert sorted(targets) == sorted(want)


def whose(batch: TreeBatch, response: int) -> int:
    return batch.keys[int(batch.prompt[response])]


@pytest.mark.parametrize("flat", [False, True])
def test_batches_keep_what_belongs_together(flat: bool) -> None:
    trees = forest()
    batch = collate(trees, flat)
    for n, (label, response) in enumerate(zip(batch.label.tolist(), batch.response.tolist(), strict=True)):
        key = whose(batch, response)
        assert batch.tokens[label] == 100 + key
        assert batch.tokens[batch.source[n]] in (50 + key, 100 + key)
        assert batch.positions[batch.source[n]] + 1 == batch.positions[label]
        assert batch.per_token["weight"][n] == key
    for s in range(batch.num_responses):
        assert batch.tokens[batch.last[s]] == 100 + whose(batch, s)
        assert batch.per_response["score"][s] // 10 == whose(batch, s)
    for chosen, rejected in batch.pairs.tolist():
        assert whose(batch, chosen) == whose(batch, rejected) and chosen == rejected + 1
    assert batch.margin.tolist() == [0.5] * len(batch.pairs)
    spans = [(segment.start, segment.end) for segment in batch.segments]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])] and spans[-1][1] == batch.num_tokens


def test_flat_and_tree_batches_say_the_same() -> None:
    trees = forest()
    shared, flat = collate(trees), collate(trees, flat=True)
    assert torch.equal(shared.targets, flat.targets) and torch.equal(shared.response, flat.response)
    assert torch.equal(shared.pairs, flat.pairs) and torch.equal(shared.prompt, flat.prompt)
    assert torch.equal(shared.positions[shared.label], flat.positions[flat.label])
    assert torch.equal(shared.tokens[shared.source], flat.tokens[flat.source])
    assert flat.num_tokens > shared.num_tokens


def test_worked_example_of_the_batch() -> None:
    """The picture at the top of assent.data.tree."""
    made = TokenTree(
        np.array([1, 2, 3]),
        (Branch(np.array([4, 5]), np.ones(2, bool)), Branch(np.array([6, 7, 8]), np.ones(3, bool))),
        ((0, 1, 0.0),),
    )
    batch = collate([made])
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert batch.label.tolist() == [3, 4, 5, 6, 7]
    assert batch.source.tolist() == [2, 3, 2, 5, 6]
    assert batch.response.tolist() == [0, 0, 1, 1, 1]
    assert batch.last.tolist() == [4, 7]


def stream(number: int = 7, **options) -> EpochStream:
    defaults = {"batch_size": 3, "micro_tokens": 25, "seed": 5, "flat": False}
    return EpochStream(forest(number), **{**defaults, **options})


def keys(made) -> list[int]:
    return sorted(key for batch in made.batches for key in batch.keys)


def test_an_epoch_is_every_tree_once_in_a_new_order() -> None:
    one = stream()
    assert one.steps_per_epoch == 3
    steps = [keys(made) for made in islice(one, 9)]
    epochs = [steps[:3], steps[3:6], steps[6:]]
    for epoch in epochs:
        assert sorted(key for step in epoch for key in step) == list(range(7))
        assert [len(step) for step in epoch] == [3, 3, 1]
    assert epochs[0] != epochs[1] != epochs[2]
    assert [keys(made) for made in islice(stream(), 9)] == steps
    assert [keys(made) for made in islice(stream(seed=6), 9)] != steps


@pytest.mark.parametrize("stop", range(8))
def test_stream_resumes_where_it_was(stop: int) -> None:
    whole = [keys(made) for made in islice(stream(), 8)]
    first = stream()
    for _ in islice(first, stop):
        pass
    second = stream()
    second.load_state_dict(first.state_dict())
    assert [keys(made) for made in islice(second, 8 - stop)] == whole[stop:]


def test_ranks_share_a_step() -> None:
    alone = [keys(made) for made in islice(stream(), 6)]
    parts = [[keys(made) for made in islice(stream(rank=rank, ranks=2), 6)] for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == alone


def test_budget_and_batch_size_do_not_change_the_order() -> None:
    assert [keys(m) for m in islice(stream(micro_tokens=1), 6)] == [keys(m) for m in islice(stream(), 6)]
    assert [keys(m) for m in islice(stream(batch_size=100), 2)] == [list(range(7))] * 2


def test_order_is_a_function_of_its_arguments() -> None:
    base = order(50, seed=1, epoch=2).tolist()
    assert sorted(base) == list(range(50))
    assert order(50, seed=1, epoch=2).tolist() == base
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}, {"seed": 1, "epoch": 2, "stream": 1}):
        assert order(50, **other).tolist() != base


def test_idle_batch_has_the_fields_and_no_work() -> None:
    batch = idle(forest()[0])
    assert batch.num_tokens == 1 and batch.num_responses == 0 and len(batch.targets) == 0 and len(batch.pairs) == 0
    assert set(batch.per_token) == {"weight"} and set(batch.per_response) == {"score"}


def test_idle_batch_gives_zero_gradients_and_keeps_the_graph(tiny_model_dir) -> None:
    from assent.config import ModelConfig
    from assent.models.loading import load_policy

    for layout in ("tree", "flat"):
        policy = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32", layout=layout), max_length=64)
        policy(idle(forest()[0])).logprobs.sum().backward()
        used = [p.grad for p in policy.parameters()]
        assert all(grad is not None and not grad.any() for grad in used)
