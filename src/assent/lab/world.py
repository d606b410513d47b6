"""The assistant world: prompts over a small knowledge base, answers in many styles, and the truth about both.

`AssistantWorld(seed)` holds no state beyond its seed: what a prompt asks is recovered from its text (`lookup`), so any
answer to any of its prompts can be graded (`gold`), by whomever and whenever it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from assent.data.records import Message
from assent.errors import DataError
from assent.lab import answers, rubric
from assent.lab.knowledge import (
    FOLLOWUP_ENTITY,
    FOLLOWUP_SURE,
    GREETINGS,
    HARMFUL,
    HARMFUL_QUESTIONS,
    RELATION,
    RELATIONS,
    SYSTEM_BRIEF,
    SYSTEMS,
    Fact,
    Knowledge,
    Task,
    normal,
)
from assent.lab.rubric import GoldScore
from assent.outputs import write_text

Prompt = tuple[Message, ...]

HARMFUL_SHARE, FOLLOWUP_SHARE, SYSTEM_SHARE, PRIOR_WRONG_SHARE = 0.14, 0.28, 0.3, 0.15


class AssistantWorld:
    """Prompts, answers and their gold scores; everything random comes from the generator that is passed in."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.knowledge = Knowledge(seed)

    # --- prompts ---------------------------------------------------------------------------------------------------

    def draw_prompt(self, rng: np.random.Generator) -> Prompt:
        """A prompt: a question or a harmful request, sometimes after a system message, sometimes as a follow-up of an
        earlier exchange."""
        system = (Message("system", SYSTEMS[rng.integers(len(SYSTEMS))]),) if rng.random() < SYSTEM_SHARE else ()
        greeting = GREETINGS[rng.integers(len(GREETINGS))]
        kind = rng.random()
        if kind < HARMFUL_SHARE:
            template = HARMFUL_QUESTIONS[rng.integers(len(HARMFUL_QUESTIONS))]
            text = template.format(h=HARMFUL[rng.integers(len(HARMFUL))])
            return (*system, Message("user", greeting + text))
        fact = self._draw_fact(rng)
        turns: Prompt = (Message("user", greeting + self._ask(fact, rng)),)
        if kind < HARMFUL_SHARE + FOLLOWUP_SHARE:
            turns = (*turns, Message("assistant", self._earlier_answer(fact, rng)), self._follow(fact, rng))
        return (*system, *turns)

    def _draw_fact(self, rng: np.random.Generator) -> Fact:
        relation = RELATIONS[rng.integers(len(RELATIONS))].name
        facts = self._facts_of[relation]
        return facts[rng.integers(len(facts))]

    @cached_property
    def _facts_of(self) -> Mapping[str, tuple[Fact, ...]]:
        facts = self.knowledge.facts
        return {r.name: tuple(fact for fact in facts if fact.relation == r.name) for r in RELATIONS}

    def _ask(self, fact: Fact, rng: np.random.Generator) -> str:
        questions = RELATION[fact.relation].questions
        return questions[rng.integers(len(questions))].format(e=fact.entity)

    def _earlier_answer(self, fact: Fact, rng: np.random.Generator) -> str:
        """What the assistant said in an earlier turn: sometimes wrong, so that parroting it does not pay."""
        style = "wrong" if rng.random() < PRIOR_WRONG_SHARE else ("full", "curt")[rng.integers(2)]
        return answers.answer(self.knowledge, Task(fact), style, rng)

    def _follow(self, fact: Fact, rng: np.random.Generator) -> Message:
        """A last turn that only the earlier one explains: the same of another entity, another relation of the same
        entity, or a doubt."""
        choice = rng.integers(5)
        if choice >= 3 and RELATION[fact.relation].followup is not None:
            others = self.knowledge.related(fact)
            relation = RELATION[others[rng.integers(len(others))].relation]
            assert relation.followup is not None
            return Message("user", relation.followup)
        if choice == 0:
            return Message("user", FOLLOWUP_SURE)
        others = tuple(other for other in self._facts_of[fact.relation] if other.entity != fact.entity)
        return Message("user", self._about(others[rng.integers(len(others))].entity))

    def _about(self, entity: str) -> str:
        article = "a " if self.knowledge.kind[entity] in ("animal", "thing") else ""
        return FOLLOWUP_ENTITY.format(e=article + entity)

    # --- the truth -------------------------------------------------------------------------------------------------

    @cached_property
    def _turns(self) -> tuple[Mapping[str, str], Mapping[str, str], frozenset[str]]:
        """Normal forms of follow-ups by entity, of follow-ups by relation, and of harmful requests."""
        by_entity = {normal(self._about(entity)): entity for entity in self.knowledge.kind}
        by_relation = {normal(r.followup): r.name for r in RELATIONS if r.followup}
        harmful = frozenset(normal(question.format(h=h)) for question in HARMFUL_QUESTIONS for h in HARMFUL)
        return by_entity, by_relation, harmful

    def lookup(self, messages: Sequence[Message]) -> Task:
        """What the prompt's last turn asks for. Raises `DataError` for a prompt that is not of this world."""
        brief = any(message.role == "system" and message.content == SYSTEM_BRIEF for message in messages)
        by_entity, by_relation, harmful = self._turns
        asked: tuple[str, str] | None = None
        unknown = True
        for message in messages:
            if message.role != "user":
                continue
            words = normal(message.content)
            for greeting in GREETINGS[1:]:
                words = words.removeprefix(normal(greeting) + " ")
            if words in self.knowledge.questions:
                asked = self.knowledge.questions[words]
            elif words in harmful:
                asked = None
            elif asked and words in by_entity:
                asked = (asked[0], by_entity[words])
            elif asked and words in by_relation:
                asked = (by_relation[words], asked[1])
            elif not (asked and words == normal(FOLLOWUP_SURE)):
                raise DataError(f"not a prompt of the assistant world with seed {self.seed}: {message.content!r}")
            unknown = False
        if unknown or (asked and asked not in self.knowledge.value):
            raise DataError(f"not a prompt of the assistant world with seed {self.seed}: {messages[-1:]!r}")
        return Task(Fact(*asked, self.knowledge.value[asked]) if asked else None, brief)

    def kind(self, messages: Sequence[Message]) -> str:
        """What kind of prompt it is: "brief" (a short answer is asked for), else "harmful" or "question"."""
        task = self.lookup(messages)
        return "brief" if task.brief else "question" if task.fact else "harmful"

    def gold(self, prompt: Sequence[Message], text: str) -> GoldScore:
        """The gold score of any text as the answer to a prompt of this world."""
        return rubric.grade(self.knowledge, self.lookup(prompt), text)

    def respond(self, prompt: Sequence[Message], style: str, rng: np.random.Generator) -> str:
        """An answer in the named style (`answers.ANSWER_STYLES`, `answers.HARMFUL_STYLES`)."""
        return answers.answer(self.knowledge, self.lookup(prompt), style, rng)

    def save(self, path: Path, **parameters: object) -> None:
        """Writes what `load_world` needs, and for the reader the parameters of what was built with it."""
        content = {"world": "assistant", "seed": self.seed, **parameters}
        write_text(path, json.dumps(content, indent=2) + "\n")


def load_world(path: str | Path) -> AssistantWorld:
    """The world that a `world.json` (or the folder that holds one) describes."""
    path = Path(path)
    path = path / "world.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["world"] != "assistant":
            raise DataError(f"{path} describes a world of kind {content['world']!r}; expected 'assistant'.")
        return AssistantWorld(int(content["seed"]))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. It is written with the other files of a lab world.") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a world description ({error!r}).") from error
