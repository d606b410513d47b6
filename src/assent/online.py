"""The configurations of the methods that learn from rewards of their own answers: sections that all share, and one
class for each row of `assent.methods`, with that method's defaults. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from assent import config as c
from assent.errors import ConfigError
from assent.methods import METHODS, OPTIONS
from assent.names import suggestion
from assent.rules import COUNT, NAMED, NOT_NEGATIVE, POSITIVE, SHARE, Rule
from assent.sections import class_name, configuration, make_class, make_section, own_defaults, section_rules


@dataclass(frozen=True)
class RewardsConfig:
    """What answers are worth: the weighted sum of all that is named here."""

    model: tuple[str, ...] = ()
    """Reward model folders or hub ids (frozen). Several are an ensemble: one reward."""
    ensemble: Literal["mean", "min", "lcb"] = "mean"
    """How the rewards of several models become one: their mean, the lowest, or the mean less `deviations` standard
    deviations (arXiv 2310.02743)."""
    deviations: float = 1.0
    """lcb: how many."""
    rules: tuple[str, ...] = ()
    """numeric, math (an extra), exact, contains: against the row's column `answer`, or =COLUMN; regex=PATTERN;
    format=TAG,TAG; length=TARGET,LIMIT."""
    functions: tuple[str, ...] = ()
    """Functions f(prompts, completions, **columns) -> rewards, as FILE.py:function or module:function."""
    workers: int = 0
    """Processes that functions (and the rule math, which has at least one) run in, one answer at a time; 0: none of
    their own, and no time limit."""
    time_limit: float = 10.0
    """workers: seconds for one answer; one that takes longer is left unscored."""
    servers: tuple[str, ...] = ()
    """Reward servers, SHAPE=URL; the shapes are openrlhf, llamafactory and vllm."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights other than 1, for example format:0.2. Sources are called model, or as the rule, function or shape; 0 only
    logs."""


@dataclass(frozen=True)
class RemoteConfig:
    """How reward servers are asked."""

    timeout: float = 60.0
    """Seconds for one request."""
    retries: int = 10
    """How often a request is tried again that was refused, timed out, or met an overloaded or broken server."""
    budget: float = 600.0
    """Seconds for all answers of a rollout, pauses included; then the run saves and stops."""
    concurrency: int = 4
    """Requests under way at the same time, for each rank."""
    batch: int = 32
    """Answers in one request."""
    model: str | None = None
    """The model's name there (llamafactory, vllm)."""
    label: str | None = None
    """Column of the rows that is sent as the label (openrlhf)."""
    key_env: str | None = None
    """Environment variable with the key that is sent as "Authorization: Bearer KEY"."""
    tokenizer: str | None = None
    """vllm: folder or hub id whose tokenizer and chat template the model there reads with; default: the policy's."""


@dataclass(frozen=True)
class RolloutConfig:
    """How answers are gathered and used."""

    responses: int = 1
    """Answers sampled to each prompt."""
    epochs: int = 1
    """Passes over one rollout."""
    minibatches: int = 1
    """Optimiser steps in one pass over a rollout."""
    target_kl: float | None = None
    """Leave the rest of a rollout once a step's KL from the policy that sampled, in nats per token, is above this."""
    ahead: bool = False
    """Sample the next rollout while this one is trained on, with the weights from before (one step off-policy)."""
    correction: float = 2.0
    """Most that a token counts for where trainer and sampler disagree on its probability: its importance weight is the
    ratio of the two, up to this (arXiv 1802.01561). 0: no correction."""
    show: int = 2
    """Prompts of each rollout whose answers are shown on a terminal and written to samples.jsonl."""


