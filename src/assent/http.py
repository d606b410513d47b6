"""Requests to a server that may have bad moments.

What may pass by itself (refused or broken connections, time-outs, 408, 429, 5xx) is tried again with growing, randomly
shortened pauses, within a budget. What will not (any other status, an answer that is not what was asked for) is an
error at once. Proxy settings and redirects are ignored.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from assent.errors import ConfigError, UserError
from assent.foreign import brief, hide, named

T = TypeVar("T")

LONGEST_PAUSE = 30.0
LARGEST_ANSWER = 1 << 28  # bytes


class ServerUnavailable(UserError):
    """The server could not be reached, or was overloaded or broken, until the budget was spent."""


class ServerAnswerError(UserError):
    """The server refused the request, or answered something else than what it was asked for."""


class Failure(Exception):
    """An attempt that may go better next time: why it failed, how long the server asked to be left alone, and what it
    said."""

    def __init__(self, reason: str, wait: float = 0.0, said: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.said = said


class Stop(threading.Event):
    """Set by whoever no longer wants the answers: pauses end, and connections that are open break off."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def set(self) -> None:
        with self._lock:
            super().set()
            for sock in self._open:
                _shut(sock)

    @contextmanager
    def over(self, sock: socket.socket) -> Iterator[socket.socket]:
        """While `sock` is used; gives another handle of it. Raises Failure where this is set already."""
        with sock.dup() as own:  # TLS takes the socket itself over
            with self._lock:
                if self.is_set():
                    raise Failure("was no longer wanted")
                self._open.add(own)
            try:
                yield own
            finally:
                with self._lock:
                    self._open.discard(own)


def together(actions: Iterable[Callable[[], T]], limit: int, stop: Stop) -> list[T]:
    """What these give, of which at most `limit` are under way at the same time. The first that raises, or whatever is
    raised here meanwhile, stops the others."""
    with ThreadPoolExecutor(limit) as threads:
        try:
            futures = [threads.submit(action) for action in actions]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)


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
    stop: Stop = field(default_factory=Stop)


class Client:
    """A server at `url`, http://HOST:PORT or https://HOST, perhaps with a path. `who` begins every message; `key` is
    sent as "Authorization: Bearer KEY"."""

    def __init__(self, who: str, url: str, key: str = "") -> None:
        """Raises ConfigError for what is no URL of a server, or a key with a line end in it."""
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"{who}: its key has characters that no header can carry, such as a line end.")
        self._url = _split(who, url)
        self.base = self._url.path.rstrip("/")
        self.who = f"{who} {self._url.scheme}://{self._url.netloc}"
        self._key = key
        hide(key)
        self._jitter = random.Random()  # its own: pauses must not move the generators that training draws from

    def ask(
        self,
        path: str,
        body: object,
        read: Callable[[Any], T],
        patience: Patience,
        *,
        expected: str,
        failed: str,
        advice: str = "",
        on_failure: Callable[[str], object] = lambda reason: None,
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
            if left <= 0 or patience.stop.is_set():
                break
            try:
                text = self._attempt(path, data, min(patience.timeout, left), expected, patience.stop)
                return self._read(path, text, read, expected)
            except Failure as failure:
                tried[failure.reason] += 1
                said = failure.said
                wanted = max(failure.wait, pause * self._jitter.uniform(0.5, 1.0))
                on_failure(failure.reason)
            pause = min(2.0 * pause, LONGEST_PAUSE)
            if time.monotonic() + wanted >= patience.deadline or patience.stop.wait(wanted):
                break
        reasons = ", ".join(f"{reason} ({count}x)" for reason, count in tried.items()) or "no time was left to ask"
        raise ServerUnavailable(
            f"{self.who}{path} {failed} in {tried.total()} attempts and {time.monotonic() - begun:.1f} s: {reasons}."
            f"{said and f' It said {said}.'}{advice and f' {advice}'}"
        )

    def _read(self, path: str, text: bytes, read: Callable[[Any], T], expected: str) -> T:
        try:
            return read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise ServerAnswerError(f"{self.who}{path} answered {_shown(text)}; expected {expected}.") from error

    def _attempt(self, path: str, data: bytes | None, timeout: float, expected: str, stop: Stop) -> bytes:
        """One attempt, from connecting to the last byte of the answer. Raises Failure when it may go better next time,
        ServerAnswerError when it will not."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        host, secure = self._url.hostname or "", self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, self._url.port)
        late = threading.Event()
        ends = time.monotonic() + timeout
        timer = None
        try:
            connection.sock = _connect(host, connection.port, timeout, stop)
            with stop.over(connection.sock) as own:
                # The connection's own limit is for one read: a server that drips bytes would never reach it.
                timer = threading.Timer(max(0.0, ends - time.monotonic()), _hang_up, (own, late))
                timer.start()
                if secure:
                    tls = ssl.create_default_context()
                    connection.sock = tls.wrap_socket(connection.sock, server_hostname=host)
                connection.request("GET" if data is None else "POST", path, data, headers)
                response = connection.getresponse()
                text = response.read(LARGEST_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            raise ServerAnswerError(
                f"{self.who} has a certificate that cannot be trusted: {brief(error.reason)}."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"timed out after {timeout:.3g} s" if late.is_set() else _reason(error, timeout)) from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()
        if late.is_set():
            raise Failure(f"timed out after {timeout:.3g} s")
        self._check_status(path, response, text, expected)
        return text

    def _check_status(self, path: str, response: http.client.HTTPResponse, text: bytes, expected: str) -> None:
        if response.status in (408, 429) or response.status >= 500:
            wait = retry_after(response.headers.get("Retry-After", ""))
            raise Failure(f"answered {response.status}", wait, _shown(text) if text else "")
        if not 200 <= response.status < 300:
            status = f"{response.status} {brief(response.reason)}"
            raise ServerAnswerError(f"{self.who}{path} answered {status}: {_shown(text)}; expected {expected}.")
        if len(text) > LARGEST_ANSWER:
            raise ServerAnswerError(f"{self.who}{path} answered more than {LARGEST_ANSWER >> 20} MiB.")
        if response.length:  # what was announced and did not come
            raise Failure("broke off its answer")


def _split(who: str, url: str) -> SplitResult:
    plain = url.isascii() and url.isprintable() and not set(url) & set(" @?#")  # @: passwords would get into messages
    try:
        parts = urlsplit(url)
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # a port that is no number, half an IPv6 address
        pass
    got = "one with a user name" if "@" in url else f"'{url}'"
    raise ConfigError(f"{who} must be http://HOST:PORT or https://HOST, perhaps with a path. Got {got}.")


def _connect(host: str, port: int, timeout: float, stop: Stop) -> socket.socket:
    """A connection to the first of the host's addresses that takes one."""
    failed: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            with stop.over(sock):
                sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    _shut(sock)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # whoever reads from it, or connects it, wakes up


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
            return named(error)


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it says neither."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(header)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


def _shown(text: bytes) -> str:
    """The beginning of an answer, for messages."""
    return repr(brief(text, 200))
