"""One owner of a run folder: two processes at once, owners that died, places without locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assent import lock
from assent.cli import COMMANDS
from assent.config import (
    CompareConfig,
    DataConfig,
    DemoConfig,
    ExportConfig,
    GenerateConfig,
    InitConfig,
    ModelConfig,
    ReportConfig,
    SFTConfig,
)
from assent.errors import RunFolderError

SOURCE = Path(lock.__file__).parents[1]


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python that has `lock` and `Path`; what it prints can be read."""
    code = f"import sys, time\nfrom pathlib import Path\nfrom assent import lock\n{code}"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=2, text=True)


OWNER = "lock.own(Path(sys.argv[1])); print('owned', flush=True); sys.stdin.read()"


@pytest.fixture
def owner(tmp_path: Path):
    """A process that owns tmp_path/run."""
    other = process(OWNER, tmp_path / "run")
    assert other.stdout.readline() == "owned\n"
    yield other
    other.kill()
    other.wait()


def left(folder: Path, **changes: Any) -> Path:
    """The lock file of a process that is gone, or that cannot be asked for."""
    folder.mkdir(exist_ok=True)
    record = {"host": "elsewhere", "machine": "another", "pid": 4242, "born": "1", "since": "yesterday", "command": "x"}
    (folder / lock.NAME).write_text(json.dumps(record | changes))
    return folder / lock.NAME


# ---- the owner


def test_the_second_is_refused_and_told_who_is_there(owner, tmp_path: Path, tiny_model_dir: Path) -> None:
    run = tmp_path / "run"
    rows = tmp_path / "rows.jsonl"
    before = (run / lock.NAME).read_bytes()
    sft = SFTConfig(ModelConfig(str(tiny_model_dir)), DataConfig(str(rows)), str(run))
    inside = run / "inside"
    sample = CompareConfig(sft.model, sft.data, str(run), methods=("dpo",), reward_model="m", prompts=str(rows))
    attempts: list[tuple[str, Any]] = [
        ("sft", sft),
        ("sft", replace(sft, resume="auto")),
        ("sft", replace(sft, out=str(inside))),
        ("compare", sample),
        ("demo", DemoConfig(str(run))),
        ("export", ExportConfig(str(tiny_model_dir), str(inside))),
        ("init", InitConfig(str(rows), str(inside))),
        ("generate", GenerateConfig(str(tiny_model_dir), prompts=str(rows), out=str(run / "answers.jsonl"))),
        ("report", ReportConfig((str(tmp_path),), str(run / "report.html"))),
    ]
    for name, config in attempts:
        module, _, function = COMMANDS[name].target.partition(":")
        with pytest.raises(RunFolderError) as refused:
            getattr(__import__(module, fromlist=[function]), function)(config)
        told = rf"{re.escape(str(run))}: another run is at work there: process {owner.pid} on \S+ since 20\d\d-.*\(.*\)"
        assert re.match(told, str(refused.value)), (name, refused.value)
        assert "choose another --out" in str(refused.value)
    assert [path.name for path in run.iterdir()] == [lock.NAME] and (run / lock.NAME).read_bytes() == before


def test_a_killed_owner_hinders_nobody(owner, tmp_path: Path) -> None:
    run = tmp_path / "run"
    owner.kill()
    owner.wait()
    assert (run / lock.NAME).exists()
    lock.own(run)
    assert json.loads((run / lock.NAME).read_text())["pid"] == os.getpid()
    lock.own(run)  # once more by the same thread, as a notebook does after an error
    lock.release(run)
    assert not (run / lock.NAME).exists()


def test_of_those_that_start_together_one_wins(tmp_path: Path) -> None:
    code = """
try:
    sys.stdin.readline()
    lock.own(Path(sys.argv[1]))
    print("won", flush=True)
    sys.stdin.readline()
except lock.RunFolderError as error:
    print("at work there" in str(error), flush=True)
"""
    for number in range(2):
        racers = [process(code, tmp_path / str(number)) for _ in range(4)]
        time.sleep(0.3)
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        assert sorted(racer.stdout.readline() for racer in racers) == ["True\n"] * 3 + ["won\n"]
        for racer in racers:
            racer.communicate("\n", timeout=20)
        assert not [*tmp_path.glob("*/*")]