@dataclass(frozen=True)
class KLConfig:
    """How the policy is held near its reference."""

    coef: float = 0.05
    """Weight of the KL; 0 needs no reference."""
    place: Literal["reward", "loss"] = "reward"
    """Whether it is subtracted from the reward of each token or added to the loss."""
    estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """-log r, (log r)^2 / 2, or r - 1 - log r, with r the reference's probability over the policy's; full: the sum over
    the whole vocabulary. In the reward, a token's own part is k1 always: only that has the right gradient."""
    target: float | None = None
    """Move `coef` after each rollout so that the KL comes near this many nats an answer (arXiv 1909.08593; there 6)."""
    horizon: int = 10_000
    """Answers in which `target` moves `coef` by at most a fifth."""
    reference: str | None = None
    """Reference model; default: the start of the policy (with LoRA: the policy without its adapters)."""


@dataclass(frozen=True)
class CriticConfig:
    """The value model."""

    start: str = "reward"
    """Where it starts: reward (a copy of the reward model), policy (with a new value head), or a folder."""
    shared: bool = False
    """No model of its own: a value head on the policy's last hidden states."""
    lr: float | None = None
    """Its learning rate; default: that of the policy."""
    clip: float = 0.2
    """Range of the value around its rollout value; 0 turns it off."""
    coef: float = 1.0
    """Weight of its loss. Matters where it shares the policy's layers (take 0.1 there), or where gradients are
    clipped."""
    warmup: int = 0
    """Rollouts at the start in which it learns alone."""


@dataclass(frozen=True)
class ShapingConfig:
    """What becomes of a reward before it is credited, in this order."""

    baseline: Literal["none", "row", "running"] = "none"
    """Subtract for each prompt: the reward of the answer in the row, or the mean reward of its answers so far."""
    normalise: Literal["none", "running", "batch"] = "none"
    """Scale to mean 0 and variance 1, over all rewards so far or over those of a rollout."""
    clip: float | None = None
    """Bound of its absolute value."""
    missing_eos_penalty: float = 0.0
    """Subtracted where an answer did not end."""
    overlong: float = 0.0
    """Share of the longest length over which a penalty grows from 0 to 1 (arXiv 2503.14476)."""


@dataclass(frozen=True)
class CurriculumConfig:
    """Which prompts are asked, and when."""

    order: Literal["random", "easy", "hard"] = "random"
    """random; or by difficulty, easy or hard prompts first: that of `column`, else by the mean reward so far."""
    column: str | None = None
    """Column of the rows with a number for the difficulty."""
    rest: int = 0
    """Passes over the data in which a prompt is left out after all of its answers were worth the same (always right,
    always wrong); then it is asked again."""


@dataclass(frozen=True)
class GivenConfig:
    """Right answers that the policy did not sample, as further answers to their prompt."""

    source: Literal["none", "row", "hint"] = "none"
    """row: the answer in the data. hint: one that the policy samples when `hint` stands below the prompt."""
    hint: str | None = None
    """Text below the prompt; {answer} stands for the answer in the row, {NAME} for a column."""
    coef: float = 0.5
    """Weight of such an answer: its probability when sampled is unknown, so this stands for the importance ratio, and
    no clip holds it."""
    when: Literal["always", "better"] = "better"
    """better: only where it is worth more than every sampled answer."""


@dataclass(frozen=True)
class PtxConfig:
    """Pretraining or demonstration data mixed into every step (arXiv 2203.02155)."""

    data: str | None = None
    """File, folder or hub id; default: nothing is mixed in."""
    coef: float = 0.2
    """Weight of their mean loss per token."""
    batch_size: int = 8
    """Rows in each optimiser step."""


