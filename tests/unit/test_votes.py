"""Several annotators' votes on one pair, and ties as pairs: from examples to the fields of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assent.data.chat import Chat
from assent.data.dataset import fingerprint
from assent.data.packing import idle, window
from assent.data.records import Example, Message, Origin, Pair, Problem, Ranking, Rating, Response
from assent.data.tree import collate
from assent.data.views import pair_view
from assent.errors import DataError

PROMPT = (Message("user", "q"),)


def example(texts: str, *feedback, row: int = 1) -> Example:
    """One response for each letter."""
    responses = tuple(Response((Message("assistant", letter),)) for letter in texts)
    return Example(PROMPT, responses, feedback, Origin("rows.jsonl", row))


def tie(*indices: int, by: str | None = None) -> Ranking:
    return Ranking((indices,), by)


def rated(index: int, value: float, by: str | None = None) -> Rating:
    return Rating(index, {"helpfulness": value}, by)


def counted(item: Example) -> list[tuple]:
    """(chosen, rejected, strength, share, tie) of each pair, answers by their letters."""
    named = [response.text for response in item.responses]
    return [(named[p.chosen], named[p.rejected], p.strength, p.share, p.tie) for p in item.feedback]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (example("ab", Pair(0, 1, 2.0, "x")), [("a", "b", 2.0, 1.0, 0.0)]),
        (
            example("ab", Pair(0, 1, 1.0, "x"), Pair(1, 0, 3.0, "y"), Pair(1, 0, 2.0, "z"), Pair(1, 0, 2.0, "w")),
            [("b", "a", 2.0, 0.75, 0.0)],
        ),
        (example("ab", Pair(1, 0), Pair(0, 1)), [("a", "b", None, 0.5, 0.0)]),  # undecided: the first is `chosen`
        (example("ab", Pair(0, 1, 1.0), Pair(0, 1)), [("a", "b", None, 1.0, 0.0)]),  # one strength is not known
        (
            example("abc", Pair(0, 1, annotator="x"), Ranking(((2,), (1,), (0,)), "y")),
            [("a", "b", None, 0.5, 0.0), ("c", "b", None, 1.0, 0.0), ("c", "a", None, 1.0, 0.0)],
        ),
        (example("ab", Pair(0, 1), tie(0, 1)), [("a", "b", None, 1.0, 0.0)]),  # a tie is no vote unless asked for
    ],
)
def test_votes_on_the_same_answers_are_one_pair(item, expected):
    (kept,), problems = pair_view([item], votes=True)
    assert counted(kept) == expected and problems == []


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (example("ab", tie(0, 1)), [("a", "b", None, 0.0, 1.0)]),
        (example("ab", Pair(1, 0, 2.0)), [("b", "a", 2.0, 1.0, 0.0)]),
        (
            example("abc", Ranking(((1,), (2, 0)))),
            [("b", "c", None, 1.0, 0.0), ("b", "a", None, 1.0, 0.0), ("a", "c", None, 0.0, 1.0)],
        ),
        (
            example("abc", rated(0, 2), rated(1, 2), rated(2, 4)),
            [("c", "a", 2.0, 1.0, 0.0), ("c", "b", 2.0, 1.0, 0.0), ("a", "b", None, 0.0, 1.0)],
        ),
        (example("aab", tie(0, 1), Pair(2, 0)), [("b", "a", None, 1.0, 0.0)]),  # equal answers tie without being told
    ],
)
def test_ties_are_pairs_when_asked_for(item, expected):
    (kept,), problems = pair_view([item], ties=True)
    assert counted(kept) == expected and problems == []


def test_votes_and_ties_share_a_pair():
    votes = (Pair(0, 1, 3.0, "x"), Pair(0, 1, 1.0, "y"), Pair(1, 0, 2.0, "z"), tie(0, 1, by="w"))
    (kept,), _ = pair_view([example("ab", *votes)], votes=True, ties=True)
    assert counted(kept) == [("a", "b", 2.0, 0.5, 0.25)]
    (kept,), _ = pair_view([example("ab", tie(0, 1, by="x"), tie(1, 0, by="y"))], votes=True, ties=True)
    assert counted(kept) == [("a", "b", None, 0.0, 1.0)]


def test_by_default_nothing_is_counted():
    (kept,), _ = pair_view([example("ab", Pair(0, 1, 1.0, "x"), Pair(1, 0, 2.0, "y"), tie(0, 1))])
    assert kept.feedback == (Pair(0, 1, 1.0, "x"), Pair(1, 0, 2.0, "y"))


@pytest.mark.parametrize("options", [{"votes": True}, {"ties": True}, {"votes": True, "ties": True}])
def test_examples_without_a_pair_are_problems_as_ever(options):
    good = example("xy", Pair(0, 1), row=9)
    same, alone = example("aa", Pair(0, 1)), example("ab", rated(0, 1))
    _, problems = pair_view([good, same, alone], **options)
    one = "only one rated answer to this prompt: a comparison needs two"
    assert problems == [
        Problem(same.origin, "responses", "equal answers in a pair"),
        Problem(alone.origin, "feedback", one, fault=False),
    ]
    _, problems = pair_view([good, example("aa", tie(0, 1))], **options)
    assert [problem.reason for problem in problems] == ["tie"] and not problems[0].fault


def test_ties_alone_are_refused_where_they_are_not_asked_for():
    with pytest.raises(DataError, match="all 1 comparisons are ties"):
        pair_view([example("ab", tie(0, 1))], votes=True)


# ---- tokens


@pytest.fixture(scope="module")
def trees(tokenizer):
    examples = [
        example("ab", Pair(0, 1, 2.0, "x"), Pair(0, 1, 2.0, "y"), Pair(1, 0, 2.0, "z")),
        example("abc", Ranking(((1,), (2, 0)))),
    ]
    kept, _ = pair_view(examples, votes=True, ties=True)
    made, problems = Chat(tokenizer).trees(kept, 64)
    assert problems == []
    return made


def test_fields_of_pairs_reach_the_batch(trees):
    batch = collate(trees)
    assert batch.pairs.tolist() == [[0, 1], [3, 4], [3, 2], [2, 4]]
    np.testing.assert_allclose(batch.per_pair["share"], [2 / 3, 1, 1, 0], rtol=1e-6)
    assert batch.per_pair["tie"].tolist() == [0, 0, 0, 1] and batch.margin.tolist() == [2, 0, 0, 0]
    assert {values.dtype for values in batch.per_pair.values()} == {torch.float32}
    flat = collate(trees, flat=True)
    assert all(torch.equal(flat.per_pair[name], values) for name, values in batch.per_pair.items())
    moved = batch.to("cpu")
    assert moved.per_pair.keys() == {"share", "tie"}


def test_select_keeps_the_fields_of_whole_pairs(trees):
    part = collate(trees).select(torch.tensor([True, True, True, False, True]))
    assert part.pairs.tolist() == [[0, 1], [2, 3]]
    np.testing.assert_allclose(part.per_pair["share"], [2 / 3, 0], rtol=1e-6)
    assert part.per_pair["tie"].tolist() == [0, 1]


def test_every_micro_batch_has_the_fields(trees):
    shares = [window(trees, micro_tokens=4096, rank=rank, ranks=3).batches for rank in range(3)]
    sizes = [len(batch.per_pair["tie"]) for batches in shares for batch in batches]
    assert sorted(sizes) == [0, 1, 3]  # one rank is idle
    assert idle(trees[0]).per_pair.keys() == {"share", "tie"}


def test_fields_of_pairs_are_part_of_the_datas_digest(trees, tokenizer):
    (other,), _ = pair_view([example("ab", Pair(0, 1, 2.0))], votes=True)
    (plain,), _ = pair_view([example("ab", Pair(0, 1, 2.0))])
    made, _ = Chat(tokenizer).trees([other, plain], 64)
    assert made[1].per_pair == {} and collate(made[1:]).per_pair == {}
    digests = {fingerprint([tree]) for tree in (trees[0], *made)}
    assert len(digests) == 3


def test_tied_answers_may_be_the_same_up_to_a_cut(tokenizer):
    long = [Response((Message("assistant", "word " * 30 + end),)) for end in ("a", "b")]
    cut = Example(PROMPT, tuple(long), (tie(0, 1),), Origin("rows.jsonl", 1))
    better = Example(PROMPT, tuple(long), (Pair(0, 1),), Origin("rows.jsonl", 2))
    kept, _ = pair_view([cut, better], ties=True)
    made, problems = Chat(tokenizer).trees(kept, 24)
    assert [tree.per_pair["tie"].tolist() for tree in made] == [[1.0]]
    assert [problem.origin.row for problem in problems] == [2]
