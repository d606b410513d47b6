"""Rewards from a server, in the request shapes of OpenRLHF, LLaMA-Factory and vLLM.

What may pass by itself (refused or broken connections, time-outs, 408, 429, 5xx) is tried again with growing, randomly
shortened pauses, within a budget. What will not (any other status, an answer that is not what was asked for) ends the
run at once. Either way nothing but the server's own numbers becomes a reward. Proxy settings and redirects are ignored.
"""

from __future__ import annotations

import http.client
import json
import random
import reprlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from assent.data.records import Example, Message
from assent.errors import ConfigError
from assent.rewards.group import Group, RewardError, Scores, checked
from assent.settings import suggestion

LONGEST_PAUSE = 30.0
LARGEST_ANSWER = 1 << 26  # bytes


class ServerUnavailable(RewardError):
    """The server could not be reached, or was overloaded or broken, until the budget was spent."""


class ServerAnswerError(RewardError):
    """The server refused the request, or answered something else than one number for each answer it was sent."""


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


class _Failure(Exception):
    """An attempt that may go better next time. `wait` is how long the server asked to be left alone."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


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
        if not server.key.isascii() or not server.key.isprintable():
            raise ConfigError(f"{name}: the server's key has characters that no header can carry, such as a line end.")
        self.name = name
        self.server = server
        self.render = render
        self.shape = SHAPES[server.shape]
        self._url = _split(name, server.url)
        path = self._url.path.rstrip("/")
        self._path = path if path.endswith(self.shape.path) else path + self.shape.path
        self._who = f"{name}: the reward server {self._url.scheme}://{self._url.netloc}{self._path}"
        self._jitter = random.Random()  # its own: pauses must not move the generators that training draws from

    def check(self, examples: Sequence[Example]) -> None:
        """Raises ConfigError where no row has the column that is sent as the label."""
        columns = {column: None for example in examples for column in example.meta}
        if self.server.label and self.server.label not in columns:
            raise ConfigError(
                f"{self.name}: no row has the column '{self.server.label}', which is to be sent as the label. Columns "
                f"beside the prompt: {', '.join(columns) or 'none'}."
            )

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises ServerUnavailable when the budget is spent, ServerAnswerError for an answer that trying again would
        not better, NonFiniteError for a reward that is NaN or infinite."""
        deadline = time.monotonic() + self.server.budget
        items = [
            Item(prompt, text, group.example.meta.get(self.server.label))
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
        """The rewards of one request, tried again as long as that may help."""
        body = json.dumps(self.shape.body(items, self.server.model), default=str).encode()
        tried: Counter[str] = Counter()
        begun = time.monotonic()
        pause = self.server.pause
        for _ in range(self.server.retries + 1):
            left = deadline - time.monotonic()
            if left <= 0 or stop.is_set():
                break
            try:
                return self._read(self._post(body, min(self.server.timeout, left)), len(items))
            except _Failure as failure:
                tried[failure.reason] += 1
                wanted = max(failure.wait, pause * self._jitter.uniform(0.5, 1.0))
            pause = min(2.0 * pause, LONGEST_PAUSE)
            if time.monotonic() + wanted >= deadline or stop.wait(wanted):
                break
        reasons = ", ".join(f"{reason} ({count}x)" for reason, count in tried.items()) or "no time was left to ask"
        raise ServerUnavailable(
            f"{self._who} gave no rewards in {tried.total()} attempts and {time.monotonic() - begun:.1f} s: {reasons}. "
            "Check that it runs and can keep up, or allow more retries and a larger budget."
        )

    def _post(self, body: bytes, timeout: float) -> bytes:
        """One attempt, from connecting to the last byte of the answer. Raises _Failure when it may go better next
        time, ServerAnswerError when it will not."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.server.key:
            headers["Authorization"] = f"Bearer {self.server.key}"
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=timeout)
        late = threading.Event()
        ends = time.monotonic() + timeout
        timer = None
        try:
            connection.connect()
            # The connection's own limit is for one read: a server that drips bytes would never reach it.
            timer = threading.Timer(max(0.0, ends - time.monotonic()), _hang_up, (connection.sock, late))
            timer.start()
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            text = response.read(LARGEST_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            raise RewardError(f"{self._who} has a certificate that cannot be trusted: {error.reason}.") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Failure(f"timed out after {timeout:.3g} s" if late.is_set() else _reason(error, timeout)) from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()
        if late.is_set():
            raise _Failure(f"timed out after {timeout:.3g} s")
        self._check_status(response, text)
        return text

    def _check_status(self, response: http.client.HTTPResponse, text: bytes) -> None:
        if response.status in (408, 429) or response.status >= 500:
            raise _Failure(f"answered {response.status}", _retry_after(response.headers.get("Retry-After", "")))
        if not 200 <= response.status < 300:
            raise ServerAnswerError(
                f"{self._who} answered {response.status} {response.reason}: {_shown(text)}. It was asked in the shape "
                f"'{self.server.shape}'."
            )
        if len(text) > LARGEST_ANSWER:
            raise ServerAnswerError(f"{self._who} answered more than {LARGEST_ANSWER >> 20} MiB.")
        if response.length:  # what was announced and did not come
            raise _Failure("broke off its answer")

    def _read(self, text: bytes, count: int) -> list[object]:
        try:
            values = self.shape.read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._unreadable(text) from error
        if not isinstance(values, list):
            raise self._unreadable(text)
        if len(values) != count:
            raise ServerAnswerError(f"{self._who} gave {len(values)} rewards for {count} answers.")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ServerAnswerError(f"{self._who} gave {reprlib.repr(value)} as a reward; expected a number.")
        return values

    def _unreadable(self, text: bytes) -> ServerAnswerError:
        return ServerAnswerError(
            f"{self._who} answered {_shown(text)}; expected {self.shape.expected}, the shape '{self.server.shape}'."
        )


def _split(name: str, url: str) -> SplitResult:
    plain = url.isascii() and url.isprintable() and not set(url) & set(" @?#")  # @: passwords would get into messages
    try:
        parts = urlsplit(url)
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # a port that is no number, half an IPv6 address
        pass
    got = "one with a user name" if "@" in url else f"'{url}'"
    raise ConfigError(f"{name}: expected a server, http://HOST:PORT or https://HOST, perhaps with a path; got {got}.")


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TLS too: whoever reads from it wakes up


def _reason(error: Exception, timeout: float) -> str:
    match error:
        case TimeoutError():
            return f"timed out after {timeout:.3g} s"
        case ConnectionRefusedError():
            return "refused the connection"
        case socket.gaierror():
            return "its name is unknown"
        case ConnectionError() | http.client.IncompleteRead():
            return "broke off the connection"
        case _:
            return f"{type(error).__name__}: {error}"


def _retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it says neither."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(header)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


def _shown(text: bytes) -> str:
    """The beginning of an answer, for messages."""
    return repr(text[:200].decode("utf-8", "replace")) + ("…" if len(text) > 200 else "")
