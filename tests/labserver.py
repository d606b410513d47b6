"""`assent label` as a process of its own, for tests: started, asked whether it is there, stopped and killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx2

SLOW = 600.0
"""Seconds that a start may take on a busy machine."""


class LabelProcess:
    """The server of these tasks on a database in `folder`, up while it is entered. `url` stays the same from one start
    to the next. `children` is the fixture of that name."""

    def __init__(self, children: Any, folder: Path, *tasks: Path) -> None:
        self.children, self.tasks = children, tasks
        self.db, self.log = folder / "labels.db", folder / "server.log"
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            self.port = place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.pid: int | None = None

    def start(self) -> None:
        """Returns once it answers."""
        words = ["label", *map(str, self.tasks), "--db", str(self.db), "--port", str(self.port)]
        self.pid = self.children.start(words, self.log)
        until = time.monotonic() + SLOW
        while time.monotonic() < until and "error: " not in self._said():
            try:
                httpx2.get(f"{self.url}/health", timeout=10.0, trust_env=False)
                return
            except httpx2.HTTPError:
                time.sleep(0.1)
        self.kill()
        raise AssertionError(self._said()[-2000:])

    def _said(self) -> str:
        """The log, which the child makes when it begins."""
        return self.log.read_text() if self.log.exists() else ""

    def stop(self) -> int:
        """Asks it to end, as a service manager does; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """Ends it as nothing can be done about."""
        return self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self.pid is not None
        os.kill(self.pid, number)
        pid, self.pid = self.pid, None
        return self.children.wait(pid, SLOW)

    def __enter__(self) -> LabelProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid is not None:
            self.stop()
