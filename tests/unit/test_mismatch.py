"""Every prompt beside an answer to another one: which, how often, how long, and what is said of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.data.mismatch import with_mismatched
from assent.data.tree import Branch, TokenTree, collate
from assent.errors import DataError

LONG = 1000


def tree(key: int, prompt: int, answers: int = 1, length: int = 3) -> TokenTree:
    """A prompt of its own kind, and answers whose first two ids tell whose they are."""
    branches = tuple(
        Branch(np.array([100 + key, i, *range(7, 5 + length)]), np.ones(length, bool)) for i in range(answers)
    )
    label = np.arange(answers, dtype=np.float32) % 2
    return TokenTree(np.array([1, 50 + prompt]), branches, per_response={"label": label}, key=key)


def forest(prompts: list[int], answers: int = 1) -> list[TokenTree]:
    return [tree(key, prompt, answers) for key, prompt in enumerate(prompts)]


def donors(made: list[TokenTree]) -> list[int]:
    """Whose answer each tree got."""
    return [int(each.branches[-1].ids[0]) - 100 for each in made]


def test_one_more_branch_and_its_fields():
    trees = forest([0, 1, 2], answers=2)
    made = with_mismatched(trees, 3, LONG)
    for before, after in zip(trees, made, strict=True):
        assert after.key == before.key and after.prompt is before.prompt
        assert after.branches[:-1] == before.branches and len(after.branches) == 3
        np.testing.assert_array_equal(after.per_response["mismatched"], [0, 0, 1])
        np.testing.assert_array_equal(after.per_response["label"], [0, 1, np.nan])
        assert all(values.dtype == np.float32 for values in after.per_response.values())
        assert set(before.per_response) == {"label"} and len(before.branches) == 2, "what is given stays as it is"
    batch = collate(made)
    assert batch.per_response["mismatched"].tolist() == [0, 0, 1] * 3
    assert batch.tokens_by_response().tolist() == [3] * 9


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 10**6))
def test_answers_come_from_other_prompts_and_serve_equally_often(prompts: list[int], seed: int):
    trees = forest(prompts)
    if len(set(prompts)) == 1:
        with pytest.raises(DataError):
            with_mismatched(trees, seed, LONG)
        return
    chosen = donors(with_mismatched(trees, seed, LONG))
    assert all(prompts[donor] != own for donor, own in zip(chosen, prompts, strict=True))
    used = Counter(chosen)
    common, size = Counter(prompts).most_common(1)[0]
    if 2 * size <= len(prompts):
        assert sorted(chosen) == list(range(len(prompts))), "every answer once"
    else:
        rest = [used[i] for i, prompt in enumerate(prompts) if prompt != common]
        assert sum(rest) == size and max(rest) - min(rest) <= 1
        assert max(used[i] for i, prompt in enumerate(prompts) if prompt == common) == 1


def test_the_choice_is_a_function_of_the_seed():
    trees = forest(list(range(20)))
    first = donors(with_mismatched(trees, 1, LONG))
    assert donors(with_mismatched(trees, 1, LONG)) == first
    assert donors(with_mismatched(trees, 2, LONG)) != first
    assert any(donor != (key + 1) % 20 for key, donor in enumerate(first)), "not merely the neighbour in the file"


def test_every_answer_of_a_group_can_be_chosen():
    made = with_mismatched(forest(list(range(40)), answers=2), 0, LONG)
    assert 10 <= sum(int(each.branches[-1].ids[1]) for each in made) <= 30


def test_long_answers_are_cut():
    trees = [tree(0, 0, length=9), tree(1, 1, length=4)]
    for max_length, sizes in ((3, [1, 1]), (7, [4, 5]), (100, [4, 9])):
        made = with_mismatched(trees, 0, max_length)
        assert [len(each.branches[-1]) for each in made] == sizes
        assert [len(each.branches[0]) for each in made] == [9, 4]
        for each, donor in zip(made, reversed(trees), strict=True):
            last = each.branches[-1]
            assert last.ids.tolist() == donor.branches[0].ids[: len(last)].tolist() and last.trained.all()


def test_a_cut_leaves_no_untrained_end():
    several = Branch(np.arange(7), np.array([True, True, False, False, True, True, True]))
    trees = [tree(0, 0), replace(tree(1, 1), branches=(several,))]
    last = with_mismatched(trees, 0, 2 + 4)[0].branches[-1]
    assert last.ids.tolist() == [0, 1] and last.trained.tolist() == [True, True]
    last = with_mismatched(trees, 0, 2 + 5)[0].branches[-1]
    assert last.trained.tolist() == [True, True, False, False, True]


def test_one_prompt_alone_has_no_other():
    with pytest.raises(DataError, match="answers to other prompts; all 3 prompts of these data are the same. Add"):
        with_mismatched(forest([4, 4, 4]), 0, LONG)
    assert with_mismatched([], 0, LONG) == []


def test_fields_of_tokens_are_not_carried_over():
    trees = forest([0, 1])
    branch = replace(trees[0].branches[0], per_token={"old": np.zeros(3)})
    with pytest.raises(AssertionError, match="belong to the prompt"):
        with_mismatched([replace(trees[0], branches=(branch,)), trees[1]], 0, LONG)
