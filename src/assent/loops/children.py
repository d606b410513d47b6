"""Runs of a loop beside one another, each a command in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from assent.errors import AssentError, Interrupted, ShutdownRequested
from assent.interrupt import Interrupt, interruptible

log = logging.getLogger(__name__)

LOOK = 0.1
"""Seconds between two looks at the processes."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
PROGRAM = """
import ctypes, runpy, signal
if hasattr(system := ctypes.CDLL(None), "prctl"):
    system.prctl(1, signal.SIGTERM)  # where the loop is killed its runs save and end as well
runpy.run_module("assent", run_name="__main__", alter_sys=True)
"""
"""python -m assent, which ends with the process that started it."""


class RunFailed(AssentError):
    """A run that ended by itself before its end; the loop ends with its exit code."""

    def __init__(self, name: str, code: int) -> None:
        """`code` as Python has it: below 0, the signal that killed it."""
        said = "its message is above" if code > 0 else f"killed by {signal.Signals(-code).name}"
        super().__init__(f"{name} ended with exit code {code} ({said}).")
        self.name = name
        self.exit_code = code if code > 0 else 128 - code


@dataclass(frozen=True)
class Child:
    """What is to be run: a name for messages, and the words behind `assent`."""

    name: str
    words: tuple[str, ...]


def devices() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES calls them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def stopped(name: str, folder: Path) -> str:
    """What a person is told of a run that did not come to its end."""
    return (
        f"{name} did not come to its end, and the loop stops with it. All that was made is kept in {folder}; the same "
        "command with --resume auto goes on with this run, where it has saved."
    )


def together(children: Sequence[Child], at_once: int, places: Sequence[str] = (), program: str = PROGRAM) -> None:
    """Runs all of them, `at_once` at most at the same time, each on a device of `places` where there are any. What they
    say is shown behind their names.

    Where one fails the others are told to save and stop, and RunFailed has its exit code; a signal to this process is
    passed on, and when all have ended it is raised as ShutdownRequested."""
    waiting, free = list(children), list(places) or [""] * at_once
    running: dict[Child, tuple[subprocess.Popen[str], str]] = {}
    number = 0
    failed: dict[str, int] = {}
    with Interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    child, place = waiting.pop(0), free.pop(0)
                    running[child] = _started(child, place, program), place
                with interruptible():
                    time.sleep(LOOK)
                for child, (process, place) in list(running.items()):
                    if (code := process.poll()) is not None:
                        del running[child]
                        free.append(place)
                        failed |= {child.name: code} if code else {}
                if failed:
                    break
        except Interrupted as interrupted:
            number = interrupted.number
        _end(running, number or signal.SIGTERM)
    if number:
        raise ShutdownRequested(number, "The runs have saved.")
    if failed:
        raise RunFailed(*next(iter(failed.items())))


def _started(child: Child, place: str, program: str) -> subprocess.Popen[str]:
    env: Mapping[str, str] = {**os.environ, "PYTHONUNBUFFERED": "1"} | ({VISIBLE: place} if place else {})
    process = subprocess.Popen(
        [sys.executable, "-c", program, *child.words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        text=True,
        errors="replace",
        start_new_session=True,  # the terminal's Ctrl-C is for the loop, which passes it on once
    )
    threading.Thread(target=_relay, args=(child.name, process), daemon=True).start()
    return process


def _relay(name: str, process: subprocess.Popen[str]) -> None:
    """What a run says, behind its name."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            log.info(f"{name}: {line.rstrip()}")


def _end(running: Mapping[Child, tuple[subprocess.Popen[str], str]], number: int) -> None:
    """Passes a signal on and waits for all to have saved."""
    for process, _ in running.values():
        process.send_signal(number)
    for process, _ in running.values():
        process.wait()
