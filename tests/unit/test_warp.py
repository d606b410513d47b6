"""WARP as a loop: what its rounds make is what single commands make, its front is what `assent eval` measures, and what
cannot be done is said before work is spent."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from assent import cli
from assent.config import WarpConfig
from assent.errors import ConfigError, RunFolderError
from assent.evaluate.results import PolicyTable
from assent.loops.loop import seed_of
from assent.loops.warp import warp
from assent.train.history import flat
from assent.train.log import read_jsonl, read_metrics

REWARDS = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in str(text)) / (1 + len(str(text))) for text in completions]


def gold(prompt, answer):
    return sum(letter in "aeiou" for letter in answer)
"""
Make = Callable[..., WarpConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("warp")
    for name, count in (("prompts", 6), ("held", 5)):
        rows = [{"prompt": f"{name} {i} red?"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture(scope="module")
def make(folder: Path, tiny_model_dir: Path) -> Make:
    def build(name: str, **options: Any) -> WarpConfig:
        shared: dict[str, Any] = {
            "model": {"path": str(tiny_model_dir), "precision": "fp32"},
            "data": {"train": str(folder / "prompts.jsonl"), "max_length": 64},
            "out": str(folder / name),
            "policy": "rloo",
            "rounds": 2,
            "steps": (2, 1),
            "optim": {"lr": 1e-2, "warmup": 0.0},
            "train": {"batch_size": 3, "threads": 1},
            "sampling": {"max_new_tokens": 6},
            "rewards": {"functions": (f"{folder / 'rewards.py'}:vowels",)},
            "options": {"rollout.responses": "2", "kl.anchor_rate": "0.3"},
            "prompts": str(folder / "held.jsonl"),
            "scorer": f"{folder / 'rewards.py'}:gold",
            "front": (0.5, 1.0),
        }
        return WarpConfig(**{**shared, **options})

    return build


@pytest.fixture(scope="module")
def whole(make: Make) -> Path:
    """A finished loop of two rounds, made in `loop` and put aside."""
    config = make("loop")
    assert warp(config) == Path(config.out) / "round-2" / "merged"
    return Path(config.out).rename(config.out + "-whole")


def weights(model: Path) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in load_file(model / "model.safetensors").items()}


def layer(name: str) -> str:
    """The group of weights that has one angle: a decoder layer, or a module beside them."""
    parts = name.split(".")
    return parts[parts.index("layers") + 1] if "layers" in parts else name.rpartition(".")[0]


def slerp(start: dict, first: dict, second: dict, share: float) -> dict[str, np.ndarray]:
    """One angle for each layer, in numpy."""
    made = dict(start)
    for group in {layer(name) for name in start}:
        names = [name for name in start if layer(name) == group]
        a, b = (np.concatenate([(one[n] - start[n]).ravel() for n in names]) for one in (first, second))
        angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
        merged = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
        for name, part in zip(names, np.split(merged, np.cumsum([start[n].size for n in names])[:-1]), strict=True):
            made[name] = start[name] + part.reshape(start[name].shape)
    return made


def test_the_rounds_are_those_of_the_paper(whole: Path, tiny_model_dir: Path) -> None:
    """theta_merged = slerp of the task vectors of the runs; the next start is eta of the way there; the models of the
    front lie between the first start and the last merged one."""
    assert [row["stage"] for row in read_jsonl(whole / "loop.jsonl")] == [
        "start/eval",
        *(f"round-1/{name}" for name in ("run-1", "run-2", "merged", "eval")),
        *(f"round-2/{name}" for name in ("start", "run-1", "run-2", "merged", "eval", "front/eta-0.5", "front/eta-1")),
        *(f"round-2/{name}" for name in ("front/eval", "front.json", "front.csv", "front.svg")),
    ]
    first = start = merged = weights(tiny_model_dir)
    for number in (1, 2):
        place = whole / f"round-{number}"
        if number == 2:
            expected = {name: 0.7 * start[name] + 0.3 * merged[name] for name in start}
            start = weights(place / "start")
            for name, value in expected.items():
                np.testing.assert_allclose(start[name], value, atol=1e-6)
        runs = [weights(place / f"run-{run}" / "model") for run in (1, 2)]
        assert max(np.abs(runs[0][name] - runs[1][name]).max() for name in start) > 1e-3
        merged = weights(place / "merged")
        for name, value in slerp(start, *runs, 0.5).items():
            np.testing.assert_allclose(merged[name], value, atol=2e-6, err_msg=name)
        average = max(np.abs(merged[n] - (runs[0][n] + runs[1][n]) / 2).max() for n in start)
        assert average > 1e-4, "slerp is no average"
    half = weights(whole / "round-2" / "front" / "eta-0.5")
    for name in first:
        np.testing.assert_allclose(half[name], (first[name] + merged[name]) / 2, atol=1e-6)


def test_runs_differ_in_their_seed_alone(whole: Path, tiny_model_dir: Path) -> None:
    """Each is held to its own average, and logs the KL from the first start beside it."""
    places = [(number, run) for number in (1, 2) for run in (1, 2)]
    found = [flat(yaml.safe_load((whole / f"round-{n}/run-{run}/resolved.yaml").read_text())) for n, run in places]
    assert [options["train.seed"] for options in found] == [seed_of(0, "round", n, "run", run) for n, run in places]
    assert len({options["train.seed"] for options in found}) == 4
    assert [options["train.max_steps"] for options in found] == [2, 2, 1, 1]
    assert [options["kl.reference"] for options in found] == [None, None, *[str(tiny_model_dir)] * 2]
    for options in found:
        assert options["kl.anchor"] == "ema" and options["kl.anchor_rate"] == 0.3
        assert options["rollout.responses"] == 2 and options["model.save_dtype"] == "fp32"
    alike = [{k: v for k, v in options.items() if k not in ("train.seed", "out")} for options in found]
    assert alike[0] == alike[1] and alike[2] == alike[3]
    last = read_metrics(whole / "round-2" / "run-1" / "metrics.jsonl")[0]
    assert last["kl_anchor"] == pytest.approx(0, abs=1e-5) and abs(last["kl"]) > 1e-3


def test_the_front_is_what_an_evaluation_measures(whole: Path) -> None:
    place = whole / "round-2"
    table = PolicyTable.load(place / "front" / "eval" / "evaluation.json")
    told = json.loads((place / "front.json").read_text())
    assert told["prompts"] == 5 and [row["eta"] for row in told["front"]] == [0.0, 0.5, 1.0]
    rows = list(csv.DictReader((place / "front.csv").open()))
    for policy, row, line in zip(table.policies, told["front"], rows, strict=True):
        assert policy.name == row["name"] == line["name"]
        assert {"kl", "reward/gold", "reward/vowels", "length", "unfinished"} < row.keys()
        for key in ("kl", "reward/gold", "length"):
            found = policy.interval(key)
            assert [row[key][part] for part in ("value", "low", "high")] == [found.mean, found.low, found.high]
            assert float(line[f"{key} value"]) == found.mean
    assert told["front"][0]["kl"]["value"] == 0
    answers = [row for row in read_jsonl(place / "front" / "eval" / "answers.jsonl") if row["policy"] == "eta-1"]
    drift = np.mean([row["log_prob"] - row["reference_log_prob"] for row in answers])
    assert told["front"][2]["kl"]["value"] == pytest.approx(drift, abs=1e-6)
    assert told["front"][2]["reward/gold"]["value"] == np.mean([row["scores"]["gold"] for row in answers])
    drawn = (place / "front.svg").read_text()
    assert "η 0.5" in drawn and "KL from the start" in drawn and "vowels" in drawn
    assert cli.main(["report", str(whole), "--out", str(whole / "report.html")]) == 0
    page = (whole / "report.html").read_text()
    assert "eta-0.5" in page and "Rounds" in page
    (said,) = [row["numbers"] for row in read_jsonl(whole / "loop.jsonl") if row["stage"] == "round-2/eval"]
    assert said["gold"] == told["front"][2]["reward/gold"]["value"] and said["kl"] == told["front"][2]["kl"]["value"]


# ---- bad options

WRONG: dict[str, tuple[str, str]] = {
    "a method without rewards": ("--policy dpo", "--policy dpo does not learn from rewards of sampled answers."),
    "no method": ("--policy grop", "Perhaps you meant 'grpo'."),
    "a method without KL": ("--policy dapo", "kl.coef is 0, and without a KL nothing holds the runs together"),
    "no reference": ("--policy online-simpo", "the loss of online-simpo (simpo) has no reference"),
    "a loss without reference": ("--policy online-simpo --options kl.anchor:fixed", "nothing holds the runs together"),
    "no KL": ("--options kl.coef:0", "Give --options kl.coef:0.1."),
    "one run": ("--runs 1", "--runs must be at least 2. Got 1."),
    "no way": ("--eta 0", "--eta must be above 0 and at most 1. Got 0.0."),
    "too far": ("--eta 1.5", "--eta must be above 0 and at most 1. Got 1.5."),
    "a front beyond": ("--front 0 1.5", "--front 0 1.5: expected different numbers from 0 to 1."),
    "a front twice": ("--front 0.5 0.5", "expected different numbers from 0 to 1."),
    "too many steps": ("--rounds 2 --steps 9 7 5", "--steps 9 7 5: expected one number from 1, or one for each of 2"),
    "no steps": ("--steps 0", "--steps 0: expected one number from 1"),
    "a weight for three": ("--runs 3 --weight 0.3", "--weight 0.3 is λ of slerp between two runs."),
    "no such option": ("--options kl.coff:1", "grpo has no option 'kl.coff'. Perhaps you meant 'kl.coef'."),
    "a seed": ("--options train.seed:1", "grpo has no option 'train.seed'."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_at_once(name: str, folder: Path, capsys) -> None:
    words, said = WRONG[name]
    shared = f"--model.path nowhere --data.train nothing --out {folder / 'bad'} --prompts nothing"
    shared += f" --rewards.functions {folder / 'rewards.py'}:vowels"
    assert cli.main(["warp", *f"{shared} {words}".split(), "--dry_run"]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_a_front_needs_prompts(make: Make) -> None:
    with pytest.raises(ConfigError, match="--front is evaluated on held-out prompts"):
        warp(make("bad", prompts=None))


def test_another_loop_is_not_gone_on_with(make: Make, whole: Path) -> None:
    with pytest.raises(RunFolderError, match="--eta: 0.3 -> 0.5"):
        warp(replace(make("bad"), out=str(whole), eta=0.5, resume="auto"))
    with pytest.raises(RunFolderError, match="an earlier loop is there"):
        warp(replace(make("bad"), out=str(whole)))


def test_ranks_are_not_also_processes(make: Make, monkeypatch) -> None:
    monkeypatch.setattr("assent.loops.warp.devices", lambda: ["0"])
    with pytest.raises(ConfigError, match="--parallel 2: each run has a CUDA device of its own, and there are 1"):
        warp(make("bad-devices", parallel=2))
