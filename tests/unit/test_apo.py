"""Adversarial preference optimisation: what is measured, the turns of reward model and policy, interruptions, and what
is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from assent import config as configuration
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.cli import main
from assent.config import (
    ApoConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    SFTConfig,
    SourceConfig,
    TrainConfig,
)
from assent.data.formats import load_examples
from assent.data.records import Example, Message, Pair, Response
from assent.distributed import World
from assent.errors import DataError, UserError
from assent.loops import apo as loop_module
from assent.loops.apo import apo
from assent.loops.loop import STATE
from assent.loops.told_apart import HeldOut, at_chance, by_truth, gaps, held_out, told_apart
from assent.models.heads import WantedHead, load_score_model
from assent.models.reward_head import HeadRule
from assent.models.saving import save_model
from assent.statistics import win_rate

ONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))

# ---- what is measured


def example(prompt: str, *answers: str, pairs: tuple[tuple[int, int], ...] = ()) -> Example:
    responses = tuple(Response((Message("assistant", text),)) for text in answers)
    return Example((Message("user", prompt),), responses, tuple(Pair(*pair) for pair in pairs))


def test_gaps_are_those_of_pairs_in_order_and_an_unscored_answer_has_none():
    rows = [
        example("a", "x", "y", "z", pairs=((0, 1), (0, 2))),
        example("b", "x"),
        example("c", "x", "y", pairs=((1, 0),)),
    ]
    gap, prompt = gaps(rows, np.array([1.0, 0.25, np.nan, 7.0, 2.0, 5.0]))
    np.testing.assert_array_equal(gap, [0.75, np.nan, 3.0])
    assert prompt[0] == prompt[1] != prompt[2]


def test_pairs_by_the_truth_leave_ties_and_the_unscored_out():
    rows = [example("a", "x", "y", "z"), example("b", "x", "y")]
    made = by_truth(rows, np.array([1.0, 2.0, 1.0, np.nan, 3.0]))
    assert [(p.chosen, p.rejected) for p in made[0].feedback] == [(1, 0), (1, 2)] and made[1].feedback == ()


@pytest.mark.parametrize(
    ("low", "high", "chance"),
    [(0.45, 0.7, True), (0.5, 0.9, True), (0.51, 0.9, False), (0.1, 0.4, False), (None, None, False)],
)
def test_the_rule_of_chance(low: float | None, high: float | None, chance: bool):
    """Also a reward model that prefers samples tells them from golden answers."""
    assert at_chance({"golden/accuracy_low": low, "golden/accuracy_high": high}) is chance


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def by_length(prompts, completions):\n    return [len(c[-1]['content']) / 4 for c in completions]\n"
        "def constant(prompts, completions):\n    return [1.0] * len(completions)\n"
        "def gold(prompt, answer):\n    return -float(len(answer))\n"
    )
    return file


def held() -> HeldOut:
    golden = tuple(example(f"q{i}", "gold" * (1 + i % 3), "ab", "abcdefgh", pairs=((0, 1), (0, 2))) for i in range(6))
    pairs = tuple(example(f"p{i}", "yes", "no", pairs=((0, 1),)) for i in range(4))
    answers = tuple(example(f"q{i}", "ab", "abcdefgh") for i in range(6))
    return HeldOut(golden, pairs, answers)


def test_numbers_by_hand(rewards: Path, tmp_path: Path):
    """The reward is a quarter of the length; the truth is the opposite."""
    found = told_apart(tmp_path / "x.json", held(), SourceConfig((f"{rewards}:by_length",)), f"{rewards}:gold", ONE)
    lengths = np.array([4 * (1 + i % 3) for i in range(6)])
    gap = np.stack([(lengths - 2) / 4, (lengths - 8) / 4], 1).ravel()
    assert found["golden/accuracy"] == pytest.approx((gap > 0).mean()) and found["golden/ties"] == 2
    assert found["golden/n"] == 12 and found["golden/missing"] == 0 and found["golden/same"] == 0
    wilson = win_rate((gap > 0).astype(float), np.full(12, 0.5), np.repeat(np.arange(6), 2).tolist()).rate
    assert (found["golden/accuracy_low"], found["golden/accuracy_high"]) == (wilson.low, wilson.high)
    assert found["pairs/accuracy"] == 1 and found["pairs/ece"] == pytest.approx(1 - 1 / (1 + np.exp(-0.25)))
    assert found["samples/accuracy"] == 0 and found["samples/n"] == 6
    assert found["policy/reward"] == pytest.approx((2 + 8) / 8) and found["policy/gold"] == pytest.approx(-5)
    assert json.loads((tmp_path / "x.json").read_text()).keys() == found.keys()
    assert found["samples/ece"] > 0.5, "sure of the wrong order"


def test_a_reward_model_that_prefers_nothing_is_named(rewards: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"gives all 38 held-out answers the same reward \(1\)"):
        told_apart(tmp_path / "x.json", held(), SourceConfig((f"{rewards}:constant",)), None, ONE)
    assert not (tmp_path / "x.json").exists()


# ---- the loop


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_dir: Path) -> Path:
    """A policy that says a few short things, a reward model, golden answers, pairs, and a gold reward."""
    folder = tmp_path_factory.mktemp("apo")

    def write(name: str, rows: list[dict]) -> Path:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    asked = [f"Question {i}?" for i in range(24)]
    said = ["yes", "no", "red", "blue egg", "water", "seven", "hm", "paris", "boil", "cool"]
    sft = write(
        "sft.jsonl",
        [{"prompt": p, "completion": said[(i * 7 + k) % 10]} for i, p in enumerate(asked) for k in range(4)],
    )
    write("golden.jsonl", [{"prompt": p, "completion": "the answer"} for p in asked])
    write("more.jsonl", [{"prompt": f"{p} Please."} for p in asked[:8]])
    pairs = write(
        "pairs.jsonl",
        [
            {"prompt": p, "chosen": f"{said[i % 10]} answer", "rejected": said[(i + 3) % 10]}
            for i, p in enumerate(asked)
        ],
    )
    (folder / "gold.py").write_text("def gold(prompt, answer):\n    return float(len(answer))\n")
    shared = {"optim": OptimConfig(lr=1e-2, warmup=0.0), "train": TrainConfig(batch_size=16, max_steps=20, threads=1)}
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    train_sft(SFTConfig(model, DataConfig(str(sft), max_length=64), str(folder / "policy"), **shared))
    shared["train"] = replace(shared["train"], max_steps=6)
    train_reward(RewardConfig(model, DataConfig(str(pairs), max_length=64), str(folder / "reward"), **shared))
    return folder


def words(world: Path, out: Path, *more: str) -> list[str]:
    text = f"--model.path {world / 'policy'} --model.precision fp32 --reward_model {world / 'reward'} "
    text += f"--data.train {world / 'golden.jsonl'} --data.max_length 64 --data.eval_fraction 0.3 --out {out} "
    text += f"--pairs {world / 'pairs.jsonl'} --scorer {world / 'gold.py'}:gold --rounds 2 --answers 3 --optim.lr 1e-3 "
    text += "--train.batch_size 8 --train.max_steps 2 --train.save_every 1 --train.threads 1 "
    text += "--sampling.max_new_tokens 8 --sampling.max_batch 8 --no-stop"
    return ["apo", *text.split(), *" ".join(more).replace("WORLD", str(world)).split()]


def from_python(world: Path, out: Path, **more) -> ApoConfig:
    """What `words` says."""
    return ApoConfig(
        model={"path": str(world / "policy"), "precision": "fp32"},
        data={"train": str(world / "golden.jsonl"), "max_length": 64, "eval_fraction": 0.3},
        out=str(out),
        rounds=2,
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(batch_size=8, max_steps=2, save_every=1, threads=1),
        sampling={"max_new_tokens": 8, "max_batch": 8},
        reward_model=str(world / "reward"),
        pairs=str(world / "pairs.jsonl"),
        answers=3,
        scorer=f"{world / 'gold.py'}:gold",
        stop=False,
        **more,
    )


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("loops") / "whole"
    assert main(words(world, out)) == 0
    return out


def state(folder: Path) -> dict[str, dict]:
    return {row["stage"]: row for row in map(json.loads, (folder / STATE).read_text().splitlines())}


def test_what_a_loop_makes(whole: Path, world: Path):
    stages = state(whole)
    one = [
        "held_out.jsonl",
        "before.json",
        "answers.jsonl",
        "reward",
        "after.json",
        "labelled.jsonl",
        "chosen.jsonl",
        "policy",
    ]
    wanted = [
        "data",
        *(f"round-{n}/{name}" for n in (1, 2) for name in one),
        "round-3/held_out.jsonl",
        "round-3/before.json",
    ]
    assert list(stages) == wanted
    counts = stages["data"]["numbers"]
    assert counts["golden"] + counts["golden_held_out"] == 24 and counts["pairs"] + counts["pairs_held_out"] == 24
    golden = {e.prompt for e in load_examples(str(whole / "data" / "golden.jsonl")).examples}
    apart = {e.prompt for e in load_examples(str(whole / "data" / "golden_held_out.jsonl")).examples}
    assert golden and apart and not golden & apart
    run = (whole / "round-2" / "reward" / "resolved.yaml").read_text()
    assert "round-1/reward" in run and "round-2/answers.jsonl" in run and "coef: 1.0" in run
    for name in ("round-1/before.json", "round-1/after.json", "round-3/before.json"):
        numbers = stages[name]["numbers"]
        assert {"golden/accuracy", "golden/ece", "pairs/accuracy", "samples/accuracy", "policy/gold"} <= numbers.keys()
    before, after = (stages[f"round-1/{name}.json"]["numbers"] for name in ("before", "after"))
    assert before["policy/gold"] == after["policy/gold"], "the same answers"
    metrics = [json.loads(line) for line in (whole / "round-1" / "reward" / "metrics.jsonl").read_text().splitlines()]
    assert all("golden_nll" in row and "old_kl" in row for row in metrics if "loss" in row)


def test_it_ends_where_the_discriminator_is_at_chance(world: Path, whole: Path, tmp_path: Path, monkeypatch, caplog):
    """The first round's reward model is there already; what the loop does next is looked at alone. It was begun by the
    command line: what Python gave otherwise would be refused."""
    shutil.copytree(whole, tmp_path / "loop")
    options = tmp_path / "loop" / "loop.yaml"
    options.write_text(options.read_text().replace("stop: false", "stop: true"))
    monkeypatch.setattr(loop_module, "at_chance", lambda numbers: "golden/accuracy_low" in numbers)
    found = apo(replace(from_python(world, tmp_path / "loop"), stop=True, resume="auto"))
    assert (
        "[round 1 of 2] The reward model tells golden answers from the policy's no better than by chance" in caplog.text
    )
    assert found == world / "policy", "the policy is as it was"
    assert (tmp_path / "loop" / STATE).read_bytes() == (whole / STATE).read_bytes(), "nothing more was done"


def test_the_policy_learns_from_pairs_on_prompts_of_its_own(world: Path, tmp_path: Path):
    more = "--rounds 1 --train.save_every 0 --method dpo --choose.take best-worst --options loss.beta:0.5 "
    assert main(words(world, tmp_path / "loop", more, "--prompts WORLD/more.jsonl")) == 0
    stages = state(tmp_path / "loop")
    done = ["more_answers.jsonl", "labelled.jsonl", "chosen.jsonl", "policy"]
    assert [*stages][6:-2] == [f"round-1/{name}" for name in done]
    assert stages["round-1/chosen.jsonl"]["numbers"]["pairs"] > 0
    run = (tmp_path / "loop" / "round-1" / "policy" / "resolved.yaml").read_text()
    assert "chosen.jsonl" in run and "beta: 0.5" in run


def test_a_method_on_rewards_is_given_the_reward_model(world: Path, tmp_path: Path):
    config = from_python(world, tmp_path / "loop", method="rloo", options={"kl.coef": "0.02"})
    turns = loop_module.Turns(config, SimpleNamespace(folder=tmp_path / "loop"))
    run = turns.policy_run(2, "policy", "reward", "golden.jsonl")
    assert run.rewards.model == ("reward",) and run.data.train == "golden.jsonl" and run.kl.coef == 0.02
    assert (
        run.sampling.max_new_tokens == 8 and run.train.seed != turns.policy_run(1, "policy", "reward", "x").train.seed
    )


# ---- what is refused


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--method dppo", "trains no policy. Perhaps you meant"),
        ("--method dpo", "--choose.take best gives nothing that dpo learns from"),
        ("--method sft --choose.take best-worst", "--choose.take best-worst gives nothing that sft learns from"),
        ("--method ppo --choose.gap 1", "samples answers by itself"),
        ("--choose.take above", "takes what reaches --choose.threshold"),
        ("--data.eval_fraction 0", "Give a share, or --data.eval FILE"),
        ("--reward_options adversarial.golden:WORLD/more.jsonl", "reward has no option 'adversarial.golden'"),
        ("--reward_options adversarial.coeff:1", "Perhaps you meant"),
        ("--options optim.lrr:1", "sft has no option 'optim.lrr'"),
        ("--reward_model WORLD/policy", "has no reward head. Train one with: assent reward"),
        ("--scorer WORLD/gold.py:golden", "--scorer"),
        ("--data.train WORLD/more.jsonl", "needs answers"),
        ("--pairs WORLD/sft.jsonl", "comparisons are needed"),
        ("--data.eval_fraction 0.999", "leaves none for golden.jsonl"),
        ("--sampling.max_new_tokens 1", "not one of the policy's answers came to an end"),
    ],
)
def test_mistakes_are_told_in_a_sentence(more: str, said: str, world: Path, tmp_path: Path, caplog):
    assert main(words(world, tmp_path / "loop", more)) == 2
    assert said in caplog.text and "Traceback" not in caplog.text
    assert not (tmp_path / "loop" / "round-1" / "reward").exists()


def test_a_reward_model_of_several_outputs_must_say_which(world, tiny_model_dir, tokenizer, tmp_path, caplog):
    rule = HeadRule(("clear", "right"), (0.5, 0.5))
    options = {"max_length": 64, "head": WantedHead(rule, renewed=True)}
    scorer = load_score_model(ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, **options)
    scorer.plain.config.id2label = dict(enumerate(rule.names))
    save_model(scorer, tokenizer, tmp_path / "two")
    assert main(words(world, tmp_path / "loop", f"--reward_model {tmp_path / 'two'}")) == 2
    assert "has 2 outputs (clear, right)" in caplog.text and "--reward_options reward.output:NAME" in caplog.text


def test_a_loop_of_other_settings_is_refused(world: Path, whole: Path, caplog):
    before = (whole / STATE).read_bytes()
    assert main(words(world, whole, "--resume auto --answers 5")) == 2
    assert "--answers: 3 -> 5" in caplog.text and (whole / STATE).read_bytes() == before


def test_samples_that_are_all_golden_are_told(world: Path, tmp_path: Path):
    row = {
        "prompt": [{"role": "user", "content": "Q?"}],
        "responses": [{"messages": [{"role": "assistant", "content": "a"}]}],
        "feedback": [],
    }
    for name in ("golden", "answers"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"none of 1 golden answers .*all samples are golden answers \(1\)"):
        held_out(tmp_path / "golden.jsonl", tmp_path / "answers.jsonl", None)


def test_the_class_is_public():
    assert configuration.ApoConfig is ApoConfig
