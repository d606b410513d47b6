"""Simulated annotators at a label server: what they say is of answers by index, whatever side these stood on."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from assent.data.records import Message
from assent.lab.annotators import Annotator
from assent.lab.labellers import CROWD, FAULTS, OPINIONS, Desk, Labeller, Seen, opinion
from assent.lab.rubric import GoldScore
from assent.lab.world import AssistantWorld
from assent.people.kinds import KINDS
from assent.people.task import HELPSTEER, Item, TaskDefinition

GOLDS = (GoldScore(2, 2, 2, 1, 1), GoldScore(4, 4, 4, 2, 1), GoldScore(0, 0, 1, 0, 1))
TEXTS = ("so so", "good one", "bad")
BEST_FIRST = [1, 0, 2]
SURE = Labeller(Annotator("sure", temperature=0.01))
LEFT = Labeller(Annotator("left", temperature=1.0, position_bias=50.0))
N = 300


def seen(shown: tuple[int, ...]) -> Seen:
    return Seen(
        (Message("user", "q"),), tuple(TEXTS[i] for i in shown), tuple(GOLDS[i] for i in shown), shown, "question"
    )


def said(labeller: Labeller, kind: str, shown: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    return opinion(labeller, kind, seen(shown), np.random.default_rng(seed))


@pytest.mark.parametrize("shown", list(permutations(range(3))))
def test_who_is_sure_says_the_same_wherever_answers_stand(shown: tuple[int, ...]) -> None:
    assert said(SURE, "ranking", shown) == {"levels": [[i] for i in BEST_FIRST]}
    assert said(SURE, "best", shown) == {"best": 1}
    assert said(SURE, "yesno", shown) == {"labels": [True, True, False]}
    scores = said(SURE, "attributes", shown)["scores"]
    assert [each["helpfulness"] for each in scores] == [2, 4, 0] and scores[1]["complexity"] == 2
    two = tuple(i for i in shown if i < 2)
    assert said(SURE, "pair", two) == {"verdict": "better", "better": 1, "strength": 3}


@pytest.mark.parametrize("shown", list(permutations(range(3))))
def test_who_goes_by_the_side_takes_what_is_shown_first(shown: tuple[int, ...]) -> None:
    assert said(LEFT, "ranking", shown)["levels"] == [[i] for i in shown]
    assert said(LEFT, "best", shown)["best"] == shown[0]
    scores = said(LEFT, "attributes", shown)["scores"]
    assert scores[shown[0]]["helpfulness"] == 4
    assert said(LEFT, "pair", shown[:2])["better"] == shown[0]


def test_rankings_are_bradley_terry_and_careless_ones_anything() -> None:
    fair = Labeller(Annotator("fair", temperature=1.0))
    gap = GOLDS[1].reward - GOLDS[0].reward
    ahead = [said(fair, "ranking", (0, 1), seed)["levels"][0] == [1] for seed in range(N)]
    assert abs(np.mean(ahead) - 1 / (1 + np.exp(-gap))) < 4 * np.sqrt(0.25 / N)
    careless = Labeller(replace(SURE.annotator, careless=1.0))
    firsts = [said(careless, "ranking", (0, 1, 2), seed)["levels"][0][0] for seed in range(N)]
    assert min(np.bincount(firsts, minlength=3)) > N / 3 - 4 * np.sqrt(N * 2 / 9)


@pytest.mark.parametrize("kind", OPINIONS)
def test_every_opinion_is_a_label_of_its_kind(kind: Any) -> None:
    answers = 2 if kind == "pair" else 3
    attributes = dict(HELPSTEER) if kind == "attributes" else {}
    task = TaskDefinition(name="t", kind=kind, items="items.jsonl", attributes=attributes)
    for labeller in CROWD:
        value = said(labeller, kind, tuple(range(answers)))
        KINDS[kind].check(value, Item((Message("user", "q"),), TEXTS[:answers]), task)


def test_what_a_desk_says_depends_on_seed_item_order_and_how_often_it_was_seen() -> None:
    world, rng = AssistantWorld(0), np.random.default_rng(0)
    prompt = world.draw_prompt(rng)
    texts = [world.respond(prompt, style, rng) for style in ("full", "rude")]
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    given = {"item": {"prompt": turns, "responses": texts}, "shown": [0, 1], "task": {"kind": "pair"}}

    def desk(seed: int) -> Desk:
        return Desk(CROWD[7], "http://127.0.0.1:9", "p", "token", world, seed, 1.0)  # it says anything

    def values(desk: Desk, slots: range) -> list[Any]:
        return [desk.say({**given, "slot": slot})["value"] for slot in slots]

    first = values(desk(1), range(20))
    assert first == values(desk(1), range(100, 120)), "slots have other numbers in another database"
    assert first != values(desk(2), range(20)) and any(value != first[0] for value in first)
    one, same, other = (desk(1).say({**given, "slot": slot}) for slot in (1, 1, 2))
    assert one["request"] == same["request"] != other["request"], "the same slot is the same request"
    assert one["seconds"] > 0


def test_the_crowd_has_two_of_each_fault() -> None:
    assert len(CROWD) == len({labeller.name for labeller in CROWD}) == 12
    assert [sum(labeller.fault == fault for labeller in CROWD) for fault in FAULTS] == [2, 2, 2]
