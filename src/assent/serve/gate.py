"""What every request passes before it is read: who asks, how often, with which key; and whatever goes wrong inside
becomes an answer with a reason."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Collection

from assent.foreign import named
from assent.serve.asgi import App, Message, Rates, Receive, Scope, Send, throw_away
from assent.serve.metrics import Metrics
from assent.serve.shapes import Refusal

log = logging.getLogger(__name__)

OPEN = ("/health",)
"""What is answered to everybody: machines ask it to see whether a server lives."""
LATE = 408
"""The refusal of what did not come in time: it is not waited for again."""


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
                    await throw_away(followed)
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


async def answer(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as a whole answer."""
    body = refusal.body
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
