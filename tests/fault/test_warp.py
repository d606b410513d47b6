"""WARP killed and continued: in a run, between runs, in a merge, in the evaluation, while the state is written: the
same bytes in the end. And runs that do not come to their end."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import assent.evaluate.evaluation as evaluation
import assent.train.run as run_module
from assent import cli
from assent.config import WarpConfig
from assent.config.words import command_of
from assent.errors import DriftStop
from assent.loops.children import RunFailed
from assent.loops.loop import STATE, Loop
from assent.loops.warp import warp
from assent.models.merged import Merge
from assent.train.log import read_jsonl

REWARDS = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in str(text)) / (1 + len(str(text))) for text in completions]
"""


class Killed(BaseException):
    """The end of the process, here."""


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_model_dir: Path) -> WarpConfig:
    folder = tmp_path_factory.mktemp("warp")
    rows = "".join(json.dumps({"prompt": f"{i} red?"}) + "\n" for i in range(6))
    (folder / "rows.jsonl").write_text(rows)
    (folder / "rewards.py").write_text(REWARDS)
    return WarpConfig(
        model={"path": str(tiny_model_dir), "precision": "fp32"},
        data={"train": str(folder / "rows.jsonl"), "max_length": 64},
        out=str(folder / "loop"),
        policy="rloo",
        rounds=1,
        steps=(2,),
        optim={"lr": 1e-2, "warmup": 0.0},
        train={"batch_size": 3, "threads": 1},
        sampling={"max_new_tokens": 6},
        rewards={"functions": (f"{folder / 'rewards.py'}:vowels",)},
        options={"rollout.responses": "2", "kl.anchor_rate": "0.3"},
        prompts=str(folder / "rows.jsonl"),
        front=(0.5,),
    )


