"""Options of the commands that write AI feedback: verdicts, critiques and revisions, contrasted answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.judge import EndpointConfig, VerdictConfig, WriterConfig
from assent.config.online import PatienceConfig
from assent.config.ranges import Count, Named, Names, Seed, Share
from assent.config.sampling import EngineConfig, SamplingConfig
from assent.config.sections import Sections


@dataclass(frozen=True)
class FeedbackFileConfig(Sections):
    """The answers of a file, about which language models are asked: base of the commands that do."""

    file: Named
    """File, folder or hub id with prompts and answers."""
    out: Named
    """jsonl file to write: rows of assent's own shape."""
    principles: Named | None = field(default=None, kw_only=True)
    """YAML or JSON file of principles, of which one is drawn for each question (docs/feedback.md)."""
    format: str = field(default="auto", kw_only=True)
    """Shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Column map, expected name to the file's name."""
    split: str = field(default="train", kw_only=True)
    """Split of a hub id."""
    limit: Count | None = field(default=None, kw_only=True)
    """Use only the first rows."""
    seed: Seed = field(default=0, kw_only=True)
    """Which principles are drawn."""
    resume: bool = field(default=False, kw_only=True)
    """Write `out` again: only what is missing is asked, all else is in the cache of answers."""
    summary: Named | None = field(default=None, kw_only=True)
    """JSON file for the numbers of the printed table."""
    precision: Literal["auto", "bf16", "fp32"] = field(default="auto", kw_only=True)
    """judge=FOLDER: compute precision."""
    trust_remote_code: bool = field(default=False, kw_only=True)
    """judge=FOLDER: run Python code that comes with a model."""
    remote: PatienceConfig = field(default_factory=PatienceConfig, kw_only=True)


@dataclass(frozen=True)
class JudgeFileConfig(FeedbackFileConfig):
    """Verdicts of language models on the answers of a file, as people give them: pairs, rankings or ratings."""

    source: Names = field(kw_only=True)
    """Who judges: openai=URL or judge=FOLDER; several are several annotators. NAME=openai=URL gives one a name."""
    judge: VerdictConfig = field(default_factory=VerdictConfig, kw_only=True)


@dataclass(frozen=True)
class CritiqueConfig(FeedbackFileConfig):
    """Critiques of the answers of a file by principles, and revisions after them: demonstrations (arXiv 2212.08073)."""

    source: Named = field(kw_only=True)
    """Who writes critiques and revisions: openai=URL or judge=FOLDER."""
    principles: Named = field(kw_only=True)
    """YAML or JSON file of principles, of which one is drawn for each critique (docs/feedback.md)."""
    few_shots: Named | None = field(default=None, kw_only=True)
    """File of example conversations that are shown first; default: those of the file of principles, if any."""
    revisions: Count = field(default=1, kw_only=True)
    """How often each answer is criticised and revised, one after the other, by another principle each time."""
    keep: Literal["last", "all"] = field(default="last", kw_only=True)
    """A row for the last revision of each answer, or one for each revision."""
    judge: WriterConfig = field(default_factory=WriterConfig, kw_only=True)


@dataclass(frozen=True)
class ContrastSampling(SamplingConfig):
    """How answers are sampled."""

    max_new_tokens: Count = 256
    """Longest answer; a longer one is left out, with its pair."""


@dataclass(frozen=True)
class ContrastConfig(Sections):
    """Pairs without a judge: an answer under a prompt for good, one under a prompt for bad (arXiv 2307.12950)."""

    model: Named
    """Model or run folder, or openai=URL."""
    prompts: Named
    """File of prompts in any known shape."""
    out: Named
    """jsonl file to write: pairs under the plain prompts, rows of assent's own shape."""
    templates: Named = "harmlessness"
    """Contrasting prompts: harmlessness, helpfulness, or a YAML file (docs/feedback.md)."""
    limit: Count | None = None
    """Use only the first prompts."""
    seed: Seed = 0
    """Of the templates that are drawn, and of the sampling."""
    resume: bool = False
    """Write `out` again: only what is missing is asked, all else is in the cache of answers."""
    summary: Named | None = None
    """JSON file for the numbers of the printed table."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision."""
    sampling: ContrastSampling = field(default_factory=ContrastSampling)
    engine: EngineConfig = field(default_factory=EngineConfig)
    judge: EndpointConfig = field(default_factory=EndpointConfig)
    remote: PatienceConfig = field(default_factory=PatienceConfig)


