"""Reward code that ends the program, or changes the process it runs in: the first is an error that names it, the second
changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from assent.cli import main
from assent.train import checkpoint
from assent.train.log import read_metrics

from .commands import grpo_words, newest_step

MEDDLING = """
import os, random, signal, sys, tempfile, threading, time
import numpy, torch

def meddle():
    os.chdir(tempfile.gettempdir())
    random.seed(0), numpy.random.seed(0), torch.manual_seed(len(os.getcwd()))
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stderr.close()
    sys.stdout = open(os.devnull, "w")

if MEDDLES:
    meddle()

def length(completions, **columns):
    if MEDDLES:
        assert os.getcwd() == os.path.realpath(tempfile.gettempdir())  # its own folder is kept for it
        meddle()
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def grpo(tiny_model_dir: Path, tmp_path: Path, monkeypatch) -> Callable[..., int]:
    """The exit code of the command, all of whose paths are relative to `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model_dir)
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "{i} red?"}}\n' for i in range(6)))

    def run(out: str, *more: str) -> int:
        return main(grpo_words(out, "model", "rows.jsonl", *more, steps=3))

    return run


@pytest.mark.parametrize(
    "end", ["import sys; sys.exit(0)", "raise KeyboardInterrupt", "raise SystemExit", "raise GeneratorExit('no')"]
)
def test_code_that_ends_the_program_at_import_is_named(end: str, grpo, capfd) -> None:
    Path("mine.py").write_text(f"{end}\ndef length(completions): ...\n")
    assert grpo("run", "--rewards.functions", "mine.py:length") == 2
    said = capfd.readouterr().err
    assert "mine.py:length: mine.py cannot be imported" in said and "mine.py:1), which ends a program" in said
    assert "Traceback" not in said and not Path("run/checkpoints").exists()


@pytest.mark.parametrize(
    ("end", "workers"),
    [
        ("sys.exit(0)", "0"),
        ("sys.exit(0)", "1"),
        ("raise KeyboardInterrupt", "0"),
        ("raise GeneratorExit", "0"),
        ("raise Own('no')", "0"),
    ],
)
def test_code_that_ends_the_program_later_loses_nothing(end: str, workers: str, grpo, capfd) -> None:
    lines = (
        "import os, sys",
        "class Own(RuntimeError): ...",
        "def length(completions, trainer_state):",
        "    if trainer_state.global_step == 2 and not os.path.exists('mended'):",
        f"        {end}",
        "    return [float(len(text)) for text in completions]",
    )
    Path("mine.py").write_text("\n".join(lines))
    rewards = ("--rewards.functions", "mine.py:length", "--rewards.workers", workers)
    assert grpo("run", *rewards) == 2
    said = capfd.readouterr().err
    assert "mine.py:length: length raised " in said and "mine.py:5)" in said and "Traceback" not in said
    assert "Checkpoint of step 2 saved; continue with --resume auto." in said
    assert newest_step(Path("run")) == 2
    Path("mended").touch()
    assert grpo("run", *rewards, "--resume", "auto") == 0
    assert len(read_metrics("run/metrics.jsonl")) == 3


def test_what_code_does_to_the_process_ends_with_its_turn(grpo, tmp_path: Path, capfd) -> None:
    for name in ("True", "False"):
        Path("mine.py").write_text(MEDDLING.replace("MEDDLES", name))
        assert grpo(name, "--rewards.functions", "mine.py:length", "--train.save_every", "1") == 0
    assert os.getcwd() == str(tmp_path)
    assert "True 3/3" in capfd.readouterr().err, "standard error is still open"
    read = [
        (
            (Path(name) / "model" / "model.safetensors").read_bytes(),
            (checkpoint.newest_complete(Path(name) / "checkpoints") / "optimizer.safetensors").read_bytes(),
            read_metrics(Path(name) / "metrics.jsonl", times=False),
        )
        for name in ("True", "False")
    ]
    assert read[0] == read[1] and len(read[0][2]) == 3