@dataclass(frozen=True)
class OnlineConfig(c.RunConfig):
    """Learning from rewards of sampled answers. `assent.online.CONFIGS` has one subclass for each method, with its
    options as `loss`."""

    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    given: GivenConfig = field(default_factory=GivenConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    sampling: c.SamplingConfig = field(default_factory=c.SamplingConfig)
    engine: c.EngineConfig = field(default_factory=c.EngineConfig)


def _config(key: str) -> type[OnlineConfig]:
    row = METHODS[key]
    name = class_name(row.name)
    sections = {
        "loss": SECTIONS[key],
        "rollout": own_defaults(RolloutConfig, row.rollout, f"{name}Rollout", __name__),
        "kl": own_defaults(KLConfig, row.kl, f"{name}KL", __name__),
        "shaping": own_defaults(ShapingConfig, row.shaping, f"{name}Shaping", __name__),
    }
    if row.has_critic:
        sections["critic"] = CriticConfig
    fields: list[tuple[str, Any, Any]] = [
        (section, kind, field(default_factory=kind)) for section, kind in sections.items()
    ]
    doc = f"{row.name}: {row.summary.rstrip('.')} (arXiv {row.paper})."
    return make_class(f"{name}Config", fields, (OnlineConfig,), doc, __name__)


SECTIONS: dict[str, type] = {
    key: make_section(row.name, {**row.options, "entropy": 0.0}, OPTIONS, __name__) for key, row in METHODS.items()
}
"""Options of each method: the `loss` of its configuration."""
CONFIGS: dict[str, type[OnlineConfig]] = {key: _config(key) for key in METHODS}
"""Configuration of each method's command."""
RULES: dict[type, dict[str, Rule]] = {
    RewardsConfig: {"deviations": NOT_NEGATIVE, "workers": NOT_NEGATIVE, "time_limit": POSITIVE},
    RemoteConfig: {
        "timeout": POSITIVE,
        "retries": NOT_NEGATIVE,
        "budget": POSITIVE,
        "concurrency": COUNT,
        "batch": COUNT,
        "model": NAMED,
        "label": NAMED,
        "key_env": NAMED,
    },
    RolloutConfig: {
        "responses": COUNT,
        "epochs": COUNT,
        "minibatches": COUNT,
        "target_kl": POSITIVE,
        "correction": NOT_NEGATIVE,
        "show": NOT_NEGATIVE,
    },
    KLConfig: {"coef": NOT_NEGATIVE, "target": POSITIVE, "horizon": COUNT, "reference": NAMED},
    CriticConfig: {
        "start": NAMED,
        "lr": POSITIVE,
        "clip": NOT_NEGATIVE,
        "coef": POSITIVE,
        "warmup": NOT_NEGATIVE,
    },
    ShapingConfig: {"clip": POSITIVE, "missing_eos_penalty": NOT_NEGATIVE, "overlong": SHARE},
    CurriculumConfig: {"column": NAMED, "rest": NOT_NEGATIVE},
    GivenConfig: {"hint": NAMED, "coef": POSITIVE},
    PtxConfig: {"data": NAMED, "coef": POSITIVE, "batch_size": COUNT},
    **{section: section_rules(section, OPTIONS) for section in SECTIONS.values()},
}
"""Section -> option -> its range."""


def online_config(method: str, **options: Any) -> OnlineConfig:
    """The configuration of a method from Python. A section (`rollout`, `kl`, `loss`, ...) is given as a mapping of the
    options that differ from the method's defaults, as in YAML; others keep them. Raises `ConfigError` for a method or
    an option that does not exist.

    >>> config = online_config(
    ...     "grpo", model={"path": "m"}, data={"train": "prompts.jsonl"}, out="runs/grpo", kl={"coef": 0.1}
    ... )
    >>> config.kl.place, config.kl.estimator
    ('loss', 'k3')
    """
    if method not in CONFIGS:
        raise ConfigError(f"There is no online method '{method}'.{suggestion(method, CONFIGS)}")
    return configuration(CONFIGS[method], options)


def method_of(config: OnlineConfig) -> str:
    """The key in `METHODS` that a configuration belongs to."""
    return next(key for key, cls in CONFIGS.items() if type(config) is cls)


def critic_of(config: OnlineConfig) -> CriticConfig | None:
    """The critic's section; None for methods without one."""
    return getattr(config, "critic", None)
