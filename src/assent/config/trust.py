"""Options of `assent trust`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from assent.config.ranges import CountOrZero, Named, Seed
from assent.config.scoring import ScoredFileConfig


@dataclass(frozen=True)
class TrustConfig(ScoredFileConfig):
    """How far a reward can be trusted on labelled answers: accuracy, calibration, bias, sensitivity, best of n."""

    also: tuple[str, ...] = ()
    """Further files, each reported by itself."""
    out: Named | None = None
    """Folder for trust.json, trust.html and benchmarks' result files; default: only the printed table."""
    scorer: Named | None = None
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward;
    default: the answers' ratings, where the file has any."""
    by: tuple[str, ...] = ("subset", "source", "annotator")
    """Columns that accuracy is told apart by, where they are there."""
    probes: CountOrZero = 200
    """Rows whose answers are edited, to see what that does to rewards (0: none)."""
    benchmark: Literal["auto", "none", "rewardbench", "rewardbench-2"] = "auto"
    """Whether the file is a copy of RewardBench or RewardBench 2; auto looks at its columns and subsets."""
    name: Named | None = None
    """What the reward is called in a benchmark's result files; default: from SOURCE."""
    seed: Seed = 0
    """Seed of all that is drawn: rows to edit, folds, bootstrap."""
