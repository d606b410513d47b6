"""Options of adversarial preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.base import DataConfig
from assent.config.choosing import ChooseConfig, Way
from assent.config.iterate import FITTING, choice_fits, feedback_of
from assent.config.loops import LoopConfig
from assent.config.objectives import CUSTOM
from assent.config.ranges import BelowOne, Count, Named
from assent.config.training import TRAINERS
from assent.names import suggestion


@dataclass(frozen=True)
class GoldenData(DataConfig):
    __doc__ = DataConfig.__doc__

    eval_fraction: BelowOne = 0.1


@dataclass(frozen=True)
class BestOfK(ChooseConfig):
    __doc__ = ChooseConfig.__doc__

    take: Way = "best"
    fewer: Literal["skip", "use"] = "use"


@dataclass(frozen=True)
class ApoConfig(LoopConfig):
    """Adversarial preference optimisation (arXiv 2311.08045): in turns, a reward model learns to tell golden answers
    from the policy's own, beside the pairs that people compared, and the policy learns from the reward model. Golden
    answers are the rows of `data.train`; those of `data.eval`, or else the share `data.eval_fraction` of the prompts,
    are only measured on."""

    data: GoldenData
    reward_model: Named = field(kw_only=True)
    """Reward model that the first round begins with (assent reward): run or model folder, or hub id."""
    pairs: Named = field(kw_only=True)
    """File, folder or hub id of answers that people compared."""
    pairs_eval: Named | None = None
    """The same, to measure on; default: the share `data.eval_fraction` of the prompts of `pairs`."""
    prompts: Named | None = None
    """File, folder or hub id of the prompts that the policy learns on; default: those of the golden answers."""
    answers: Count = 4
    """Answers of the policy to each prompt."""
    method: str = "sft"
    """Command that the policy learns by: sft, an objective on feedback (dpo), or a method on rewards (ppo)."""
    choose: BestOfK = field(default_factory=BestOfK)
    reward_options: dict[str, str] = field(default_factory=dict)
    """Options of assent reward, for example adversarial.coef:0.1 old.coef:0.5 optim.lr:1e-6."""
    scorer: Named | None = None
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward, by
    which the policy and the reward model's order of its answers are measured. Nothing is trained by it."""
    stop: bool = True
    """End when the reward model tells golden answers from the policy's no better than by chance: when the interval of
    its accuracy on held-out prompts includes 50 %."""


REWARD_DEFAULTS = {"old.coef": "1.0"}
"""Options of `assent reward` that are others here: the reward model is held to that of the round before."""
TAKEN_OF_REWARD = (
    "model.path",
    "model.revision",
    "data.train",
    "data.eval",
    "data.eval_fraction",
    "adversarial.golden",
    "adversarial.samples",
    "old.path",
)
TAKEN_OF_POLICY = ("model.path", "model.revision", "data.train", "rewards.model")


def _policy_learns(config: ApoConfig) -> str | None:
    method, take = config.method, config.choose.take
    known = [name for name in TRAINERS if name != CUSTOM]
    if method not in known:
        return f"--method {method} trains no policy.{suggestion(method, known)} Known: {', '.join(known)}."
    if TRAINERS[method].is_online:
        if config.choose != BestOfK():
            return f"--method {method} samples answers by itself, so nothing is chosen. Leave --choose.* out."
        return None
    feedback = feedback_of(method)
    if take not in FITTING[feedback]:
        return (
            f"--choose.take {take} gives nothing that {method} learns from. Expected: {', '.join(FITTING[feedback])}."
        )
    return None


def _something_is_held_out(config: ApoConfig) -> str | None:
    if config.data.eval is None and config.data.eval_fraction == 0:
        return (
            "--data.eval_fraction 0: whether the reward model still tells golden answers from the policy's is measured "
            "on prompts that it is not trained on. Give a share, or --data.eval FILE."
        )
    return None


APO = ((ApoConfig, _policy_learns), (ApoConfig, _something_is_held_out), (ApoConfig, choice_fits))
