"""`--eval.measures`: measures of sampled answers in training, the best checkpoint by one of them, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sacrebleu.metrics import CHRF

from assent import cli
from assent.algorithms import measured
from assent.algorithms.online.train import train_online
from assent.algorithms.preference.train import train_preference
from assent.algorithms.sft import train_sft
from assent.config import (
    DataConfig,
    MeasuresConfig,
    ModelConfig,
    OptimConfig,
    RewardsConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
    settings,
)
from assent.errors import ConfigError
from assent.measures.estimates import undefined
from assent.measures.shapes import Measured
from assent.train.commands import command_of
from assent.train.log import read_jsonl, read_metrics
from assent.train.run import RunResult

NAMES = ("chrf", "characters", "exact-match", "distinct-1", "perplexity")
TRAINERS: dict[str, Callable] = {"sft": train_sft, "dpo": train_preference, "grpo": train_online}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    answers = ["red", "green water", "blue egg paris", "seven minutes", "boil", "cool question"]
    rows = [
        {"prompt": f"{i} {answer}?", "chosen": answer, "rejected": "no", "reference": [answer, "paris"]}
        for i, answer in enumerate(answers * 4)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    return folder


@pytest.fixture(scope="module")
def make(data: Path, tiny_model_dir: Path, scorer_dir: Path) -> Callable[..., RunConfig]:
    def build(command: str, out: Path, measures: MeasuresConfig, **train: object) -> RunConfig:
        file = data / ("sft.jsonl" if command == "sft" else "pairs.jsonl")
        shared = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32"),
            "data": DataConfig(str(file), eval_fraction=0.25, max_length=64),
            "out": str(out),
            "optim": OptimConfig(lr=3e-3),
            "train": TrainConfig(**{"batch_size": 4, "max_steps": 2, "eval_every": 1, "threads": 1} | train),
            "eval": measures,
        }
        if command == "grpo":
            return online_config(
                "grpo",
                **shared,
                rewards=RewardsConfig((str(scorer_dir),)),
                rollout=vars(RolloutConfig(responses=2, epochs=1)),
                sampling=SamplingConfig(max_new_tokens=6),
            )
        probe = {"prompts": 4, "max_new_tokens": 6}
        return (
            SFTConfig(**shared, probe=probe) if command == "sft" else preference_config(command, **shared, probe=probe)
        )

    return build


@pytest.fixture(scope="module", params=list(TRAINERS))
def run(request, make, tmp_path_factory) -> RunResult:
    out = tmp_path_factory.mktemp("run") / request.param
    return TRAINERS[request.param](make(request.param, out, MeasuresConfig(NAMES, best="chrf")))


def test_the_numbers_are_those_of_the_sampled_answers(run: RunResult) -> None:
    rows = [row for row in read_metrics(run.out / "metrics.jsonl") if "eval/chrf" in row]
    samples = [row for row in read_jsonl(run.out / "samples.jsonl") if row.get("held_out")]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        own = [sample for sample in samples if sample["step"] == row["step"]]
        assert len(own) >= 4
        texts = [sample["response"] for sample in own]
        right = [sample["prompt"][-1]["content"].partition(" ")[2].rstrip("?") for sample in own]
        online = not run.out.name.startswith("sft")  # its data have one right answer, the others' a column with two
        references = [[answer, "paris"] if online else [answer] for answer in right]
        width = max(map(len, references))
        streams = [[each[i] if i < len(each) else None for each in references] for i in range(width)]
        expected = CHRF().corpus_score(texts, streams).score
        assert row["eval/chrf"] == pytest.approx(expected, abs=1e-6)
        assert row["eval/characters"] == pytest.approx(sum(map(len, texts)) / len(texts))
        assert row["eval/characters_low"] <= row["eval/characters"] <= row["eval/characters_high"]
        assert row["eval/perplexity"] > 1 and row["eval/chrf_failed"] == row["eval/perplexity_failed"] == 0


def test_the_best_step_is_the_measures(run: RunResult) -> None:
    rows = {row["step"]: row["eval/chrf"] for row in read_metrics(run.out / "metrics.jsonl") if "eval/chrf" in row}
    assert run.best is not None
    assert run.best.metrics["eval/chrf"] == max(rows.values())
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary["best_by"] == "chrf" and summary["best"]["step"] == run.best_step


def test_lower_is_better_where_the_table_says_so(make, tmp_path: Path) -> None:
    config = make("dpo", tmp_path, MeasuresConfig(("repetition", "chrf"), best="repetition"))
    followed = command_of(config).followed
    assert followed.best == "repetition" and followed.better is min
    assert followed.held_out[-2:] == ("repetition", "chrf")
    assert command_of(make("dpo", tmp_path, MeasuresConfig())).followed.best == "objective"


REFUSED = {
    "unknown": (MeasuresConfig(("chrff",)), "there is no 'chrff'."),
    "of several policies": (MeasuresConfig(("win-rate",)), "assent eval measures it"),
    "one answer each": (MeasuresConfig(("self-bleu",)), "needs two or more answers"),
    "no direction": (MeasuresConfig(("characters",), best="characters"), "neither more of it nor less is better"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["dpo", "grpo"])
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(
    case: str, command: str, make, tmp_path: Path
) -> None:
    measures, said = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        TRAINERS[command](make(command, tmp_path / "run", measures))
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--eval.best chrf", "measured only where --eval.measures names it"),
        ("--eval.measures chrf", "Give --data.eval or --data.eval_fraction"),
        ("--eval.measures chrf --data.eval_fraction 0.5", "--probe.prompts 0 samples none"),
        ("--eval.measures chrf chrf --data.eval_fraction 0.5", "each once"),
    ],
)
def test_options_that_do_not_go_together(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "sft --model.path m --data.train d.jsonl --out o --dry_run".split()
    assert cli.main([*options, *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_measure_that_nothing_can_be_had_of_is_left_out(make, tmp_path: Path, monkeypatch) -> None:
    """A step at which the best cannot be measured is not the best."""
    real, asked = measured.of_column, []

    def of_column(row, column, answers) -> Measured:
        asked.append(row.name)
        return Measured(undefined("nothing"), {"no": len(answers)}) if len(asked) == 2 else real(row, column, answers)

    monkeypatch.setattr(measured, "of_column", of_column)
    result = train_sft(make("sft", tmp_path / "run", MeasuresConfig(("exact-match",), best="exact-match")))
    rows = {row["step"]: row for row in read_metrics(result.out / "metrics.jsonl") if "eval/nll" in row}
    assert "eval/exact-match" not in rows[1] and rows[1]["eval/exact-match_failed"] == 4
    assert result.best_step in (0, 2)


def test_python_and_yaml_are_one(make, tmp_path: Path) -> None:
    config = make("sft", tmp_path, MeasuresConfig(("chrf",), best="chrf"))
    assert settings.load(SFTConfig, settings.dump(config), "here") == config
