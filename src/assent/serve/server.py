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

from assent import process
from assent.errors import AssentError
from assent.interrupt import SIGNALS

log = logging.getLogger(__name__)

CONNECTIONS = 2048
"""That wait to be accepted."""


class UnderWay(Protocol):
    """What an application has taken: how many requests, and that no more are taken once it is closed."""

    requests: int

    def close(self) -> None: ...


class DrainError(AssentError):
    """The server was stopped before it had answered all that it had taken."""


class Server(uvicorn.Server):
    """uvicorn, without its own signal handlers, and with its own words."""

    def __init__(self, app: Any, queue: UnderWay, drain: float, started: Callable[[], object]) -> None:
        """`drain` are the seconds for what is under way at the end; `started` is called once it listens."""
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
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
