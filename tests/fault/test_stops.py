"""Signals while a run waits for something, and output that breaks: it ends within seconds, or goes on, and nothing is
lost. What was stopped goes on to the bytes of a run that never was."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from assent import http
from assent.cli import main
from assent.train import checkpoint
from assent.train.log import read_jsonl, read_metrics

from .commands import grpo_words, newest_step, until
from .commands import result as weights_and_metrics
from .servers import FakeServer, Handler, drip, hang

LIMIT = 5.0
"""Seconds from a signal to the saved end."""
FUNCTION = """
import asyncio, os, signal, sys, threading, time
from pathlib import Path

HERE = Path(__file__).parent

def waits():
    return (HERE / "waits").exists()

if waits() and "pytest" not in sys.modules and (HERE / "slow").exists():  # in a worker
    if (HERE / "tried").exists():  # the first was started before the run, to try the function
        (HERE / "there").touch()
        time.sleep(600)
    (HERE / "tried").touch()

def scores(completions):
    return [float(len(text)) for text in completions]

def sleeps(completions: list[str], gold):
    if waits() and "2" in gold:
        (HERE / "there").touch()
        time.sleep(600)
    return scores(completions)

async def awaits(completions: list[str], gold):
    if waits() and "2" in gold:
        (HERE / "there").touch()
        await asyncio.sleep(600)
    return scores(completions)

def sleeps_in_evaluation(completions: list[str], trainer_state, gold):
    if waits() and trainer_state.global_step == 2 and len(completions) == 2:
        (HERE / "there").touch()
        time.sleep(600)
    return scores(completions)

def swallows(completions: list[str], gold):
    while waits() and "2" in gold:
        (HERE / "there").touch()
        try:
            time.sleep(600)
        except BaseException:
            pass
    return scores(completions)

def swallows_once(completions: list[str], gold):
    if waits() and "2" in gold:
        (HERE / "there").touch()
        try:
            time.sleep(600)
        except BaseException:
            pass
        time.sleep(600)
    return scores(completions)
