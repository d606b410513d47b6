"""Every online method learns, on one of three seeds, through the production algorithm and the production train loop.

Methods that maximise reward - coef * KL without distorting either close at least 90 % of the regret to the optimum of
exactly that. All others, which scale advantages or have no KL, raise the expected gold reward, exact by enumeration, at
least `RISE` of the way from the reference's to that of the KL-regularised optimum at `COEF`. Methods that compare
answers come near where their theory says that they rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assent.config import (
    METHODS,
    DataConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.lab.enumerable import (
    TableReward,
    build_enumerable,
    distance_closed,
    equilibrium,
    optimum,
    regret_closed,
)
from assent.lab.learning import MAX_LENGTH, Setting
from assent.models.loading import load_policy
from assent.models.policy import Policy
from assent.rewards.group import GroupReward

from .turns import in_turns

COEF = 2.0
RISE = 1.0
KL = vars(KLConfig(coef=COEF))

TO_OPTIMUM: dict[str, dict[str, Any]] = {
    "ppo": {"loss": {"lam": 1.0}, "rollout": vars(RolloutConfig(64, epochs=4))},
    "reinforce": {"loss": {"whiten": True}, "rollout": vars(RolloutConfig(64))},
    "reinforce++": {"rollout": vars(RolloutConfig(64, epochs=2))},
    "rloo": {"rollout": vars(RolloutConfig(64))},
    "remax": {"rollout": vars(RolloutConfig(64))},
}
"""Methods with the KL in the reward, and their options."""
STEPS = dict.fromkeys(TO_OPTIMUM, (220, 5e-3)) | dict.fromkeys(("reinforce", "rloo", "remax"), (90, 1e-2))
"""Steps and learning rate: methods that take one step on each rollout need fewer."""
RAISING = ("reinforce++-baseline", "grpo", "dr-grpo", "dapo", "gspo", "cispo", "online-kto", "online-simpo")

# ---- methods that compare answers

PRICE, MIXTURE = 0.5, 0.25
COMPARING: dict[str, tuple[str, tuple[int, int, float], dict[str, Any]]] = {
    "online-dpo": ("online-dpo", (64, 110, 5e-3), {"loss": {"beta": COEF}}),
    "xpo": ("xpo", (64, 110, 5e-3), {"loss": {"beta": COEF, "alpha": 1e-3}}),
    "online-ipo": ("online-dpo", (128, 150, 5e-3), {"loss": {"pairs": "ipo", "beta": PRICE}}),
    "nash-md": ("nash-md", (128, 60, 1e-2), {"loss": {"mixture": MIXTURE, "whiten": True}, "kl": {"coef": PRICE}}),
}
"""Method; prompts, steps, learning rate; options. Labels are Bradley-Terry draws, of which DPO's optimum is that of the
reward less its KL; IPO on the policy's own answers, and Nash-MD, play the game of the labels' chances to win."""

TO_TEACHER: dict[str, dict[str, Any]] = {
    "gkd forward": {"distill": {"beta": 0.0}},
    "gkd half": {"distill": {"beta": 0.5, "coef": 4.0}},
    "gkd reverse": {},
    "reinforce": {"loss": {"whiten": True}, "rollout": vars(RolloutConfig(64)), "kl": {"coef": 0.0}},
    "rloo": {"rollout": vars(RolloutConfig(64)), "kl": {"coef": 0.0}},
}
"""Who learns a teacher's distribution, without any reward, and with which options."""


def rest_of(setting: Setting, name: str) -> Tensor:
    """Where the theory says that it comes to rest, log-probs [X, Y]."""
    if name in ("online-dpo", "xpo"):
        return optimum(setting.ref, setting.rewards, COEF)
    wins = torch.sigmoid(setting.rewards[:, :, None] - setting.rewards[:, None, :])
    return equilibrium(setting.ref, wins, PRICE, MIXTURE if name == "nash-md" else 0.0)


