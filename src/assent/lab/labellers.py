"""Simulated annotators at a label server: clients of its HTTP API, who see no more than people do.

Whoever sits down is handed an item, reads its answers in the order in which they are shown, and says what
`assent.lab.annotators` makes of the gold scores: with noise, a taste for length or for the first side, or anything at
all. What a labeller says of an item depends on the seed, the item and the order shown alone; the same labeller may say
otherwise when shown it again. Labellers take turns drawn from the seed, one request at a time, so that the same seed
gives the same labels.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assent import http
from assent.data.records import Message
from assent.http import Client, Patience
from assent.lab.annotators import Annotator, judge, rate
from assent.lab.rubric import GoldScore
from assent.lab.world import AssistantWorld

FAULTS = ("careless", "length", "left")


@dataclass(frozen=True, slots=True)
class Labeller:
    """An annotator with what a lead should find out about them: "careless", "length", "left", or nothing. `pace` is
    words read in a second, by which the time that a label took is reported."""

    annotator: Annotator
    fault: str = ""
    pace: float = 3.0

    @property
    def name(self) -> str:
        return self.annotator.name


CROWD = (
    *(Labeller(Annotator(f"expert-{n}", temperature=t)) for n, t in enumerate((0.2, 0.25, 0.3), 1)),
    Labeller(Annotator("ordinary-1", temperature=0.6, length_bias=0.02, careless=0.05)),
    Labeller(Annotator("ordinary-2", temperature=0.8, length_bias=0.03, position_bias=0.1, careless=0.05)),
    Labeller(Annotator("ordinary-3", temperature=1.0, length_bias=0.03, position_bias=-0.1, careless=0.1)),
    *(Labeller(Annotator(f"careless-{n}", 1.0, careless=c), "careless", 12.0) for n, c in enumerate((0.85, 1.0), 1)),
    *(Labeller(Annotator(f"length-{n}", 0.5, length_bias=b), "length", 6.0) for n, b in enumerate((0.25, 0.4), 1)),
    *(Labeller(Annotator(f"left-{n}", 0.6, position_bias=b), "left", 6.0) for n, b in enumerate((2.5, 4.0), 1)),
)
"""Twelve: three experts, three of ordinary care, two who hardly look, two who go by length, two by the left side."""


@dataclass(frozen=True, slots=True)
class Given:
    """A label that the server has taken: who said what of which slot, and the answers in the order shown."""

    name: str
    slot: Any
    request: str
    value: Mapping[str, Any]
    shown: tuple[int, ...]


# ---- what is said


@dataclass(frozen=True, slots=True)
class Seen:
    """An item as an annotator sees it: the answers in the order shown, and their true worth."""

    prompt: tuple[Message, ...]
    texts: tuple[str, ...]
    golds: tuple[GoldScore, ...]
    shown: tuple[int, ...]
    kind: str


def opinion(labeller: Labeller, kind: str, seen: Seen, rng: np.random.Generator) -> dict[str, Any]:
    """The value of a label for a task of this kind, by answer index. Raises KeyError for kinds nobody can simulate."""
    return OPINIONS[kind](labeller.annotator, seen, rng)


def _pair(annotator: Annotator, seen: Seen, rng: np.random.Generator) -> dict[str, Any]:
    prefers_first, strength = judge(annotator, seen.texts, seen.golds, rng, seen.kind)
    return {"verdict": "better", "better": seen.shown[0 if prefers_first else 1], "strength": strength}


def _order(annotator: Annotator, seen: Seen, rng: np.random.Generator) -> list[int]:
    """Best first, as places on the page: Plackett-Luce, whose pairs are those of `preference_logit` for neighbours."""
    if rng.random() < annotator.careless:
        return [int(place) for place in rng.permutation(len(seen.texts))]
    felt = [
        (annotator.worth(gold, seen.kind) + annotator.length_bias * len(text.split())) / annotator.temperature
        - annotator.position_bias * place
        + rng.gumbel()
        for place, (text, gold) in enumerate(zip(seen.texts, seen.golds, strict=True))
    ]
    return [int(place) for place in np.argsort(felt)[::-1]]


def _ranking(annotator: Annotator, seen: Seen, rng: np.random.Generator) -> dict[str, Any]:
    return {"levels": [[seen.shown[place]] for place in _order(annotator, seen, rng)]}


def _best(annotator: Annotator, seen: Seen, rng: np.random.Generator) -> dict[str, Any]:
    return {"best": seen.shown[_order(annotator, seen, rng)[0]]}


def _attributes(annotator: Annotator, seen: Seen, rng: np.random.Generator) -> dict[str, Any]:
    """By answer index; a taste for the first side is one more on helpfulness for each unit of the bias."""
    scores: dict[int, dict[str, int]] = {}
    for place, (text, gold) in enumerate(zip(seen.texts, seen.golds, strict=True)):
        given = {name: int(value) for name, value in rate(annotator, text, gold, rng).items()}
        if place == 0:
            given["helpfulness"] = int(np.clip(given["helpfulness"] + round(annotator.position_bias), 0, 4))
        scores[seen.shown[place]] = given
    return {"scores": [scores[index] for index in range(len(scores))]}


def _yesno(annotator: Annotator, seen: Seen, rng: np.random.Generator) -> dict[str, Any]:
    ratings = _attributes(annotator, seen, rng)["scores"]
    return {"labels": [rating["helpfulness"] >= 2 for rating in ratings]}


OPINIONS: Mapping[str, Callable[[Annotator, Seen, np.random.Generator], dict[str, Any]]] = {
    "pair": _pair,
    "ranking": _ranking,
    "best": _best,
    "attributes": _attributes,
    "yesno": _yesno,
}


# ---- at the server


class Desk:
    """One labeller's place at a project of a label server, by an API token."""

    def __init__(
        self, labeller: Labeller, url: str, project: str, token: str, world: AssistantWorld, seed: int, budget: float
    ) -> None:
        self.labeller, self.world, self.seed, self.budget = labeller, world, seed, budget
        self._client = Client(labeller.name, url, token)
        self._path = f"{self._client.base}/api/p/{project}"
        self._times: Counter[tuple[object, ...]] = Counter()

    async def ask(self, path: str, body: object) -> Any:
        """What the server answers; asked again, with the same words, while it is away."""
        patience = Patience(timeout=60.0, deadline=time.monotonic() + self.budget, pause=0.2)
        expected = "an answer of a label server"
        return await self._client.ask(
            f"{self._path}/{path}", body, lambda answer: answer, patience, expected=expected, failed="did not answer"
        )

    async def next(self) -> Any:
        """The next item to label; None where there is none for this labeller."""
        found = await self.ask("next", None)
        return found if found.get("slot") is not None else None

    async def label(self) -> Given | None:
        """Labels one item, if there is one."""
        if (work := await self.next()) is None:
            return None
        body = self.say(work)
        await self.ask("label", body)
        return Given(self.labeller.name, body["slot"], body["request"], body["value"], tuple(work["shown"]))

    def say(self, work: Mapping[str, Any]) -> dict[str, Any]:
        """What is posted about an item that the server handed out."""
        seen = self._see(work)
        again = (work["item"]["prompt"][-1]["content"], *seen.texts)
        rng = self._rng(seen, self._times[again])
        self._times[again] += 1
        words = sum(len(text.split()) for text in seen.texts) + len(seen.prompt[-1].content.split())
        return {
            "slot": work["slot"],
            "request": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.seed}/{self.labeller.name}/{work['slot']}")),
            "value": opinion(self.labeller, work["task"]["kind"], seen, rng),
            "seconds": round(float(words / self.labeller.pace * rng.lognormal(0.0, 0.3)), 2),
        }

    def _see(self, work: Mapping[str, Any]) -> Seen:
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in work["item"]["prompt"])
        shown = tuple(work["shown"])
        texts = tuple(work["item"]["responses"][index] for index in shown)
        golds = tuple(self.world.gold(prompt, text) for text in texts)
        return Seen(prompt, texts, golds, shown, self.world.kind(prompt))

    def _rng(self, seen: Seen, times: int) -> np.random.Generator:
        turns = [f"{turn.role}: {turn.content}" for turn in seen.prompt]
        words = "\0".join([str(self.seed), self.labeller.name, str(times), *turns, *seen.texts])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big"))


def work(
    url: str,
    project: str,
    tokens: Mapping[str, str],
    world: AssistantWorld,
    *,
    crowd: Sequence[Labeller] = CROWD,
    seed: int = 0,
    most: int | None = None,
    budget: float = 300.0,
) -> list[Given]:
    """The labels that the crowd gives to a project until nobody is handed anything (or `most` are given), by the
    `tokens` of their names. `budget` is for how many seconds a server may be away."""
    desks = [Desk(labeller, url, project, tokens[labeller.name], world, seed, budget) for labeller in crowd]
    return http.run(_in_turns(desks, np.random.default_rng([seed, 12]), most))


async def _in_turns(desks: Sequence[Desk], rng: np.random.Generator, most: int | None) -> list[Given]:
    given: list[Given] = []
    before = -1
    while before < len(given):  # labels may open further slots: where annotators differ, more are asked
        before, waiting = len(given), list(desks)
        while waiting and (most is None or len(given) < most):
            place = int(rng.integers(len(waiting)))
            found = await waiting[place].label()
            if found is None:
                del waiting[place]
            else:
                given.append(found)
    return given
