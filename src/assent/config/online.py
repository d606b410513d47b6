"""Options of learning from rewards of sampled answers: the sections that all methods share. `assent.config.methods` has
those of each method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from typing_extensions import Doc

from assent.config.base import LossConfig, PolicyRunConfig
from assent.config.distill import DistillConfig
from assent.config.judge import JudgeConfig
from assent.config.ranges import Count, CountOrZero, Named, NonzeroShare, NotNegative, Positive, Share
from assent.config.sampling import EngineConfig, SamplingConfig

KLPlace = Literal["reward", "loss"]
KLEstimator = Literal["k1", "k2", "k3", "full"]
KLAnchor = Literal["fixed", "ema"]


@dataclass(frozen=True)
class RewardsConfig:
    """What answers are worth: the weighted sum of all that is named here."""

    model: tuple[str, ...] = ()
    """Reward model folders or hub ids (frozen). Several are an ensemble: one reward."""
    ensemble: Literal["mean", "min", "lcb"] = "mean"
    """How the rewards of several models become one: their mean, the lowest, or the mean less `deviations` standard
    deviations (arXiv 2310.02743)."""
    deviations: NotNegative = 1.0
    """lcb: how many."""
    output_weights: dict[str, float] = field(default_factory=dict)
    """How the outputs of reward models with several become one reward, instead of their own rule, for example
    helpfulness:1 verbosity:-0.3; outputs that are not named weigh 0."""
    rules: tuple[str, ...] = ()
    """numeric, math (an extra), exact, contains: against the row's column `answer`, or =COLUMN; regex=PATTERN;
    format=TAG,TAG; length=TARGET,LIMIT."""
    functions: tuple[str, ...] = ()
    """Functions f(prompts, completions, **columns) -> rewards, as FILE.py:function or module:function."""
    workers: CountOrZero = 0
    """Processes that functions (and the rule math, which has at least one) run in, one answer at a time; 0: none of
    their own, and no time limit."""
    time_limit: Positive = 10.0
    """workers: seconds for one answer; one that takes longer is left unscored."""
    servers: tuple[str, ...] = ()
    """Reward servers, SHAPE=URL; the shapes are openrlhf, llamafactory, vllm, sglang, and vllm-score for cross-encoders
    (models that read question and answer as two texts)."""
    judges: tuple[str, ...] = ()
    """Language models as judges: openai=URL (any server with /v1/chat/completions) or model=FOLDER (a folder or hub id,
    frozen); --judge.prompt says what they are asked."""
    implicit: tuple[str, ...] = ()
    """Policies that DPO or a relative of it has aligned, for their implicit reward (arXiv 2305.18290): folders of such
    runs, which say what they were compared with, or of models."""
    implicit_reference: Named | None = None
    """implicit: the model that such a policy is compared with; default: that of its run. Must be given where no run
    says it, and where the run's reference followed the policy (tr-dpo)."""
    implicit_beta: Positive | None = None
    """implicit: scale of the reward; default: that of its run."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights other than 1, for example format:0.2. Sources are called model, judge, or as the rule, function or shape;
    0 only logs."""
    credit: Literal["last", "gradient", "absolute"] = "last"
    """Which tokens the reward models' part of a reward stands at. last: the last. gradient: each token has what it adds
    to the score to first order (gradient x embedding), and the last one the rest. absolute: each has a share of it by
    the size of that. The sum stays the reward."""
    credit_share: NonzeroShare = 1.0
    """credit: how much of that part is spread; the rest stands at the last token."""

    @property
    def named(self) -> bool:
        """Whether anything says what answers are worth."""
        return any(getattr(self, kind) for kind in SOURCES)


SOURCES = ("model", "rules", "functions", "servers", "judges", "implicit")
"""The options of `RewardsConfig` that name what answers are scored by."""


