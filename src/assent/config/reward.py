"""The reward models that can be trained: one row each, with their options.

Commands, docs and tests are made from the table at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from assent.config.base import OptimConfig, RunConfig, TrainConfig
from assent.config.ranges import BelowOne, Count, CountOrZero, Finite, Named, NotNegative, Positive, Share


@dataclass(frozen=True)
class RewardModelConfig(RunConfig):
    """What is trained is a reward model."""


@dataclass(frozen=True)
class RewardSection:
    """How the reward model reads and compares answers."""

    readout: Literal["last", "mean"] = "last"
    """last compares the scores at the last tokens; mean compares token by token over the whole response."""
    margin: bool = False
    """Ask for a score gap of at least the pair's strength."""
    output: Named | None = None
    """Goes on from one output of a reward model that has several (helpfulness, say), which becomes its only one: the
    second half of HelpSteer2-Preference's recipe (arXiv 2410.01257)."""
    scaled: bool = False
    """Count each pair by its strength (scaled_bt, arXiv 2410.01257)."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of the labels that is taken to be flipped."""
    votes: bool = False
    """Read all votes on the same two answers as one pair, with the share of votes for each side as its label."""
    ties: Literal["drop", "rao-kupper", "davidson"] = "drop"
    """drop leaves tied answers out; rao-kupper (a gap below a threshold is not seen) and davidson (geometric mean of
    both preferences) learn from them."""
    tie_chance: Annotated[float, Gt(0), Lt(1)] = 0.3
    """ties: probability p that two answers of equal reward tie; theta = (1 + p) / (1 - p), nu = 2 p / (1 - p)."""
    centring: NotNegative = 0.0
    """Weight of (score of chosen + score of rejected)^2, which holds the mean of the scores at 0 (arXiv 2312.09244);
    0.01 is common."""
    regulariser: Literal["none", "sft", "dpo"] = "none"
    """GRM (arXiv 2406.10216): the states that the reward is read from stay fit to write the chosen answer; sft without,
    dpo with a reference (the model at the start)."""
    regulariser_weight: BelowOne = 0.01
    """regulariser: its share w of the loss, (1 - w) * preferences + w * regulariser."""
    regulariser_beta: Positive = 0.1
    """regulariser: scale of the log-probs in it."""


@dataclass(frozen=True)
class AdversarialSection:
    """Golden answers preferred to a policy's own ones, in every step beside the pairs: the reward model as a
    discriminator (APO, arXiv 2311.08045)."""

    golden: Named | None = None
    """File, folder or hub id of golden answers: demonstrations, or whatever has a best answer."""
    samples: Named | None = None
    """File, folder or hub id of a policy's answers to the same prompts, one or more each, as assent generate writes
    them. Those that are equal to a golden one, or did not come to an end, are left out."""
    coef: Positive = 0.1
    """Weight of -log sigmoid(r(golden) - r(sample)): the mean over the samples of a golden answer, and over golden
    answers."""
    pairs_coef: NotNegative = 1.0
    """Weight of the pairs' own loss beside it."""
    batch_size: Count = 16
    """Golden answers, with their samples, in each optimiser step."""


@dataclass(frozen=True)
class OldRewardSection:
    """Holds the reward model to what an older one says of the pairs."""

    coef: NotNegative = 0.0
    """Weight of KL(P_old || P), the mean over the pairs, where P = sigmoid(r(chosen) - r(rejected)) at the last
    tokens."""
    path: Named | None = None
    """Folder of the older one; default: the reward model that is trained, as it is at the start."""


@dataclass(frozen=True)
class RewardConfig(RewardModelConfig):
    """Reward model from pairs (Bradley-Terry)."""

    reward: RewardSection = field(default_factory=RewardSection)
    adversarial: AdversarialSection = field(default_factory=AdversarialSection)
    old: OldRewardSection = field(default_factory=OldRewardSection)


