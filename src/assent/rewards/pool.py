"""A slow or code-like source of rewards in processes of its own, one answer at a time, each with a time limit."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from assent.data.records import Example
from assent.errors import UserError
from assent.guest import blamed
from assent.rewards.group import Group, GroupReward, RewardError, Scores, in_order

Build = Callable[[], GroupReward]
START_LIMIT = 120.0
"""Seconds in which a worker must be ready: the user's module may import much."""
PARENT_CHECK = 0.5
"""Seconds between a worker's looks at whether its parent still lives."""


_pools: weakref.WeakSet[PooledReward] = weakref.WeakSet()


def end_workers() -> None:
    """Ends the workers of every pool: a run that is over leaves none behind."""
    for pool in [*_pools]:
        pool.close()


class PooledReward:
    """`build()`, a source, made once in each worker process and asked for single answers there.

    An answer that takes longer than `limit` seconds, or whose process dies, is unscored ("timed out", "crashed"); its
    process is killed with all that it started, and replaced. An exception of the source is raised here, as without a
    pool. Workers start with the first call and live until `close()`, an error, or the end of the program.
    """

    def __init__(self, name: str, build: Build, *, workers: int, limit: float) -> None:
        """`build` is pickled: partial(FunctionReward, spec, flag) for example. Raises ValueError without workers or
        time."""
        if workers < 1 or not limit > 0:
            raise ValueError(f"{name}: expected workers >= 1 and limit > 0; got {workers} and {limit}.")
        self.name = name
        self.build = pickle.dumps(build)
        self.count = workers
        self.limit = limit
        self._workers: list[_Worker] = []
        weakref.finalize(self, _stop_all, self._workers)
        _pools.add(self)

    def check(self, examples: Sequence[Example]) -> None:
        """Builds the source in this process as well, and lets it look."""
        pickle.loads(self.build)().check(examples)

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises what the source raises, and RewardError when a worker cannot be started."""
        answers = [group.alone(index) for group in groups for index in range(len(group))]
        given: list[Scores] = [Scores(np.zeros(0))] * len(answers)
        waiting = deque(range(len(answers)))
        left = len(answers)
        try:
            while left:
                self._staff(left)
                for worker in self._workers:
                    if worker.idle and waiting:
                        worker.ask(waiting.popleft(), answers, self.limit)
                for worker in self._next():
                    if (index := worker.index) is None:
                        worker.started()
                        continue
                    given[index] = worker.result()
                    left -= 1
                    if worker.dead:
                        self._workers.remove(worker)
        except BaseException:
            _stop_all(self._workers)  # what is under way belongs to this call
            raise
        return in_order(given) if given else Scores(np.zeros(0))

    def close(self) -> None:
        """Ends the workers. The next `score` starts new ones."""
        _stop_all(self._workers)

    def _staff(self, left: int) -> None:
        while len(self._workers) < min(self.count, left):
            self._workers.append(_Worker(self.name, self.build))

    def _next(self) -> list[_Worker]:
        """Waits for a worker to answer, die or run out of time; those that did."""
        busy = [worker for worker in self._workers if not worker.idle]
        pause = min(worker.deadline for worker in busy) - time.monotonic()
        heard = wait([worker.connection for worker in busy], max(0.0, pause))
        now = time.monotonic()
        return [worker for worker in busy if worker.connection in heard or now >= worker.deadline]


class _Worker:
    """A process and the parent's end of its connection. `index` is the answer that it works on."""

    def __init__(self, name: str, build: bytes) -> None:
        self.name = name
        self.index: int | None = None
        self.idle = False
        self.dead = False
        self.deadline = time.monotonic() + START_LIMIT
        self.connection, theirs = Pipe()
        # A plain program rather than `multiprocessing.Process`: the user's main module is not run a second time, and
        # nothing waits for workers when the program ends.
        program = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as pool; pool.serve({theirs.fileno()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a group of its own, to be killed with all that it started
        )
        theirs.close()
        self._send(build)

    def ask(self, index: int, answers: Sequence[Group], limit: float) -> None:
        self.index, self.idle, self.deadline = index, False, time.monotonic() + limit
        self._send(answers[index])

    def started(self) -> None:
        """Raises RewardError when it did not start, and what `build` raised."""
        error = self._receive()
        if isinstance(error, str):
            raise RewardError(f"{self.name}: a worker process {error} before it was ready. See its output above.")
        if error is not None:
            raise error
        self.idle = True

    def result(self) -> Scores:
        """The reward, or why there is none. Raises what the source raised."""
        reply = self._receive()
        if isinstance(reply, str):
            self.stop()
            return Scores(np.full(1, np.nan), failures={reply: 1})
        if isinstance(reply, BaseException):
            raise reply
        self.index, self.idle = None, True
        return reply

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: the next `_receive` says so
            self.connection.send(message)

    def _receive(self) -> Any:
        """Its message; "timed out" or "crashed" where there is none."""
        try:
            return self.connection.recv() if self.connection.poll() else "timed out"
        except (EOFError, OSError):
            return "crashed"

    def stop(self) -> None:
        self.dead = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


def _stop_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()


def serve(descriptor: int) -> None:
    """What a worker process runs: it builds the source, then scores answer after answer until its parent ends."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    connection = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            source = pickle.loads(connection.recv())()
        except BaseException as error:
            connection.send(picklable(error))
            return
        connection.send(None)
        while True:
            group = connection.recv()
            try:
                connection.send(source.score([group]))
            except BaseException as error:
                connection.send(picklable(error))


def picklable(error: BaseException) -> Exception:
    """An error that can be pickled: a person's as it is, any other as its text."""
    return error if isinstance(error, UserError) else RewardError(blamed(error))


def _end_with_parent(parent: int) -> None:
    """Ends this process and all that it started once the parent is gone, even where an answer hangs."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK)
    os.killpg(0, signal.SIGKILL)
