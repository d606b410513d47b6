"""Options of the commands that ask sources of rewards outside of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.judge import JudgeConfig
from assent.config.online import RemoteConfig
from assent.config.ranges import Count, CountOrZero, Length, Named, Names, NotNegative, Positive
from assent.config.sections import Sections


@dataclass(frozen=True)
class SourceConfig(Sections):
    """What answers are worth, outside of a training run: base of the commands that ask."""

    source: Names
    """What scores: reward model folders, runs or hub ids (several are an ensemble); a rule as in --rewards.rules;
    FILE.py:function; SHAPE=URL of a reward server; openai=URL or judge=FOLDER, a language model that is asked in words;
    implicit=FOLDER, the implicit reward of a DPO-like policy. Sources of different kinds are added up."""
    weights: dict[str, float] = field(default_factory=dict, kw_only=True)
    """Weights other than 1 of sources, or, of a reward model with several outputs, the weights of these (0 for those
    that are not named), for example helpfulness:1."""
    ensemble: Literal["mean", "min", "lcb"] = field(default="mean", kw_only=True)
    """How the rewards of several models become one: their mean, the lowest, or the mean less `deviations` standard
    deviations (arXiv 2310.02743)."""
    deviations: NotNegative = field(default=1.0, kw_only=True)
    """lcb: how many."""
    reference: Named | None = field(default=None, kw_only=True)
    """implicit: the model that the policy is compared with; default: that of its run. Must be given where no run says
    it, and where the run's reference followed the policy (tr-dpo)."""
    beta: Positive | None = field(default=None, kw_only=True)
    """implicit: scale of the reward; default: that of its run."""
    tokenizer: Named | None = field(default=None, kw_only=True)
    """Folder or hub id whose tokenizer and chat template write answers for servers, and whose tokens are counted;
    default: that of the first model."""
    max_length: Length | None = field(default=None, kw_only=True)
    """Longest prompt plus answer, in tokens; a longer answer is left unscored. Default: what all the models read, at
    most 8,192."""
    precision: Literal["auto", "bf16", "fp32"] = field(default="auto", kw_only=True)
    """Compute precision."""
    micro_tokens: Count = field(default=4096, kw_only=True)
    """Most packed tokens in one forward pass."""
    workers: CountOrZero = field(default=0, kw_only=True)
    """Processes that functions run in, as in --rewards.workers."""
    time_limit: Positive = field(default=10.0, kw_only=True)
    """workers: seconds for one answer; one that takes longer is left unscored."""
    trust_remote_code: bool = field(default=False, kw_only=True)
    """Run Python code that comes with a model."""
    remote: RemoteConfig = field(default_factory=RemoteConfig, kw_only=True)
    judge: JudgeConfig = field(default_factory=JudgeConfig, kw_only=True)


@dataclass(frozen=True)
class ScoredFileConfig(SourceConfig):
    """The same, about the answers of a file."""

    file: Named
    """File, folder or hub id with answers: single ones, pairs, rankings, ratings or yes/no labels."""
    format: str = "auto"
    """Shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column map, expected name to the file's name."""
    split: str = "train"
    """Split of a hub id."""
    limit: Count | None = None
    """Use only the first rows."""
    rendered: bool = False
    """Rows are text that a chat template has written already, as in training."""


@dataclass(frozen=True)
class ScoreConfig(ScoredFileConfig):
    """Rewards of all answers of a file, by any source: a row for each, and what they say together."""

    out: Named | None = None
    """jsonl file to write, a row for each answer; default: standard output, unless it is a terminal."""
    summary: Named | None = None
    """JSON file for the numbers of the printed table."""
    explain: bool = False
    """Also what each source, or each output of a reward model, adds to an answer's reward."""