@dataclass(frozen=True)
class AttributesSection:
    """What is rated, and how the ratings become one reward."""

    outputs: tuple[str, ...] = ()
    """The attributes, in the order of the head's outputs. Empty: all that the training data rate, in the order in which
    they first stand there."""
    lowest: Finite | None = None
    """The lowest rating there is; with `highest`: others are bad rows. Without both the scale is read from the data."""
    highest: Finite | None = None
    """The highest rating there is."""
    weights: dict[str, float] = field(default_factory=dict)
    """reward = sum of weight * output, for example helpfulness:1 verbosity:-0.3; what is not named weighs 0. Without
    it, NVIDIA's for HelpSteer's five attributes (0.3, 0.74, 0.46, 0.47, -0.33), equal ones for all others."""

    @property
    def scale(self) -> tuple[float, float] | None:
        """(lowest, highest) where they are given."""
        return None if self.lowest is None or self.highest is None else (self.lowest, self.highest)


@dataclass(frozen=True)
class AttributesConfig(RewardModelConfig):
    """Reward model from ratings: one output for each attribute, and a rule that makes a reward of them."""

    attributes: AttributesSection = field(default_factory=AttributesSection)


@dataclass(frozen=True)
class EnsembleSection:
    """The heads, and how they become one reward."""

    heads: Annotated[int, Ge(2)] = 5
    """Heads over one model, each with its own random start and its own bootstrap sample of the prompts."""
    combine: Literal["mean", "min", "lcb"] = "mean"
    """How their rewards become one: the mean, the lowest, or the mean less `deviations` standard deviations."""
    deviations: NotNegative = 1.0
    """lcb: how many."""
    frozen: bool = False
    """Train the heads alone, over the model as it is."""
    margin: bool = False
    """Ask for a score gap of at least the pair's strength."""


@dataclass(frozen=True)
class EnsembleConfig(RewardModelConfig):
    """Reward model from pairs with several heads, which disagree where the pairs have told them little."""

    ensemble: EnsembleSection = field(default_factory=EnsembleSection)


@dataclass(frozen=True)
class GateSection:
    """The gate, and the outputs that it weighs."""

    ratings: Named | None = None
    """File, folder or hub id of rated answers: linear heads are fitted to them on the model's frozen states. Without
    it, the model's own outputs are weighed."""
    layers: CountOrZero = 3
    """Hidden layers."""
    width: Count = 1024
    """Width of a hidden layer."""
    dropout: BelowOne = 0.2
    """Share of each hidden layer that is left out in a step."""
    temperature: Positive = 10.0
    """What the logits of the weights are divided by."""
    scale: Positive = 1.0
    """Sum of the weights at the start; it is trained with them."""
    decorrelate: bool = True
    """Take length out of the outputs before they are weighed."""
    verbosity: Named = "verbosity"
    """The output that stands for length."""
    limit: BelowOne = 0.03
    """Rank correlation with it that another output may keep."""


@dataclass(frozen=True)
class GateOptim(OptimConfig):
    __doc__ = OptimConfig.__doc__

    lr: Positive = 1e-3
    warmup: Share = 0.0


@dataclass(frozen=True)
class GateTrain(TrainConfig):
    __doc__ = TrainConfig.__doc__

    batch_size: Count = 1024
    max_steps: Count | None = 2000


@dataclass(frozen=True)
class RewardGateConfig(RewardModelConfig):
    """Gated mixture: the outputs of a frozen reward model, weighed by the prompt."""

    gate: GateSection = field(default_factory=GateSection)
    optim: GateOptim = field(default_factory=GateOptim)
    train: GateTrain = field(default_factory=GateTrain)


@dataclass(frozen=True)
class RankingSection:
    """How the reward model learns from rankings."""

    loss: Literal["kwise", "plackett-luce", "choice"] = "kwise"
    """kwise: all pairs of a prompt, which counts once; plackett-luce: each answer is chosen among those that are not
    better; choice: the best is chosen among all (arXiv 1909.08593)."""
    output: Named | None = None
    """Goes on from one output of a reward model that has several, which becomes its only one."""


@dataclass(frozen=True)
class RewardRankingConfig(RewardModelConfig):
    """Reward model from rankings of any number of answers."""

    reward: RankingSection = field(default_factory=RankingSection)