def test_a_forked_child_does_not_keep_the_folder(tmp_path: Path) -> None:
    code = """
import os
lock.own(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
os._exit(0)
"""
    parent = process(code, tmp_path / "run")
    child = int(parent.stdout.readline())
    try:
        assert parent.wait(20) == 0
        lock.own(tmp_path / "run")
        lock.release(tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)


def test_another_thread_is_another_run(tmp_path: Path) -> None:
    lock.own(tmp_path)
    found: list[str] = []

    def attempt() -> None:
        try:
            lock.own(tmp_path)
        except RunFolderError as error:
            found.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert "another thread of this process is at work there" in found[0]
    lock.release(tmp_path)


def test_an_owner_on_another_machine_is_watched(tmp_path: Path, monkeypatch, caplog) -> None:
    """Its flock may not be seen here; its signs of life are."""
    monkeypatch.setattr(lock, "SILENCE", 0.3)
    file = left(tmp_path / "run")
    lock.own(file.parent)  # none: taken over
    assert "looking for 0 seconds whether that still runs" in caplog.text and "process 4242 on elsewhere" in caplog.text
    lock.release(file.parent)
    left(file.parent)
    beat = threading.Timer(0.1, os.utime, [file, (1, 1)])
    beat.start()
    with pytest.raises(RunFolderError, match="process 4242 on elsewhere since yesterday"):
        lock.own(file.parent)
    beat.join()
    assert "elsewhere" in file.read_text()
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "_beating", None)
    mine = tmp_path / "mine"
    lock.own(mine)
    first = (mine / lock.NAME).stat().st_mtime_ns
    end = time.monotonic() + 5
    while (mine / lock.NAME).stat().st_mtime_ns == first and time.monotonic() < end:
        time.sleep(0.02)
    assert (mine / lock.NAME).stat().st_mtime_ns > first, "this one gives signs of its own"
    lock.release(mine)


@pytest.fixture
def no_flock(monkeypatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "SILENCE", 0.2)
    monkeypatch.setattr(lock, "RIVALS", 0.05)


def test_without_locks_the_record_decides(no_flock, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lock.own(run)
    mine = json.loads((run / lock.NAME).read_text())
    lock.release(run)
    assert not (run / lock.NAME).exists()
    here = {name: mine[name] for name in ("host", "machine")}
    left(run, **here, pid=os.getppid(), born=lock._born(os.getppid()))
    for refuse in (lock.own, lambda folder: lock.check_free(folder / "report.html")):
        with pytest.raises(RunFolderError, match=f"process {os.getppid()} on"):
            refuse(run)
    for gone in ({"pid": 2**22 + 1}, {"pid": os.getppid(), "born": "0"}, {"host": "elsewhere", "machine": "another"}):
        left(run, **here | gone)
        lock.own(run)
        assert json.loads((run / lock.NAME).read_text())["pid"] == os.getpid()
        lock.release(run)
    (run / lock.NAME).write_text('{"host": "el')  # of a process that was killed while it wrote
    lock.own(run)
    lock.release(run)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_written_to_is_named(number: int, tmp_path: Path, monkeypatch) -> None:
    opened = os.open

    def failing(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).endswith(lock.NAME):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(RunFolderError, match=f"--out {tmp_path}: cannot be used as a folder .*{os.strerror(number)}"):
        lock.own(tmp_path)


def test_a_lock_that_is_no_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name, make in (("link", lambda place: place.symlink_to(victim)), ("folder", Path.mkdir)):
        run = tmp_path / name
        run.mkdir()
        make(run / lock.NAME)
        with pytest.raises(RunFolderError, match="cannot be used"):
            lock.own(run)
    assert victim.read_text() == "mine"
