"""Who is asked: what any judge is given, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from assent.data.records import Message

STOPPED, CUT = "stop", "length"
NEGLIGIBLE = math.log(1e-3)


class Question(NamedTuple):
    """Messages, and the number that what is drawn depends on."""

    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge wrote, why it ended ("stop", "length" where it was cut, or as the server says), and, where they were
    asked for, the log-probabilities of the letters that can be known; -inf for one that is negligible."""

    text: str
    ended: str
    chances: Mapping[str, float] | None = None


class Unanswered(str):
    """Why a server gave no answer: it may give one another time."""


@dataclass(slots=True)
class Spent:
    """What a judge cost so far: questions that it was sent, seconds that were waited for it, and tokens that it read
    and wrote, as far as it says. `untold` are answers of a server that did not say so."""

    requests: int = 0
    seconds: float = 0.0
    read: int = 0
    written: int = 0
    untold: int = 0


Keep = Callable[[int, Answer], None]


class Judge(Protocol):
    """A language model that answers in words."""

    who: str
    spent: Spent

    @property
    def identity(self) -> Mapping[str, object]:
        """All that decides its answers beside the messages and the seed."""
        ...

    def ask(self, questions: Sequence[Question], keep: Keep, deadline: float) -> list[Answer | str]:
        """An answer to each, or why it cannot be asked. `keep` hears each answer, with the number of its question, as
        soon as it is there: what is raised for one does not lose the others. `deadline` is on the clock of
        `time.monotonic`."""
        ...


def as_chat(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages as /v1/chat/completions has them. Calls of tools, and their results, are named in order where they have
    no id."""
    found: list[dict[str, object]] = []
    waiting: list[str] = []
    for place, message in enumerate(messages):
        turn: dict[str, object] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            waiting = [call.id or f"call_{place}_{number}" for number, call in enumerate(message.tool_calls)]
            turn["tool_calls"] = [
                {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for name, call in zip(waiting, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            first = waiting.pop(0) if waiting else f"call_{place}"
            turn["tool_call_id"] = message.tool_call_id or first
        found.append(turn)
    return found


def as_key(messages: Sequence[Message]) -> list[list[object]]:
    """All of messages that decides what is written next, for the names of answers that are kept."""
    return [[m.role, m.content, *([[call.name, call.arguments] for call in m.tool_calls])] for m in messages]


def known(likeliest: Mapping[str, float], spelled: Mapping[str, str]) -> dict[str, float]:
    """Log-probabilities of letters from those of the likeliest tokens at their place; `spelled` says as which token
    each letter would stand there.

    A letter that is not among them has at most the probability of the least likely of them. Where that is below 1/1000
    of the likeliest letter's it counts as 0; otherwise the letter is left out, as its probability is not known."""
    found = {letter: likeliest[token] for letter, token in spelled.items() if token in likeliest}
    if found and min(likeliest.values()) < max(found.values()) + NEGLIGIBLE:
        found |= {letter: -math.inf for letter in spelled if letter not in found}
    return found
