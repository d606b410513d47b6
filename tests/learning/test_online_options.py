"""PPO's other objectives, an averaged or shared model and sampling ahead still learn: with the KL in the reward each
closes at least 90 % of the regret to the optimum, as PPO's clip does. One seed here: three take minutes."""

from __future__ import annotations

from typing import Any

import pytest

from assent.config import CriticConfig, KLConfig, RolloutConfig
from assent.lab.enumerable import regret_closed

from . import test_online as online

PPO: dict[str, Any] = {"loss": {"lam": 1.0}, "rollout": vars(RolloutConfig(64, epochs=4))}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("ppo", {"loss": {"lam": 1.0, "objective": "none"}, "rollout": vars(RolloutConfig(64, epochs=2))}),
    "penalty": ("ppo", {"loss": {"lam": 1.0, "objective": "penalty", "penalty_target": 0.01}}),
    "full KL": ("ppo", {"kl": vars(KLConfig(coef=online.COEF, estimator="full"))}),
    "k3 in the reward": ("ppo", {"kl": vars(KLConfig(coef=online.COEF, estimator="k3"))}),
    "shared critic": ("ppo", {"critic": CriticConfig(shared=True, coef=0.1)}),
    "ewma": ("ppo", {"loss": {"lam": 1.0, "ewma": 0.8}}),
    "ahead": ("ppo", {"rollout": vars(RolloutConfig(64, epochs=4, ahead=True))}),
}


@pytest.mark.parametrize("setting", [0], indirect=True, ids="seed{}".format)
@pytest.mark.parametrize("name", VARIANTS)
def test_reaches_the_optimum(setting, name: str) -> None:
    method, options = VARIANTS[name]
    steps = 320 if name == "ahead" else 220  # it learns from the weights before
    logp = online.train(setting, method, steps, 5e-3, **{"kl": online.KL, **PPO, **options})
    closed = regret_closed(logp, setting.ref, setting.rewards, online.COEF)
    print(f"{name}, seed {setting.seed}: {closed:.3f} of the regret closed")
    assert closed >= 0.9
