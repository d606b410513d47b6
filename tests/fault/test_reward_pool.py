"""Rewards in processes of their own: what hangs or dies costs its own answer only, and nothing is left running."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from assent.data.records import Example, Message, Origin
from assent.errors import ConfigError, NonFiniteError
from assent.rewards import pool as pool_module
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, Progress, RewardError
from assent.rewards.pool import PooledReward
from assent.rewards.rules import RuleReward

REWARD = """
import os, signal, subprocess, time
from pathlib import Path

HERE = Path(__file__).parent
(HERE / "pids").open("a").write(f"{os.getpid()}\\n")

def reward(completions: list[str], **columns):
    text = completions[0]
    if text == "hang":
        while True:
            pass
    if text == "child":
        child = subprocess.Popen(["sleep", "600"])
        (HERE / "pids").open("a").write(f"{child.pid}\\n")
        time.sleep(600)
    if text.startswith("sleep "):
        time.sleep(float(text.split()[1]))
    if text == "exit":
        os._exit(0)
    if text == "fault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if text == "raise":
        raise KeyError("solution")
    if text == "none":
        return [None]
    if text == "nan":
        return [float("nan")]
    if text == "pid":
        return [os.getpid()]
    return [len(text) + columns["bonus"][0]]
"""


def group(*texts: str, row: int = 1, bonus: float = 0.0) -> Group:
    example = Example((Message("user", "q"),), (), (), Origin("rows.jsonl", row), {"bonus": bonus}, prompt_text="q")
    return Group(example, texts, (True,) * len(texts), (1,) * len(texts))


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie whose parent is another process does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20.0
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def all_gone(pids: list[int]) -> bool:
    return eventually(lambda: not any(map(alive, pids)))


def reaped(pid: int) -> bool:
    """Whether not even a zombie of it is left."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(REWARD)
    return path


@pytest.fixture
def pids(file: Path) -> Callable[[], list[int]]:
    """Every process that was started so far, workers and their children."""
    return lambda: [int(line) for line in (file.parent / "pids").read_text().split()]


@pytest.fixture
def make(file: Path) -> Iterator[Callable[..., PooledReward]]:
    made = []

    def build(workers: int = 2, limit: float = 1.0, spec: str = "reward") -> PooledReward:
        made.append(
            PooledReward("mine", partial(FunctionReward, f"{file}:{spec}", "--r"), workers=workers, limit=limit)
        )
        return made[-1]

    yield build
    for pool in made:
        pool.close()


def test_rewards_come_back_in_the_order_of_the_answers(make):
    slow = group("sleep 0.4", "b", "ccc", row=1)
    scores = make(workers=3, limit=20.0).score([slow, group("dd", "none", row=2, bonus=0.5)])
    np.testing.assert_array_equal(scores.values, [9.0, 1.0, 3.0, 2.5, np.nan])
    assert scores.failures == {"returned None": 1} and scores.values.dtype == np.float64


def test_what_workers_write_down_comes_back_in_order(tmp_path: Path):
    (tmp_path / "noted.py").write_text(
        "def f(completions, log_extra, log_metric, trainer_state):\n"
        "    log_extra('text', completions)\n    log_metric('step', trainer_state.global_step)\n"
        "    return [None if text == 'b' else 1.0 for text in completions]\n"
    )
    pool = PooledReward("f", partial(FunctionReward, f"{tmp_path / 'noted.py'}:f", "--r"), workers=2, limit=20.0)
    groups = [replace(one, progress=Progress(7, 9)) for one in (group("a", "b"), group("c"))]
    scores = pool.score(groups)
    pool.close()
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, 1.0])
    assert scores.columns == {"text": ["a", "b", "c"]} and scores.metrics == {"step": [7.0, 7.0, 7.0]}
    assert scores.abstained.tolist() == [False, True, False] and scores.failures == {"returned None": 1}


def test_what_hangs_or_dies_is_unscored_and_the_rest_is_not(make, pids):
    pool = make(workers=2, limit=1.5)
    pool.score([group("warm", "up")])
    begun = time.monotonic()
    texts = ("a", "hang", "bb", "exit", "ccc", "fault", "sleep 600", "dddd")
    scores = pool.score([group(*texts)])
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, 2.0, np.nan, 3.0, np.nan, np.nan, 4.0])
    assert scores.failures == {"timed out": 2, "crashed": 2}
    assert time.monotonic() - begun < 20.0
    assert pool.score([group("again", "hang")]).failures == {"timed out": 1}
    pool.close()
    assert len(set(pids())) >= 5 and all(map(reaped, pids()))


def test_answers_are_scored_at_the_same_time(make):
    pool = make(workers=4, limit=20.0)
    pool.score([group("a", "b", "c", "d")])
    begun = time.monotonic()
    assert pool.score([group(*["sleep 0.6"] * 4)]).values.tolist() == [9.0] * 4
    assert time.monotonic() - begun < 2.2


