"""Runs whose rewards fail: the run stops with a clear message, and once mended goes on to the bytes of one that never
failed; or the answers without a reward are left out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import assent
from assent.cli import main
from assent.train.log import read_metrics

from .commands import grpo_words, newest_step, result
from .servers import FakeServer, Handler, drop, hang

FUNCTION = """
import time
from pathlib import Path

HERE = Path(__file__).parent
asked = 0

def length(completions: list[str], **columns):
    '''Fails at the third rollout, until it is mended.'''
    global asked
    asked += 1
    rewards = [float(len(text)) for text in completions]
    if asked == 3 and not (HERE / "mended").exists():
        FAULT
    return rewards

def third(completions: list[str], gold):
    '''Fails for one row, whichever process is asked about it.'''
    if "2" in gold and not (HERE / "mended").exists():
        raise KeyError("no reward for row 3")
    return [float(len(text)) for text in completions]

def hanging(completions: list[str], gold):
    '''Hangs for one row.'''
    if gold[0] == "2":
        time.sleep(600)
    return [float(len(text)) for text in completions]

def picky(completions: list[str], gold):
    return [None if row == "2" else float(len(text)) for row, text in zip(gold, completions)]

def noted(completions, trainer_state, log_extra, log_metric, **columns):
    state = trainer_state
    log_extra("size", [len(text) for text in completions])
    log_metric("step", state.global_step)
    with (HERE / "steps").open("a") as file:
        file.write(f"{state.global_step} {state.max_steps} {state.epoch:g} {state.num_train_epochs}\\n")
    return [float(len(text)) for text in completions]

def of_even_rows(completions, gold, **columns):
    return [None if int(row) % 2 else 1.0 for row in gold]

def of_odd_rows(completions, gold, **columns):
    return [2.0 if int(row) % 2 else None for row in gold]

def never(completions: list[str], **columns):
    return [None] * len(completions)
