"""Options of the commands that write AI feedback: verdicts, critiques and revisions, contrasted answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.judge import EndpointConfig, VerdictConfig, WriterConfig
from assent.config.online import PatienceConfig
from assent.config.ranges import Count, Named, Names, Seed
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


def is_served(word: str) -> bool:
    """Whether a word is [NAME=]openai=URL."""
    return "openai" in word.split("=")[:2]
