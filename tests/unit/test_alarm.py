"""The drift alarm of a run: what it says, that it stops a run and no other, that it changes nothing of what is trained,
and that a run that was stopped and goes on is the same as one that was not."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent import cli
from assent.algorithms.online.train import train_online
from assent.algorithms.preference.train import train_preference
from assent.algorithms.sft import train_sft
from assent.config import (
    AlarmConfig,
    DataConfig,
    KLConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    PolicyRunConfig,
    ProbeConfig,
    RewardsConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
    settings,
)
from assent.errors import ConfigError, DriftStop
from assent.evaluate.alarms import alarms_of
from assent.evaluate.following import Following
from assent.evaluate.runs import read_run
from assent.measures import drift
from assent.train.alarm import FILE, DriftAlarm
from assent.train.log import read_jsonl, read_metrics

REWARDS = """
def letter(completions):
    return [float(min(text.count("e"), 12)) for text in completions]

def short(completions):
    return [-float(len(text)) for text in completions]
"""
STEPS, START = 30, 6
Make = Callable[..., OnlineConfig]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alarm")
    (folder / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{i} red?"} for i in range(5)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{i} red?", "chosen": "blue egg", "rejected": "no"} for i in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


@pytest.fixture(scope="module")
def make(place: Path, tiny_model_dir: Path) -> Make:
    """A run that drifts, since nothing holds it: all that pays is one letter."""

    def build(out: str, lr: float = 2e-2, **alarm: object) -> OnlineConfig:
        return online_config(
            "rloo",
            model=ModelConfig(str(tiny_model_dir), precision="fp32"),
            data=DataConfig(str(place / "prompts.jsonl"), max_length=64),
            out=str(place / out),
            optim=OptimConfig(lr=lr, warmup=0.0, schedule="constant"),
            train=TrainConfig(batch_size=2, max_steps=STEPS, threads=1),
            rewards=RewardsConfig(functions=(f"{place / 'rewards.py'}:letter",)),
            rollout={"responses": 4},
            kl=vars(KLConfig(coef=1e-3)),
            sampling=SamplingConfig(max_new_tokens=12),
            alarm=AlarmConfig(**{"start": START, **alarm}),  # type: ignore[arg-type]
        )

    return build


@pytest.fixture(scope="module")
def held_out(place: Path) -> str:
    return f"{place / 'rewards.py'}:short"


@pytest.fixture(scope="module")
def straight(make: Make, held_out: str) -> Path:
    """The run with an alarm that does not stop it."""
    return train_online(make("straight", held_out=held_out)).out


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_it_says_what_it_saw(straight: Path):
    rows = read_jsonl(straight / FILE)
    assert [set(row) for row in rows] == [{"step", "series", "level", "bound", "says"}] * len(rows) and rows
    sides = {(watch.series, watch.side) for watch in drift.WATCHES}
    metrics = {row["step"]: row for row in read_metrics(straight / "metrics.jsonl")}
    for row in rows:
        assert START < row["step"] <= STEPS and row["step"] in metrics
        above = row["level"] > row["bound"]
        assert (row["series"], "up" if above else "down") in sides
        assert row["says"].startswith(f"step {row['step']}: {row['series']} has {'risen' if above else 'fallen'}")
        assert "--kl.coef" in row["says"]
    assert len({(row["series"], row["level"] > row["bound"]) for row in rows}) == len(rows), "each watch once"
    assert {"kl", "entropy"} & {row["series"] for row in rows}
    said = alarms_of(read_run(straight))
    assert len(said) == len(rows) and said[0].startswith("Step ") and Following(straight).look().alarms == said


def test_the_alarm_of_a_run_is_that_of_its_metrics(straight: Path):
    metrics = read_metrics(straight / "metrics.jsonl")
    own = {"repetition", "refusal", "distinct", "held_out"}
    series = {
        watch.series: np.array(
            [row.get(f"alarm/{watch.series}" if watch.series in own else watch.series, math.nan) for row in metrics]
        )
        for watch in drift.WATCHES
    }
    found = drift.alarms(series, horizon=STEPS, start=START)
    rows = [(row["series"], row["step"], row["level"]) for row in read_jsonl(straight / FILE)]
    assert [(each.watch.series, each.point + 1, each.level) for each in found] == rows


def test_it_changes_nothing_that_is_trained(make: Make, straight: Path):
    plain = train_online(make("plain", rate=0.0)).out
    assert weights(plain) == weights(straight) and not (plain / FILE).exists()
    quiet = [{k: v for k, v in row.items() if not k.startswith("alarm/")} for row in _timeless(straight)]
    assert quiet == _timeless(plain) != _timeless(straight)


def _timeless(run: Path) -> list[dict[str, float]]:
    return read_metrics(run / "metrics.jsonl", times=False)


def test_it_stops_a_run_that_then_goes_on(make: Make, straight: Path, held_out: str, caplog):
    config = make("stopped", held_out=held_out, stop=True)
    stops, codes = [], []
    while not codes or codes[-1]:
        file = Path(f"{config.out}.yaml")
        file.write_text(settings.dump(replace(config, resume="auto" if codes else None)))
        caplog.clear()
        codes.append(cli.main(["rloo", "--config", str(file)]))
        if codes[-1]:
            *_, stopped = (record.getMessage() for record in caplog.records if "Stopped" in record.getMessage())
            stops.append(int(stopped.split()[3]))
            assert stopped.splitlines() == [
                f"Stopped at step {stops[-1]} by the drift alarm (--alarm.stop).",
                f"Checkpoint of step {stops[-1]} saved; continue with --resume auto.",
            ]
            raised = read_jsonl(Path(config.out) / FILE)
            assert raised == [row for row in read_jsonl(straight / FILE) if row["step"] <= stops[-1]]
    assert codes[:-1] == [DriftStop.exit_code] * len(stops) and codes[-1] == 0
    assert stops == sorted({row["step"] for row in read_jsonl(straight / FILE)} - {STEPS})
    out = Path(config.out)
    assert weights(out) == weights(straight) and _timeless(out) == _timeless(straight)
    assert (out / FILE).read_bytes() == (straight / FILE).read_bytes()


def test_two_ranks_raise_what_one_raises(make: Make, held_out: str, children, tmp_path: Path):
    def config(out: str) -> OnlineConfig:
        optim = OptimConfig(lr=2e-2, eps=1e-4, warmup=0.0, schedule="constant")
        return replace(make(out, held_out=held_out, stop=True), optim=optim)

    double = config("double")
    file = tmp_path / "double.yaml"
    file.write_text(settings.dump(double))
    ranks = children.ranks(tmp_path, ["rloo", "--config", str(file)])
    with pytest.raises(DriftStop, match=r"step \d+ by the drift alarm"):
        train_online(config("single"))
    assert ranks.codes(200) == [DriftStop.exit_code] * 2, ranks.said
    one, two = (read_jsonl(Path(make(out).out) / FILE) for out in ("single", "double"))
    assert one and [(row["step"], row["series"]) for row in one] == [(row["step"], row["series"]) for row in two]
    for first, second in zip(one, two, strict=True):
        assert (first["level"], first["bound"]) == pytest.approx((second["level"], second["bound"]), rel=1e-3)


def test_a_healthy_run_is_not_stopped(make: Make):
    run = train_online(make("healthy", lr=1e-6, stop=True))
    assert run.steps == STEPS and not (run.out / FILE).exists()
    assert {"alarm/distinct", "alarm/repetition"} <= {name for row in _timeless(run.out) for name in row}


def test_a_run_that_is_too_short_says_so(make: Make, caplog):
    short = replace(make("short", stop=True, start=10), train=TrainConfig(batch_size=2, max_steps=8, threads=1))
    out = train_online(short).out
    said = "off: the run has 8 rollouts, and 10 are its start (--alarm.start)"
    assert f"--alarm.stop: the drift alarm is {said}." in caplog.text
    assert ["Alarm", said] in json.loads((out / "opening.json").read_text())["lines"]
    assert not any(name.startswith("alarm/") for row in _timeless(out) for name in row)


@pytest.mark.parametrize("word", ["same", "copy"])
def test_the_training_reward_is_not_held_out(word: str, make: Make, place: Path, scorer_dir: Path, monkeypatch):
    config = make(f"same-{word}", held_out=str(scorer_dir) + ("/" if word == "copy" else ""))
    with pytest.raises(ConfigError, match="the policy is trained by this reward"):
        train_online(replace(config, rewards=RewardsConfig(model=(str(scorer_dir),))))
    monkeypatch.chdir(place)
    spec = "rewards.py:letter" if word == "copy" else f"{place / 'rewards.py'}:letter"
    with pytest.raises(ConfigError, match=r"trained by this reward \(--rewards.functions\)"):
        train_online(make(f"same-{word}", held_out=spec))


def test_what_cannot_be_is_refused(make: Make, place: Path, tiny_model_dir: Path):
    def refused(config: PolicyRunConfig, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            settings.validate(config)

    refused(
        make("never", rate=0.0, stop=True), r"--alarm.stop is about the drift alarm, which --alarm.rate 0 turns off"
    )
    refused(make("never", rate=0.7), "--alarm.rate must be from 0 to 0.5")
    refused(make("never", start=3), "--alarm.start must be at least 5")
    model, data = ModelConfig(str(tiny_model_dir)), DataConfig(str(place / "pairs.jsonl"), max_length=64)
    refused(SFTConfig(model, data, "never", alarm=AlarmConfig(stop=True)), "answers that are sampled at evaluations")
    config = preference_config("dpo", model=model, data=data, out="never", alarm=AlarmConfig(held_out="length=1,2"))
    refused(config, "answers that are sampled at evaluations")
    with pytest.raises(ConfigError, match="--alarm.held_out nosuch=...: there is no 'nosuch'"):
        train_online(make("never", held_out="nosuch=1"))
    held = replace(data, eval_fraction=0.3)
    train = TrainConfig(eval_every=1, max_steps=12)
    server = replace(config, data=held, train=train, alarm=AlarmConfig(held_out="openrlhf=http://localhost:1"))
    server = replace(server, probe=ProbeConfig(max_new_tokens=8))
    with pytest.raises(ConfigError, match="which only the online methods"):
        train_preference(replace(server, out=str(place / "server")))


@pytest.mark.parametrize("command", ["sft", "dpo"])
def test_without_rollouts_evaluations_are_the_points(command: str, place: Path, tiny_model_dir: Path):
    """Training on one short answer makes answers short, and all the same."""
    shared = {
        "model": ModelConfig(str(tiny_model_dir), precision="fp32"),
        "data": DataConfig(str(place / "pairs.jsonl"), eval_fraction=0.3, max_length=64),
        "out": str(place / command),
        "optim": OptimConfig(lr=5e-3),
        "train": TrainConfig(batch_size=4, max_steps=24, eval_every=1, threads=1),
        "probe": {"prompts": 4, "max_new_tokens": 12},
        "alarm": AlarmConfig(start=5, held_out=f"{place / 'rewards.py'}:short"),
    }
    if command == "sft":
        run = train_sft(SFTConfig(**shared))  # type: ignore[arg-type]
    else:
        run = train_preference(preference_config("dpo", **shared))
    points = [row for row in _timeless(run.out) if "eval/alarm/held_out" in row]
    assert [row["step"] for row in points] == list(range(25))
    if command == "sft":
        rows = read_jsonl(run.out / FILE)
        assert {row["series"] for row in rows} <= {watch.series for watch in drift.WATCHES}
        assert all("--optim.lr" in row["says"] for row in rows)


def test_a_later_point_never_takes_an_alarm_back():
    """Also where the horizon was too short, as with rollouts that are left early."""
    alarm = DriftAlarm(AlarmConfig(), "rollout", 20, held_out=False)
    rng = np.random.default_rng(0)
    for step in range(1, 41):
        alarm.take(step, {"length": 100 + rng.normal() + 300 * (step > 14)})
    assert [row.series for row in alarm.raised] == ["length"] and 15 <= alarm.raised[0].step <= 18


def test_series_of_texts():
    found = drift.of_texts(["a b c d a b c d", "one two three four five six", ""])
    assert found["repetition"] == pytest.approx((1 / 5 + 0) / 2)  # 5 and 3 4-grams, one of them again
    assert found["distinct"] == pytest.approx((4 + 5) / (7 + 5))
    assert found["refusal"] == 0.0
    assert drift.of_texts(["I'm sorry, but I cannot help with that."])["refusal"] == 1.0
    assert all(math.isnan(value) for value in drift.of_texts([""]).values())
