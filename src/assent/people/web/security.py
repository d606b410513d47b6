"""What every request passes before it is read (host, origin, size), and the headers that every answer carries: nothing
runs in a page but its own script, nobody frames it, and nothing of it is asked of other servers."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assent.people.web.refusals import Refused, TooLarge
from assent.serve.asgi import throw_away

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # "no-referrer" would make browsers send forms with the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
HTTPS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}
NOT_STORED = "no-store"
"""How long browsers keep what has no other word about it: not at all, so that nobody goes back to it signed out."""

LARGEST_FORM = 1 << 20
"""Bytes of a request: an answer of the largest size, also where each of its bytes is written as three."""
LARGEST_FILE = 64 << 20
"""Bytes of a request that brings items or labels (`FILES`)."""
FILES = re.compile(r"/(?:api/)?p/[^/]+/(?:lead/)?(?:items|import)/?")

PATIENCE, SLOWEST = 60.0, 10_000
"""Seconds that a request may take to come in, and bytes a second for which it may take longer."""
HOST = re.compile(r"(?P<name>[\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


class Gate:
    """An ASGI application around another. It counts what is under way, which the server waits for at its end."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        public_url: str,
        refuse: Callable[[Request, Refused], Awaitable[Response]],
    ) -> None:
        """`hosts` are the names by which it may be asked beside this machine's own and plain addresses; `refuse` makes
        the answer to a request that is refused."""
        self._app, self._refuse = app, refuse
        self._public = urlsplit(public_url)
        self._hosts = hosts | ({self._public.hostname} if self._public.hostname else set())
        self.requests = 0
        self._closing = False

    def close(self) -> None:
        """No more requests are taken."""
        self._closing = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # whoever sends it leaves the body out
            scope = {**scope, "method": "GET"}
        request = Request(scope)
        whole, taken, begun = request.method in SAFE, 0, time.monotonic()
        limit = LARGEST_FILE if FILES.fullmatch(scope["path"]) else LARGEST_FORM
        secure = self.is_secure(request)
        scope.setdefault("state", {})["secure"] = secure

        async def counted() -> Message:
            nonlocal whole, taken
            message = await (receive() if whole else _in_time(receive, begun + PATIENCE + taken / SLOWEST))
            whole = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _too_large(limit)
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and not whole:
                    await throw_away(receive)
                message["headers"] = [*message["headers"], *_headers(message, secure)]
            await send(message)

        self.requests += 1
        try:
            try:
                self._check(request, limit)
                await self._app(scope, counted, sent)
            except Refused as refused:
                await (await self._refuse(request, refused))(scope, counted, sent)
        finally:
            self.requests -= 1

    def is_secure(self, request: Request) -> bool:
        """Whether the browser speaks https, if only with a proxy before this server."""
        return request.url.scheme == "https" or self._public.scheme == "https"

    def _check(self, request: Request, limit: int) -> None:
        if self._closing:
            raise Refused(
                503, "stopping", "The server is stopping. What you wrote is kept; send it again soon.", wait=5
            )
        host = request.headers.get("host", "")
        if not self._is_own(host):
            raise Refused(
                421,
                "host",
                "This server is not called so. If it should be, start it with --public_url and the address that people "
                "type.",
            )
        if request.method not in SAFE:
            self._check_origin(request, host)
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            raise _too_large(limit)

    def _is_own(self, host: str) -> bool:
        name = _name_of(host)
        if name in LOCAL or name in self._hosts or name.endswith(".localhost"):
            return True
        try:
            return bool(ipaddress.ip_address(name))  # others' names that lead here are what is kept out
        except ValueError:
            return False

    def _check_origin(self, request: Request, host: str) -> None:
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if origin is None:
            fine = site in (None, "same-origin", "none")
        else:
            scheme, _, place = origin.partition("://")
            fine = place == host or (scheme, place) == self._public[:2]
        if not fine:
            raise Refused(403, "origin", "This was sent from a page of another site. Open the page here and try again.")


async def _in_time(receive: Receive, until: float) -> Message:
    """More of a request. Raises Refused where it does not come."""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await receive()
    except TimeoutError:
        raise Refused(408, "slow", "The request did not come in whole in time. Nothing of it was taken.") from None


def _name_of(host: str) -> str:
    """The name in a Host header; "" for none."""
    found = HOST.fullmatch(host)
    return found["name"].strip("[]").lower() if found else ""


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"This is larger than the {limit:,} bytes that one request may have. Nothing of it was taken.")


def _headers(message: Message, secure: bool) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in message["headers"]}
    wanted = HEADERS | (HTTPS_HEADERS if secure else {})
    if b"cache-control" not in there:
        wanted |= {"Cache-Control": NOT_STORED}
    return [(name.lower().encode(), value.encode()) for name, value in wanted.items()]
