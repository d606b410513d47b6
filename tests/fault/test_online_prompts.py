"""Prompts that leave no room for an answer, answers that never end, rewards that tell nothing for long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assent.algorithms.online import rollouts
from assent.cli import main
from assent.train.log import read_jsonl, read_metrics

REWARDS = """
def same(completions, **columns):
    return [1.0] * len(completions)
def length(completions: list[str], **columns):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path):
    """(exit code, run folder) of GRPO on these prompts."""
    (tmp_path / "mine.py").write_text(REWARDS)

    def run(prompts: list[str], function: str, *more: str, new_tokens: int = 6, steps: int = 2) -> tuple[int, Path]:
        file, out = tmp_path / "prompts.jsonl", tmp_path / "run"
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        flags = {
            "model.path": tiny_model_dir,
            "model.precision": "fp32",
            "data.train": file,
            "data.max_length": 64,
            "out": out,
            "optim.lr": 1e-3,
            "train.batch_size": 2,
            "train.max_steps": steps,
            "train.threads": 1,
            "rollout.responses": 2,
            "sampling.max_new_tokens": new_tokens,
            "rewards.functions": f"{tmp_path / 'mine.py'}:{function}",
        }
        options = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        return main(["grpo", *options, *more]), out

    return run


def test_a_prompt_that_fills_the_context_is_a_problem_row(run, capsys) -> None:
    """Room for the answer is kept: a prompt of the whole length limit is named, not cut."""
    prompts = ["red green?", "blue?", "red " * 80]
    code, out = run(prompts, "length", "--data.long", "refuse")
    said = capsys.readouterr().err
    assert code == 2 and "prompts.jsonl:3" in said and "Traceback" not in said
    assert "--data.long drop" in said
    code, out = run(prompts, "length")
    assert code == 0 and "2 of 3 rows used, 1 too long" in capsys.readouterr().err
    data = json.loads((out / "data.json").read_text())
    assert data["train"]["examples" if "examples" in data["train"] else "rows"] == 2


def test_no_room_for_any_answer_is_refused(run, capsys) -> None:
    code, _ = run(["red?"], "length", new_tokens=64)
    assert code == 2
    said = capsys.readouterr().err
    assert "--sampling.max_new_tokens 64 leaves no room for a prompt within --data.max_length 64." in said


def test_answers_that_never_end_are_cut_counted_and_can_be_charged(run) -> None:
    code, out = run(["red green?", "blue?"], "length", "--shaping.missing_eos_penalty", "50", new_tokens=2)
    assert code == 0
    metrics = read_metrics(out / "metrics.jsonl")
    samples = read_jsonl(out / "samples.jsonl")
    assert any(not row["finished"] for row in samples)
    unfinished = [row["unfinished"] for row in metrics if "unfinished" in row]
    first = [row for row in samples if row["step"] == 1]
    assert unfinished[0] == pytest.approx(sum(not row["finished"] for row in first) / len(first))
    assert all(row["length"] <= 2 for row in samples)


def test_rewards_without_any_signal_are_announced_and_change_nothing(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(rollouts, "STUCK", 2)
    code, out = run(["red green?", "blue?"], "same", "--kl.coef", "0", steps=3)
    assert code == 0
    assert "for 2 rollouts all answers to a prompt were worth the same" in " ".join(capsys.readouterr().err.split())
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "no_signal" in row]
    assert [row["no_signal"] for row in rows] == [1.0, 1.0, 1.0]
    assert all(row["grad_norm"] == 0.0 and row["loss"] == 0.0 for row in rows)