"""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Four prompts: two rollouts are one pass over them."""
    file = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [{"prompt": f"{i} red green?", "gold": str(i)} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def function(tmp_path: Path) -> Callable[..., str]:
    """FILE.py:NAME, with a fault."""

    def write(name: str, fault: str = "pass") -> str:
        file = tmp_path / "mine.py"
        file.write_text(FUNCTION.replace("FAULT", fault))
        return f"{file}:{name}"

    return write


@pytest.fixture
def grpo(tiny_model_dir: Path, prompts: Path, tmp_path: Path) -> Callable[..., int]:
    """The exit code of the command."""

    def run(out: str, *rewards: str) -> int:
        return main(grpo_words(tmp_path / out, tiny_model_dir, prompts, *rewards, steps=4))

    return run


# ---- the user's function


def test_what_a_function_is_told_and_what_it_writes_down(grpo, function, tmp_path: Path) -> None:
    rewards = ("--rewards.functions", function("noted"), "--rollout.minibatches", "2", "--train.max_steps", "6")
    assert grpo("run", *rewards, "--train.save_every", "1") == 0
    # tried before training; then a rollout is two steps, one pass over the prompts two rollouts
    assert (tmp_path / "steps").read_text() == "0 6 0 2\n" + "0 6 0 2\n2 6 0.5 2\n4 6 1 2\n"
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["reward/noted/step"] for row in logged if "reward/noted/step" in row] == [0.0, 2.0, 4.0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert rows and all(row["noted/size"] == len(row["response"]) for row in rows)


def test_functions_that_judge_some_rows_only(grpo, function, tmp_path: Path) -> None:
    file = function("of_even_rows")
    both = ("--rewards.functions", file, file.replace("even", "odd"))
    assert grpo("both", *both) == 0
    assert all(row["unscored"] == 0 for row in read_metrics(tmp_path / "both" / "metrics.jsonl"))
    assert grpo("one", *both[:2]) == 0
    assert any(row["unscored"] > 0 for row in read_metrics(tmp_path / "one" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise ValueError('boom')", "mine.py:length: length raised ValueError: boom (", ),
        ("rewards.pop()", "gave 3 rewards; expected 4: one for each answer, in order"),
        ("rewards[1] = 'good'", "gave 'good' for the answer "),
        ("rewards = 1.0", "returned 1.0; expected a list with one reward for each answer"),
        ("rewards = [None] * 4", "rollout 3: not one of 4 answers could be scored"),
    ],
)  # fmt: skip
def test_a_function_that_gives_up_loses_nothing(fault: str, words: str, grpo, function, tmp_path: Path, capsys) -> None:
    rewards = ("--rewards.functions", function("length", fault))
    assert grpo("run", *rewards) == 2
    said = capsys.readouterr().err
    assert words in said and "continue with --resume auto" in said and "Traceback" not in said
    assert newest_step(tmp_path / "run") == 2 and not (tmp_path / "run" / "model").exists()
    (tmp_path / "mended").touch()
    assert grpo("run", *rewards, "--resume", "auto") == 0
    assert grpo("straight", *rewards) == 0
    resumed, straight = result(tmp_path / "run"), result(tmp_path / "straight")
    assert len(straight[1]) == 4 and straight[1][0]["reward"] > 0
    assert resumed == straight


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_reward_that_is_not_finite_names_row_and_answer(bad: str, grpo, function, tmp_path: Path, capsys) -> None:
    rewards = ("--rewards.functions", function("length", f"rewards[0] = float('{bad}')"))
    assert grpo("run", *rewards) == 3
    said = capsys.readouterr().err
    assert f"length gave {bad} for the answer " in said and "prompts.jsonl:" in said and "Traceback" not in said
    assert newest_step(tmp_path / "run") == 2
    (tmp_path / "mended").touch()
    assert grpo("run", *rewards, "--resume", "auto") == 0
    assert grpo("straight", *rewards) == 0
    assert result(tmp_path / "run") == result(tmp_path / "straight")


def test_answers_without_a_reward_are_counted_and_left_out(grpo, function, tmp_path: Path) -> None:
    assert grpo("run", "--rewards.functions", function("picky")) == 0
    _, rows = result(tmp_path / "run")
    unscored = [row["unscored"] for row in rows]
    assert sorted(unscored) == [0.0, 0.0, 0.5, 0.5]  # row 3 is in every other rollout, with one more
    assert all(row["reward"] >= 0 for row in rows)


def test_a_function_that_never_scores_is_no_run(grpo, function, tmp_path: Path, capsys) -> None:
    assert grpo("run", "--rewards.functions", function("never")) == 2
    assert "rollout 1: not one of 4 answers could be scored" in capsys.readouterr().err


def test_a_hanging_function_costs_its_own_answers_only(grpo, function, tmp_path: Path) -> None:
    rewards = ("--rewards.functions", function("hanging"), "--rewards.workers", "2", "--rewards.time_limit", "5")
    assert grpo("run", *rewards, "--train.max_steps", "2") == 0
    _, rows = result(tmp_path / "run")
    assert sorted(row["unscored"] for row in rows) == [0.0, 0.5]


# ---- a server


class Server(FakeServer):
    """An OpenRLHF reward server: an answer's length. After `healthy` requests it only has `trouble`."""

    def __init__(self) -> None:
        self.healthy = 1 << 30
        self.asked = 0
        self.trouble: Callable[[Handler], None] = drop
        super().__init__()

    def respond(self, handler: Handler) -> None:
        self.asked += 1
        if self.asked > self.healthy:
            return self.trouble(handler)
        asked = zip(handler.body["query"], handler.body["prompts"], strict=True)
        handler.say({"rewards": [len(text) - len(prompt) for text, prompt in asked]})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


PATIENCE = ("--remote.retries", "1", "--remote.budget", "60", "--remote.timeout", "2")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (drop, "gave no rewards in 2 attempts"),
        (lambda handler: handler.say("", 500), "answered 500 (2x)"),
        (lambda handler: handler.say("", 429, Retry_After="0"), "answered 429 (2x)"),
        (hang, "timed out after 2 s (2x)"),
        (lambda handler: handler.say("<html>"), "answered '<html>'; expected {\"rewards\": [numbers]}"),
        (lambda handler: handler.say('{"rewards": [1.0]}'), "gave 1 rewards for 4 answers"),
        (lambda handler: handler.say("no", 404), "answered 404"),
    ],
    ids=["refused", "500", "429", "hanging", "garbage", "too few", "404"],
)
def test_a_server_that_gives_up_loses_nothing(trouble, words: str, server, grpo, tmp_path: Path, capsys) -> None:
    server.healthy, server.trouble = 1 + 2, trouble  # tried before training, then two rollouts
    rewards = ("--rewards.servers", f"openrlhf=http://127.0.0.1:{server.server_port}", *PATIENCE)
    assert grpo("run", *rewards) == 2
    said = capsys.readouterr().err
    assert words in said and "openrlhf: the reward server http://127.0.0.1:" in said and "--resume auto" in said
    assert newest_step(tmp_path / "run") == 2
    server.healthy = 1 << 30
    assert grpo("run", *rewards, "--resume", "auto") == 0
    assert grpo("straight", *rewards) == 0
    assert result(tmp_path / "run") == result(tmp_path / "straight")