def files(folder: Path) -> dict[str, str]:
    """What counts of a loop: its state, weights, answers, numbers and tables."""
    kinds = (".safetensors", "loop.jsonl", "evaluation.json", "answers.jsonl", "metrics.jsonl", ".csv", ".svg")
    found = {}
    for file in sorted(folder.rglob("*")):
        if (
            file.is_file()
            and "checkpoints" not in file.parts
            and (file.name.endswith(kinds) or file.name == "front.json")
        ):
            data = file.read_bytes()
            if file.name == "metrics.jsonl":  # seconds are the machine's
                rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_jsonl(file)]
                data = json.dumps(rows).encode()
            found[str(file.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def whole(config: WarpConfig) -> dict[str, str]:
    """The files of a loop that nothing interrupted, made where the others are made."""
    warp(config)
    found = files(Path(config.out))
    Path(config.out).rename(config.out + "-whole")
    return found


def command(config: WarpConfig) -> int:
    return cli.main(shlex.split(command_of("warp", replace(config, resume="auto")))[1:])


def killed(monkeypatch, where: str, what: str, when: Callable[..., bool], after: bool = False) -> None:
    """Ends the next command in the function `where`.`what`, the first time that `when` is true of its arguments."""
    owner = {"loop": Loop, "merge": Merge, "evaluation": evaluation, "run": run_module.TrainingRun}[where]
    original = getattr(owner, what)

    def ends(*args, **options):
        if not when(*args):
            return original(*args, **options)
        monkeypatch.setattr(owner, what, original)
        if after:
            original(*args, **options)
        raise Killed

    monkeypatch.setattr(owner, what, ends)


def test_killed_anywhere_and_continued(config: WarpConfig, whole: dict[str, str], monkeypatch, capsys) -> None:
    folder = Path(config.out)
    take = run_module.TrainingRun.take

    def told(self, result) -> None:
        take(self, result)
        if self.step == 1:
            monkeypatch.setattr(run_module.TrainingRun, "take", take)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_module.TrainingRun, "take", told)
    assert command(config) == 143  # in a run, which saves
    assert "finished stages are kept in" in capsys.readouterr().err
    named = lambda name: lambda loop, row, *_: row["stage"] == name  # noqa: E731
    places = [
        ("loop", "_add", named("round-1/run-1"), False),  # a run is finished, and nobody has noted it down
        ("merge", "write", lambda *_: True, True),  # in a merge
        ("loop", "_add", named("round-1/merged"), False),  # after one
        ("evaluation", "_finish", lambda *_: True, False),  # the answers are in its cache
        ("evaluation", "write_text", lambda path, *_: Path(path).name == "evaluation.csv", False),
        ("loop", "_add", named("round-1/front.csv"), False),
    ]
    stages = []
    for place in places:
        killed(monkeypatch, *place)
        with pytest.raises(Killed):
            command(config)
        stages.append(len((folder / STATE).read_text().splitlines()))
        with (folder / STATE).open("a") as state:
            state.write('{"stage": "round-')  # the line was being written
    assert stages == sorted(stages) and stages[0] == 1 and stages[-1] == 8
    assert command(config) == 0
    assert files(folder) == whole
    assert command(config) == 0  # all is there
    assert files(folder) == whole


def test_side_by_side_as_in_sequence(config: WarpConfig, whole: dict[str, str], tmp_path: Path, capsys) -> None:
    """In processes of their own: the same runs, the same state of the loop."""
    parallel = replace(config, out=str(tmp_path / "loop"), parallel=2, front=())
    warp(parallel)
    found, before = files(tmp_path / "loop"), Path(config.out + "-whole")
    runs = [name for name in found if name.startswith(("round-1/run", "round-1/merged"))]
    assert len(runs) >= 5 and {name: found[name] for name in runs} == {name: whole[name] for name in runs}
    rows, wanted = (read_jsonl(folder / STATE) for folder in (tmp_path / "loop", before))
    assert rows == [row for row in wanted if row["stage"] in ("round-1/run-1", "round-1/run-2", "round-1/merged")]
    said = capsys.readouterr().err
    assert "round-1/run-1: Finished" in said and "round-1/run-2: run-2 2/2" in said


STOPPED = "round-1/run-1 did not come to its end, and the loop stops with it. All that was made is kept in"


def test_a_run_that_breaks_ends_the_loop_with_its_exit_code(config: WarpConfig, tmp_path: Path, capsys) -> None:
    broken = replace(config, out=str(tmp_path / "loop"), optim=replace(config.optim, lr=1e38), front=())
    assert cli.main(shlex.split(command_of("warp", broken))[1:]) == 3
    said = capsys.readouterr().err
    assert said.count("the update was too large") == 1
    assert STOPPED in said
    assert (tmp_path / "loop" / "round-1" / "run-1" / "resolved.yaml").is_file()
    assert (tmp_path / "loop" / STATE).read_text() == ""


@pytest.mark.parametrize("error", [DriftStop("Stopped at step 7 by the drift alarm (--alarm.stop)."), ""], ids=str)
def test_so_does_an_alarm_and_a_process_of_its_own(
    config: WarpConfig, tmp_path: Path, monkeypatch, capsys, error: Exception | str
) -> None:
    def raises(*_):
        raise error or RunFailed("round-1/run-1", 5)

    monkeypatch.setattr("assent.algorithms.online.train.train_online", raises)
    monkeypatch.setattr("assent.loops.warp.together", raises)
    broken = replace(config, out=str(tmp_path / "loop"), front=(), parallel=0 if error else 2)
    assert cli.main(shlex.split(command_of("warp", broken))[1:]) == 5
    said = capsys.readouterr().err
    assert STOPPED in said and (str(error) or "round-1/run-1 ended with exit code 5 (its message is above).") in said


def test_models_that_do_not_merge_are_named(config: WarpConfig, tmp_path: Path, monkeypatch, capsys) -> None:
    """Say, because a run has been replaced by another: its digest is not what the loop has made."""
    one = replace(config, out=str(tmp_path / "loop"), front=())
    killed(monkeypatch, "loop", "_add", lambda loop, row, *_: row["stage"] == "round-1/merged")
    with pytest.raises(Killed):
        command(one)
    weights = tmp_path / "loop" / "round-1" / "run-2" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    capsys.readouterr()
    assert command(one) == 2
    assert "run-2 is not what warp has made: changed, or cut." in capsys.readouterr().err
