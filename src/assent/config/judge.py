"""Options of judges: language models that are asked how good answers are, in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.ranges import Count, Named, NotNegative, Seed


@dataclass(frozen=True)
class EndpointConfig:
    """A language model on a server, and what it wrote already."""

    model: Named | None = None
    """openai: the model's name there."""
    key_env: Named | None = None
    """openai: environment variable with the key that is sent as "Authorization: Bearer KEY"."""
    body: dict[str, str] = field(default_factory=dict)
    """openai: further fields of each request, NAME:JSON; null leaves one out, as in max_completion_tokens:2048
    max_tokens:null."""
    cache: Named | None = None
    """Folder of what was written already; default: `judge` in ~/.cache/assent (or ASSENT_CACHE)."""


@dataclass(frozen=True)
class WriterConfig(EndpointConfig):
    """A language model that is asked to write."""

    engine: Literal["torch", "vllm"] = "torch"
    """model: what it writes with; vllm (an extra) runs inside the run, with --engine.memory."""
    temperature: NotNegative = 0.0
    """Of the judge's own words; 0 takes the most likely."""
    max_tokens: Count = 1024
    """Longest that it may write; what is cut off cannot be read."""
    attempts: Count = 1
    """How often it is asked, each time with another seed, until what it wrote can be read."""
    seed: Seed = 0
    """Of what the judge writes at temperatures above 0."""


@dataclass(frozen=True)
class VerdictConfig(WriterConfig):
    """What judges are asked, and what their verdicts are."""

    prompt: Named = "pairwise"
    """What they are asked: pairwise, pairwise-letter, principle, five-verdicts, four-way, rating, attributes, rubric,
    rm-r1, or a YAML file (docs/judges.md)."""
    contradiction: Literal["leave_out", "tie", "mean"] = "leave_out"
    """What a comparison is worth that the judge decides otherwise when the answers are shown in another order: nothing
    (it is left out and counted), a tie, or the mean over the orders."""
    soft: bool = False
    """Verdicts are the probabilities of the letters, P(A) / (P(A) + P(B)), averaged over the orders, in place of the
    letter that is written."""


@dataclass(frozen=True)
class JudgeConfig(VerdictConfig):
    """What judges are asked, and how their verdicts become rewards."""

    pairs: Literal["all", "baseline"] = "all"
    """Pairwise prompts compare every two answers of a group, or each answer with the one in the row."""
    rule: Literal["win_rate", "bradley_terry"] = "win_rate"
    """An answer's reward: its mean outcome over its counted pairs (a win 1, a tie 0.5), or its strength in a
    Bradley-Terry fit to those of its group, with a standard normal prior."""
