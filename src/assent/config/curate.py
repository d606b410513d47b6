"""Options of `assent curate`: which prompts are worth labelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from assent.config.judge import WriterConfig
from assent.config.online import PatienceConfig
from assent.config.ranges import Count, Named, Names, NonzeroShare, Seed, Share
from assent.config.sections import Sections


@dataclass(frozen=True)
class FilterConfig:
    """Which prompts are left out."""

    near: NonzeroShare = 0.8
    """Jaccard similarity of runs of 5 letters from which a prompt repeats an earlier one; 1: only equal prompts do."""
    languages: tuple[str, ...] = ()
    """Codes of the languages that are kept, as en de; default: all, and each prompt's is noted."""
    sure: Share = 0.5
    """Confidence from which a language counts as told. A prompt of which none is told is noted as und, and left out
    only where it is written in a script that no prompt in a wanted language has."""
    code: Literal["keep", "drop"] = "keep"
    """What becomes of prompts that hold code or are about programming, as words and lines tell."""
    ngram: Annotated[int, Interval(ge=5, le=100)] = 13
    """against: words in a row that a prompt must not share with a prompt of an evaluation set."""


@dataclass(frozen=True)
class TopicsConfig:
    """What prompts are about."""

    number: Count | None = None
    """About how many topics; default: one for ten prompts, at most 1,000."""
    model: Named | None = None
    """Model folder, run or hub id whose hidden states, averaged over the tokens, say what is alike; default: TF-IDF of
    words, reduced by SVD."""
    method: Literal["kmeans", "bertopic", "none"] = "kmeans"
    """What groups them; bertopic is an extra. none: all prompts are one topic."""


@dataclass(frozen=True)
class ComplexityConfig:
    """How complex prompts are."""

    source: Named | None = None
    """Who rates them: openai=URL or judge=FOLDER, perhaps NAME=openai=URL; default: features of the text."""
    prompt: Named | None = None
    """YAML file of what the judge is asked, of mode rating or criteria (docs/judges.md); default: one to five."""
    top: NonzeroShare = 0.2
    """Share of the prompts that are the most complex: whole levels of ratings from the highest down, while they are not
    more than this."""
    weight: Annotated[float, Interval(ge=1, le=100)] = 2.0
    """How many times as often as others the most complex are drawn."""


@dataclass(frozen=True)
class PairsConfig:
    """Which pairs of answers are worth labelling, of rows that have answers."""

    pairs: Literal["none", "disagreement", "margin", "random"] = "none"
    """One pair of each prompt, and the prompts whose pair comes first: where the sources disagree most about which
    answer is better, where their mean difference is nearest to 0, or by chance."""
    budget: Count | None = None
    """How many pairs."""
    source: tuple[str, ...] = ()
    """disagreement, margin: what scores answers, as SOURCE of assent score; each is one opinion, and so is each head of
    a reward model with several."""


@dataclass(frozen=True)
class CurateConfig(Sections):
    """Prompts worth labelling: without repeats, other languages, code and evaluation sets, uniform over topics."""

    prompts: Names
    """Files, folders or hub ids with prompts in any known shape."""
    out: Named
    """jsonl file to write: the rows that are chosen, in assent's own shape, with what was found in their meta."""
    take: Count | None = field(default=None, kw_only=True)
    """How many prompts to draw, uniformly over topics; default: all that are left."""
    multi_turn: Share | None = field(default=None, kw_only=True)
    """Share of prompts with earlier turns among those drawn; default: as it comes (HelpSteer2 has 0.29)."""
    against: tuple[str, ...] = field(default=(), kw_only=True)
    """Files of evaluation sets; prompts that overlap with theirs are left out, and counted."""
    format: str = field(default="auto", kw_only=True)
    """Shape of the rows; auto detects it for each file."""
    columns: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Column map, expected name to the files' name."""
    split: str = field(default="train", kw_only=True)
    """Split of a hub id."""
    limit: Count | None = field(default=None, kw_only=True)
    """Use only the first rows of each file."""
    seed: Seed = field(default=0, kw_only=True)
    """Of topics and of what is drawn."""
    resume: bool = field(default=False, kw_only=True)
    """Write `out` again: judges are asked only what is missing, all else is in their cache."""
    summary: Named | None = field(default=None, kw_only=True)
    """JSON file for the numbers of the printed tables."""
    dropped: Named | None = field(default=None, kw_only=True)
    """jsonl file of every row that is not in `out`: why, and which row it repeats."""
    precision: Literal["auto", "bf16", "fp32"] = field(default="auto", kw_only=True)
    """Models from folders: compute precision."""
    trust_remote_code: bool = field(default=False, kw_only=True)
    """Run Python code that comes with a model."""
    filter: FilterConfig = field(default_factory=FilterConfig, kw_only=True)
    topics: TopicsConfig = field(default_factory=TopicsConfig, kw_only=True)
    complexity: ComplexityConfig = field(default_factory=ComplexityConfig, kw_only=True)
    choose: PairsConfig = field(default_factory=PairsConfig, kw_only=True)
    judge: WriterConfig = field(default_factory=WriterConfig, kw_only=True)
    remote: PatienceConfig = field(default_factory=PatienceConfig, kw_only=True)
