"""The driver's side of taking turns: one worker process of a row, and the measurement of a row with two of them.
Standard library only, so that the driver itself takes neither memory nor cores."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.plan import Length, Row

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 1800.0
"""Seconds after which a silent worker is given up."""
TOKENS_APART = 0.03
"""Largest difference of the two sides' token counts, as a share; they differ by what a template writes after EOS."""


class SideFailed(RuntimeError):
    """A worker died, or said nothing for too long."""


class Side:
    """A worker process (see benchmarks.turns), as a context. What it prints goes to `log`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.command, self.log = command, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()

    def read(self) -> dict[str, Any]:
        """The worker's next message."""
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise SideFailed(f"{' '.join(self.command)} ended early:\n{tail}")
        return json.loads(line)

    def turn(self, steps: int) -> dict[str, Any]:
        """Lets the worker take `steps` steps; its report of them."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` says why
        return self.read()


def measure(
    row: Row, length: Length, interpreters: Mapping[str, str], folder: Path, env: Mapping[str, str]
) -> dict[str, Any]:
    """Both sides of a row, in turns: steps with their seconds and their work, peak memory, versions."""
    result: dict[str, Any] = {"what": row.what, "model": row.model, "precision": row.precision, "target": row.target}
    with ExitStack() as stack:
        sides = {}
        for name, module in row.modules.items():
            python = interpreters["ours" if name == "ours" else row.kind.environment]
            arguments = (row.tasks[name], row.model, row.precision, str(length.warmup), str(folder))
            command = [python, "-m", f"benchmarks.{module}", *arguments]
            sides[name] = stack.enter_context(Side(command, env, folder / f"{name}.log"))
        for name, side in sides.items():
            result[name] = {"turns": [], "peak_rss": 0, **side.read()["ready"]}
        for _ in range(length.turns):
            for name, side in sides.items():
                time.sleep(row.kind.rest)
                report = side.turn(length.steps)
                result[name]["turns"].append(report["steps"])
                result[name]["peak_rss"] = report["peak_rss"]
    _same_work(row, result)
    return result


def _same_work(row: Row, result: Mapping[str, Any]) -> None:
    ours, peer = (sum(step["tokens"] for turn in result[name]["turns"] for step in turn) for name in ("ours", "peer"))
    if abs(ours - peer) > TOKENS_APART * peer:
        raise SideFailed(f"{row}: the sides did not do the same work: {ours:.0f} tokens here, {peer:.0f} there")
