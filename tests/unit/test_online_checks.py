"""Options of online methods that contradict one another: what is said, from Python and on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assent.cli import main
from assent.config import (
    METHODS,
    CriticConfig,
    CurriculumConfig,
    DataConfig,
    GivenConfig,
    KLConfig,
    ModelConfig,
    OnlineConfig,
    RewardsConfig,
    RolloutConfig,
    online_config,
    settings,
)
from assent.errors import ConfigError

CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "adaptive KL": (
        "rloo",
        {"kl": vars(KLConfig(coef=0.0, target=6.0))},
        "--kl.coef 0 --kl.target 6",
        "--kl.target moves --kl.coef, which must then begin above 0. Got 0.",
    ),
    "moving anchor without KL": (
        "dapo",
        {"kl": vars(KLConfig(coef=0.0, anchor="ema"))},
        "--kl.anchor ema",
        "--kl.anchor ema is what the KL is measured from: --kl.coef must be above 0. Got 0.",
    ),
    "moving anchor without reference": (
        "online-simpo",
        {"kl": vars(KLConfig(coef=0.0, anchor="ema"))},
        "--kl.anchor ema",
        "--kl.anchor ema: the loss of online-simpo (simpo) has no reference, so there is nothing that could follow the "
        "policy.",
    ),
    "rate of no anchor": (
        "rloo",
        {"kl": vars(KLConfig(anchor_rate=0.5))},
        "--kl.anchor_rate 0.5",
        "--kl.anchor_rate is read with --kl.anchor ema. Got fixed.",
    ),
    "column without order": (
        "grpo",
        {"curriculum": CurriculumConfig(column="level")},
        "--curriculum.column level",
        "--curriculum.column is read with --curriculum.order easy or hard. Got random.",
    ),
    "rest with one answer": (
        "ppo",
        {"curriculum": CurriculumConfig(rest=2)},
        "--curriculum.rest 2",
        "--curriculum.rest looks at whether all answers to a prompt are worth the same: --rollout.responses must be at "
        "least 2. Got 1.",
    ),
    "hint without text": (
        "grpo",
        {"given": GivenConfig("hint")},
        "--given.source hint",
        "--given.source hint and --given.hint TEXT need each other.",
    ),
    "text without hint": (
        "grpo",
        {"given": GivenConfig("row", "Say {answer}")},
        "--given.source row --given.hint TEXT",
        "--given.source hint and --given.hint TEXT need each other.",
    ),
    "shared critic with a rate": (
        "ppo",
        {"critic": CriticConfig(shared=True, lr=1e-5)},
        "--critic.shared --critic.lr 1e-5",
        "--critic.lr has no place with --critic.shared: one optimiser step moves both. Use --critic.coef.",
    ),
    "target of no penalty": (
        "ppo",
        {"loss": {"penalty_target": 0.01}},
        "--loss.penalty_target 0.01",
        "--loss.penalty_target moves the penalty of --loss.objective penalty. Got --loss.objective clip.",
    ),
    "more minibatches than prompts": (
        "ppo",
        {"rollout": vars(RolloutConfig(minibatches=9))},
        "--rollout.minibatches 9",
        "--rollout.minibatches must be at most --train.batch_size (8), the prompts of a rollout. Got 9.",
    ),
    "critic of no reward model": (
        "ppo",
        {"rewards": RewardsConfig(rules=("length=1,2",))},
        "",
        "--critic.start reward copies the reward model, and there must be exactly one (--rewards.model). Got 0. Use "
        "--critic.start policy.",
    ),
    "KL beside a comparison": (
        "online-dpo",
        {"kl": {"coef": 0.1}},
        "--kl.coef 0.1",
        "--kl.coef 0.1: online-dpo compares answers, and what holds its policy near the reference is --loss.beta, "
        "inside its loss. Leave --kl.coef at 0; --kl.reference names the reference.",
    ),
    "reference of none": (
        "online-simpo",
        {"kl": {"reference": "m"}},
        "--kl.reference m",
        "--kl.reference is not read: the loss of online-simpo (simpo) has no reference.",
    ),
    "demonstrations in a comparison": (
        "xpo",
        {"given": GivenConfig("row")},
        "--given.source row",
        "--given.source row: xpo compares answers as they were sampled, and demonstrations have no place among them. "
        "Offline objectives (assent dpo) learn from pairs with them.",
    ),
    "pairs of no strength": (
        "online-dpo",
        {"loss": {"pairs": "odpo", "ties": "first"}},
        "--loss.pairs odpo --loss.ties first",
        "--loss.ties first makes pairs of no strength, and --loss.pairs odpo asks for strengths above 0.",
    ),
    "one answer to compare": (
        "online-dpo",
        {"rollout": {"responses": 1}},
        "--rollout.responses 1",
        "--rollout.responses must be at least 2 for online-dpo: it compares answers to one prompt. Got 1.",
    ),
    "several opponents": (
        "nash-md",
        {"rollout": {"responses": 4}},
        "--rollout.responses 4",
        "--rollout.responses must be 2 for nash-md: one answer by the policy, one by a mixture of it and the "
        "reference. Got 4. For more comparisons in a step raise --train.batch_size.",
    ),
    "an opponent ahead": (
        "xpo",
        {"rollout": {"ahead": True}},
        "--rollout.ahead",
        "--rollout.ahead samples while the policy is trained; xpo also samples from the reference, which training "
        "reads at the same time. Leave it off.",
    ),
    "an opponent of vllm": (
        "nash-md",
        {"engine": {"name": "vllm"}},
        "--engine.name vllm",
        "--engine.name vllm samples from one set of weights; nash-md also samples from a mixture of it and the "
        "reference, token by token. Use --engine.name torch.",
    ),
    "a game without a price": (
        "nash-md",
        {"kl": {"coef": 0.0}},
        "--kl.coef 0",
        "--kl.coef must be above 0 for nash-md: it seeks the equilibrium of a game in which both sides pay for their "
        "KL from the reference, and mixes its opponent with that. Got 0.",
    ),
}


def built(method: str, **options: Any) -> OnlineConfig:
    shared: dict[str, Any] = {"model": ModelConfig("m"), "data": DataConfig("d.jsonl"), "out": "run"}
    made = online_config(method, **{**shared, "rewards": RewardsConfig(("r",)), **options})
    return replace(made, train=replace(made.train, batch_size=8))


@pytest.mark.parametrize("name", CASES)
def test_a_contradiction_is_named(name: str) -> None:
    method, options, _, message = CASES[name]
    with pytest.raises(ConfigError) as wrong:
        settings.validate(built(method, **options))
    assert str(wrong.value) == message


@pytest.mark.parametrize("name", CASES)
def test_the_command_refuses_it_at_once(name: str, tmp_path: Path, capsys) -> None:
    method, _, flags, message = CASES[name]
    rewards = ["--rewards.rules", "length=1,2"] if name.startswith("critic of no") else ["--rewards.model", "r"]
    out = tmp_path / "run"
    paths = ["--model.path", "m", "--data.train", "d.jsonl", "--out", str(out), "--train.batch_size", "8"]
    assert main([method, *paths, *rewards, *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {message}\n" and not out.exists()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rloo", {"kl": vars(KLConfig(target=6.0))}),
        ("grpo", {"curriculum": CurriculumConfig("easy", column="level", rest=2)}),
        ("ppo", {"curriculum": CurriculumConfig("hard")}),
        ("grpo", {"given": GivenConfig("hint", "Say {answer}")}),
        ("ppo", {"given": GivenConfig("row")}),
        ("ppo", {"critic": CriticConfig(shared=True, coef=0.1)}),
        ("ppo", {"critic": CriticConfig(lr=1e-5)}),
        ("ppo", {"critic": CriticConfig(shared=True), "rewards": RewardsConfig(rules=("length=1,2",))}),
        ("ppo", {"loss": {"objective": "penalty", "penalty_target": 0.01}}),
        ("ppo", {"loss": {"objective": "none", "ewma": 0.9, "tuned_batch": 64}}),
        ("ppo", {"rollout": vars(RolloutConfig(minibatches=8))}),
    ],
)
def test_what_fits_together_passes(method: str, options: dict[str, Any]) -> None:
    settings.validate(built(method, **options))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("rollout.target_kl", "0"),
        ("rollout.correction", "-1"),
        ("kl.target", "0"),
        ("kl.horizon", "0"),
        ("critic.coef", "0"),
        ("critic.warmup", "-1"),
        ("shaping.clip", "0"),
        ("shaping.overlong", "1.5"),
        ("curriculum.rest", "-1"),
        ("given.coef", "0"),
        ("ptx.coef", "0"),
        ("ptx.batch_size", "0"),
        ("loss.penalty", "-1"),
        ("loss.ewma", "1"),
        ("loss.tuned_batch", "0"),
        ("loss.dual_clip", "1"),
        ("online-dpo loss.beta", "0"),
        ("xpo loss.alpha", "-1"),
        ("nash-md loss.mixture", "1.5"),
        ("online-kto loss.desirable_weight", "0"),
    ],
)
def test_ranges_of_the_options(flag: str, value: str, capsys) -> None:
    paths = ["--model.path", "m", "--data.train", "d.jsonl", "--out", "run", "--rewards.model", "r"]
    command, flag = flag.split() if " " in flag else ("ppo", flag)
    assert main([command, *paths, f"--{flag}", value]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --{flag} must be ") and f"Got {value}" in said


@pytest.mark.parametrize("method", METHODS)
def test_ppos_own_options_belong_to_it_alone(method: str) -> None:
    names = {option.name for option in settings.options(type(built(method)))}
    for name in ("loss.objective", "loss.penalty_target", "loss.ewma", "loss.tuned_batch", "critic.shared"):
        assert (name in names) == (method == "ppo"), name
    assert {"rollout.ahead", "given.source", "curriculum.rest", "ptx.data", "kl.target", "shaping.baseline"} <= names