@dataclass(frozen=True)
class AggregateConfig(Sections):
    """The feedback of several annotators on the same answers as one label each, and how good each annotator is."""

    file: Named
    """File, folder or hub id with judged answers; feedback that names its annotator, as `assent judge` and `assent
    label` write it."""
    out: Named
    """jsonl file to write: rows of assent's own shape, with one label in place of all votes."""
    method: Literal["majority", "dawid-skene", "mace", "bradley-terry"] = field(default="dawid-skene", kw_only=True)
    """Of comparisons, rankings and yes/no labels: the share of votes; Dawid and Skene's model, in which each annotator
    has errors of their own; MACE, in which annotators know or guess; Bradley-Terry with each annotator's skill and
    taste for a side (comparisons only)."""
    ratings: Literal["mean", "median", "helpsteer2"] = field(default="mean", kw_only=True)
    """Of ratings: mean or median by attribute, or HelpSteer2's rule: the three closest of three to five annotators,
    rounded; dropped where they still differ by more than 2 (arXiv 2406.08673)."""
    by: Named | None = field(default=None, kw_only=True)
    """helpsteer2: the attribute in which ratings are close; default: helpfulness, or the only one."""
    least: Count = field(default=1, kw_only=True)
    """Fewest votes of a label that is written."""
    sure: Share = field(default=0.0, kw_only=True)
    """Lowest probability of a label that is written."""
    format: str = field(default="auto", kw_only=True)
    """Shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Column map, expected name to the file's name."""
    split: str = field(default="train", kw_only=True)
    """Split of a hub id."""
    limit: Count | None = field(default=None, kw_only=True)
    """Use only the first rows."""
    annotator: Named | None = field(default=None, kw_only=True)
    """Column that says who judged, where feedback names nobody."""
    seed: Seed = field(default=0, kw_only=True)
    """mace: random starts."""
    summary: Named | None = field(default=None, kw_only=True)
    """JSON file for the numbers of the printed table."""


@dataclass(frozen=True)
class AgreeConfig(Sections):
    """How far annotators agree: alpha, kappas, Gwet's AC, Kendall's W, with intervals, by annotator and topic."""

    files: Names
    """Files, folders or hub ids with judged answers; what is said of the same answers in several files is compared, so
    `assent agree people.jsonl judge.jsonl` compares people and judge."""
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    """Columns of a plain table in place of judged answers: one for each annotator (annotation_1 annotation_2), or with
    --item and --annotator the one of all labels."""
    annotator: Named | None = field(default=None, kw_only=True)
    """Column that says who judged, where feedback names nobody; of a plain table with a row for each label too."""
    item: Named | None = field(default=None, kw_only=True)
    """Column that says what was judged, of a plain table with a row for each label: --labels label --item task
    --annotator worker."""
    topic: Named | None = field(default=None, kw_only=True)
    """Column by which agreement is also shown in parts."""
    scale: Literal["auto", "nominal", "ordinal", "interval"] = field(default="auto", kw_only=True)
    """What values mean. auto: ordinal for ratings, and for strengths of preference; nominal for all else."""
    format: str = field(default="auto", kw_only=True)
    """Shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Column map, expected name to the file's name."""
    split: str = field(default="train", kw_only=True)
    """Split of a hub id."""
    limit: Count | None = field(default=None, kw_only=True)
    """Use only the first rows of each file."""
    seed: Seed = field(default=0, kw_only=True)
    """Seed of the intervals' draws."""
    summary: Named | None = field(default=None, kw_only=True)
    """JSON file for the numbers of the printed tables."""


def is_served(word: str) -> bool:
    """Whether a word is [NAME=]openai=URL."""
    return "openai" in word.split("=")[:2]
