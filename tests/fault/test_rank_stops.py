"""Two ranks: a signal to one of them, while the other is deep in its user's code; an error on one."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from assent.train import checkpoint
from assent.train.log import read_metrics

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
def ranks(children, tiny_model_dir: Path, tmp_path: Path) -> Callable[..., list[int]]:
    """Starts the command on two ranks; their process ids."""
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{i} red?"}}\n' for i in range(8)))

    def start(out: str, function: str, *more: str) -> list[int]:
        flags = {
            "model.path": tiny_model_dir,
            "model.precision": "fp32",
            "data.train": tmp_path / "rows.jsonl",
            "data.max_length": 64,
            "out": tmp_path / out,
            "optim.lr": 1e-3,
            "train.batch_size": 2,
            "train.max_steps": 3,
            "train.threads": 1,
            "rollout.responses": 2,
            "sampling.max_new_tokens": 5,
            "rewards.functions": f"{tmp_path / 'mine.py'}:{function}",
        }
        words = ["grpo", *(text for name, value in flags.items() for text in (f"--{name}", str(value))), *more]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            children.start(words, tmp_path / f"rank{rank}.log", RANK=str(rank), LOCAL_RANK=str(rank), **group)
            for rank in range(2)
        ]

    return start


def logs(folder: Path) -> list[str]:
    return [(folder / f"rank{rank}.log").read_text() for rank in range(2)]


def result(out: Path) -> tuple[str, list[dict]]:
    weights = (out / "model" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), read_metrics(out / "metrics.jsonl", times=False)


def test_a_signal_to_one_rank_stops_the_code_of_another(children, ranks, tmp_path: Path) -> None:
    (tmp_path / "waits").touch()
    pids = ranks("run", "sleeps")
    end = time.monotonic() + 60
    while not (tmp_path / "there").exists():
        assert time.monotonic() < end, logs(tmp_path)
        time.sleep(0.01)
    os.kill(pids[0], signal.SIGTERM)  # which waits in a collective
    begun = time.monotonic()
    assert [children.wait(pid) for pid in pids] == [143, 143], logs(tmp_path)
    assert time.monotonic() - begun < 5
    for said in logs(tmp_path):
        assert "Stopped by SIGTERM. Checkpoint of step 1 saved; continue with --resume auto." in said
    (tmp_path / "waits").unlink()
    for out, more in (("run", ("--resume", "auto")), ("straight", ())):
        assert [children.wait(pid) for pid in ranks(out, "sleeps", *more)] == [0, 0], logs(tmp_path)
    assert result(tmp_path / "run") == result(tmp_path / "straight")


def test_what_one_rank_raises_is_saved_by_all(children, ranks, tmp_path: Path) -> None:
    assert [children.wait(pid) for pid in ranks("fails", "fails")] == [2, 2], logs(tmp_path)
    for said in logs(tmp_path):
        assert "fails raised KeyError: 'no'" in said and "Traceback" not in said
        assert "Checkpoint of step 1 saved; continue with --resume auto." in said


def test_an_error_of_one_rank_alone_ends_all_and_says_what_there_is(children, ranks, tmp_path: Path) -> None:
    codes = [children.wait(pid) for pid in ranks("run", "breaks", "--train.save_every", "1")]
    assert codes == [1, 1], logs(tmp_path)
    alone = (
        "It ended one rank alone, and the state of step 1 is spread over all. The newest checkpoint is that of step 1"
    )
    whole = "Checkpoint of step 1 saved; continue with --resume auto."
    for said in logs(tmp_path):
        assert "Traceback" in said and (alone in said or whole in said)
    assert "RuntimeError: this rank alone" in logs(tmp_path)[1]
    assert checkpoint.read_manifest(checkpoint.newest_complete(tmp_path / "run" / "checkpoints"))["step"] == 1
