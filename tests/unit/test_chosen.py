"""What is learnt from rated answers: every way against a reference of its own, and what is left out and why."""

from __future__ import annotations

import random

import numpy as np
import pytest

from assent.config.choosing import ChooseConfig
from assent.data.conversions import overall_ratings
from assent.data.records import Example, Message, Pair, Rating, Response
from assent.data.views import pair_view
from assent.errors import DataError
from assent.loops import chosen
from assent.loops.chosen import choose, threshold_of


def rated(rewards, texts=None, finished=None, tokens=None) -> Example:
    """An example whose answers have these rewards; None is unscored."""
    texts = texts or [f"answer {index}" for index in range(len(rewards))]
    finished = finished or [True] * len(rewards)
    return Example(
        (Message("user", "q"),),
        tuple(Response((Message("assistant", text),), "p", end) for text, end in zip(texts, finished, strict=True)),
        tuple(Rating(i, {"reward": value, "other": 7.0}) for i, value in enumerate(rewards) if value is not None),
        meta={"tokens": tokens or [3] * len(rewards), "finished": finished, "answer": "4"},
    )


def take(example: Example, answers: int | None = None, seed: int = 0, threshold=None, **options):
    answers = len(example.responses) if answers is None else answers
    return choose(example, ChooseConfig(**options), answers=answers, threshold=threshold, seed=seed)


def pairs_of(found) -> list[tuple[str, str, float]]:
    """(chosen text, rejected text, strength)."""
    (example,) = found.examples
    return [
        (example.responses[item.chosen].text, example.responses[item.rejected].text, item.strength)
        for item in example.feedback
        if isinstance(item, Pair)
    ]


REWARDS = [np.random.default_rng(seed).normal(size=size).round(2).tolist() for seed, size in enumerate((2, 5, 10))]


@pytest.mark.parametrize("rewards", REWARDS)
def test_pairs_are_those_of_the_rewards(rewards):
    """Against numpy: the largest and smallest, the nearest to a margin below the largest, and all pairs."""
    values = np.array(rewards)
    best, worst = values.argmax(), values.argmin()
    example = rated(rewards)
    gap = values[best] - values[worst]
    assert pairs_of(take(example)) == [(f"answer {best}", f"answer {worst}", pytest.approx(gap))]

    others = [i for i in range(len(values)) if values[i] < values[best]]
    near = min(others, key=lambda i: abs(values[best] - values[i] - 0.7))
    ((_, rejected, _),) = pairs_of(take(example, take="best-margin", margin=0.7))
    assert rejected == f"answer {near}"

    drawn = {pairs_of(take(example, take="best-random", seed=seed))[0][1] for seed in range(200)}
    assert drawn == {f"answer {i}" for i in others}
    assert pairs_of(take(example, take="best-random", seed=5)) == pairs_of(take(example, take="best-random", seed=5))

    every = {
        (f"answer {i}", f"answer {j}"): values[i] - values[j]
        for i in range(len(values))
        for j in range(len(values))
        if values[i] > values[j]
    }
    found = {(better, worse): strength for better, worse, strength in pairs_of(take(example, take="all-pairs"))}
    assert found == pytest.approx(every)
    large = {two: value for two, value in every.items() if value >= 0.5}
    found = take(example, take="all-pairs", gap=0.5)
    assert {(b, w): s for b, w, s in pairs_of(found)} == pytest.approx(large) if large else found.reason == chosen.GAP


def test_a_sign_turned_round_would_show():
    (pair,) = pairs_of(take(rated([-1.0, 2.0])))
    assert pair == ("answer 1", "answer 0", 3.0)


def test_an_answer_alone():
    example = rated([0.1, 0.9, 0.9, 0.5], tokens=[1, 2, 3, 4])
    (best,) = take(example, take="best").examples
    assert [r.text for r in best.responses] == ["answer 1"] and best.meta["tokens"] == [2]  # of equals the first
    assert best.meta["answer"] == "4" and best.feedback == (Rating(0, {"reward": 0.9}),)
    above = take(example, take="above", threshold=0.5).examples
    assert [one.responses[0].text for one in above] == ["answer 1", "answer 2", "answer 3"]
    assert take(example, take="above", threshold=1.0).reason == chosen.BELOW
    assert take(example, take="best", threshold=1.0).reason == chosen.BELOW
    (all_of_them,) = take(example, take="ratings").examples
    assert overall_ratings(all_of_them) == {0: 0.1, 1: 0.9, 2: 0.9, 3: 0.5}


def test_thresholds_grow_by_round():
    config = ChooseConfig(take="above", threshold=0.5, threshold_step=0.25)
    assert [threshold_of(config, number) for number in (1, 2, 3)] == [0.5, 0.75, 1.0]
    assert threshold_of(ChooseConfig(threshold_step=1.0), 3) is None


def test_length_costs():
    example = rated([1.0, 0.8], tokens=[10, 2])
    assert pairs_of(take(example))[0][0] == "answer 0"
    assert pairs_of(take(example, length_penalty=0.1)) == [("answer 1", "answer 0", pytest.approx(0.6 - 0.0))]
    with pytest.raises(DataError, match="needs the column 'tokens'"):
        take(Example(example.prompt, example.responses, example.feedback), length_penalty=0.1)


def test_what_is_not_used_is_counted():
    example = rated(
        [3.0, None, 0.0, 1.0, 5.0],
        texts=["a", "b", "c", "a ", "d"],
        finished=[True, True, True, True, False],
    )
    found = take(example, fewer="use")
    assert found.left_out == {"unscored": 1, "unfinished": 1, "duplicates": 1}
    assert pairs_of(found) == [("a", "c", 2.0)]  # two rewards of one answer: their mean
    assert take(example).reason == chosen.FEWER
    assert take(example, answers=3).reason is None
    kept = take(example, unfinished="keep", fewer="use")
    assert pairs_of(kept) == [("d", "c", 5.0)] and not kept.examples[0].responses[-1].finished


@pytest.mark.parametrize(
    ("example", "options", "reason"),
    [
        (rated([1.0, 1.0, 1.0]), {}, chosen.TIED),
        (rated([1.0, 1.0], texts=["a", "a"]), {}, chosen.SAME),
        (rated([None, None]), {"fewer": "use"}, chosen.NONE),
        (rated([]), {"fewer": "use"}, chosen.NONE),
        (rated([1.0, 1.2]), {"gap": 0.5}, chosen.GAP),
        (rated([1.0]), {"take": "ratings"}, chosen.SAME),
        (rated([1.0, 1.0]), {"take": "all-pairs"}, chosen.TIED),
    ],
)
def test_what_gives_nothing(example, options, reason):
    found = take(example, **options)
    assert not found.examples and found.reason == reason


def test_pairs_are_read_by_objectives_on_pairs():
    (example,) = take(rated([0.0, 1.0, 2.0]), take="ratings").examples
    (read,), _ = pair_view([example])
    assert len(read.feedback) == 3
    random.seed(0)
    state = random.getstate()
    take(rated([0.0, 1.0, 2.0]), take="best-random")
    assert random.getstate() == state  # nobody else's draws change


def test_the_reward_is_the_overall_rating():
    """Other outputs of the source stand beside it, and are not added to it."""
    example = rated([1.0, 0.5])
    assert overall_ratings(example) == {0: 1.0, 1: 0.5}
    helpful = Rating(0, {"helpfulness": 3.0, "reward": 1.0}), Rating(1, {"helpfulness": 4.0, "reward": 0.0})
    (read,), _ = pair_view([Example(example.prompt, example.responses, helpful)])
    assert read.feedback[0].chosen == 0
