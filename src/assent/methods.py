"""The methods that learn from rewards of their own answers: one row each.

Commands, their options and the tests are made from this table. A row combines an estimator of advantages
(`assent.estimators`), a loss (a pure function of `assent.losses`) and how a step's tokens are weighted. Nothing heavy
is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from assent.estimators import ESTIMATORS
from assent.rules import COUNT, INSIDE, NOT_NEGATIVE, POSITIVE, SHARE, Rule
from assent.sections import Option

OPTIONS: dict[str, Option] = {
    "objective": Option(
        Literal["clip", "none", "penalty"], "What holds a step near the policy that sampled: the clip, nothing "
        "(conservative policy iteration), or a penalty on KL(old || new).",
    ),
    "penalty": Option(float, "Weight of that penalty.", NOT_NEGATIVE),
    "penalty_target": Option(
        float | None, "Halve or double the penalty after each rollout to bring that KL, in nats per token, near this.",
        POSITIVE,
    ),
    "ewma": Option(
        float | None, "Clip around an average of the policy's weights with this decay per step (PPO-EWMA, arXiv "
        "2110.00641) in place of the policy that sampled.", INSIDE,
    ),
    "tuned_batch": Option(
        int | None, "train.batch_size that optim.lr and ewma were tuned for: both are rescaled to this run's "
        "(batch-size invariance, arXiv 2110.00641).", COUNT,
    ),
    "entropy": Option(float, "Weight of an entropy bonus, per token.", NOT_NEGATIVE),
    "clip": Option(float, "How far a probability ratio may move from 1 and still gain.", INSIDE),
    "clip_high": Option(float | None, "How far it may move upwards; default: as far as downwards.", POSITIVE),
    "dual_clip": Option(
        float | None, "Bound of the ratio where the advantage is negative (arXiv 1912.09729); default: none.",
        Rule("above 1", lambda v: v > 1),
    ),
    "gamma": Option(float, "Discount of later rewards.", SHARE),
    "lam": Option(float, "GAE's lambda.", SHARE),
    "steps": Option(
        int | None, "Tokens that an advantage looks ahead before it trusts the critic (with lam 1: n-step returns); "
        "default: to the end of the answer.", COUNT,
    ),
    "whiten": Option(bool, "Scale advantages to mean 0 and variance 1 over the rollout."),
    "scale": Option(
        Literal["group", "batch", "none"], "Divide by the standard deviation of a prompt's rewards, of all, or not."
    ),
    "reduction": Option(
        Literal["token", "response", "fixed"], "Every token of a step counts the same, every response does, or every "
        "token as one of a response of the longest length.",
    ),
    "dynamic": Option(bool, "Sample further prompts in place of those whose answers are all worth the same."),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Method:
    """`options` are those of `loss` with the paper's defaults; `rollout`, `kl` and `shaping` hold other defaults of
    these sections."""

    name: str
    summary: str
    paper: str
    estimator: str
    loss: str
    options: Mapping[str, Any]
    rollout: Mapping[str, Any] = field(default_factory=dict)
    kl: Mapping[str, Any] = field(default_factory=dict)

    shaping: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_critic(self) -> bool:
        return "critic" in ESTIMATORS[self.estimator].needs

    @property
    def has_groups(self) -> bool:
        """Whether answers are compared with others to the same prompt."""
        return "groups" in ESTIMATORS[self.estimator].needs


PPO = {
    "objective": "clip", "clip": 0.2, "clip_high": None, "dual_clip": None, "penalty": 1.0, "penalty_target": None,
    "ewma": None, "tuned_batch": None,
}  # fmt: skip
GROUP = {"responses": 8}
NO_KL = {"coef": 0.0}
METHODS: dict[str, Method] = {
    "ppo": Method(
        "PPO", "Clipped policy gradient with a critic.", "1707.06347", "gae", "ppo_clip",
        PPO | {"gamma": 1.0, "lam": 0.95, "steps": None, "whiten": True, "reduction": "token"},
        {"epochs": 2, "minibatches": 2},
    ),
    "reinforce": Method(
        "REINFORCE", "Policy gradient with the rewards that follow a token.", "1909.08593", "return", "reinforce",
        {"gamma": 1.0, "whiten": False, "reduction": "token"},
    ),
    "reinforce++": Method(
        "REINFORCE++", "Clipped policy gradient, advantages scaled over the whole rollout.", "2501.03262", "return",
        "ppo_clip", {"clip": 0.2, "gamma": 1.0, "whiten": True, "reduction": "token"}, {}, {"coef": 0.01},
    ),
    "reinforce++-baseline": Method(
        "REINFORCE++ baseline", "The same with the mean of a prompt's answers as baseline.", "2501.03262", "group",
        "ppo_clip", {"clip": 0.2, "scale": "none", "whiten": True, "reduction": "token"}, GROUP,
        {"coef": 0.01, "place": "loss", "estimator": "k2"},
    ),
    "rloo": Method(
        "RLOO", "Each answer against the mean of the others to its prompt.", "2402.14740", "leave_one_out",
        "reinforce", {"whiten": False, "reduction": "fixed"}, {"responses": 4},
    ),
    "remax": Method(
        "ReMax", "Each answer against the most likely one.", "2310.10505", "greedy", "reinforce",
        {"whiten": False, "reduction": "fixed"},
    ),
    "grpo": Method(
        "GRPO", "Rewards scaled within a prompt's group of answers.", "2402.03300", "group", "ppo_clip",
        {"clip": 0.2, "scale": "group", "reduction": "response"}, GROUP,
        {"coef": 0.04, "place": "loss", "estimator": "k3"},
    ),
    "dr-grpo": Method(
        "Dr. GRPO", "GRPO without its biases for length and difficulty.", "2503.20783", "group", "ppo_clip",
        {"clip": 0.2, "scale": "none", "reduction": "fixed"}, GROUP, NO_KL,
    ),
    "dapo": Method(
        "DAPO", "GRPO with a higher upper clip, every token counting the same, groups with signal only.", "2503.14476",
        "group", "ppo_clip",
        {"clip": 0.2, "clip_high": 0.28, "scale": "group", "reduction": "token", "dynamic": True}, GROUP, NO_KL,
        {"overlong": 0.2},
    ),
    "gspo": Method(
        "GSPO", "GRPO with one ratio for a whole answer.", "2507.18071", "group", "gspo",
        {"clip": 3e-4, "clip_high": 4e-4, "scale": "group", "reduction": "response"},
        GROUP | {"minibatches": 4}, NO_KL,
    ),
    "cispo": Method(
        "CISPO", "REINFORCE with a bounded importance weight and group advantages.", "2506.13585", "group", "cispo",
        {"clip_high": 4.0, "scale": "group", "reduction": "token"}, GROUP, NO_KL,
    ),
}  # fmt: skip