@dataclass(frozen=True)
class OdinSection:
    """How length is kept out of the reward."""

    length_weight: NotNegative = 1.0
    """Weight of 1 - corr(length, r_L) + |corr(length, r_Q)|, over all answers of an optimiser step."""
    orthogonal_weight: NotNegative = 1.0
    """Weight of |W_Q . W_L|, the product of the two heads' weights."""
    output: Named | None = None
    """Goes on from one output of a reward model that has several, which becomes r_Q."""


@dataclass(frozen=True)
class RewardOdinConfig(RewardModelConfig):
    """Reward model from pairs in two parts, of which the one that length explains is discarded (ODIN)."""

    reward: OdinSection = field(default_factory=OdinSection)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """What a command trains. `target` is its "module:function"; `data` says what it learns from. A person follows the
    metrics `steps` of optimiser steps and `held_out` of evaluations; `best`, the `highest` or the lowest, says which
    step was the best. `use` says when to take it."""

    name: str
    summary: str
    paper: str
    config: type[RewardModelConfig]
    target: str
    data: str
    steps: tuple[str, ...]
    held_out: tuple[str, ...]
    best: str
    highest: bool = True
    use: str = ""


REWARD_MODELS: dict[str, RewardModel] = {
    "reward": RewardModel(
        name="reward modelling (Bradley-Terry)", summary="Pairs told apart.", paper="2203.02155", config=RewardConfig,
        target="assent.algorithms.reward.pairs:train_reward", data="pairs",
        steps=("nll", "accuracy", "margin"), held_out=("accuracy", "nll", "margin"), best="accuracy",
        use="The default: people or a judge have compared two answers.",
    ),
    "reward-ranking": RewardModel(
        name="reward modelling from rankings", summary="Rankings of several answers to a prompt.", paper="2203.02155",
        config=RewardRankingConfig, target="assent.algorithms.reward.ranking:train_reward_ranking", data="rankings",
        steps=("nll", "accuracy", "best"), held_out=("accuracy", "nll", "best", "margin"), best="accuracy",
        use="Three or more answers to a prompt were ranked: each answer is computed once for all of its pairs.",
    ),
    "reward-odin": RewardModel(
        name="ODIN", summary="Pairs told apart, by a reward that says nothing of length.", paper="2402.07319",
        config=RewardOdinConfig, target="assent.algorithms.reward.odin:train_reward_odin", data="pairs, without length",
        steps=("nll", "accuracy", "correlation/quality"),
        held_out=("accuracy", "nll", "correlation/quality", "correlation/verbosity"), best="accuracy",
        use="Annotators preferred long answers, and the reward is to be optimised against.",
    ),
    "reward-attributes": RewardModel(
        name="attribute regression", summary="Each attribute's rating, by an output of its own.", paper="2406.08673",
        config=AttributesConfig, target="assent.algorithms.reward.attributes:train_attributes", data="ratings",
        steps=("mse",), held_out=("mse", "correlation"), best="mse", highest=False,
        use="Answers were rated one by one, or one wants to see what a reward is made of.",
    ),
    "reward-ensemble": RewardModel(
        name="ensemble of heads", summary="Several heads over one model; their disagreement says how sure they are.",
        paper="2310.02743", config=EnsembleConfig, target="assent.algorithms.reward.ensemble:train_ensemble",
        data="pairs", steps=("nll", "accuracy", "margin", "std"), held_out=("accuracy", "nll", "margin", "std"),
        best="accuracy",
        use="A policy is to be held back where the reward model is unsure; the price of one model.",
    ),
    "reward-gate": RewardModel(
        name="a gate over the outputs of a reward model", summary="What matters, read off the prompt.",
        paper="2406.12845", config=RewardGateConfig, target="assent.algorithms.reward.gate:train_gate",
        data="pairs, over frozen outputs", steps=("nll", "accuracy", "margin"),
        held_out=("accuracy", "accuracy_fixed", "accuracy_uniform", "nll", "length_relation"), best="accuracy",
        use="What matters in an answer depends on its prompt, or length is to be taken out of a reward.",
    ),
}  # fmt: skip


def reward_model_of(config: RewardModelConfig) -> str:
    """The key in `REWARD_MODELS` that a configuration belongs to."""
    return next(key for key, row in REWARD_MODELS.items() if type(config) is row.config)
