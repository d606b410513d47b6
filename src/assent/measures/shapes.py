"""The shapes of a measure: a number of each answer, of a set of answers, of comparisons with a baseline, among many
policies, or of the answers that the prompt file gives. Every row says what it needs, so that help, defaults, tables of
the documentation and errors are made of the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from assent.measures.answers import Answers, Given
from assent.measures.column import Column as Column
from assent.measures.estimates import Estimate

Need = Literal[
    "references",
    "kinds",
    "tokens",
    "finished",
    "log_prob",
    "reference",
    "entropy",
    "several",
    "given",
    "pairs",
    "labels",
    "scores",
    "baseline",
    "gamed",
    "toxicity",
    "claims",
]
NEEDS: dict[Need, str] = {
    "references": "right answers in the prompt file (a column reference, references, answer or solution)",
    "kinds": "kinds of prompts (a column kind, category or type) that say which are harmful and which harmless",
    "tokens": "the tokens of the answers, which answers from a file do not have",
    "finished": "whether answers ended by themselves, which answers from a file do not say",
    "log_prob": "the policy itself, not only a file of its answers",
    "reference": "a reference with the policy's own token ids (--reference)",
    "entropy": "the policy itself, not only a file of its answers",
    "several": "two or more answers to each prompt (--answers)",
    "given": "answers in the prompt file, and a policy that can be asked how likely it finds them",
    "pairs": "rows of the prompt file with a better and a worse answer",
    "labels": "choices in the prompt file, right ones and wrong ones (mc1_targets, mc2_targets, or choices and labels)",
    "scores": "something that scores answers (--rewards, --scorer)",
    "baseline": "a second policy, and verdicts: a score, a judge in --rewards, or --labels",
    "gamed": "AlpacaEval's own rows on its prompts (--gamed df_gamed.csv)",
    "toxicity": "a text-classification model that finds toxicity (--toxicity)",
    "claims": "a model or a judge that checks claims (--consistency)",
}
"""What a measure may need -> the same in words, and where it comes from."""
Unit = Literal["", "share", "tokens", "characters", "words", "nats", "points"]
"""What a number is counted in: "" for pure numbers and rewards, "share" for 0 to 1."""
Better = Literal["higher", "lower"] | None
"""The direction that is better; None where neither is."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number of any set of rows (answers, or comparisons), prepared so that drawing prompts anew is cheap.

    of        indices of rows, each without a reason, repeated where its prompt is drawn again -> the number; NaN where
              it is not defined
    prompt    [S] int64: the prompt of each row
    reasons   S strings: why a row is left out, "" where it counts
    values    [S] float64 where the number is their mean, so that closed-form intervals hold
    """

    of: Callable[[np.ndarray], float]
    prompt: np.ndarray
    reasons: tuple[str, ...]
    values: np.ndarray | None = None

    @classmethod
    def mean(cls, values: np.ndarray, prompt: np.ndarray, reasons: tuple[str, ...]) -> Statistic:
        """The mean of `values` [S]."""
        return cls(lambda rows: float(values[rows].mean()) if len(rows) else math.nan, prompt, reasons, values)


@dataclass(frozen=True, slots=True)
class Duels:
    """M comparisons of one policy's answers with another's to the same prompts, by one source of verdicts."""

    by: str
    """Who judged: the name of a score, of a judge, or "labels"."""
    ours: Answers
    theirs: Answers
    pairs: np.ndarray
    """[M, 2] int64: the index of our answer and of theirs."""
    outcome: np.ndarray
    """[M] float64: 1 a win, 0.5 a tie, 0 a loss, or between them where the verdict is a preference; NaN a failure."""
    reasons: tuple[str, ...]
    """M reasons of failures, "" where there is an outcome."""

    def __post_init__(self) -> None:
        size = len(self.outcome)
        assert self.pairs.shape == (size, 2) and len(self.reasons) == size, "one entry for each comparison"
        assert self.ours.prompts is self.theirs.prompts, "both answer the same prompts"

    @property
    def prompt(self) -> np.ndarray:
        """[M]: the prompt of each comparison."""
        return self.ours.prompt[self.pairs[:, 0]]

    @property
    def failures(self) -> Counter[str]:
        """Reasons, and how often each."""
        return Counter(reason for reason in self.reasons if reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A row of the table of measures: what all shapes have."""

    name: str
    """As --measures has it: lower case, with hyphens."""
    about: str
    """A sentence, with the formula or the source."""
    unit: Unit = ""
    better: Better = None
    needs: tuple[Need, ...] = ()
    package: str = ""
    """The module of a package beside assent's own that it needs (`assent.measures.extras`); "" none."""
    on_request: bool = False
    """Measured only where --measures names it: it says nothing of most prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Each(Measure):
    """A number of each answer; aggregated as the mean, whose interval draws prompts anew."""

    of: Callable[[Answers], Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerScore(Measure):
    """The same for every source of scores: `of(answers, source)`."""

    of: Callable[[Answers, str], Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(Measure):
    """A statistic of a set of answers, such as corpus BLEU; its interval draws prompts anew."""

    prepare: Callable[[Answers], Statistic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus(Measure):
    """A number of comparisons with the baseline, such as the win rate. Failures are left out, and counted by whoever
    aggregates."""

    needs: tuple[Need, ...] = ("baseline",)
    of: Callable[[Duels], Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Among(Measure):
    """A number for each of several policies, by the comparisons of all of them: `of(names, duels)`, where each key of
    `duels` is a pair of places (i, j) in `names`, i < j, and its value the comparisons of i (ours) with j (theirs)."""

    needs: tuple[Need, ...] = ("baseline",)
    of: Callable[[tuple[str, ...], Mapping[tuple[int, int], Duels]], tuple[Estimate, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood(Measure):
    """A statistic of the answers that the prompt file gives: `Statistic` rows are answers, comparisons or prompts, as
    the measure needs."""

    prepare: Callable[[Given], Statistic]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measure says of one policy. `failures` are counted by reason and left out of `number`: never good,
    never neutral. `prompts` are those that it is of, drawn anew for its interval; 0 unknown."""

    number: Estimate
    failures: Mapping[str, int] = field(default_factory=dict)
    prompts: int = 0
