"""A worker's side of taking turns: it does its warm-up, says that it is ready, and then works only when it is asked to,
some steps at a time. Standard library only: the peers' environments import it too.

Both sides of a row live at the same time and alternate, so a slow phase of the machine hits both.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time


class Turns:
    """Call `step` at the end of every step; it returns when the next one may begin, and raises SystemExit when no more
    are wanted. The first `warmup` steps are not timed. Whatever else the process prints goes to standard error."""

    def __init__(self, warmup: int, **facts: object) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._warmup, self._facts = warmup, facts
        self._steps: list[dict[str, float]] = []
        self._left = 0
        self._begun = 0.0

    def step(self, **work: float) -> None:
        """A step is done; `work` is what was in it (tokens, operations)."""
        now = time.perf_counter()
        if self._warmup > 1:
            self._warmup -= 1
            return
        if self._warmup == 1:
            self._warmup = 0
            self._send({"ready": self._facts})
            return self._wait()
        self._steps.append({"seconds": now - self._begun, **work})
        self._begun = now
        self._left -= 1
        if self._left == 0:
            self._send({"steps": self._steps, "peak_rss": peak_rss()})
            self._steps = []
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = int(line)
        self._begun = time.perf_counter()

    def _send(self, message: dict[str, object]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def peak_rss(process: str = "self") -> int:
    """Most resident memory of a process (its id; or this one) so far, and of those that it started, in bytes. Linux's
    VmHWM starts anew with the program; ru_maxrss, used elsewhere, would include the process that started this one."""
    try:
        return _with_children(process)
    except OSError:
        if process != "self":
            return 0
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def _with_children(process: str) -> int:
    with open(f"/proc/{process}/status", encoding="utf-8") as file:
        used = next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
    children: list[str] = []
    for task in os.listdir(f"/proc/{process}/task"):
        try:
            with open(f"/proc/{process}/task/{task}/children", encoding="ascii") as file:
                children += file.read().split()
        except OSError:
            continue
    for child in children:
        try:
            used += _with_children(child)
        except OSError:  # it has ended
            continue
    return used
