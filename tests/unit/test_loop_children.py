"""Runs of a loop side by side: as many at a time as may be, what they say behind their names, the exit code of one that
fails, and signals passed on. The runs are small programs here."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from assent.errors import ShutdownRequested
from assent.loops.children import Child, RunFailed, together

PROGRAM = """
import os, signal, sys, time
where, name, seconds, code = sys.argv[1:]
note = open(os.path.join(where, "notes"), "a", buffering=1)
def stop(number, frame):
    note.write(f"{name} saved at {number}\\n")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
note.write(f"{name} began on {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\\n")
print("half way" if code == "0" else "error: it broke", flush=True)
time.sleep(float(seconds))
note.write(f"{name} ended\\n")
sys.exit(int(code))
"""


def child(folder: Path, name: str, seconds: float = 0.0, code: int = 0) -> Child:
    return Child(name, (str(folder), name, str(seconds), str(code)))


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().splitlines()


def test_all_run_a_few_at_a_time_each_on_its_device(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "assent")
    logging.getLogger("assent").addHandler(caplog.handler)
    together([child(tmp_path, name, 0.2) for name in "abcd"], 2, ["3", "5"], PROGRAM)
    logging.getLogger("assent").removeHandler(caplog.handler)
    lines = notes(tmp_path)
    assert sorted(line for line in lines if line.endswith("ended")) == [f"{name} ended" for name in "abcd"]
    began = [line for line in lines if "began" in line]
    assert {line[-1] for line in began[:2]} == {line[-1] for line in began[2:]} == {"3", "5"}
    at_once = most = 0
    for line in lines:
        at_once += 1 if "began" in line else -1
        most = max(most, at_once)
    assert most == 2
    assert {"a: half way", "d: half way"} <= {record.message for record in caplog.records}


def test_one_that_fails_ends_the_others_after_they_have_saved(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"bad ended with exit code 3 \(its message is above\)") as raised:
        together([child(tmp_path, "long", 30), child(tmp_path, "bad", 0.5, 3), child(tmp_path, "next")], 2, (), PROGRAM)
    assert raised.value.exit_code == 3
    assert "long saved at 15" in notes(tmp_path)
    assert not any(line.startswith("next") for line in notes(tmp_path))


def test_one_that_is_killed_is_named(tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(RunFailed, match="a ended with exit code -9 .killed by SIGKILL") as raised:
        together([child(tmp_path, "a")], 1, (), program)
    assert raised.value.exit_code == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once(tmp_path: Path, number: signal.Signals) -> None:
    def tell() -> None:
        while not (tmp_path / "notes").exists() or len(notes(tmp_path)) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell).start()
    with pytest.raises(ShutdownRequested) as raised:
        together([child(tmp_path, name, 30) for name in "abc"], 2, (), PROGRAM)
    assert raised.value.exit_code == 128 + number
    assert sorted(notes(tmp_path)[2:]) == [f"a saved at {int(number)}", f"b saved at {int(number)}"]
