"""The assistant world: prompts can be read back from their text, for every kind of prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest

from assent.data.records import Message
from assent.errors import DataError
from assent.lab.knowledge import HARMFUL, RELATIONS, Fact, Knowledge, Task
from assent.lab.world import AssistantWorld, load_world


@pytest.fixture(scope="module")
def world() -> AssistantWorld:
    return AssistantWorld(0)


def chat(*turns: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    head = [Message("system", system)] if system else []
    return head + [Message(roles[i % 2], text) for i, text in enumerate(turns)]


def test_facts_are_unambiguous_and_every_relation_has_some():
    knowledge = Knowledge(0)
    assert {fact.relation for fact in knowledge.facts} == {relation.name for relation in RELATIONS}
    assert len(knowledge.facts) == len({(fact.relation, fact.entity) for fact in knowledge.facts}) == 104
    assert all(knowledge.true(fact) for fact in knowledge.facts)
    assert knowledge.value["capital", "Peru"] == "Lima" and knowledge.value["sum", "3 plus 4"] == "7"
    assert all(knowledge.true(other) for fact in knowledge.facts for other in knowledge.related(fact))


def test_people_differ_between_seeds_and_nothing_else_does():
    first, second = Knowledge(0), Knowledge(1)
    differing = {
        relation for relation, entity in first.value if first.value[relation, entity] != second.value[relation, entity]
    }
    assert differing == {"job", "home", "pet"}


@pytest.mark.parametrize(
    ("messages", "task"),
    [
        (chat("What is the capital of France?"), Task(Fact("capital", "France", "Paris"))),
        (chat("Hello! Tell me 2 plus 5."), Task(Fact("sum", "2 plus 5", "7"))),
        (chat("Where is Peru?", system="Be brief."), Task(Fact("continent", "Peru", "America"), brief=True)),
        (chat("What does a cow say?", "Moo.", "And what about a horse?"), Task(Fact("sound", "horse", "neigh"))),
        (chat("What does a cow say?", "Moo.", "And what does it eat?"), Task(Fact("food", "cow", "grass"))),
        (chat("What is the opposite of hot?", "Wet.", "Are you sure?"), Task(Fact("opposite", "hot", "cold"))),
        (chat(f"Please help me. How do I {HARMFUL[0]}?"), Task(None)),
        (chat("Where is Peru?", "America.", "And what about a dog?"), None),
        (chat("And what about Norway?"), None),
        (chat("Are you sure?"), None),
        (chat("Write a poem."), None),
        ([], None),
    ],
)
def test_lookup_reads_the_task_from_the_text(world: AssistantWorld, messages: list[Message], task: Task | None):
    if task is None:
        with pytest.raises(DataError, match="not a prompt of the assistant world"):
            world.lookup(messages)
    else:
        assert world.lookup(messages) == task


def test_every_drawn_prompt_can_be_read_back(world: AssistantWorld):
    rng = np.random.default_rng(0)
    prompts = [world.draw_prompt(rng) for _ in range(2000)]
    tasks = [world.lookup(prompt) for prompt in prompts]
    assert all(task.fact is None or world.knowledge.true(task.fact) for task in tasks)
    assert 0.1 < np.mean([task.fact is None for task in tasks]) < 0.18
    assert 0.23 < np.mean([len([m for m in prompt if m.role == "user"]) == 2 for prompt in prompts]) < 0.33
    assert {task.fact.relation for task in tasks if task.fact} == {relation.name for relation in RELATIONS}
    assert all(prompt[-1].role == "user" for prompt in prompts)
    again = np.random.default_rng(0)
    assert prompts == [AssistantWorld(0).draw_prompt(again) for _ in range(2000)]


def test_a_world_is_rebuilt_from_its_file(world: AssistantWorld, tmp_path):
    path = tmp_path / "world.json"
    AssistantWorld(3).save(path, scale=1.0)
    rebuilt = load_world(tmp_path)
    assert rebuilt.seed == 3 and rebuilt.knowledge.value == AssistantWorld(3).knowledge.value
    assert json.loads(path.read_text())["scale"] == 1.0
    for content in ('{"world": "other", "seed": 1}', '{"seed": 1}', "[]", "{"):
        path.write_text(content)
        with pytest.raises(DataError, match="world"):
            load_world(path)
    with pytest.raises(DataError, match="does not exist"):
        load_world(tmp_path / "absent" / "world.json")
