"""What every request passes before it is read: who asks, how often, with which key; and whatever goes wrong inside
becomes an answer with a reason."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

from assent.foreign import named
from assent.serve.metrics import Metrics
from assent.serve.shapes import Refusal

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""What is answered to everybody: machines ask it to see whether a server lives."""
ADDRESSES = 10_000
"""Clients whose rate is remembered."""
BURST = 2.0
"""Seconds' worth of requests that may come at once."""

UNREAD_BYTES, UNREAD_SECONDS = 64 << 20, 5.0
"""What is still taken in, and thrown away, of a request that is refused before it has come whole: to a client that is
sending, a connection that is closed meanwhile is broken, and the answer with the reason is lost."""
LATE = 408
"""The refusal of what did not come in time: it is not waited for again."""


class Rates:
    """How often addresses ask: each has a bucket that `rate` fills every second, and every request takes one from."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, max(1.0, BURST * rate)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> float:
        """0 where it may ask now, else the seconds until it may."""
        if not self._rate:
            return 0.0
        level, then = self._buckets.pop(address, (self._most, now))
        level = min(self._most, level + (now - then) * self._rate)
        wait = max(0.0, (1.0 - level) / self._rate)
        self._buckets[address] = (level if wait else level - 1.0, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return wait


class Gate:
    """An ASGI application around another."""

    def __init__(self, app: App, *, key: str, rate: float, metrics: Metrics, paths: Collection[str]) -> None:
        """`key` is the one that clients must send, "" for none; `paths` are those that are counted by their name."""
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
        self._expected = f"Bearer {key}".encode() if key else b""
        self._rates = Rates(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun, status, whole = time.monotonic(), 0, False

        async def followed() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and status != LATE and not whole and not _waits(scope):
                    await _throw_away(followed)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, followed, counted)
        except Refusal as refusal:
            await answer(counted, refusal)
        except Exception as error:
            log.error("%s: %s", scope["path"] if scope["path"] in self._paths else "a request", named(error))
            if not status:
                await answer(counted, Refusal(500, f"The server failed on this request: {named(error)}."))
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status or 499, time.monotonic() - begun)

    def _check(self, scope: Scope) -> None:
        if scope["path"] in OPEN:
            return
        client = scope.get("client")
        wait = self._rates.take(client[0] if client else "", time.monotonic())
        if wait:
            raise Refusal(429, f"Too many requests from this address; one is free in {wait:.3g} s.", wait=1 + int(wait))
        if self._expected:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):
                raise Refusal(401, "This server wants its key, as the header Authorization: Bearer KEY.")


def _waits(scope: Scope) -> bool:
    """Whether the client sends nothing before it is told to (curl, with much to send): no answer is lost then."""
    return any(name == b"expect" for name, _ in scope["headers"])


async def _throw_away(receive: Receive) -> None:
    """The rest of a request, within bounds."""
    left = UNREAD_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(UNREAD_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


async def answer(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as a whole answer."""
    body = refusal.body
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