@dataclass(frozen=True)
class PatienceConfig:
    """How patiently a server is asked."""

    timeout: Positive = 60.0
    """Seconds for one request."""
    retries: CountOrZero = 10
    """How often a request is tried again that was refused, timed out, or met an overloaded or broken server."""
    budget: Positive = 600.0
    """Seconds for all answers of a rollout, pauses included; then the run saves and stops."""
    concurrency: Count = 4
    """Requests under way at the same time, for each rank."""


@dataclass(frozen=True)
class RemoteConfig(PatienceConfig):
    """How reward servers are asked; `timeout`, `retries`, `budget` and `concurrency` also of judges on a server."""

    batch: Count = 32
    """Answers in one request."""
    model: Named | None = None
    """The model's name there (llamafactory, vllm, vllm-score, sglang)."""
    label: Named | None = None
    """Column of the rows that is sent as the label (openrlhf)."""
    key_env: Named | None = None
    """Environment variable with the key that is sent as "Authorization: Bearer KEY"."""
    tokenizer: str | None = None
    """vllm, sglang: folder or hub id whose tokenizer and chat template the model there reads with; default: the
    policy's."""
    weights: tuple[float, ...] = ()
    """vllm, sglang: weights of the outputs of a model that has several (attributes), in their order; the reward is the
    weighted sum."""


@dataclass(frozen=True)
class RolloutConfig:
    """How answers are gathered and used."""

    responses: Count = 1
    """Answers sampled to each prompt."""
    epochs: Count = 1
    """Passes over one rollout."""
    minibatches: Count = 1
    """Optimiser steps in one pass over a rollout."""
    target_kl: Positive | None = None
    """Early stopping: leave the rest of a rollout once a step's KL from the policy that sampled, in nats per token, is
    above this."""
    ahead: bool = False
    """Sample the next rollout while this one is trained on, with the weights from before (one step off-policy)."""
    correction: NotNegative = 2.0
    """Truncated importance sampling where trainer and engine disagree on a token's probability: its weight is the ratio
    of the two, up to this (arXiv 1802.01561). 0: no correction."""
    show: CountOrZero = 2
    """Prompts of each rollout whose answers are shown on a terminal and written to samples.jsonl."""


@dataclass(frozen=True)
class KLConfig:
    """How the policy is held near its reference."""

    coef: NotNegative = 0.05
    """Weight of the KL to the reference; 0 needs no reference."""
    place: KLPlace = "reward"
    """Whether the KL is subtracted from the reward of each token or added to the loss."""
    estimator: KLEstimator = "k1"
    """Of a sampled token: -log r (k1), (log r)^2 / 2 (k2), or r - 1 - log r (k3), with r the reference's probability
    over the policy's; full: the sum over the whole vocabulary. In the reward, a token's own part is k1 always: only
    that has the right gradient."""
    target: Positive | None = None
    """Adaptive KL: move `coef` after each rollout so that the KL comes near this many nats an answer (arXiv
    1909.08593; there 6)."""
    horizon: Count = 10_000
    """Answers in which `target` moves `coef` by at most a fifth."""
    reference: Named | None = None
    """Reference model; default: the start of the policy (with LoRA: the policy without its adapters)."""
    anchor: KLAnchor = "fixed"
    """What the KL that counts is measured from, and where answers are compared the reference of their loss: fixed, the
    reference; ema, a moving average of the policy's own weights (arXiv 2406.16768), which begins as its start. The KL
    to the reference is then logged beside it."""
    anchor_rate: Share = 0.01
    """ema: share of the policy in the average after each optimiser step; 0 leaves it at the start, 1 makes it the
    policy."""


