"""Requests to a server that may have bad moments.

What may pass by itself (refused or broken connections, time-outs, 408, 429, 5xx) is tried again with growing, randomly
shortened pauses, within a budget. What will not (any other status, an answer that is not what was asked for) is an
error at once. All else is httpx's; redirects are not followed, so that no key goes to another server, and settings for
proxies are ignored.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

import httpx2

from assent.errors import ConfigError, UserError
from assent.foreign import brief, hide, named

T = TypeVar("T")

LONGEST_PAUSE = 30.0
LARGEST_ANSWER = 1 << 28  # bytes
LIMITS = httpx2.Limits(keepalive_expiry=2.0)  # seconds; uvicorn closes after 5 what is not used
HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}


class ServerError(UserError):
    """A server that did not give what it was asked for. `why` says it in a few words, the same each time."""

    def __init__(self, message: str, why: str = "answered something else") -> None:
        super().__init__(message)
        self.why = why


class ServerUnavailable(ServerError):
    """The server could not be reached, or was overloaded or broken, until the budget was spent."""


class ServerAnswerError(ServerError):
    """The server refused the request, or answered something else than what it was asked for."""


@dataclass(eq=False)
class Failure(Exception):
    """An attempt that may go better next time."""

    reason: str
    wait: float = 0.0
    """Seconds for which the server asked to be left alone."""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How patient to be with a server."""

    timeout: float
    """Seconds for one attempt, from connecting to the last byte."""
    deadline: float
    """When all attempts end, on the clock of `time.monotonic`."""
    retries: int | None = None
    """How often to try again; None: until the deadline."""
    pause: float = 1.0
    """Seconds before the first new try; doubled each time, up to 30."""


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where all requests run: in a thread of their own, as the caller's takes signals and may have a loop already."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=_loop.cache_clear)  # threads do not come along


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Where something is raised here meanwhile, as by a signal, it is given up at once, with all its
    requests."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()
        del future  # it keeps its error, whose frames would keep it


async def together(actions: Iterable[Callable[[], Awaitable[T]]], limit: int) -> list[T]:
    """What these give, at most `limit` of them under way at the same time. The first that raises ends the others."""
    turns = asyncio.Semaphore(limit)

    async def in_turn(action: Callable[[], Awaitable[T]]) -> T:
        async with turns:
            return await action()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(action)) for action in actions]
        return [task.result() for task in tasks]
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
    raise first