def test_a_short_outage_is_waited_for(server, grpo, tmp_path: Path) -> None:
    """Two busy replies in the middle of the run change nothing."""
    rewards = ("--rewards.servers", f"openrlhf=http://127.0.0.1:{server.server_port}", "--remote.timeout", "60")
    assert grpo("straight", *rewards) == 0
    server.asked, server.healthy = 0, 1 + 2

    def busy(handler: Handler) -> None:
        server.healthy = 1 << 30 if server.asked == 1 + 4 else server.healthy
        handler.say("", 503)

    server.trouble = busy
    assert grpo("run", *rewards) == 0
    assert server.asked == 1 + 4 + 2
    assert result(tmp_path / "run")[0] == result(tmp_path / "straight")[0]


def test_a_server_is_tried_before_training(server, grpo, tmp_path: Path, capsys) -> None:
    server.healthy, server.trouble = 0, lambda handler: handler.say("no", 404)
    assert grpo("run", "--rewards.servers", f"openrlhf=http://127.0.0.1:{server.server_port}") == 2
    said = capsys.readouterr().err
    assert "a server that is not up is waited for as in training" in said and "answered 404" in said
    assert "(Tried before training, on the made-up answer 'I do not know.'.)" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_answer_that_is_not_finite_ends_the_run(server, grpo, tmp_path: Path, capsys) -> None:
    server.healthy = 1 + 1
    server.trouble = lambda handler: handler.say('{"rewards": [NaN, 1, 1, 1]}')
    rewards = ("--rewards.servers", f"openrlhf=http://127.0.0.1:{server.server_port}")
    assert grpo("run", *rewards) == 3
    said = capsys.readouterr().err
    assert "gave nan for the answer" in said and "prompts.jsonl:" in said


# ---- before training


def test_a_column_that_is_missing_is_named_before_training(grpo, function, tmp_path: Path, capsys) -> None:
    assert grpo("run", "--rewards.rules", "numeric") == 2
    said = capsys.readouterr().err
    assert "answer: the rule 'numeric' needs the right answer" in said and "gold" in said
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_several_sources_together_are_logged_apart(grpo, function, tmp_path: Path) -> None:
    rewards = ["--rewards.rules", "contains=gold", "length=1,4", "--rewards.functions", function("length")]
    assert grpo("run", *rewards, "--rewards.weights", "length-2:0.5", "contains:0") == 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    for sample in samples:
        assert sample["reward/length-2"] == len(sample["response"])
        assert sample["reward/length-1"] == pytest.approx(-min(max((sample["length"] - 1) / 3, 0), 1))
        assert sample["reward"] == pytest.approx(sample["reward/length-1"] + 0.5 * sample["reward/length-2"])
        assert sample["reward/contains"] in (0.0, 1.0)


# ---- two ranks


def torchrun(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of the command on two processes."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": str(Path(assent.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "assent"]
    process = subprocess.Popen(
        [*launcher, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


@pytest.mark.slow
def test_what_fails_on_one_rank_ends_both_and_is_continued_on_one(
    grpo, function, tiny_model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    """Row 3 is asked about on one of the ranks. The other must not wait for it, and nothing may be lost."""
    rewards = ("--rewards.functions", function("third"), "--rewards.rules", "length=2,5")
    code, said = torchrun(grpo_words(tmp_path / "run", tiny_model_dir, prompts, *rewards, steps=4))
    assert code != 0 and said.count("third raised KeyError: 'no reward for row 3'") == 2, said[-4000:]
    (tmp_path / "mended").touch()
    assert grpo("run", *rewards, "--resume", "auto") == 0
    assert grpo("straight", *rewards) == 0
    (_, resumed), (_, straight) = result(tmp_path / "run"), result(tmp_path / "straight")
    assert len(straight) == 4
    for one, other in zip(resumed, straight, strict=True):
        assert {name: one[name] for name in ("step", "reward", "length")} == pytest.approx(
            {name: other[name] for name in ("step", "reward", "length")}, abs=1e-5
        )
