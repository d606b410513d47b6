"""Which prompts are sampled: every pass once each, by difficulty, without those that are skipped; and after a stop the
same."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from assent.algorithms.online.prompts import Prompts, difficulty
from assent.config import CurriculumConfig
from assent.data.packing import order
from assent.data.records import Example, Message, Origin
from assent.errors import DataError

SKIPPING = CurriculumConfig(rest=2)


def taken(prompts: Prompts, *sizes: int) -> list[int]:
    return [int(index) for size in sizes for index in prompts.next(size)]


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_every_pass_is_a_permutation_however_rollouts_lie_over_it(size: int):
    prompts = Prompts(7, CurriculumConfig(), seed=3)
    sampled = []
    while len(sampled) < 42:
        rollout = prompts.next(size)
        assert len(rollout) == size
        sampled += rollout.tolist()
    passes = [tuple(sampled[start : start + 7]) for start in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len(set(passes)) == 6, "a fresh order each pass"
    assert prompts.passes == -(-len(sampled) // 7)


def test_the_order_is_that_of_the_seed():
    first, again, other = (Prompts(9, CurriculumConfig(), seed=seed) for seed in (1, 1, 2))
    sampled = taken(first, 9, 9)
    assert taken(again, 5, 13) == sampled and taken(other, 9, 9) != sampled


# ---- by difficulty


HARDNESS = np.array([3.0, 1.0, 2.0, 1.0, 5.0, 1.0])


def test_easy_and_hard_by_a_column():
    easy = Prompts(6, CurriculumConfig(order="easy", column="level"), 0, HARDNESS)
    hard = Prompts(6, CurriculumConfig(order="hard", column="level"), 0, HARDNESS)
    ties = set()
    for _ in range(8):
        sampled = taken(easy, 6)
        assert set(sampled[:3]) == {1, 3, 5} and sampled[3:] == [2, 0, 4]
        ties.add(tuple(sampled[:3]))
        sampled = taken(hard, 6)
        assert sampled[:3] == [4, 0, 2] and set(sampled[3:]) == {1, 3, 5}
    assert len(ties) > 1, "what is as hard stands in a fresh order each pass"


def test_ties_keep_the_order_of_the_pass():
    """Exactly a stable sort of it, also where there are many."""
    hardness = np.arange(60) % 3
    prompts = Prompts(60, CurriculumConfig(order="easy", column="level"), 4, hardness)
    for number in range(3):
        shuffled = order(60, seed=4, epoch=number).tolist()
        assert taken(prompts, 60) == sorted(shuffled, key=lambda index: hardness[index])


def test_the_column_goes_before_the_rewards():
    prompts = Prompts(6, CurriculumConfig(order="easy", column="level"), 0, HARDNESS)
    prompts.record(range(6), [np.array([value]) for value in HARDNESS])
    assert taken(prompts, 6)[3:] == [2, 0, 4]


def test_easy_and_hard_by_the_mean_reward_so_far():
    for first, wanted in (("easy", [2, 0, 3, 1]), ("hard", [1, 3, 0, 2])):
        prompts = Prompts(4, CurriculumConfig(order=first), 0)
        assert sorted(taken(prompts, 4)) == [0, 1, 2, 3]
        prompts.record([0, 1], [np.array([1.0, 1.0]), np.array([-4.0, 0.0])])
        prompts.record([2, 0, 3], [np.array([7.0]), np.array([4.0, 2.0]), np.array([0.0])])
        assert taken(prompts, 4) == wanted  # means 2, -2, 7, 0


def test_means_are_of_all_answers_and_unsampled_prompts_count_as_the_others():
    prompts = Prompts(4, CurriculumConfig(), 0)
    assert prompts.means().tolist() == [0, 0, 0, 0]
    prompts.record([2, 0], [np.array([1.0, 2.0, 6.0]), np.array([7.0])])
    assert prompts.means().tolist() == [7, 5, 3, 5]
    prompts.record([2], [np.array([11.0])])
    assert prompts.means().tolist() == [7, 6, 5, 6]


# ---- resting


def record(prompts: Prompts, *same: int) -> None:
    """The answers to all four prompts, of one reward for those in `same`."""
    prompts.record(range(4), [np.array([1.0, 1.0 if index in same else 2.0]) for index in range(4)])


def test_a_prompt_without_signal_rests_and_wakes():
    prompts = Prompts(4, SKIPPING, 5)
    assert sorted(taken(prompts, 4)) == [0, 1, 2, 3] and prompts.skipped == 0
    record(prompts, 1, 2)
    assert prompts.skipped == 0.5
    assert sorted(taken(prompts, 2)) == [0, 3] and sorted(taken(prompts, 2)) == [0, 3]
    assert prompts.skipped == 0
    assert sorted(taken(prompts, 4)) == [0, 1, 2, 3], "after two passes they are sampled again"


def test_what_is_queued_already_is_still_sampled():
    """The pass that a rollout reaches into was filled before its rewards were known."""
    prompts = Prompts(4, CurriculumConfig(rest=1), 5)
    reached = taken(prompts, 6)
    record(prompts, reached[0])
    assert sorted([*reached[4:], *taken(prompts, 2)]) == [0, 1, 2, 3]
    assert sorted(taken(prompts, 3)) == sorted({0, 1, 2, 3} - {reached[0]})
    assert sorted(taken(prompts, 4)) == [0, 1, 2, 3]


def test_one_answer_tells_nothing_and_without_rest_none_rests():
    for config, rewards in ((SKIPPING, [1.0]), (CurriculumConfig(), [1.0, 1.0])):
        prompts = Prompts(3, config, 0)
        prompts.record(range(3), [np.array(rewards)] * 3)
        assert prompts.skipped == 0 and sorted(taken(prompts, 3)) == [0, 1, 2]


def test_where_all_would_be_skipped_all_are_sampled():
    prompts = Prompts(4, SKIPPING, 1)
    taken(prompts, 4)
    record(prompts, 0, 1, 2, 3)
    assert prompts.skipped == 1 and sorted(taken(prompts, 4)) == [0, 1, 2, 3]
    assert prompts.passes == 2, "no pass goes by empty"


def test_those_not_skipped_still_come_by_difficulty():
    prompts = Prompts(4, CurriculumConfig(order="hard", column="x", rest=2), 0, np.array([0.0, 1.0, 2.0, 3.0]))
    assert taken(prompts, 4) == [3, 2, 1, 0]
    record(prompts, 2)
    assert taken(prompts, 3) == [3, 1, 0]


# ---- state


@pytest.mark.parametrize("stop", range(6))
def test_a_loaded_state_goes_on_as_if_nothing_had_happened(stop: int):
    """Rewards decide on rest and order, and the stop lies in the middle of a queue."""
    config, rng = CurriculumConfig(order="easy", rest=1), np.random.default_rng(0)
    rewards = rng.integers(0, 2, (6, 5, 2)).astype(float)

    def roll(prompts: Prompts, numbers: range) -> list[list[int]]:
        sampled = []
        for number in numbers:
            indices = prompts.next(3)
            prompts.record(indices, [rewards[number, index] for index in indices])
            sampled.append(indices.tolist())
        return sampled

    straight = Prompts(5, config, 7)
    first = roll(straight, range(stop))
    saved = copy.deepcopy(straight.state_dict())
    rest = roll(straight, range(stop, 6))
    resumed = Prompts(5, config, 7)
    resumed.load_state_dict(saved)
    assert roll(resumed, range(stop, 6)) == rest and first + rest
    assert resumed.means().tolist() == straight.means().tolist() and resumed.skipped == straight.skipped
    assert resumed.passes == straight.passes


# ---- the column


def row(number: int, **meta: object) -> Example:
    return Example((Message("user", "?"),), origin=Origin("rows.jsonl", number), meta=meta)


def test_difficulty_reads_numbers():
    assert difficulty([row(1, level=2, other="x"), row(2, level=-0.5)], "level").tolist() == [2.0, -0.5]


@pytest.mark.parametrize("value", ["hard", True, None, float("nan"), float("inf")])
def test_difficulty_names_the_row_that_has_no_number(value: object):
    with pytest.raises(DataError) as wrong:
        difficulty([row(1, level=1), row(2, level=value, answer="4")], "level")
    assert str(wrong.value) == (
        f"--curriculum.column level: rows.jsonl:2 has {value!r} there; expected a number. Its columns: level, answer."
    )


def test_difficulty_of_a_column_that_is_not_there():
    with pytest.raises(DataError, match=r"rows\.jsonl:1 has None there; .* Its columns: none beside the prompt\."):
        difficulty([row(1)], "level")


def test_difficulty_by_a_column_inside_another():
    rows = [row(1, about={"level": 3}), row(2, about={"level": 1.5})]
    assert difficulty(rows, "about.level").tolist() == [3.0, 1.5]
    with pytest.raises(DataError, match="rows.jsonl:2 has .* there; expected a number"):
        difficulty([rows[0], row(2, about={"level": 10**400})], "about.level")