@dataclass(frozen=True)
class CriticConfig:
    """The value model."""

    start: Named = "reward"
    """Initial weights of the critic: reward (a copy of the reward model), policy (a new value head), or a folder."""
    shared: bool = False
    """A critic without a model of its own: a value head on the policy's last hidden states."""
    lr: Positive | None = None
    """The critic's learning rate; default: that of the policy."""
    clip: NotNegative = 0.2
    """Value clipping: range of the value around that of the rollout; 0 turns it off."""
    coef: Positive = 1.0
    """Weight of the value loss. Matters where the critic shares the policy's layers (take 0.1 there), or where
    gradients are clipped."""
    warmup: CountOrZero = 0
    """Rollouts at the start in which the critic learns alone."""


@dataclass(frozen=True)
class ShapingConfig:
    """What becomes of a reward before it is credited, in this order."""

    baseline: Literal["none", "row", "running"] = "none"
    """Subtract for each prompt: the reward of the answer in the row, or the mean reward of its answers so far."""
    normalise: Literal["none", "running", "batch"] = "none"
    """Scale to mean 0 and variance 1, over all rewards so far or over those of a rollout."""
    clip: Positive | None = None
    """Clip rewards to at most this absolute value."""
    missing_eos_penalty: NotNegative = 0.0
    """Subtracted from the reward of an answer that did not end with EOS."""
    overlong: Share = 0.0
    """Soft overlong punishment: share of the longest length over which a penalty grows from 0 to 1 (arXiv
    2503.14476)."""


@dataclass(frozen=True)
class CurriculumConfig:
    """Which prompts are sampled, and when."""

    order: Literal["random", "easy", "hard"] = "random"
    """random; or by difficulty, easy or hard prompts first: that of `column`, else by the mean reward so far."""
    column: Named | None = None
    """Column of the rows with a number for the difficulty."""
    rest: CountOrZero = 0
    """Passes over the data in which a prompt is skipped after its group had zero variance (all answers right, or all
    wrong); then it is sampled again."""


@dataclass(frozen=True)
class GivenConfig:
    """Demonstrations: right answers that the policy did not sample, as further answers to their prompt."""

    source: Literal["none", "row", "hint"] = "none"
    """row: the answer in the data. hint: one that the policy samples when `hint` stands below the prompt."""
    hint: Named | None = None
    """Text below the prompt; {answer} stands for the answer in the row, {NAME} for a column."""
    coef: Positive = 0.5
    """Weight of a demonstration: its probability under a sampling policy is unknown, so this stands for the importance
    ratio, and no clip holds it."""
    when: Literal["always", "better"] = "better"
    """better: only where the demonstration's reward is above that of every sampled answer."""


@dataclass(frozen=True)
class PtxConfig:
    """Pretraining or demonstration data mixed into every step (arXiv 2203.02155)."""

    data: Named | None = None
    """File, folder or hub id; default: nothing is mixed in."""
    coef: Positive = 0.2
    """Weight of the mixed-in data's mean loss per token."""
    batch_size: Count = 8
    """Mixed-in rows in each optimiser step."""


@dataclass(frozen=True)
class PolicyLossConfig(LossConfig):
    """Options of a policy loss and of its advantages."""

    function: Annotated[
        Named | None,
        Doc("FILE.py:function in place of the method's policy loss; its parameters say which tensors it is given."),
    ] = None
    estimator: Annotated[
        Named | None, Doc("FILE.py:function in place of the method's estimator of advantages, likewise.")
    ] = None
    options: Annotated[
        dict[str, float],
        Doc(
            "Options (keyword-only parameters) of these functions, for example tau:0.1; for others they get the "
            "method's own of that name, or keep their defaults."
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class OnlineConfig(PolicyRunConfig):
    """Learning from rewards of sampled answers: base of the methods' configurations."""

    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    given: GivenConfig = field(default_factory=GivenConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)


@dataclass(frozen=True)
class ActorCriticConfig(OnlineConfig):
    """The same with a value model."""

    critic: CriticConfig = field(default_factory=CriticConfig)


def critic_of(config: OnlineConfig) -> CriticConfig | None:
    """The options of the value model; None for methods without one."""
    return config.critic if isinstance(config, ActorCriticConfig) else None
