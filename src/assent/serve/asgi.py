"""What servers of HTTP share: how often an address may ask, and what is done with a request that is refused unread."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ADDRESSES = 10_000
"""Clients whose rate is remembered."""
BURST = 2.0
"""Seconds' worth of requests that may come at once."""

UNREAD_BYTES, UNREAD_SECONDS = 64 << 20, 5.0
"""What is still taken in, and thrown away, of a request that is refused before it has come whole: to a client that is
sending, a connection that is closed meanwhile is broken, and the answer with the reason is lost."""


class Rates:
    """How often addresses ask: each has a bucket that `rate` fills every second, and every request takes one from. It
    holds `burst` of them; default: those of two seconds."""

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate, self._most = rate, burst or max(1.0, BURST * rate)
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

    def give_back(self, address: str) -> None:
        """The last request of an address does not count."""
        if address in self._buckets:
            level, then = self._buckets[address]
            self._buckets[address] = (min(self._most, level + 1.0), then)


async def throw_away(receive: Receive) -> None:
    """The rest of a request, within bounds."""
    left = UNREAD_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(UNREAD_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