def train(
    setting: Setting,
    method: str,
    steps: int,
    lr: float,
    *,
    prompts: int | None = None,
    source: GroupReward | None = None,
    teacher: Policy | None = None,
    **options: Any,
) -> Tensor:
    """Log-probs [X, Y] after `steps` optimiser steps on rollouts of every prompt, or of so many in turn."""
    world = setting.world
    config = online_config(
        method,
        model=setting.model,
        data=DataConfig(str(world.prompts_file), max_length=16),
        out="unused",
        train=TrainConfig(batch_size=prompts or len(world.prompts), seed=setting.seed),
        **{"rewards": RewardsConfig(("the table",)), **options},
        sampling=SamplingConfig(max_new_tokens=world.max_new_tokens, max_batch=512),
    )
    optim = OptimConfig(lr=lr, schedule="linear", beta2=0.95)
    return setting.train_online(config, steps, optim, source=source, teacher=teacher)


def test_every_method_is_tested() -> None:
    compared = {method for method, _, _ in COMPARING.values()}
    taught = {case.split()[0] for case in TO_TEACHER if case.startswith("gkd")}
    assert sorted([*TO_OPTIMUM, *RAISING, *compared, *taught]) == sorted(METHODS)


@in_turns(TO_OPTIMUM)
def test_reaches_the_optimum(setting, name: str) -> None:
    steps, lr = STEPS[name]
    logp = train(setting, name, steps, lr, kl=KL, **TO_OPTIMUM[name])
    closed = regret_closed(logp, setting.ref, setting.rewards, COEF)
    print(f"{name}, seed {setting.seed}: {closed:.3f} of the regret closed")
    assert closed >= 0.9


@in_turns(COMPARING)
def test_compares_its_way_to_where_it_rests(setting, name: str) -> None:
    method, (prompts, steps, lr), options = COMPARING[name]
    labels = None if name == "nash-md" else TableReward(setting.world, np.random.default_rng(setting.seed))
    logp = train(setting, method, steps, lr, prompts=prompts, source=labels, **options)
    closed = distance_closed(logp, setting.ref, rest_of(setting, name))
    print(f"{name}, seed {setting.seed}: {closed:.3f} of the distance closed")
    assert closed >= 0.8


@in_turns(RAISING)
def test_raises_the_gold_reward(setting, name: str) -> None:
    options = {"loss": {"clip": 0.2, "clip_high": 0.2}} if name == "gspo" else {}  # its own range suits long answers
    logp = train(setting, name, 60, 2e-3, rollout=vars(RolloutConfig(16)), **options)
    start, best = setting.gold(setting.ref), setting.gold(optimum(setting.ref, setting.rewards, COEF))
    rise = (setting.gold(logp) - start) / (best - start)
    print(f"{name}, seed {setting.seed}: {rise:.2f} of the way up")
    assert rise >= RISE


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Policy:
    """Another random model of the same letters."""
    other = build_enumerable(tmp_path_factory.mktemp("teacher"), seed=9, num_prompts=2, letters="abcde")
    return load_policy(ModelConfig(str(other.model), precision="fp32"), max_length=MAX_LENGTH, trainable=False)


@in_turns(TO_TEACHER)
def test_reaches_the_teacher(setting, name: str, teacher: Policy) -> None:
    """Of the distance from the start to the teacher's distribution over all answers, exact by enumeration."""
    options = {"rollout": vars(RolloutConfig(16)), "rewards": RewardsConfig(), **TO_TEACHER[name]}
    options["distill"] = {"teacher": "another model", **options.get("distill", {})}
    steps, lr = (30, 1e-2) if name.startswith("gkd") else (60, 1e-2)
    logp = train(setting, name.split()[0], steps, lr, teacher=teacher, **options)
    closed = distance_closed(logp, setting.ref, setting.scores(teacher))
    print(f"{name}, seed {setting.seed}: {closed:.3f} of the way to the teacher")
    assert closed >= 0.9


@in_turns(["rloo"])
def test_rewards_and_a_teacher_have_the_optimum_of_both(setting, name: str, teacher: Policy) -> None:
    """pi* is the teacher's distribution times exp(reward / coef)."""
    distill = {"teacher": "another model", "coef": COEF}
    options = {"rollout": vars(RolloutConfig(64)), "kl": {"coef": 0.0}, "distill": distill}
    logp = train(setting, name, 60, 1e-2, teacher=teacher, **options)
    best = optimum(setting.scores(teacher), setting.rewards, COEF)
    assert distance_closed(logp, setting.ref, best) >= 0.9
