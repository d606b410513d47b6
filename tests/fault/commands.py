"""Short runs for the tests of faults, and what they come to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assent.cli import COMMANDS, _function
from assent.config import RunConfig
from assent.train import checkpoint
from assent.train.log import read_metrics


def train(config: RunConfig) -> Any:
    """As its command does."""
    (command,) = (row for row in COMMANDS.values() if row.config is type(config))
    return _function(command.target)(config)


def grpo_words(out: Path | str, model: Path | str, data: Path | str, *more: str, steps: int) -> list[str]:
    """The words of a run of GRPO in which every step has a rollout of its own, of two prompts; without rewards."""
    flags = {
        "model.path": model,
        "model.precision": "fp32",
        "data.train": data,
        "data.max_length": 64,
        "out": out,
        "optim.lr": 1e-3,
        "train.batch_size": 2,
        "train.max_steps": steps,
        "train.threads": 1,
        "rollout.responses": 2,
        "sampling.max_new_tokens": 5,
    }
    return ["grpo", *(text for name, value in flags.items() for text in (f"--{name}", str(value))), *more]


def result(out: Path) -> tuple[str, list[dict]]:
    """The final weights, and all that was logged but times."""
    weights = (out / "model" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), read_metrics(out / "metrics.jsonl", times=False)


def newest_step(out: Path) -> int:
    """The step of the newest whole checkpoint."""
    newest = checkpoint.newest_complete(out / "checkpoints")
    assert newest is not None
    return checkpoint.read_manifest(newest)["step"]


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
