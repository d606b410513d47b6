"""Two ranks: a signal to one of them, while the other is deep in its user's code; an error on one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .commands import grpo_words, newest_step, result, until

FUNCTION = """
import os, time
from pathlib import Path

HERE, RANK = Path(__file__).parent, os.environ.get("RANK")
asked = 0

def sleeps(completions, **columns):
    global asked
    asked += 1
    if asked == 2 and RANK == "1" and (HERE / "waits").exists():
        (HERE / "there").touch()
        time.sleep(600)
    return [float(len(text)) for text in completions]

def fails(completions, **columns):
    if len(read()) == 1 and RANK == "1":
        raise KeyError("no")
    return [float(len(text)) for text in completions]

def read():
    file = HERE / "fails" / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []

def breaks(completions, **columns):
    import assent.train.loop as loop
    global asked
    asked += 1
    if asked == 2 and RANK == "1":
        def broken(*arguments):
            raise RuntimeError("this rank alone")
        loop._gradients = broken
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def ranks(children, tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Starts the command on two ranks."""
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{i} red?"}}\n' for i in range(8)))

    def start(out: str, function: str, *more: str) -> Any:
        rewards = ("--rewards.functions", f"{tmp_path / 'mine.py'}:{function}", *more)
        words = grpo_words(tmp_path / out, tiny_model_dir, tmp_path / "rows.jsonl", *rewards, steps=3)
        return children.ranks(tmp_path, words)

    return start


def test_a_signal_to_one_rank_stops_the_code_of_another(ranks, tmp_path: Path) -> None:
    (tmp_path / "waits").touch()
    both = ranks("run", "sleeps")
    until((tmp_path / "there").exists)
    os.kill(both.pids[0], signal.SIGTERM)  # which waits in a collective
    begun = time.monotonic()
    assert both.codes() == [143, 143], both.said
    assert time.monotonic() - begun < 5
    for said in both.said:
        assert "Stopped by SIGTERM. Checkpoint of step 1 saved; continue with --resume auto." in said
    (tmp_path / "waits").unlink()
    for out, more in (("run", ("--resume", "auto")), ("straight", ())):
        ranks(out, "sleeps", *more).join()
    assert result(tmp_path / "run") == result(tmp_path / "straight")


def test_what_one_rank_raises_is_saved_by_all(ranks) -> None:
    both = ranks("fails", "fails")
    assert both.codes() == [2, 2], both.said
    for said in both.said:
        assert "fails raised KeyError: 'no'" in said and "Traceback" not in said
        assert "Checkpoint of step 1 saved; continue with --resume auto." in said


def test_an_error_of_one_rank_alone_ends_all_and_says_what_there_is(ranks, tmp_path: Path) -> None:
    both = ranks("run", "breaks", "--train.save_every", "1")
    assert both.codes() == [1, 1], both.said
    alone = (
        "It ended one rank alone, and the state of step 1 is spread over all. The newest checkpoint is that of step 1"
    )
    whole = "Checkpoint of step 1 saved; continue with --resume auto."
    for said in both.said:
        assert "Traceback" in said and (alone in said or whole in said)
    assert "RuntimeError: this rank alone" in both.said[1]
    assert newest_step(tmp_path / "run") == 1
