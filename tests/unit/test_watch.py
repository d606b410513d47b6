"""`assent watch`: what is read of a run at work, look by look, and what is shown of it."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from assent import cli, lock
from assent.config import WatchConfig
from assent.errors import RunFolderError
from assent.evaluate import watch as module
from assent.evaluate.following import Following, Tail, runs_at
from assent.evaluate.runs import Series
from assent.evaluate.watch import LETTERS, sparkline, watch


def line(**row: object) -> str:
    return json.dumps(row) + "\n"


def made(folder: Path, steps: int = 4, total: int = 10, command: str = "grpo") -> Path:
    """A run that has logged `steps` of `total`."""
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"command": command}))
    start = {
        "begins_after": 0,
        "steps": total,
        "lines": [["Method", "GRPO"], ["Data", "p.jsonl: 9 of 10 rows"], ["", "x"]],
    }
    (folder / "opening.json").write_text(json.dumps(start))
    rows = [line(step=0, **{"eval/reward": 0.5, "eval/kl": 0.0})]
    rows += [line(step=s, reward=s / 2, kl=0.1, **{"time/step": 2.0}) for s in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    prompt = [{"role": "user", "content": "Why \x1b[2Jnot?"}]
    answers = [line(step=s, prompt=prompt, response=f"answer {s}\x1b[31m", reward=1.5) for s in (1, 3)]
    (folder / "samples.jsonl").write_text("".join(answers))
    return folder


def shown(*runs: Path, width: int = 100, **options: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    views = [Following(path).look() for run in runs for path in runs_at(run)]
    console.print(module.page(views, options.get("samples", 6), console))
    return out.getvalue()


# ---- reading


def test_a_tail_gives_each_row_once_and_half_rows_when_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.rows() == (False, [])
    path.write_text(line(step=1) + '{"step": 2, "lo')
    assert tail.rows() == (False, [{"step": 1}])
    assert tail.rows() == (False, [])
    with path.open("a") as file:
        file.write('ss": 3}\n[1]\nnonsense\n{"step": true}\n' + line(step=3))
    assert tail.rows() == (False, [{"step": 2, "loss": 3}, {"step": 3}])


@pytest.mark.parametrize("again", [[1], [1, 9], [1, 9, 8, 7, 6, 5]], ids=["cut", "as long", "longer"])
def test_a_tail_begins_anew_where_a_resumed_run_has_cut_the_file(again: list[int], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    path.write_text("".join(line(step=s) for s in (1, 2)))
    tail.rows()
    path.write_text("".join(line(step=s) for s in again))
    assert tail.rows() == (True, [{"step": s} for s in again])
    path.unlink()
    assert tail.rows() == (True, [])


def test_a_look_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Following(made(tmp_path / "run", steps=3))
    assert run.look().step == 3
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write(line(step=4, reward=9.0))
    new: list[dict] = []
    take = run._columns.take
    monkeypatch.setattr(run._columns, "take", lambda row: (new.append(row), take(row)))
    view = run.look()
    assert [row["step"] for row in new] == [4]
    assert view.step == 4 and view.metrics["reward"].values.tolist() == [0.5, 1.0, 1.5, 9.0]


def test_states(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", steps=4, total=10)
    run = Following(folder)
    assert run.look().state == "stopped" and run.look().left is None
    lock.own(folder)
    try:
        view = run.look()
        assert (view.state, view.step, view.total, view.pace, view.left) == ("training", 4, 10, 2.0, 12.0)
        assert view.owner is not None and view.owner.pid == os.getpid()
        assert view.elapsed is not None and 0 <= view.elapsed < 3600
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(line(step=10, reward=5.0))
        assert run.look().state == "finishing"
    finally:
        lock.release(folder)
    assert run.look().state == "stopped"
    (folder / "summary.json").write_text(json.dumps({"steps": 10}))
    assert run.look().state == "finished"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(step=12, reward=5.0))  # resumed for more steps, and killed
    assert run.look().state == "stopped"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        runs_at(folder)
    lock.own(folder)
    try:
        assert runs_at(folder) == []
        assert "nothing is written yet" in shown(folder)
        (folder / "resolved.yaml").write_text("out: x\n")
        assert "starting" in shown(folder)
    finally:
        lock.release(folder)


def test_the_sign_of_life_of_another_machine_counts(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    owner = {"host": "far", "machine": "other", "pid": 1, "born": "1", "since": "2026-01-01 00:00:00", "command": "c"}
    (folder / lock.NAME).write_text(json.dumps(owner))
    assert Following(folder).look().runs
    old = time.time() - lock.SILENCE - 5
    os.utime(folder / lock.NAME, (old, old))
    assert not Following(folder).look().runs


# ---- what is shown


def test_the_page(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    lock.own(folder)
    try:
        text = shown(folder)
    finally:
        lock.release(folder)
    for part in (
        "training",
        "GRPO",
        "step 4/10",
        "about 0:12 left",
        "2.00 s a step",
        "Data: p.jsonl",
        "answers at step 3",
    ):
        assert part in text, part
    reward, held_out = (
        next(row for row in text.splitlines() if row.startswith(name)) for name in ("reward", "held-out")
    )
    assert reward.split()[:3] == ["reward", "1.00", "1.25"], "the first and the last steps' means"
    assert held_out.split()[:4] == ["held-out", "reward", "0.500", "0.500"]
    assert "answer 3" in text and "answer 1" not in text, "the newest alone"
    assert "\x1b" not in text.replace("\x1b[0m", ""), "control signs of an answer reach no terminal"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", command="dpo")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(step=5, **{"eval/alarm/both_fall": 1.0, "eval/logprob/chosen": -2.0}))
    text = " ".join(shown(folder).split())
    assert "alarm: Both kinds of answers are less likely" in text
    assert f"--config {folder}/resolved.yaml --resume auto".replace(" ", "") in text.replace(" ", "")
    lock.own(folder)
    try:
        old = time.time() - 300
        os.utime(folder / "metrics.jsonl", (old, old))
        assert "silent: nothing was logged for 5:0" in shown(folder)
    finally:
        lock.release(folder)


def test_several_runs_and_a_narrow_window(tmp_path: Path) -> None:
    made(tmp_path / "a", steps=2)
    made(tmp_path / "b", steps=6)
    old = time.time() - 100
    os.utime(tmp_path / "a/metrics.jsonl", (old, old))
    text = shown(tmp_path)
    assert "2/10" in text and "6/10" in text
    assert "steps 0 to 10" in text and "\nstep 6/10" in text, "the details are of the one that logged last"
    assert max(map(len, shown(tmp_path, width=40).splitlines())) <= 40


def test_files_of_another_kind_do_no_harm(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", command="nonsense")
    (folder / "opening.json").write_text('{"steps": "many", "lines": 7}')
    (folder / "summary.json").write_text("[")
    (folder / "samples.jsonl").write_text(line(step=1, response=3) + line(step=1, response="x", prompt="text"))
    text = shown(folder)
    assert "stopped" in text and "answers at" not in text and "reward" in text


@pytest.mark.parametrize(
    ("steps", "values", "last", "expected"),
    [
        ([1, 2, 3, 4], [0, 1, 2, 7], 4, " .:-@"),
        ([0, 4], [0, 1], 9, "....@"),
        ([1, 2, 3, 4], [5, 5, 5, 5], 4, " ...."),
        ([1, 2, 3, 4], [0, np.nan, 7, 3.5], 4, " ..@+"),
        ([2, 9], [1, 0], 9, "  @@@@@@@."),
        ([0, 1, 2, 3], [0, 2, 7, 7], 3, ".-@@"),
        ([], [], 9, ""),
        ([1], [np.nan], 9, ""),
    ],
    ids=["rising", "rare, half the way", "constant", "a gap", "not from the start", "whole", "empty", "no number"],
)
def test_sparklines(steps: list[int], values: list[float], last: int, expected: str) -> None:
    series = Series(np.array(steps, dtype=int), np.array(values, dtype=float))
    assert sparkline(series, last, last + 1, LETTERS) == expected


def test_a_character_is_the_mean_of_its_steps() -> None:
    series = Series(np.arange(100), np.where(np.arange(100) < 50, np.arange(100) % 2, 1.0))
    assert sparkline(series, 99, 10, LETTERS) == ".....@@@@@"


# ---- the command


def test_once_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "run")
    lock.own(folder)
    try:
        assert cli.main(["watch", str(folder), "--samples", "0"]) == 0
    finally:
        lock.release(folder)
    out = capsys.readouterr().out
    assert "step 4/10" in out and "answers at" not in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "environment.json", "metrics.jsonl", "opening.json", "samples.jsonl"
    ], "it writes nothing"  # fmt: skip


def test_bad_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["watch", str(tmp_path / "empty")]) == 2


@pytest.mark.parametrize("stop", [False, True], ids=["until the run ends", "Ctrl-C"])
def test_a_terminal_is_refreshed(stop: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out, naps = made(tmp_path / "run"), io.StringIO(), []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            lock.release(folder)
            if stop:
                raise KeyboardInterrupt
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(line(step=4 + len(naps), reward=1.0))

    monkeypatch.setattr(module, "Console", lambda **_: Console(file=out, force_terminal=True, width=100, height=40))
    monkeypatch.setattr(module.time, "sleep", nap)
    lock.own(folder)
    watch(WatchConfig((str(folder),), every=0.5))
    text = out.getvalue()
    assert naps == [0.5] * 3
    assert all(f"{step}/10" in text for step in (4, 5, 6))
    assert text.rstrip().rpartition("\x1b[?1049l")[2].count("step") >= 1, "the last look stays on the screen"
