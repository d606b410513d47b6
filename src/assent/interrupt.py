"""Signals that end a run without loss: what it waits for is given up, and the last good state is saved by `guard`."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Protocol

from assent import process
from assent.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = 0.5
"""Seconds after which code that did not end at a signal is interrupted again."""
GRACE = 3.0
"""Seconds after which it is no longer waited for."""


class Store(Protocol):
    """What all ranks read and write (torch's)."""

    def set(self, key: str, value: str) -> None: ...

    def check(self, keys: list[str]) -> bool: ...

    def get(self, key: str) -> bytes: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


class Interrupt:
    """Takes SIGINT, SIGTERM and SIGHUP while it is entered (not one that the process was started to ignore). The first
    sets `requested`, and raises Interrupted at once where the main thread is in a stretch that may be left; elsewhere
    (an update, a save) at the beginning of the next such stretch. Code that swallows it is interrupted again; code that
    does not come back at all is left to itself: `rescue` then saves in its stead, in another thread, and ends the
    process, where that is the command's own. Later signals change nothing.

    With a `store`, a signal to one rank is a signal to all. Python takes signals in the main thread only; entered
    elsewhere, this does nothing.
    """

    _number = 0  # of this process; the same on every rank

    def __init__(self, rescue: Callable[[int], object] | None = None, store: Store | None = None) -> None:
        self.requested = False
        self.number: int = signal.SIGTERM
        self.rescue, self.store = rescue, store
        self._depth = 0
        self._over = False
        self._saving = threading.Lock()
        self._echo = False
        self._told = 0.0
        self._before: dict[int, Any] = {}
        self._wakeup = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None
        Interrupt._number += 1
        self._key = f"assent/stop/{Interrupt._number}"

    def __enter__(self) -> Interrupt:
        global _active
        _active = self
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._catch)
            self._ends = reader, writer = socket.socketpair()
            writer.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        _active = None
        if not (self.requested and process.is_own()):  # else one more signal would end what is left to do
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before.clear()
        if self._ends is not None:
            signal.set_wakeup_fd(self._wakeup)
            reader, writer = self._ends
            writer.close()  # ends the thread, which closes the other one
            self._ends = None

    def close(self) -> None:
        """From now on nothing is interrupted. Does not come back where `rescue` is at work already."""
        self._over = True
        if not self._saving.acquire(blocking=False):
            threading.Event().wait()

    @contextmanager
    def stretch(self) -> Iterator[None]:
        """See `interruptible`."""
        self._depth += 1
        try:
            self.check()
            yield
        except Interrupted:
            raise
        except BaseException as error:
            if self.requested and not self._over:  # what the interruption was made into on its way
                raise Interrupted(self.number) from error
            raise
        else:
            self.check()
        finally:
            self._depth -= 1

    def check(self) -> None:
        """Raises Interrupted where a signal came."""
        if self.requested and not self._over:
            raise Interrupted(self.number)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        echo, self._echo = self._echo, False
        now = time.monotonic()
        if not self.requested:
            self.requested, self.number, self._told = True, number, now
            process.tell(f"\n{signal.Signals(number).name}: stopping; the last finished step is saved.\n")
        elif not echo and now - self._told >= 1.0:  # torchrun passes on what came from the terminal as well
            self._told = now
            process.tell("\nStill stopping and saving. kill -9 ends it by force: complete checkpoints stay complete.\n")
        if self._depth and not self._over:
            raise Interrupted(self.number)

    # ---- beside the main thread, which may be deep in foreign code

    def _watch(self, reader: socket.socket) -> None:
        """Waits for the first signal, whatever the main thread does."""
        with reader, suppress(RuntimeError):  # the store's, once the rank that keeps it has ended
            while True:
                ready, _, _ = select.select([reader], [], [], AGAIN if self.store is not None else None)
                if ready and not (heard := reader.recv(1)):
                    return
                if ready and heard[0] in self._before:
                    return self._insist(heard[0])
                if not ready and self.store is not None and self.store.check([self._key]):
                    signal.pthread_kill(_main(), int(self.store.get(self._key)))

    def _insist(self, number: int) -> None:
        if self.store is not None:
            self.store.set(self._key, str(int(number)))
        inside = 0.0
        while not self._over and self._ends is not None:
            time.sleep(AGAIN)
            inside = inside + AGAIN if self._depth else 0.0
            if inside >= GRACE and self.rescue is not None and process.is_own():
                if self._saving.acquire(blocking=False):
                    self.rescue(number)
                return
            if inside:
                self._echo = True
                signal.pthread_kill(_main(), number)


_active: Interrupt | None = None


def _main() -> int:
    return threading.main_thread().ident or 0


@contextmanager
def interruptible(there: bool = True) -> Iterator[None]:
    """A stretch of the main thread that a signal may end at any point, by Interrupted: what is saved needs nothing of
    it. No collective may be in it, where there are several ranks. `there` false: it is none."""
    if _active is None or not there:
        yield
    else:
        with _active.stretch():
            yield


def requested() -> int:
    """The number of the signal that asked this run to stop, 0 where none did."""
    return _active.number if _active is not None and _active.requested else 0