def test_workers_are_kept_between_calls(make, pids):
    pool = make(workers=2, limit=20.0)
    seen = {float(pid) for _ in range(3) for pid in pool.score([group("pid", "pid")]).values}
    assert len(pids()) <= 2 and seen <= set(map(float, pids())) and os.getpid() not in pids()
    pool.close()
    assert all(map(reaped, pids()))
    assert pool.score([group("back")]).values.tolist() == [4.0]


def test_a_pool_that_nobody_holds_is_closed(file, pids):
    pool = PooledReward("mine", partial(FunctionReward, f"{file}:reward", "--r"), workers=1, limit=20.0)
    pool.score([group("a")])
    del pool
    gc.collect()
    assert len(pids()) == 1 and all(map(reaped, pids()))


@linux
def test_what_an_answer_started_is_killed_with_it(make, pids):
    assert make(workers=1, limit=1.5).score([group("child")]).failures == {"timed out": 1}
    worker, child = pids()
    assert reaped(worker) and all_gone([child])


def test_a_pattern_that_never_ends_is_unscored():
    rule = partial(RuleReward, "regex", {"pattern": r"^(?=(a+)+$)"})  # what RE2 cannot say
    pool = PooledReward("pattern", rule, workers=1, limit=1.5)
    scores = pool.score([group("a" * 60 + "b", "aaa")])
    np.testing.assert_array_equal(scores.values, [np.nan, 1.0])
    assert scores.failures == {"timed out": 1}
    pool.close()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("raise", RewardError, r"reward raised KeyError: 'solution' \(.*mine\.py:\d+\)"),
        ("nan", NonFiniteError, r"gave nan for the answer 'nan' to rows\.jsonl:5"),
    ],
)
def test_errors_of_the_source_are_those_without_a_pool(make, pids, text: str, kind: type, words: str):
    pool = make(workers=2, limit=20.0)
    with pytest.raises(kind, match=words):
        pool.score([group("a", "sleep 5", "b"), group(text, row=5)])
    assert all(map(reaped, pids())), "what was under way must not answer the next call"
    assert pool.score([group("a", "bb", "ccc")]).values.tolist() == [1.0, 2.0, 3.0]


def test_a_source_that_cannot_be_built_is_said_so(make, file):
    with pytest.raises(ConfigError, match="has no function 'other'"):
        make(spec="other").score([group("a")])
    file.write_text("import os\nos._exit(1)\n")
    with pytest.raises(RewardError, match="mine: a worker process crashed before it was ready"):
        make().score([group("a")])


def test_a_source_that_never_gets_ready(make, file, monkeypatch):
    monkeypatch.setattr(pool_module, "START_LIMIT", 0.5)
    file.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(RewardError, match="mine: a worker process timed out before it was ready"):
        make().score([group("a")])


def test_wrong_pools():
    rule = partial(RuleReward, "exact")
    for options in ({"workers": 0, "limit": 1.0}, {"workers": 1, "limit": 0.0}, {"workers": 1, "limit": float("nan")}):
        with pytest.raises(ValueError, match="expected workers >= 1 and limit > 0"):
            PooledReward("x", rule, **options)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        PooledReward("x", lambda: RuleReward("exact"), workers=1, limit=1.0)
    assert PooledReward("x", rule, workers=1, limit=1.0).score([]).values.shape == (0,)


PROGRAM = """
from dataclasses import replace
from functools import partial
from assent.data.records import Example, Message
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group
from assent.rewards.pool import PooledReward

pool = PooledReward("mine", partial(FunctionReward, {spec!r}, "--r"), workers=2, limit=600.0)
for texts in (("a", "b"), {texts!r}):
    example = Example((Message("user", "q"),), meta={{"bonus": 0.0}}, prompt_text="q")
    pool.score([Group(example, texts, (True,) * len(texts), (1,) * len(texts))])
    print("scored", flush=True)
"""


def start(file: Path, *texts: str) -> subprocess.Popen:
    program = textwrap.dedent(PROGRAM).format(spec=f"{file}:reward", texts=texts)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


@linux
def test_a_program_that_ends_leaves_nothing_running(file, pids):
    with start(file, "c", "d") as program:
        assert program.wait(60) == 0
    assert pids() and all_gone(pids())


@linux
def test_a_program_that_is_killed_leaves_nothing_running(file, pids):
    with start(file, "hang", "child") as program:
        assert program.stdout is not None and program.stdout.readline() == "scored\n"
        assert eventually(lambda: len(pids()) == 3) and all(map(alive, pids()))
        program.send_signal(signal.SIGKILL)
    assert all_gone(pids())
