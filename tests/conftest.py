"""Fixtures that every test shares: a tiny model made on the spot, processes of their own, and the folder of real data
where there is one."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import assent
from assent import messages
from assent.config import InitConfig

torch.set_num_threads(1)
os.fsync = lambda handle: None  # nobody cuts the power here: what a killed process has written is there without it
# As `messages.show` does in a process of assent's own; pytest's handlers (caplog) get messages too.
logging.getLogger("assent").addHandler(messages.Handler())
logging.getLogger("assent").setLevel(logging.INFO)
# A shell starts what it puts in the background with these ignored, and so would be all that the tests start.
for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)


def pytest_collection_finish() -> None:
    """Garbage is collected without looking through all that was imported and collected, again and again."""
    gc.collect()
    gc.freeze()


TEXTS = (
    "What is the capital of France? The capital of France is Paris.",
    "Name three colours. Red, green and blue are three colours.",
    "How do I boil an egg? Put the egg in boiling water for seven minutes, then cool it.",
    "You are a helpful assistant. Answer the question in one sentence.",
    "user assistant system\n\nThank you! You're welcome. 12 + 30 = 42, isn't it?",
)


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Iterator[Callable[..., Any] | None]:
    """Passwords are hashed with little work; gives argon2's own hasher, which takes a sixth of a second each time."""
    if importlib.util.find_spec("argon2") is None:
        yield None
        return
    import argon2

    with pytest.MonkeyPatch.context() as patch:
        own = argon2.PasswordHasher
        patch.setattr(argon2, "PasswordHasher", partial(own, time_cost=1, memory_cost=8, parallelism=1))
        yield own


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with a ChatML template, EOS <|im_end|>, pad <|pad|>."""
    from assent.models.init import train_tokenizer

    return train_tokenizer(TEXTS * 3, 400)


@pytest.fixture(scope="session")
def tiny_model_dir(tokenizer, tmp_path_factory) -> Path:
    """A 2-layer, 32-wide random Llama folder with that tokenizer."""
    from assent.models.init import random_model, write_new_model

    config = InitConfig(data="", out="", hidden_size=32, layers=2, heads=4, kv_heads=2, context=512, seed=0)
    return write_new_model(tokenizer, random_model(tokenizer, config), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def scorer_dir(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> Path:
    """A reward model on it, whose scores differ."""
    from assent.config import ModelConfig
    from assent.models.heads import load_score_model
    from assent.models.saving import save_model

    scorer = load_score_model(ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, seed=7)
    with torch.no_grad():
        scorer.model.score.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "scorer"
    save_model(scorer, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def loop_world(tiny_model_dir: Path, scorer_dir: Path, tmp_path_factory):
    """What loops are made of (`tests.looping.World`)."""
    from tests.looping import make_world

    return make_world(tmp_path_factory.mktemp("loops"), tiny_model_dir, scorer_dir)


@pytest.fixture(scope="session")
def teacher_dir(tokenizer, tmp_path_factory) -> Path:
    """A narrower random model with the same tokenizer, whose predictions are sure of something else."""
    from assent.models.init import random_model, write_new_model

    config = InitConfig(data="", out="", hidden_size=16, layers=1, heads=2, kv_heads=2, context=512, seed=5)
    model = random_model(tokenizer, config)
    with torch.no_grad():
        model.model.norm.weight.copy_(24 * torch.randn(16, generator=torch.Generator().manual_seed(5)))
    return write_new_model(tokenizer, model, tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def serving():
    """`with serving(service, drain) as url`: what `assent serve` runs, in a thread, on a free port of this machine."""
    from assent.serve.app import Service
    from assent.serve.server import Server

    @contextmanager
    def run(service: Service, drain: float = 10.0) -> Iterator[str]:
        place = socket.socket()
        place.bind(("127.0.0.1", 0))
        url, ready = f"http://127.0.0.1:{place.getsockname()[1]}", threading.Event()
        server = Server(service.app, service.queue, drain, ready.set)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([place])), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(30)
            service.close()
            assert not thread.is_alive()

    return run


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled decoding steps are traced and lowered as ever, but without kernels in C++, which take seconds each."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiled(*args, **options, backend="aot_eager"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data files, named by ASSENT_REAL_DATA."""
    folder = os.environ.get("ASSENT_REAL_DATA")
    if not folder:
        pytest.skip("ASSENT_REAL_DATA is not set: tests on real data files are left out")
    return Path(folder)


