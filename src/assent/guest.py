"""Code of the user's in this process: what it does to the process ends with its turn."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from assent.foreign import named
from assent.process import steady_output


class Guest:
    """One piece of such code, a module and its functions. After each turn the working folder, the output streams, the
    signal handlers and torch's default type, threads, random numbers and gradient mode are again what they were; only
    its working folder is kept for its next turn."""

    def __init__(self) -> None:
        self._folder: str | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        put_back = [*_handlers(), *_torch()]
        home = _working_folder()
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _raise_ctrl_c)
        if self._folder is not None:
            _enter(self._folder)
        try:
            with steady_output():
                yield
        finally:
            self._folder = _working_folder()
            if home is not None and home != self._folder:
                _enter(home)
            for action in put_back:
                action()


class CtrlC(KeyboardInterrupt):
    """A person's, in a guest's turn; any other KeyboardInterrupt there is the code's own."""


def _raise_ctrl_c(number: int, frame: object) -> None:
    raise CtrlC


def ends_programs(error: BaseException) -> bool:
    """Whether this is code ending the program, by `sys.exit` or an exception that is no error. To be asked in its
    turn."""
    if isinstance(error, KeyboardInterrupt):
        return type(error) is not CtrlC and signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return isinstance(error, SystemExit | GeneratorExit)


def blamed(error: BaseException) -> str:
    """What was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    ends = "" if isinstance(error, Exception) else ", which ends a program"
    return f"{named(error)} ({frames[-1].filename}:{frames[-1].lineno}){ends}" if frames else f"{named(error)}{ends}"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _working_folder() -> str | None:
    with suppress(OSError):  # it may be gone
        return os.getcwd()
    return None


def _enter(folder: str) -> None:
    with suppress(OSError):
        os.chdir(folder)


def _handlers() -> Iterator[Callable[[], object]]:
    if _in_main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (handler := signal.getsignal(number)) is not None:
                yield partial(signal.signal, number, handler)


def _torch() -> Iterator[Callable[[], object]]:
    """Workers have no torch, unless the code brings it."""
    if (torch := sys.modules.get("torch")) is None:
        return
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    random, gradients = torch.get_rng_state(), torch.is_grad_enabled()
    yield partial(torch.set_default_dtype, dtype)
    yield partial(torch.set_num_threads, threads)
    yield partial(torch.set_rng_state, random)
    yield partial(torch.set_grad_enabled, gradients)
