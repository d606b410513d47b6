"""Two ranks give what one gives, command by command: every logged number, the sampled answers, the final weights."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assent.config import (
    METHODS,
    OBJECTIVES,
    AdversarialSection,
    AttributesConfig,
    DataConfig,
    GateSection,
    LoraConfig,
    ModelConfig,
    OldRewardSection,
    OnlineConfig,
    OptimConfig,
    PreferenceConfig,
    ProbeConfig,
    ReferenceConfig,
    RewardConfig,
    RewardGateConfig,
    RewardOdinConfig,
    RewardsConfig,
    RewardSection,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
    settings,
)
from assent.train import checkpoint
from assent.train.log import read_jsonl, read_metrics

from ..kinds import KINDS
from .alike import assert_alike

WORKER = Path(__file__).parent / "workers" / "commands.py"
_spec = importlib.util.spec_from_file_location("commands_worker", WORKER)
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

NAMES = (
    "sft",
    "reward",
    "reward regularised",
    "reward golden",
    "reward-odin",
    "reward-attributes",
    "reward-gate",
    *KINDS,
    "dpo lora",
    "tr-dpo lora",
    "dpo cached",
    "dpo plus",
    *METHODS,
    "ppo lora",
)
HELD_OUT = {
    *("sft", "reward", "reward regularised", "reward golden", "reward-odin", "reward-attributes"),
    *("reward-gate", "dpo", "rrhf", "kto", "bco", "aot", "pl-dpo", "nca", "dpo cached", "dpo plus", "tr-dpo lora"),
    *("ppo", "grpo", "ppo lora"),
}
"""The runs that are evaluated: one of each way to do it. What objectives and methods have of their own is in the steps,
and the others take only these."""
WORDS = "red green blue paris egg water seven minutes boil cool answer question sentence thank welcome".split()


def steps_of(name: str) -> int:
    """Methods: two on each of two rollouts; others, where they are evaluated: over the end of an epoch."""
    return 4 if name.split()[0] in METHODS else 3 if name in HELD_OUT else 2


def configurations(
    out: Path, model: Path, reward: Path, teacher: Path, pairs: Path, ratings: Path, varied: Path
) -> dict[str, RunConfig]:
    """With an odd number of examples in each step, so that shares are unequal."""

    def data(name: str, file: Path) -> DataConfig:
        return DataConfig(str(file), eval_fraction=0.3 if name in HELD_OUT else 0.0, max_length=64)

    def shared(name: str) -> dict:
        return {
            "model": ModelConfig(
                str(model), precision="fp32", lora=LoraConfig(rank=4 if "lora" in name else 0, alpha=8)
            ),
            "data": data(name, pairs),
            "out": str(out / name.replace(" ", "-")),
            # eps above the rounding of gradients, which Adam would otherwise blow up to whole steps
            "optim": OptimConfig(lr=1e-3, eps=1e-4, warmup=0.0, weight_decay=0.1, max_grad_norm=0.5),
            "train": TrainConfig(
                batch_size=5,
                micro_tokens=60,
                max_steps=steps_of(name),
                eval_every=2 if name in HELD_OUT else 0,
                threads=1,
                final="best" if name == "reward" else "last",
            ),
        }

    def preference(name: str, **options) -> PreferenceConfig:
        objective = name.split()[0]
        if objective == "tr-dpo":
            options["reference"] = {"mode": "moving", "rate": 0.5, "every": 1}
        if "cached" in name:
            options["reference"] = ReferenceConfig(mode="cached", cache=str(out / "cached.safetensors"))
        if objective == "dpop":
            options["loss"] = {"penalty": 2.0}  # 50 would multiply rounding as well
        return preference_config(objective, **shared(name), probe=ProbeConfig(2, 4), **options)

    def online(name: str) -> OnlineConfig:
        distill = {"distill": {"teacher": str(teacher)}} if METHODS[name.split()[0]].needs_teacher else {}
        return online_config(
            name.split()[0],
            **shared(name),
            **distill,
            rewards=RewardsConfig((str(reward),)),
            rollout=vars(RolloutConfig(responses=2, epochs=1, minibatches=2)),
            sampling=SamplingConfig(max_new_tokens=8, max_batch=4),
        )

    return {
        "sft": SFTConfig(**shared("sft")),
        "reward": RewardConfig(**shared("reward"), reward=RewardSection(readout="mean")),
        "reward regularised": RewardConfig(
            **shared("reward regularised"), reward=RewardSection(regulariser="dpo", regulariser_weight=0.3)
        ),
        "reward golden": RewardConfig(
            **shared("reward golden"),
            adversarial=AdversarialSection(str(pairs), str(pairs), coef=0.5, batch_size=3),
            old=OldRewardSection(2.0, str(reward)),
        ),
        "reward-odin": RewardOdinConfig(**shared("reward-odin")),
        "reward-attributes": AttributesConfig(
            **{**shared("reward-attributes"), "data": data("reward-attributes", ratings)}
        ),
        "reward-gate": RewardGateConfig(
            **shared("reward-gate") | {part: vars(shared("reward-gate")[part]) for part in ("optim", "train")},
            gate=GateSection(ratings=str(varied), width=16, layers=2, dropout=0.3),
        ),
        **{name: preference(name) for name in KINDS},
        "dpo lora": preference("dpo lora"),
        "tr-dpo lora": preference("tr-dpo lora"),
        "dpo cached": preference("dpo cached"),
        "dpo plus": preference("dpo plus", plus={"sft": 0.5, "aot": 0.5}),
        **{name: online(name) for name in METHODS},
        "ppo lora": online("ppo lora"),
    }


@pytest.fixture(scope="module")
def runs(
    program_ranks, tiny_model_dir: Path, scorer_dir: Path, teacher_dir: Path, tmp_path_factory
) -> dict[str, tuple[Path, Path]]:
    """For each name the run folders of one rank and of two."""
    folder = tmp_path_factory.mktemp("ranks")
    draw = random.Random(3)
    answers = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(15)]
    rows = [
        {"prompt": f"{i} {draw.choice(WORDS)}?", "chosen": a, "rejected": "no", "margin": len(a) / 20}
        for i, a in enumerate(answers)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    rated = [
        {"prompt": row["prompt"], "response": row["chosen"], **{name: (i * k + k) % 5 for k, name in enumerate(names)}}
        for i, row in enumerate(rows)
    ]
    (folder / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    varied = [  # more than the states have dimensions: with fewer, ridge regression blows up their rounding
        {
            "prompt": f"{i} {draw.choice(WORDS)}?",
            "response": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
            **{name: draw.randint(0, 4) for name in names},
        }
        for i in range(150)
    ]
    (folder / "varied.jsonl").write_text("".join(json.dumps(row) + "\n" for row in varied))

    def make(out: str) -> dict[str, RunConfig]:
        (folder / out).mkdir()
        files = [folder / f"{name}.jsonl" for name in ("pairs", "ratings", "varied")]
        return configurations(folder / out, tiny_model_dir, scorer_dir, teacher_dir, *files)

    arguments = []
    double = make("double")
    for name, config in double.items():
        file = Path(f"{config.out}.yaml")
        file.write_text(settings.dump(config))
        arguments.append(f"{name.split()[0]}:{file}")
    ranks = program_ranks(folder, [str(WORKER), *arguments])
    single = make("single")
    for name, config in single.items():
        worker.COMMANDS[name.split()[0]][1](config)
    ranks.join(seconds=1800)  # each command has a limit of its own
    assert "returned a view tensor" not in "".join(ranks.said), "FSDP warns of it"
    return {name: (Path(single[name].out), Path(double[name].out)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_logged_number(name: str, runs) -> None:
    one, two = (read_metrics(out / "metrics.jsonl", times=False) for out in runs[name])
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert len([row for row in one if "loss" in row]) == steps_of(name)
    assert any("eval/" in key for row in one for key in row) == (name in HELD_OUT)
    objective = OBJECTIVES.get(name.split()[0])
    equal = objective is not None and objective.needs_reference
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if equal and a["step"] <= 1 and ("accuracy" in key or "agreement" in key):
                continue  # the policy is its reference still: the sign of a margin is that of its rounding
            assert b[key] == pytest.approx(value, abs=1e-5, rel=1e-5, nan_ok=True), (key, a["step"])


@pytest.mark.parametrize("name", NAMES)
def test_final_weights(name: str, runs, tiny_model_dir: Path) -> None:
    folders = ("model", "critic") if name.startswith("ppo") else ("model",)
    if "lora" in name:
        folders = (*folders, "model/adapter")
    if name == "reward-gate":
        folders = (*folders, "model/gate")
    for folder in folders:
        (file,) = {path.name for path in (runs[name][0] / folder).glob("*.safetensors")}
        one, two = (load_file(out / folder / file) for out in runs[name])
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=1e-5, rtol=0, msg=lambda text, k=key: f"{k}: {text}")
    if name == "reward-gate":
        return  # the model is frozen
    start, end = load_file(tiny_model_dir / "model.safetensors"), load_file(runs[name][0] / "model/model.safetensors")
    weight = "model.layers.0.mlp.down_proj.weight"
    assert (start[weight] - end[weight]).abs().max() > 1e-5, "training moved the weights"


@pytest.mark.parametrize("name", ["sft", "reward", "ppo lora"])
def test_what_was_gained(name: str, runs) -> None:
    """The same examples are paired, whichever rank has read them; the reward model is its best step."""
    one, two = (json.loads((out / "summary.json").read_text()) for out in runs[name])
    assert (one["step"], one["final"], one["best"]["step"]) == (two["step"], two["final"], two["best"]["step"])
    assert one["final"] == ("best" if name == "reward" else "last")
    assert one["gain"]["n"] == one["data"]["eval"]["examples"]
    assert two["gain"] == pytest.approx(one["gain"], abs=1e-3)


@pytest.mark.parametrize("name", [*METHODS, "ppo lora"])
def test_sampled_answers(name: str, runs) -> None:
    """The uniforms belong to the answers, not to the ranks: the same answers, token by token."""
    one, two = (read_jsonl(out / "samples.jsonl") for out in runs[name])
    assert one and [row["response"] for row in one] == [row["response"] for row in two]
    assert [row["length"] for row in one] == [row["length"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert b["reward"] == pytest.approx(a["reward"], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_hold_the_same(name: str, runs) -> None:
    """Whole tensors under the same names, whatever the number of ranks; so either can continue the other."""
    one, two = (checkpoint.load(checkpoint.newest_complete(out / "checkpoints")) for out in runs[name])
    assert one.keys() == two.keys()
    for kind in ("exp_avg", "exp_avg_sq"):
        assert one["optimizer"][kind].keys() == two["optimizer"][kind].keys()
        for key, value in one["optimizer"][kind].items():
            torch.testing.assert_close(two["optimizer"][kind][key], value, atol=1e-5, rtol=0)
    assert_alike(one["algorithm"], two["algorithm"])


def test_a_run_of_two_ranks_continues_on_one(runs, tmp_path: Path) -> None:
    """And says that the environment changed."""
    import shutil

    name = "dpo"
    out = tmp_path / "moved"
    shutil.copytree(runs[name][1], out)
    config = settings.read(OBJECTIVES["dpo"].config, out / "resolved.yaml")
    more = replace(config, out=str(out), resume="auto", train=replace(config.train, max_steps=4))
    result = worker.COMMANDS["dpo"][1](more)
    straight = replace(config, out=str(tmp_path / "one"), train=replace(config.train, max_steps=4))
    shutil.copytree(runs[name][0], straight.out)
    other = worker.COMMANDS["dpo"][1](replace(straight, resume="auto"))
    assert result.steps == other.steps == 4
    for key, value in other.metrics.items():
        assert result.metrics[key] == pytest.approx(value, abs=1e-5), key
