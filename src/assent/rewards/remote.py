"""Rewards from a server, in the request shapes of OpenRLHF, LLaMA-Factory, vLLM and SGLang. Only what the server itself
gave becomes a reward."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from assent.data.columns import column, column_names, has_column
from assent.data.records import Example
from assent.errors import ConfigError
from assent.foreign import shown
from assent.http import Client, Patience, ServerAnswerError, run, together
from assent.names import suggestion
from assent.rewards.group import UNREADABLE, Group, Scores, checked

T = TypeVar("T")
log = logging.getLogger(__name__)

OTHER_TOKENS = "other_tokens"
"""The metric of servers that are sent text: the share of answers that are other tokens once they are read again."""


class WrittenAnswer(NamedTuple):
    """One answer as servers are sent it: `whole` is the prompt (as text `prompt`) with the answer, as text or as token
    ids, with all special tokens and so, where the answer is finished, with the token that ends it. For servers that
    read two texts (`Shape.pairs`), `prompt` and `whole` are what was asked and the answer alone, in plain words.
    `same`: a text that is read gives the tokens again that it was written from."""

    prompt: str
    whole: str | list[int]
    same: bool = True


class Item(NamedTuple):
    """An answer and the value of the row's column that is sent as its label."""

    answer: WrittenAnswer
    label: object


class Shape(NamedTuple):
    """A server's path, the body of a request (from the answers and the model's name), and where the numbers stand in
    what it answers. `read` may raise KeyError, TypeError or AttributeError for a wrong answer. With `ids` it is sent
    token ids, and `read` gives all outputs of the model for each answer; with `pairs` it is sent two texts."""

    path: str
    body: Callable[[Sequence[Item], str], dict[str, object]]
    read: Callable[[Any], object]
    expected: str
    ids: bool = False
    pairs: bool = False


def _openrlhf(items: Sequence[Item], model: str) -> dict[str, object]:
    return {
        "query": [item.answer.whole for item in items],
        "prompts": [item.answer.prompt for item in items],
        "labels": [item.label for item in items],
    }


def _llamafactory(items: Sequence[Item], model: str) -> dict[str, object]:
    return {"model": model, "messages": [item.answer.whole for item in items]}


def _vllm(items: Sequence[Item], model: str) -> dict[str, object]:
    return classify([item.answer.whole for item in items], model, activation=False)


def classify(inputs: Sequence[object], model: str, *, activation: bool) -> dict[str, object]:
    """The body of a request to vLLM's /classify."""
    named = {"model": model} if model else {}
    return {**named, "input": list(inputs), "use_activation": activation}


def _sglang(items: Sequence[Item], model: str) -> dict[str, object]:
    return embeddings([item.answer.whole for item in items], model)


def embeddings(inputs: Sequence[object], model: str) -> dict[str, object]:
    """The body of a request to SGLang's /v1/embeddings."""
    return ({"model": model} if model else {}) | {"input": list(inputs)}


def _vllm_score(items: Sequence[Item], model: str) -> dict[str, object]:
    named = {"model": model} if model else {}
    texts = {"queries": [item.answer.prompt for item in items], "documents": [item.answer.whole for item in items]}
    return {**named, **texts, "use_activation": False}


def by_index(reply: Any, name: str = "probs") -> list[Any]:
    """What stands under a name for each text, in the order of the request, in what vLLM and SGLang answer."""
    found = {entry["index"]: entry[name] for entry in reply["data"]}
    return [found[index] for index in range(len(reply["data"]))]


