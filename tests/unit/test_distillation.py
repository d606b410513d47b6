"""Distillation as a whole run: what is logged, what is learnt from, what is refused; from Python and as a command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assent.algorithms.online.train import train_online
from assent.cli import main
from assent.config import (
    DataConfig,
    GKDDistill,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    RewardsConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.train.log import read_jsonl, read_metrics

Make = Callable[..., OnlineConfig]
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    answers = ("paris", "red green", "egg", "blue egg", "water")
    made = [{"prompt": f"{i} red?", "completion": text} for i, text in enumerate(answers)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


@pytest.fixture(scope="module")
def make(tiny_model_dir: Path, teacher_dir: Path, rows: Path) -> Make:
    def build(out: Path, method: str = "gkd", **options: Any) -> OnlineConfig:
        shared: dict[str, Any] = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32"),
            "data": DataConfig(str(rows), max_length=64),
            "out": str(out),
            "optim": OptimConfig(lr=1e-2, warmup=0.0),
            "train": TrainConfig(batch_size=4, max_steps=3, threads=1, seed=1),
            "sampling": SamplingConfig(**SHORT),
            "distill": {"teacher": str(teacher_dir)},
        }
        return online_config(method, **{**shared, **options})

    return build


def metrics(config: OnlineConfig) -> list[dict[str, float]]:
    train_online(config)
    return read_metrics(Path(config.out) / "metrics.jsonl", times=False)


def test_gkd(make: Make, tmp_path: Path) -> None:
    train = TrainConfig(batch_size=5, max_steps=12, threads=1, eval_every=6)
    config = make(tmp_path / "run", train=train, rollout={"responses": 8})
    config = replace(config, data=replace(config.data, eval=config.data.train))
    found = metrics(config)
    steps = [row for row in found if "distill_loss" in row]
    assert len(steps) == 12
    for row in steps:
        assert row["loss"] == pytest.approx(row["distill_loss"], abs=1e-6), "the divergence is all there is"
        assert row["distill_loss"] == pytest.approx(row["teacher_kl"], rel=0.3) and 0 <= row["teacher_agreement"] <= 1
        assert row["teacher_kl_forward"] > 0 and "reward" not in row and "no_signal" not in row
    held = [row["eval/teacher_kl"] for row in found if "eval/teacher_kl" in row]
    assert held[-1] < 0.9 * held[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["gain"]["mean"] < 0, "the KL from the teacher fell"
    assert "reward" not in read_jsonl(tmp_path / "run" / "samples.jsonl")[0]


def answers_of(config: OnlineConfig) -> list[dict[str, Any]]:
    train_online(config)
    return read_jsonl(Path(config.out) / "samples.jsonl")


def distilled(make: Make, teacher: Path, out: Path, share: float, **options: Any) -> OnlineConfig:
    section = {"teacher": str(teacher), "on_policy": share}
    return make(out, distill=section, rollout={"show": 9}, **options)


def test_supervised_distillation_samples_nothing(make: Make, teacher_dir: Path, tmp_path: Path, monkeypatch) -> None:
    def generate(self: Any, asks: Any) -> list[Any]:
        assert not asks
        return []

    monkeypatch.setattr("assent.rollout.sampler.Sampler._generate", generate)
    config = distilled(make, teacher_dir, tmp_path / "run", 0.0)
    samples = answers_of(config)
    assert {row["response"] for row in samples} <= {"paris", "red green", "egg", "blue egg", "water"}
    assert all(row["given"] for row in samples) and len(samples) == 12
    found = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "distill_loss" in row]
    assert found[-1]["distill_loss"] < found[0]["distill_loss"]
    assert not {"policy_loss", "mismatch", "length"} & found[0].keys(), "nothing was sampled"


def test_a_share_of_the_prompts_is_answered(make: Make, teacher_dir: Path, tmp_path: Path) -> None:
    train = TrainConfig(batch_size=5, max_steps=12, threads=1)
    samples = answers_of(distilled(make, teacher_dir, tmp_path / "run", 0.4, train=train))
    given = np.array([row["given"] for row in samples])
    assert len(given) == 60 and 0.4 < given.mean() < 0.8
    assert len({tuple(part) for part in given.reshape(12, 5).tolist()}) > 3, "drawn anew in each rollout"
    texts = {row["response"] for row, own in zip(samples, given, strict=True) if own}
    assert texts <= {"paris", "red green", "egg", "blue egg", "water"}


def test_a_row_without_a_usable_answer_is_named(make: Make, teacher_dir: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "bare.jsonl"
    file.write_text(rows.read_text() + json.dumps({"prompt": "9 red?"}) + "\n")
    words = ["--model.path", str(make(tmp_path / "x").model.path), "--data.train", str(file), "--data.max_length", "64"]
    words += ["--sampling.max_new_tokens", "6", "--distill.teacher", str(teacher_dir), "--out", str(tmp_path / "run")]
    assert main(["gkd", *words, "--distill.on_policy", "0.5", "--train.max_steps", "1"]) == 2


def test_the_teacher_in_the_reward(make: Make, teacher_dir: Path, tmp_path: Path) -> None:
    """Without any other reward; the advantages are what follows of -coef * (log policy - log teacher)."""
    out = tmp_path / "run"
    section = {"teacher": str(teacher_dir), "coef": 0.5}
    train = TrainConfig(batch_size=4, max_steps=1, threads=1)
    config = make(out, "reinforce", distill=section, rollout={"show": 9}, kl={"coef": 0.0}, train=train)
    (row,) = metrics(config)
    samples = read_jsonl(out / "samples.jsonl")
    assert "reward" not in row and row["teacher_kl"] > 0 and len(samples) == 4
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    models = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64) for p in (config.model.path, teacher_dir)]
    prompt_of = {row["prompt"][0]["content"]: row for row in samples}
    assert len(prompt_of) == 4
    for sample in samples:
        ids = tokenizer.apply_chat_template(sample["prompt"], add_generation_prompt=True, return_dict=False)
        answer = tokenizer(sample["response"], add_special_tokens=False)["input_ids"]
        if len(answer) != sample["length"] or sample["finished"]:
            continue  # other tokens, or the one that ended it
        both = torch.tensor([[*ids, *answer]])
        with torch.no_grad():
            logps = [torch.log_softmax(model(both).logits[0], -1)[len(ids) - 1 : -1] for model in models]
        own, teacher = (x.gather(1, torch.tensor(answer)[:, None])[:, 0] for x in logps)
        returns = (-0.5 * (own - teacher)).flip(0).cumsum(0).flip(0)
        assert sample["advantage"] == pytest.approx(returns.mean().item(), abs=1e-4)
        kl = (logps[0].exp() * (logps[0] - logps[1])).sum(-1).mean().item()
        assert sample["teacher_kl"] == pytest.approx(kl, abs=1e-5)


@pytest.mark.parametrize("method", ["ppo", "grpo", "reinforce++"])
def test_other_methods_take_a_dense_reward(method: str, make: Make, teacher_dir: Path, tmp_path: Path) -> None:
    section = {"teacher": str(teacher_dir)}
    critic = {"critic": {"start": "policy"}} if method == "ppo" else {}
    train = TrainConfig(batch_size=4, max_steps=2, threads=1)
    found = metrics(make(tmp_path / "run", method, distill=section, train=train, **critic))
    assert found[0]["teacher_kl"] > 0 and "no_signal" not in found[0] and found[0]["policy_loss"] != 0


def test_rewards_and_a_teacher_together(make: Make, scorer_dir: Path, tmp_path: Path) -> None:
    found = metrics(make(tmp_path / "run", rewards=RewardsConfig((str(scorer_dir),))))
    assert "reward" in found[0] and found[0]["distill_loss"] > 0
    assert found[0]["loss"] == pytest.approx(found[0]["policy_loss"] + found[0]["distill_loss"], abs=1e-5)


@pytest.mark.parametrize("variant", ["lora", "bf16", "kept", "temperature"])
def test_variants(variant: str, make: Make, teacher_dir: Path, tmp_path: Path) -> None:
    """`kept`: the pass that annotated the rollout is that of the step, with the same numbers."""
    options: dict[str, Any] = {}
    model = make(tmp_path / "x").model
    section = {"teacher": str(teacher_dir), "beta": 0.5}
    match variant:
        case "lora":
            options = {"model": replace(model, lora=replace(model.lora, rank=2))}
        case "bf16":
            options = {"model": replace(model, precision="bf16")}
        case "kept":
            options = {"kl": {"coef": 0.05}}
        case "temperature":
            section |= {"temperature": 2.0}
    found = metrics(make(tmp_path / "run", distill=section, **options))
    assert all(0 < row["distill_loss"] < np.log(2) for row in found), "JSD is at most log 2"
    if variant == "kept":
        split = replace(make(tmp_path / "split", distill=section, **options))
        split = replace(split, train=replace(split.train, micro_tokens=40))
        for one, two in zip(found, metrics(split), strict=True):
            assert one["distill_loss"] == pytest.approx(two["distill_loss"], abs=1e-5)
            assert one["teacher_kl"] == pytest.approx(two["teacher_kl"], abs=1e-5)


# ---- what is refused


def test_a_teacher_of_another_vocabulary(make: Make, teacher_dir: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher_dir, other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocab = tokens["model"]["vocab"]
    one, two = list(vocab)[20:22]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    config = make(tmp_path / "x")
    words = ["--model.path", config.model.path, "--data.train", config.data.train, "--out", str(tmp_path / "run")]
    assert main(["gkd", *words, "--data.max_length", "64", "--sampling.max_new_tokens", "6",
                 "--distill.teacher", str(other)]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert f"--distill.teacher {other} has another vocabulary" in said and "2 of" in said and "Traceback" not in said


REFUSED: dict[str, tuple[str, str, str]] = {
    "no teacher": ("gkd", "", "--distill.teacher FOLDER must be given: gkd learns its predictions."),
    "weight of no teacher": (
        "ppo --rewards.model r",
        "--distill.coef 2",
        "--distill.coef is the weight of the teacher of --distill.teacher FOLDER. There is none.",
    ),
    "rewards off policy": (
        "gkd --distill.teacher t --rewards.model r",
        "--distill.on_policy 0.5",
        "--distill.on_policy 0.5 learns from answers that the policy did not sample, and rewards have no policy "
        "gradient there. Leave the rewards out, or use --distill.on_policy 1.",
    ),
    "two ways to rows": (
        "gkd --distill.teacher t",
        "--distill.on_policy 0.5 --given.source row",
        "--distill.on_policy 0.5 takes answers from the rows, as --given.source row does. Give one of them.",
    ),
    **{
        option: (
            f"{method} --distill.teacher t",
            option,
            f"{shown or option} reads what answers are worth, and the teacher (--distill.teacher) is all there is. "
            "Name rewards (--rewards.*), or leave it out.",
        )
        for method, option, shown in (
            ("grpo", "--shaping.baseline running", ""),
            ("grpo", "--shaping.normalise batch", ""),
            ("grpo", "--shaping.clip 2", "--shaping.clip"),
            ("grpo", "--curriculum.order easy", "--curriculum.order easy without --curriculum.column"),
            ("grpo", "--curriculum.rest 1", "--curriculum.rest"),
            ("gkd", "--given.source row", ""),
            ("dapo", "--loss.dynamic", ""),
            ("remax", "--loss.reduction fixed", "the estimator of remax"),
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions(name: str, tmp_path: Path, capsys) -> None:
    command, options, words = REFUSED[name]
    out = tmp_path / "run"
    shared = ["--model.path", "m", "--data.train", "d.jsonl", "--out", str(out)]
    assert main([*command.split(), *shared, *options.split()]) == 2
    assert words in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("coef", "0"), ("beta", "1.5"), ("beta", "-0.1"), ("temperature", "0"), ("on_policy", "2"), ("teacher", "")],
)
def test_ranges(flag: str, value: str, capsys) -> None:
    words = ["--model.path", "m", "--data.train", "d.jsonl", "--out", "o", "--distill.teacher", "t"]
    assert main(["gkd", *words, f"--distill.{flag}", value]) == 2
    assert f"--distill.{flag} must be " in capsys.readouterr().err


def test_the_reward_has_no_options_of_the_divergence(capsys) -> None:
    assert not hasattr(online_config("ppo", model={"path": "m"}, data={"train": "t"}, out="o").distill, "beta")
    assert {"beta", "temperature", "on_policy"} <= vars(GKDDistill()).keys()
