"""Judges with what they said already: the same question is asked and paid for once, also in another process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from assent.config import WriterConfig
from assent.data.records import Message
from assent.foreign import brief
from assent.rewards.judge.ask import CUT, STOPPED, Answer, Judge, Question, Unanswered, as_key
from assent.rewards.judge.cache import Cache, key_of
from assent.rewards.judge.ledger import CACHED, Ledger
from assent.rewards.judge.parse import Unreadable

T = TypeVar("T")
Messages = tuple[Message, ...]


class Asker:
    """A judge that is asked `config.attempts` times until its answer can be read. `digest` stands for what decides how
    its answers are read, such as a prompt file; `soft` says that they are probabilities; `budget` are the seconds for
    one call."""

    def __init__(self, judge: Judge, digest: str, config: WriterConfig, budget: float, *, soft: bool = False) -> None:
        self.judge, self.digest, self.config, self.budget, self.soft = judge, digest, config, budget, soft
        self.cache = Cache(config.cache)

    def check(self) -> None:
        """Raises OutputError where the cache cannot be written."""
        self.cache.check()

    def readings(
        self, asked: Mapping[int, Messages], read: Callable[[Answer], T], ledger: Ledger
    ) -> dict[int, T | str]:
        """What `read` makes of the answer to each of these questions, or why it cannot be read. `read` raises
        Unreadable. Raises what the judge raises."""
        readings: dict[int, T | str] = {}
        left, deadline, tries = list(asked), time.monotonic() + self.budget, Counter[int]()
        for attempt in range(self.config.attempts):
            questions = [Question(asked[number], self.config.seed + attempt) for number in left]
            for number, answer in zip(left, self._answers(questions, deadline, ledger), strict=True):
                readings[number] = _read(answer, read)
            tries.update(left)
            left = [number for number in left if isinstance(readings[number], str)]
        for number in asked:
            reading = readings[number]
            ledger.note(unreadable=isinstance(reading, str) and not isinstance(reading, Unanswered))
            if self.config.attempts > 1:
                ledger.note(asked_again=tries[number] - 1)
        return readings

    def _answers(self, questions: Sequence[Question], deadline: float, ledger: Ledger) -> list[Answer | str]:
        """From the cache, or from the judge; what is asked twice is asked once."""
        keys = self._keys(questions)
        found: dict[str, Answer | str | None] = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        for key in keys:
            ledger.note(**{CACHED: found[key] is not None})
        new = {key: question for key, question in zip(keys, questions, strict=True) if found[key] is None}
        names = list(new)
        if new:
            answers = self.judge.ask(
                [*new.values()], lambda number, answer: self.cache.put(names[number], answer), deadline
            )
            found |= dict(zip(names, answers, strict=True))
        return [answer for key in keys if (answer := found[key]) is not None]

    def _keys(self, questions: Iterable[Question]) -> list[str]:
        config = self.config
        identity = {"format": 1, "judge": self.judge.identity, "prompt": self.digest, "soft": self.soft}
        return [
            key_of(
                {
                    **identity,
                    "messages": as_key(question.messages),
                    "seed": question.seed if config.temperature > 0 else 0,
                }
            )
            for question in questions
        ]


def _read(answer: Answer | str, read: Callable[[Answer], T]) -> T | str:
    if isinstance(answer, str):
        return answer
    if answer.ended != STOPPED:
        return "what it wrote was cut off" if answer.ended == CUT else f"it ended with {brief(answer.ended, 40)!r}"
    try:
        return read(answer)
    except Unreadable as error:
        return error.reason
