"""Simulated annotators: choice probabilities, biases, disagreement, determinism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from assent.data.records import Example, Message, Pair, Rating, Response
from assent.lab.annotators import PANEL, Annotator, judge, labelled, preference_logit, rate
from assent.lab.artifacts import gold_agreement, preference_examples
from assent.lab.rubric import GoldScore
from assent.lab.world import AssistantWorld

WORLD = AssistantWorld(0)
GOOD = GoldScore(4, 4, 4, 2, 1)
WORSE = replace(GOOD, helpfulness=3)  # 0.3 less reward
N = 4000


def share_first(annotator: Annotator, texts=("a", "b"), golds=(GOOD, WORSE), seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    return float(np.mean([judge(annotator, texts, golds, rng)[0] for _ in range(N)]))


def close(share: float, probability: float) -> bool:
    return abs(share - probability) < 4 * np.sqrt(0.25 / N)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_choices_are_bradley_terry():
    for temperature in (0.1, 0.3, 1.0):
        assert close(share_first(Annotator("a", temperature)), sigmoid(0.3 / temperature))
        assert close(share_first(Annotator("a", temperature), golds=(WORSE, GOOD)), sigmoid(-0.3 / temperature))


def test_carelessness_adds_coin_flips():
    careless = Annotator("a", 0.1, careless=0.5)
    assert close(share_first(careless), 0.25 + 0.5 * sigmoid(3))
    assert close(share_first(replace(careless, careless=1.0)), 0.5)


def test_length_bias_can_turn_a_preference():
    short_good, long_worse = ("one", "one two three four five six"), (GOOD, WORSE)
    fair = Annotator("a", 0.3)
    assert share_first(fair, short_good, long_worse) > 0.7
    assert share_first(replace(fair, length_bias=0.2), short_good, long_worse) < 0.15
    assert preference_logit(replace(fair, length_bias=0.2), short_good, long_worse) == pytest.approx(
        (0.3 - 5 * 0.2) / 0.3
    )


def test_position_bias_favours_what_is_shown_first():
    biased = Annotator("a", 0.3, position_bias=1.0)
    assert close(share_first(biased, golds=(GOOD, GOOD)), sigmoid(1.0))
    assert close(share_first(biased, golds=(WORSE, GOOD)), sigmoid(-1.0 + 1.0))


def test_strength_grows_with_the_gap():
    rng = np.random.default_rng(0)
    annotator = Annotator("a", 0.3)
    far = np.mean([judge(annotator, ("a", "b"), (GOOD, GoldScore(0, 0, 0, 0, 0)), rng)[1] for _ in range(300)])
    near = np.mean([judge(annotator, ("a", "b"), (GOOD, GOOD), rng)[1] for _ in range(300)])
    assert far == 3.0 and 1.0 < near < 1.8


def test_ratings_are_whole_numbers_around_the_gold_attributes():
    rng = np.random.default_rng(0)
    ratings = [rate(Annotator("a", 0.5), "some text", replace(GOOD, helpfulness=2), rng) for _ in range(500)]
    assert all(score in (0, 1, 2, 3, 4) for rating in ratings for score in rating.values())
    assert np.mean([rating["helpfulness"] for rating in ratings]) == pytest.approx(2, abs=0.1)
    assert np.mean([rating["verbosity"] for rating in ratings]) == pytest.approx(1, abs=0.1)
    biased = [
        rate(Annotator("a", 0.5, length_bias=0.5), "some text", replace(GOOD, helpfulness=2), rng) for _ in range(500)
    ]
    assert np.mean([rating["helpfulness"] for rating in biased]) == pytest.approx(3, abs=0.1)


def three_answers() -> Example:
    texts = ("Paris.", "The capital of France is Paris.", "Rome.")
    return Example(
        (Message("user", "What is the capital of France?"),),
        tuple(Response((Message("assistant", text),)) for text in texts),
    )


def test_annotate_labels_every_pair_once_for_each_annotator():
    example = labelled(WORLD, three_answers(), PANEL, np.random.default_rng(0), ratings=True)
    pairs = [item for item in example.feedback if isinstance(item, Pair)]
    assert len(pairs) == 3 * len(PANEL)
    assert {pair.annotator for pair in pairs} == {annotator.name for annotator in PANEL}
    assert len([item for item in example.feedback if isinstance(item, Rating)]) == 3 * len(PANEL)
    assert {frozenset((pair.chosen, pair.rejected)) for pair in pairs} == {
        frozenset(p) for p in ((0, 1), (0, 2), (1, 2))
    }
    assert all(pair.strength in (1.0, 2.0, 3.0) for pair in pairs)
    # the false answer loses to every annotator; the two right ones are close, and the panel disagrees
    assert np.mean([pair.rejected == 2 for pair in pairs if 2 in (pair.chosen, pair.rejected)]) > 0.8
    assert example == labelled(WORLD, three_answers(), PANEL, np.random.default_rng(0), ratings=True)
    assert example != labelled(WORLD, three_answers(), PANEL, np.random.default_rng(1), ratings=True)


def test_the_panel_is_as_accurate_as_documented():
    rng = np.random.default_rng(0)
    prompts = [WORLD.draw_prompt(rng) for _ in range(1500)]
    accuracy = [gold_agreement(WORLD, preference_examples(WORLD, prompts, [one], rng)) for one in PANEL]
    assert accuracy[0] > 0.97 and 0.86 < accuracy[-1] < 0.93
    assert accuracy[0] > accuracy[2] > accuracy[-1]
    assert 0.92 < np.mean(accuracy) < 0.96
    perfect = preference_examples(WORLD, prompts, [Annotator("sure", temperature=1e-9)], rng)
    assert gold_agreement(WORLD, perfect) == 1.0
