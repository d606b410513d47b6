"""Rewards from a server, in the request shapes of OpenRLHF, LLaMA-Factory and vLLM. Only what the server itself gave
becomes a reward."""

from __future__ import annotations

import reprlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from assent.data.columns import column, column_names, has_column
from assent.data.records import Example, Message
from assent.errors import ConfigError
from assent.http import Client, Patience, ServerAnswerError
from assent.names import suggestion
from assent.rewards.group import Group, Scores, checked


class Item(NamedTuple):
    """One answer as servers are sent it. `prompt` ends where `answer` begins: together they are the whole text."""

    prompt: str
    answer: str
    label: object


class Shape(NamedTuple):
    """A server's path, the body of a request (from the answers and the model's name), and where the numbers stand in
    what it answers. `read` may raise KeyError, TypeError or AttributeError for a wrong answer."""

    path: str
    body: Callable[[Sequence[Item], str], dict[str, object]]
    read: Callable[[Any], object]
    expected: str


def _openrlhf(items: Sequence[Item], model: str) -> dict[str, object]:
    return {
        "query": [item.prompt + item.answer for item in items],
        "prompts": [item.prompt for item in items],
        "labels": [item.label for item in items],
    }


def _llamafactory(items: Sequence[Item], model: str) -> dict[str, object]:
    return {"model": model, "messages": [item.prompt + item.answer for item in items]}


def _vllm(items: Sequence[Item], model: str) -> dict[str, object]:
    return {"model": model, "text_1": [item.prompt for item in items], "text_2": [item.answer for item in items]}


def _by_index(reply: Any) -> object:
    scores = {entry["index"]: entry["score"] for entry in reply["data"]}
    return [scores[index] for index in range(len(reply["data"]))]


SHAPES: dict[str, Shape] = {
    "openrlhf": Shape("/get_reward", _openrlhf, lambda reply: reply["rewards"], '{"rewards": [numbers]}'),
    "llamafactory": Shape(
        "/v1/score/evaluation", _llamafactory, lambda reply: reply["scores"], '{"scores": [numbers]}'
    ),
    "vllm": Shape("/score", _vllm, _by_index, '{"data": [{"index": 0, "score": number}, ...]}'),
}
"""The three kinds of servers in use."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server and how patient to be with it."""

    url: str
    """http://HOST:PORT, with or without the path of the shape."""
    shape: str
    """One of `SHAPES`."""
    model: str = ""
    """The model's name there, for servers that ask for it."""
    label: str = ""
    """The column of the rows that is sent as the label (OpenRLHF)."""
    key: str = field(default="", repr=False)
    """Sent as "Authorization: Bearer KEY"."""
    timeout: float = 60.0
    """Seconds for one request, from connecting to the last byte."""
    retries: int = 10
    """How often one request is tried again."""
    budget: float = 600.0
    """Seconds for everything that one call of `score` does."""
    pause: float = 1.0
    """Seconds before the first new try; doubled each time, up to 30."""
    concurrency: int = 4
    """Requests under way at the same time."""
    batch: int = 32
    """Answers in one request."""


class RemoteReward:
    """A reward server as a source. `render` writes a prompt as the text that the server's model reads before the answer
    (usually the policy's chat template, with the opening of the assistant's turn)."""

    def __init__(self, name: str, server: Server, render: Callable[[Sequence[Message]], str]) -> None:
        """Raises ConfigError for an unknown shape, a key with a line end in it, or what is no URL of a server."""
        if server.shape not in SHAPES:
            raise ConfigError(
                f"{name}: there is no server shape '{server.shape}'.{suggestion(server.shape, [*SHAPES])} Known: "
                f"{', '.join(SHAPES)}."
            )
        self.name = name
        self.server = server
        self.render = render
        self.shape = SHAPES[server.shape]
        self._client = Client(f"{name}: the reward server", server.url, server.key)
        base = self._client.base
        self._path = base if base.endswith(self.shape.path) else base + self.shape.path
        self._who = self._client.who + self._path

    def check(self, examples: Sequence[Example]) -> None:
        """Raises ConfigError where no row has the column that is sent as the label."""
        label = self.server.label
        if label and not any(has_column(example.meta, label) for example in examples):
            columns = column_names([example.meta for example in examples])
            raise ConfigError(
                f"{self.name}: no row has the column '{self.server.label}', which is to be sent as the label. Columns "
                f"beside the prompt: {', '.join(columns) or 'none'}."
            )

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises ServerUnavailable when the budget is spent, ServerAnswerError for an answer that trying again would
        not better, NonFiniteReward for a reward that is NaN or infinite."""
        deadline = time.monotonic() + self.server.budget
        items = [
            Item(prompt, text, column(group.example.meta, self.server.label) if self.server.label else None)
            for group in groups
            for prompt in [self.render(group.example.prompt)]
            for text in group.texts
        ]
        batches = [items[first : first + self.server.batch] for first in range(0, len(items), self.server.batch)]
        stop = threading.Event()
        with ThreadPoolExecutor(self.server.concurrency) as threads:
            try:
                futures = [threads.submit(self._ask, batch, deadline, stop) for batch in batches]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()  # raises what stopped the others
                values = [value for future in futures for value in future.result()]
            finally:
                stop.set()  # requests that have not begun end at once
        return Scores(checked(self._who, groups, values))

    def _ask(self, items: Sequence[Item], deadline: float, stop: threading.Event) -> list[object]:
        """The rewards of one request."""
        server = self.server
        return self._client.ask(
            self._path,
            self.shape.body(items, server.model),
            lambda reply: self._read(reply, len(items)),
            Patience(server.timeout, deadline, server.retries, server.pause, stop),
            expected=f"{self.shape.expected}, the shape '{server.shape}'",
            failed="gave no rewards",
            advice="Check that it runs and can keep up, or allow more retries and a larger budget.",
        )

    def _read(self, reply: object, count: int) -> list[object]:
        values = self.shape.read(reply)
        if not isinstance(values, list):
            raise TypeError
        if len(values) != count:
            raise ServerAnswerError(f"{self._who} gave {len(values)} rewards for {count} answers.")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ServerAnswerError(f"{self._who} gave {reprlib.repr(value)} as a reward; expected a number.")
        return values