"""
ROWS = 8
STEPS = 4


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Two rows for each of four rollouts, in an order of their own, and two held out."""
    folder = tmp_path_factory.mktemp("data")
    for name, numbers in (("train", range(ROWS)), ("held", range(10, 12))):
        rows = [{"prompt": f"{i} red green?", "gold": str(i)} for i in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def command(tiny_model_dir: Path, prompts: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a run of GRPO in which every step has a rollout of its own."""
    (tmp_path / "mine.py").write_text(FUNCTION)

    def words(out: str, *more: str) -> list[str]:
        return grpo_words(tmp_path / out, tiny_model_dir, prompts / "train.jsonl", *more, steps=STEPS)

    return words


def result(out: Path) -> tuple[object, ...]:
    """With the samples."""
    return *weights_and_metrics(out), read_jsonl(out / "samples.jsonl")


@contextmanager
def signalled(there: Path, *numbers: int, pause: float = 0.2) -> Iterator[list[float]]:
    """Sends this process the signals once the file `there` exists and a run takes signals; gives when the first was
    sent."""
    sent: list[float] = []

    def outside(*_: object) -> None:
        """Takes one that comes after the end of the run."""

    def send() -> None:
        end = time.monotonic() + 60
        while not there.exists() or signal.getsignal(numbers[0]) is outside:
            if time.monotonic() > end:
                return  # and `sent` stays empty
            time.sleep(0.01)
        time.sleep(0.1)
        for number in numbers:
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)
            time.sleep(pause)

    before = {number: signal.signal(number, outside) for number in dict.fromkeys(numbers)}
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("function", "numbers", "more"),
    [
        ("sleeps", (signal.SIGTERM,), ()),
        ("sleeps", (signal.SIGINT, signal.SIGINT, signal.SIGTERM), ()),
        ("sleeps", (signal.SIGHUP,), ("--rewards.workers", "2", "--rewards.time_limit", "500")),
        ("awaits", (signal.SIGTERM,), ()),
        ("swallows_once", (signal.SIGTERM,), ()),
        ("sleeps_in_evaluation", (signal.SIGTERM,), ("--data.eval", "held.jsonl", "--train.eval_every", "2")),
        ("slow", (signal.SIGTERM,), ("--rewards.workers", "1")),
    ],
)
def test_code_that_does_not_come_back_is_left(
    function: str, numbers: tuple[int, ...], more: tuple[str, ...], command, prompts: Path, tmp_path: Path, capfd
) -> None:
    more = tuple(str(prompts / word) if word == "held.jsonl" else word for word in more)
    for name in ("waits", function):
        (tmp_path / name).touch()
    rewards = ("--rewards.functions", f"{tmp_path / 'mine.py'}:{'sleeps' if function == 'slow' else function}", *more)
    with signalled(tmp_path / "there", *numbers) as sent:
        code = main(command("run", *rewards))
        took = time.monotonic() - sent[0]
    said = capfd.readouterr().err
    assert code == 128 + numbers[0] and took < LIMIT, said
    assert f"Stopped by {signal.Signals(numbers[0]).name}. " in said and "Traceback" not in said
    if function == "slow":
        assert "Checkpoint of step 0 saved" in said
    else:
        assert re.search(r"Checkpoint of step [1-4] saved; continue with --resume auto\.", said)
    (tmp_path / "waits").unlink()
    assert main(command("run", *rewards, "--resume", "auto")) == 0
    assert main(command("straight", *rewards)) == 0
    assert result(tmp_path / "run") == result(tmp_path / "straight")


# ---- servers


class Faulty(FakeServer):
    """A reward server: each answer is worth its length; from the fourth request on it has the fault, until it is
    mended. (The first only tries it.)"""

    def __init__(self, fault: Callable[[Handler], None], there: Path) -> None:
        self.asked, self.fault, self.there = 0, fault, there
        super().__init__()

    def respond(self, handler: Handler) -> None:
        self.asked += 1
        if self.asked >= 4 and not self.released.is_set():
            if self.asked == 4:
                self.there.touch()
            return self.fault(handler)
        handler.say({"rewards": [float(len(text)) for text in handler.body["query"]]})


def fail(handler: Handler) -> None:
    handler.say("", 503, Retry_After="60")


@pytest.mark.parametrize("fault", [hang, drip, fail])
def test_a_server_is_not_waited_for(fault: Callable, command, tmp_path: Path, capfd) -> None:
    server = Faulty(fault, tmp_path / "there")
    rewards = ("--rewards.servers", f"openrlhf={server.url}", "--remote.batch", "2")
    with signalled(tmp_path / "there", signal.SIGTERM) as sent:
        code = main(command("run", *rewards))
        took = time.monotonic() - sent[0]
    assert code == 143 and took < LIMIT
    assert "Checkpoint of step 1 saved" in capfd.readouterr().err
    end = time.monotonic() + 1
    while asyncio.all_tasks(http._loop()):
        assert time.monotonic() < end, "a request is still under way"
        time.sleep(0.01)
    server.released.set()
    assert main(command("run", *rewards, "--resume", "auto")) == 0
    assert main(command("straight", *rewards)) == 0
    assert result(tmp_path / "run") == result(tmp_path / "straight")
    server.stop()


def test_an_engine_that_is_away_is_not_waited_for(command, tmp_path: Path, capfd) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with signalled(tmp_path / "run" / "engine", signal.SIGHUP) as sent:
            engine = ("--engine.name", "vllm", "--engine.url", url)
            code = main(command("run", "--rewards.rules", "length=2,8", *engine))
            took = time.monotonic() - sent[0]
    said = capfd.readouterr().err
    assert code == 129 and took < LIMIT, said
    assert "Stopped by SIGHUP. No checkpoint exists yet: no step was finished." in said and "Traceback" not in said


def test_a_signal_in_a_save_waits_for_it(command, tmp_path: Path, capfd, monkeypatch) -> None:
    """And so does a second one."""
    publish = checkpoint._publish

    def slow(*paths: Path) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        publish(*paths)

    with monkeypatch.context() as inner:
        inner.setattr(checkpoint, "_publish", slow)
        assert main(command("run", "--rewards.rules", "length=2,8", "--train.save_every", "2")) == 143
    said = capfd.readouterr().err
    assert said.count("SIGTERM: stopping") == 1 and "Checkpoint of step 2 saved" in said
    assert newest_step(tmp_path / "run") == 2


def test_answers_under_way_are_given_up(command, tmp_path: Path, capfd, monkeypatch) -> None:
    """Sampled by older weights while training goes on, they do not come: the run says what becomes of them."""
    from assent.rollout.torch_engine import TorchEngine

    generate, given_up = TorchEngine.generate, threading.Event()

    def stuck(self: TorchEngine, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and (tmp_path / "waits").exists():
            (tmp_path / "there").touch()
            given_up.wait(60)
        return generate(self, *arguments, **options)

    monkeypatch.setattr(TorchEngine, "generate", stuck)
    (tmp_path / "waits").touch()
    ahead = ("--rewards.rules", "length=2,8", "--rollout.ahead")
    with signalled(tmp_path / "there", signal.SIGTERM) as sent:
        code = main(command("run", *ahead))
        took = time.monotonic() - sent[0]
    given_up.set()
    said = capfd.readouterr().err
    assert code == 143 and took < LIMIT, said
    assert "Answers to 2 prompts were still being sampled, and are given up" in said
    assert "Checkpoint of step 1 saved" in said
    (tmp_path / "waits").unlink()
    assert main(command("run", *ahead, "--resume", "auto")) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


# ---- real processes: the output breaks, the code never comes back


def test_code_that_swallows_every_signal_is_saved_beside(children, command, tmp_path: Path) -> None:
    for name in ("waits", "swallows"):
        (tmp_path / name).touch()
    rewards = ("--rewards.functions", f"{tmp_path / 'mine.py'}:swallows")
    pid = children.start(command("run", *rewards))
    until(lambda: (tmp_path / "there").exists())
    os.kill(pid, signal.SIGTERM)
    begun = time.monotonic()
    assert children.wait(pid) == 143 and time.monotonic() - begun < LIMIT
    said = children.log.read_text()
    assert re.search(r"Stopped by SIGTERM\. Checkpoint of step [123] saved; continue with --resume auto\.", said)
    (tmp_path / "waits").unlink()
    assert main(command("run", *rewards, "--resume", "auto")) == 0
    assert main(command("straight", *rewards)) == 0
    assert result(tmp_path / "run") == result(tmp_path / "straight")


def test_output_that_breaks_ends_no_run(children, command, tmp_path: Path) -> None:
    """A full device, a reader that leaves after the first byte, a terminal that goes away in the middle; user code that
    prints all the while, and a thread of it that never ends."""
    (tmp_path / "printing.py").write_text(PRINTING)
    rewards = ("--rewards.functions", f"{tmp_path / 'printing.py'}:length")
    pipe = tmp_path / "reader"
    os.mkfifo(pipe)
    terminal, side = os.openpty()
    logs = {"full": Path("/dev/full"), "pipe": pipe, "terminal": Path(os.ttyname(side)), "whole": None}
    pids = {name: children.start(command(name, *rewards), log) for name, log in logs.items()}
    with pipe.open("rb", buffering=0) as reader:
        assert reader.read(1)
    os.close(side)
    assert os.read(terminal, 1)
    os.close(terminal)
    codes = {name: children.wait(pid) for name, pid in pids.items()}
    assert codes == dict.fromkeys(logs, 0), children.log.read_text()
    assert all(result(tmp_path / name) == result(tmp_path / "whole") for name in logs)


PRINTING = """
import threading, time

threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()

def length(completions: list[str], **columns):
    print("x" * 20000, flush=True)
    return [float(len(text)) for text in completions]
"""


def test_threads_of_others_do_not_keep_a_run_that_failed(children, command, tmp_path: Path) -> None:
    text = PRINTING.replace(", daemon=True", "").replace("    print", "    raise ValueError('no')\n    print")
    (tmp_path / "threads.py").write_text(text)
    pid = children.start(command("run", "--rewards.functions", f"{tmp_path / 'threads.py'}:length"))
    assert children.wait(pid) == 2
    said = children.log.read_text()
    assert "length raised ValueError: no" in said