VLLM, SGLANG = "vllm", "sglang"
SHAPES: dict[str, Shape] = {
    "openrlhf": Shape("/get_reward", _openrlhf, lambda reply: reply["rewards"], '{"rewards": [numbers]}'),
    "llamafactory": Shape(
        "/v1/score/evaluation", _llamafactory, lambda reply: reply["scores"], '{"scores": [numbers]}'
    ),
    VLLM: Shape("/classify", _vllm, by_index, '{"data": [{"index": 0, "probs": [number]}, ...]}', ids=True),
    SGLANG: Shape(
        "/v1/embeddings",
        _sglang,
        partial(by_index, name="embedding"),
        '{"data": [{"index": 0, "embedding": [number]}, ...]}',
        ids=True,
    ),
    "vllm-score": Shape(
        "/score",
        _vllm_score,
        partial(by_index, name="score"),
        '{"data": [{"index": 0, "score": number}, ...]}',
        pairs=True,
    ),
}
"""The kinds of servers in use: reward models, and cross-encoders (vllm-score)."""


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
    weights: tuple[float, ...] = ()
    """Weights of the model's outputs, whose sum is the reward (`Shape.ids`); without any it must have one output."""
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
    """A reward server as a source. `write` gives the answers of a group as they are sent, None for one that cannot be,
    which is then unscored."""

    def __init__(self, name: str, server: Server, write: Callable[[Group], Sequence[WrittenAnswer | None]]) -> None:
        """Raises ConfigError for an unknown shape, a key with a line end in it, or what is no URL of a server."""
        if server.shape not in SHAPES:
            raise ConfigError(
                f"{name}: there is no server shape '{server.shape}'.{suggestion(server.shape, [*SHAPES])} Known: "
                f"{', '.join(SHAPES)}."
            )
        self.name = name
        self.server = server
        self.write = write
        self.shape = SHAPES[server.shape]
        self._told = False
        self._client = Client(f"{name}: the reward server", server.url, server.key)
        self._root = self._client.base.removesuffix(self.shape.path)
        if self.shape.ids or self.shape.pairs:
            self._root = self._root.removesuffix("/v1")  # where its other clients look
        self.who = f"{self._client.who}{self._root}{self.shape.path}"

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
        patience, label = self._patience(), self.server.label
        answers = [
            (column(group.example.meta, label) if label else None, own) for group in groups for own in self.write(group)
        ]
        items = [Item(own, value) for value, own in answers if own is not None]
        batches = [items[first : first + self.server.batch] for first in range(0, len(items), self.server.batch)]
        asks = [partial(self._ask, batch, patience) for batch in batches]
        found = run(together(asks, self.server.concurrency))
        rewards = iter([value for part in found for value in part])
        values = [None if own is None else next(rewards) for _, own in answers]
        unread = values.count(None)
        why = [UNREADABLE if value is None else None for value in values] if unread else ()
        failures = {UNREADABLE: unread} if unread else {}
        return Scores(checked(self.who, groups, values), failures=failures, metrics=self._reread(items), why=why)

    def _reread(self, items: Sequence[Item]) -> dict[str, list[float]]:
        """For each answer that was sent as text whether it is other tokens there; said aloud the first time."""
        if self.shape.ids or self.shape.pairs:
            return {}
        other = [float(not item.answer.same) for item in items]
        if any(other) and not self._told:
            self._told = True
            log.warning(
                f"{self.who}: {sum(other):.0f} of {len(other)} answers are other tokens when they are written as text "
                f"and read again; their reward is of the text. vllm=URL and sglang=URL send the tokens themselves. "
                f"Counted as {OTHER_TOKENS}."
            )
        return {OTHER_TOKENS: other}

    def question(self, path: str, body: object, read: Callable[[Any], T], expected: str) -> T:
        """Anything else that this server is asked; `body` None asks with GET. Raises as `score`."""
        words: dict[str, Any] = {"expected": expected, "failed": "did not answer", "advice": "Check that it runs."}
        return run(self._client.ask(self._root + path, body, read, self._patience(), **words))

    def _patience(self) -> Patience:
        server = self.server
        return Patience(server.timeout, time.monotonic() + server.budget, server.retries, server.pause)

    async def _ask(self, items: Sequence[Item], patience: Patience) -> list[object]:
        """The rewards of one request."""
        return await self._client.ask(
            self._root + self.shape.path,
            self.shape.body(items, self.server.model),
            lambda reply: self._read(reply, len(items)),
            patience,
            expected=f"{self.shape.expected}, the shape '{self.server.shape}'",
            failed="gave no rewards",
            advice="Check that it runs and can keep up, or allow more retries and a larger budget.",
        )

    def _read(self, reply: object, count: int) -> list[object]:
        values = self.shape.read(reply)
        if not isinstance(values, list):
            raise TypeError
        if len(values) != count:
            raise ServerAnswerError(f"{self.who} gave {len(values)} rewards for {count} answers.")
        return [self._sum(value) for value in values] if self.shape.ids else [self._number(value) for value in values]

    def _sum(self, outputs: Any) -> float:
        """The reward of one answer: the weighted sum of the model's outputs, or its only one."""
        weights = self.server.weights
        if not weights:
            (only,) = outputs
            return self._number(only)
        if len(outputs) != len(weights):
            raise ServerAnswerError(f"{self.who} gave {len(outputs)} numbers for an answer; expected {len(weights)}.")
        return sum(weight * self._number(value) for weight, value in zip(weights, outputs, strict=True))

    def _number(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ServerAnswerError(f"{self.who} gave {shown(value)} as a reward; expected a number.")
        return value
