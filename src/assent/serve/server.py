"""The HTTP server around an application: it begins, and at a signal it ends without losing what it has taken."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from assent import process
from assent.errors import AssentError
from assent.interrupt import SIGNALS

log = logging.getLogger(__name__)

CONNECTIONS = 2048
"""That wait to be accepted."""
PATIENCE = 30.0
"""Seconds in which the head of a request must have come: connections that say nothing would use up all that a process
may have, and nobody else could connect."""


class UnderWay(Protocol):
    """What an application has taken: how many requests, and that no more are taken once it is closed."""

    requests: int

    def close(self) -> None: ...


class DrainError(AssentError):
    """The server was stopped before it had answered all that it had taken."""


class Patient(H11Protocol):
    """uvicorn's, that hangs up on whoever does not send a request."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_request(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(PATIENCE, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _hang_up(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn, without its own signal handlers, and with its own words."""

    def __init__(self, app: Any, queue: UnderWay, drain: float, started: Callable[[], object]) -> None:
        """`drain` are the seconds for what is under way at the end; `started` is called once it listens."""
        super().__init__(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=CONNECTIONS,
                timeout_graceful_shutdown=ceil(drain),
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients that send no HTTP are no news
        self._queue, self._drain, self._begun = queue, drain, started
        self.left = 0
        """Requests that the end cut off."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._queue.close()
        waiting = asyncio.ensure_future(super().shutdown(sockets))
        done, _ = await asyncio.wait({waiting}, timeout=self._drain)
        self.left = 0 if done else self._queue.requests
        if not done:
            self.force_exit = True
        await waiting

    def stop(self, number: int) -> None:
        """The first signal ends it in order, the second at once."""
        name = signal.Signals(number).name
        if not self.should_exit:
            log.info(
                "%s: no more requests are taken; %s under way are answered, within %g s. A second signal ends it now.",
                name,
                f"{self._queue.requests:,}",
                self._drain,
            )
            self._queue.close()
            self.should_exit = True
            return
        process.tell(f"{name}: ended with {self._queue.requests} requests unanswered.\n")
        if process.is_own():
            process.leave(128 + number)
        self.force_exit = True


def run(app: Any, place: socket.socket, queue: UnderWay, drain: float, started: Callable[[], object]) -> None:
    """Serves at `place`, a bound socket, until a signal. Raises DrainError where requests were left at the end."""
    server = Server(app, queue, drain, started)

    async def work() -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    loop.add_signal_handler(number, server.stop, number)
        await server.serve([place])

    asyncio.run(work())
    if server.left:
        raise DrainError(f"{server.left} requests were not answered within --drain {drain:g} seconds.")
    log.info("All requests are answered.")
