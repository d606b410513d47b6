"""What a reward model's run says at its end of how far the model can be trusted."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from assent.algorithms.reward import trust as at_end
from assent.algorithms.reward.pairs import train_reward
from assent.config import DataConfig, ModelConfig, OptimConfig, RewardConfig, TrainConfig, TrustConfig
from assent.data.jsonl import json_line
from assent.errors import UserError
from assent.evaluate.trust import trust
from assent.train.run import RunResult


def rows(number: int, start: int = 0) -> list[dict]:
    """The longer of two answers is the better one, in three of four."""
    made = []
    for index in range(start, start + number):
        long, short = "Red, green and blue are three colours. " * 2, "No."
        better, worse = (short, long) if index % 4 == 0 else (long, short)
        made.append({"prompt": f"Question {index}?", "chosen": better, "rejected": worse, "annotator": "ab"[index % 2]})
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, made in {"train": rows(24), "eval": rows(40, 100)}.items():
        (folder / f"{name}.jsonl").write_text("".join(map(json_line, made)))
    return folder


def run(files: Path, tiny_model_dir: Path, out: Path, held_out: bool = True, **data) -> RunResult:
    return train_reward(
        RewardConfig(
            model=ModelConfig(str(tiny_model_dir), precision="fp32"),
            data=DataConfig(
                str(files / "train.jsonl"), eval=str(files / "eval.jsonl") if held_out else None, max_length=64, **data
            ),
            out=str(out),
            optim=OptimConfig(lr=1e-2, warmup=0.0, schedule="constant"),
            train=TrainConfig(batch_size=8, max_steps=6, threads=1),
        )
    )


@pytest.fixture(scope="module")
def finished(files: Path, tiny_model_dir: Path, tmp_path_factory) -> RunResult:
    return run(files, tiny_model_dir, tmp_path_factory.mktemp("runs") / "reward")


def test_its_numbers_are_those_of_the_command(finished, files):
    found = json.loads((finished.out / "trust.json").read_text())
    assert found["counts"]["pairs"] == 40 and found["counts"]["unscored"] == 0 and found["held_out"] == 40
    assert found["accuracy"]["right"]["mean"] == pytest.approx(finished.end.metrics["eval/accuracy"])
    report = trust(
        TrustConfig((str(finished.model),), file=str(files / "eval.jsonl"), max_length=64, precision="fp32", probes=32)
    )
    again = report.files[0].trust
    assert again.accuracy.right.mean == found["accuracy"]["right"]["mean"]
    assert again.calibration.nll.mean == pytest.approx(found["calibration"]["nll"]["mean"], rel=1e-4)
    assert again.parts.keys() == found["parts"].keys() == {"better answer", "annotator"}
    assert again.bias.longer.reward.value == pytest.approx(found["bias"]["longer"]["reward"]["value"])
    by_name = {each["name"]: each for each in found["sensitivity"]}
    for each in again.sensitivity:
        assert each.answers == by_name[each.name]["answers"]
        if each.change.value is not None:
            assert each.change.value == pytest.approx(by_name[each.name]["change"]["value"], abs=1e-3)


def test_it_stands_in_the_summary_and_on_the_card(finished):
    summary = json.loads((finished.out / "summary.json").read_text())
    assert any(line.startswith("accuracy") for line in summary["trust"])
    assert any("the longer answer is preferred in" in line for line in summary["trust"])
    card = (finished.model / "README.md").read_text()
    assert "Trust, on the held-out data" in card and "- accuracy" in card and "temperature" in card
    length = json.loads((finished.out / "trust.json").read_text())["parts"]["better answer"]
    if length["shorter"]["right"]["high"] < length["longer"]["right"]["low"]:
        assert "shorter" in card


def test_without_held_out_data_nothing_is_said(files, tiny_model_dir, tmp_path):
    done = run(files, tiny_model_dir, tmp_path / "run", held_out=False)
    assert not (done.out / "trust.json").exists()
    assert "Trust" not in (done.model / "README.md").read_text()
    assert json.loads((done.out / "summary.json").read_text())["trust"] is None


def test_what_goes_wrong_there_does_not_cost_the_model(files, tiny_model_dir, tmp_path, monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise UserError("no numbers today")

    monkeypatch.setattr(at_end, "sensitivities", fails)
    with caplog.at_level(logging.WARNING):
        done = run(files, tiny_model_dir, tmp_path / "run")
    assert (done.model / "config.json").is_file() and not (done.out / "trust.json").exists()
    assert any("no numbers today" in record.message for record in caplog.records)


def test_of_many_examples_some_are_drawn(monkeypatch):
    monkeypatch.setattr(at_end, "MOST", 5)
    drawn = at_end._drawn(50, seed=1)
    assert len(set(drawn)) == 5 and drawn == sorted(drawn) and at_end._drawn(50, seed=1) == drawn
    assert at_end._drawn(4, seed=1) == [0, 1, 2, 3]