class Client:
    """A server at `url`, http://HOST:PORT or https://HOST, perhaps with a path. `who` begins every message; `key` is
    sent as "Authorization: Bearer KEY"."""

    def __init__(self, who: str, url: str, key: str = "") -> None:
        """Raises ConfigError for what is no URL of a server, or a key with a line end in it."""
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ConfigError(f"{who}: its key has characters that no header can carry, such as a line end.")
        hide(key)
        parts = _parsed(who, url)
        self.base = parts.path.rstrip("/")
        self._origin = f"{parts.scheme}://{parts.netloc.decode()}"
        self.who = f"{who} {self._origin}"
        self._http = httpx2.AsyncClient(
            headers=HEADERS | ({"Authorization": f"Bearer {key}"} if key else {}),
            verify=ssl.create_default_context() if parts.scheme == "https" else False,  # heeds SSL_CERT_FILE
            timeout=None,  # httpx's are for one read each: a server that drips bytes would never reach them
            limits=LIMITS,
            trust_env=False,
        )
        self._jitter = random.Random()  # its own: pauses must not move the generators that training draws from

    async def ask(
        self,
        path: str,
        body: object,
        read: Callable[[Any], T],
        patience: Patience,
        *,
        expected: str,
        failed: str,
        advice: str = "",
        on_failure: Callable[[str], Awaitable[object]] | None = None,
    ) -> T:
        """What `read` makes of the JSON that the server answers, tried again as long as that may help. `body` None asks
        with GET, everything else is posted as JSON. `read` raises KeyError, TypeError, ValueError or AttributeError for
        an answer that is not what `expected` says, Failure for one that may be right next time. `failed` ("gave no
        rewards") and `advice` are part of the error when the server stays unavailable; `on_failure` hears why each
        attempt failed.

        Raises ServerUnavailable when the budget is spent, ServerAnswerError for an answer that trying again would not
        better."""
        data = None if body is None else json.dumps(body, default=str).encode()
        tried: Counter[str] = Counter()
        begun, pause, said = time.monotonic(), patience.pause, ""
        while patience.retries is None or tried.total() <= patience.retries:
            left = patience.deadline - time.monotonic()
            if left <= 0:
                break
            try:
                text = await self._attempt(path, data, min(patience.timeout, left), expected)
                return self._read(path, text, read, expected)
            except Failure as failure:
                reason, wait, said = failure.reason, failure.wait, failure.said
            tried[reason] += 1
            wanted = max(wait, pause * self._jitter.uniform(0.5, 1.0))
            if on_failure is not None:
                await on_failure(reason)
            pause = min(2.0 * pause, LONGEST_PAUSE)
            if time.monotonic() + wanted >= patience.deadline:
                break
            await asyncio.sleep(wanted)
        reasons = ", ".join(f"{reason} ({count}x)" for reason, count in tried.items()) or "no time was left to ask"
        raise ServerUnavailable(
            f"{self.who}{path} {failed} in {tried.total()} attempts and {time.monotonic() - begun:.1f} s: {reasons}."
            f"{said and f' It said {said}.'}{advice and f' {advice}'}",
            " and ".join(sorted({reason.partition(" after ")[0] for reason in tried})) or "was not asked in time",
        )

    def _read(self, path: str, text: bytearray, read: Callable[[Any], T], expected: str) -> T:
        try:
            return read(json.loads(text))
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ServerAnswerError(f"{self.who}{path} answered {_shown(text)}; expected {expected}.") from error

    async def _attempt(self, path: str, data: bytes | None, timeout: float, expected: str) -> bytearray:
        """The answer of one attempt. Raises Failure when the next may go better, ServerAnswerError when it will not."""
        method, answer, text = "GET" if data is None else "POST", None, bytearray()
        try:
            url = self._origin + path
            async with asyncio.timeout(timeout), self._http.stream(method, url, content=data) as answer:
                async for part in answer.aiter_raw():
                    text += part
                    if len(text) > LARGEST_ANSWER:
                        break
        except TimeoutError as error:
            raise Failure(f"timed out after {timeout:.3g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            raise self._trouble(error, answer is not None) from error
        if answer.is_success:
            if len(text) > LARGEST_ANSWER:
                raise ServerAnswerError(f"{self.who}{path} answered more than {LARGEST_ANSWER >> 20} MiB.")
            return text
        code, header, said = answer.status_code, answer.headers.get, _shown(text)
        if code in (408, 429) or code >= 500:
            raise Failure(f"answered {code}", retry_after(header("Retry-After", "")), said if text else "")
        to = brief(header("Location", ""))
        status = f"{code} {brief(answer.reason_phrase)}{to and f', to {to} (redirects are not followed)'}"
        message = f"{self.who}{path} answered {status}: {said}; expected {expected}."
        raise ServerAnswerError(message, f"answered {code}")

    def _trouble(self, error: Exception, answered: bool) -> Exception:
        """What it was, in people's words; `answered` says that an answer had begun."""
        match _root(error):
            case ssl.SSLCertVerificationError() as cause:
                why = brief(cause.verify_message)
                return ServerAnswerError(f"{self.who} has a certificate that cannot be trusted: {why}.")
            case ConnectionRefusedError():
                return Failure("refused the connection")
            case socket.gaierror():
                return Failure("its name is unknown")
            case ConnectionError() | httpx2.NetworkError():
                pass
            case cause if "disconnected" not in str(cause) and "peer closed" not in str(cause):
                return Failure(named(cause))
        return Failure("broke off its answer" if answered else "broke off the connection")


def _parsed(who: str, url: str) -> httpx2.URL:
    plain = url.isascii() and url.isprintable() and not set(url) & set(" @?#")  # @: passwords would get into messages
    with suppress(httpx2.InvalidURL):
        parts = httpx2.URL(url)
        if plain and parts.scheme in ("http", "https") and parts.host and parts.port != 0:
            return parts
    got = "one with a user name" if "@" in url else f"'{url}'"
    raise ConfigError(f"{who} must be http://HOST:PORT or https://HOST, perhaps with a path. Got {got}.")


def _root(error: Exception) -> BaseException:
    """The system's error that led to this one; itself where there is none."""
    root: BaseException = error
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ExceptionGroup):  # one for each of the host's addresses
            inner = inner.exceptions[-1]
        root = inner if isinstance(inner, OSError) else root
        inner = inner.__cause__ or inner.__context__
    return root


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it says neither."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(header)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


def _shown(text: bytearray) -> str:
    """The beginning of an answer, for messages."""
    return repr(brief(bytes(text), 200))
