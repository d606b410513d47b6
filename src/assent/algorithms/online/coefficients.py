"""Weights in the loss that move while a policy is trained: values that are passed, and the rules that move them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from assent.config.online import KLConfig
from assent.losses import adaptive_kl, adaptive_penalty


@dataclass(frozen=True, slots=True)
class Coefficients:
    """`kl` is the weight of the KL from the reference, `penalty` that of PPO's penalty on KL(old || new); while
    `warming`, only the critic learns."""

    kl: float
    penalty: float
    warming: bool = False

    def after_rollout(self, config: KLConfig, kl: float, responses: int) -> Coefficients:
        """Once a rollout has shown the policy's KL (the one that counts), in nats a response, over so many of them."""
        if config.target is None:
            return self
        weight = adaptive_kl(self.kl, kl, target=config.target, horizon=config.horizon, responses=responses)
        return replace(self, kl=weight)

    def after_steps(self, target: float | None, policy_kl: float | None) -> Coefficients:
        """Once the steps on a rollout are taken: `policy_kl` is KL(old || new) in nats a token, where that is known."""
        if target is None or policy_kl is None:
            return self
        return replace(self, penalty=adaptive_penalty(self.penalty, policy_kl, target=target))