def child_environment() -> dict[str, str]:
    """Environment variables of processes that run the source that is tested, on the CPU."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    source = str(Path(assent.__file__).parents[1])
    return env | {"PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


class Children:
    """Commands and programs as processes of their own, forked from one that has made the imports: no test pays for them
    again. Whoever needs a fresh interpreter starts it without this."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "children.log"
        env = child_environment()
        worker = Path(__file__).parent / "workers" / "children.py"
        pipe = subprocess.PIPE
        self.server = subprocess.Popen([sys.executable, str(worker)], stdin=pipe, stdout=pipe, text=True, env=env)

    def ask(self, **request: Any) -> int:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, arguments: list[str], log: Path | None = None, **env: str) -> int:
        """An `assent` command. Its output goes to `self.log`, or to `log`; `env` are further environment variables."""
        self.log.write_text("")
        return self.ask(run=arguments, log=str(log or self.log), env=env)

    def wait(self, pid: int, seconds: float | None = None) -> int:
        """How it ended: an exit code, or minus the number of a signal. After `seconds` it is killed."""
        return self.ask(wait=pid, seconds=seconds)

    def ranks(self, folder: Path, arguments: list[str]) -> Ranks:
        """An `assent` command on two ranks as torchrun starts them; `folder` is for their output."""
        logs = [folder / f"rank{rank}.log" for rank in range(2)]
        pids = [self.ask(run=arguments, log=str(log), env=env) for log, env in zip(logs, two_ranks(), strict=True)]
        return Ranks(pids, logs, self.wait)


def two_ranks() -> list[dict[str, str]]:
    """The environment variables of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


@pytest.fixture(scope="session")
def program_ranks() -> Callable[..., Ranks]:
    """`program_ranks(folder, [file, *arguments])`: a program on two ranks, each in an interpreter of its own."""

    def start(folder: Path, program: list[str]) -> Ranks:
        logs = [folder / f"rank{rank}.log" for rank in range(2)]
        env = child_environment() | {"PYTHONFAULTHANDLER": "1"}
        started = []
        for log, own in zip(logs, two_ranks(), strict=True):
            with log.open("w") as file:
                command = [sys.executable, *program]
                started.append(subprocess.Popen(command, stdout=file, stderr=file, env=env | own))
        running = {process.pid: process for process in started}

        def wait(pid: int, seconds: float | None = None) -> int:
            try:
                return running[pid].wait(seconds)
            except subprocess.TimeoutExpired:
                running[pid].kill()
                return running[pid].wait()

        return Ranks([*running], logs, wait)

    return start


class Ranks:
    """Two ranks under way."""

    def __init__(self, pids: list[int], logs: list[Path], wait: Callable[[int, float | None], int]) -> None:
        self.pids, self.logs, self._wait = pids, logs, wait

    @property
    def said(self) -> list[str]:
        """What each has written."""
        return [log.read_text() for log in self.logs]

    def codes(self, seconds: float | None = None) -> list[int]:
        """Waits for both."""
        return [self._wait(pid, seconds) for pid in self.pids]

    def join(self, seconds: float = 300) -> None:
        """Waits for both, which must succeed."""
        assert self.codes(seconds) == [0, 0], "\n".join(said[-4000:] for said in self.said)


@pytest.fixture(scope="session")
def children(tmp_path_factory) -> Iterator[Children]:
    made = Children(tmp_path_factory.mktemp("children"))
    assert made.wait(made.start(["--version"])) == 0  # the imports are done
    yield made
    assert made.server.stdin is not None
    made.server.stdin.close()
    made.server.wait(30)
