"""Options of what is learnt from several rated answers to a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from assent.config.ranges import Finite, NotNegative

Way = Literal["best-worst", "best-random", "best-margin", "all-pairs", "best", "above", "ratings"]
PAIRED: tuple[Way, ...] = ("best-worst", "best-random", "best-margin", "all-pairs")
"""What gives pairs."""


@dataclass(frozen=True)
class ChooseConfig:
    """What is learnt from the rated answers to a prompt."""

    take: Way = "best-worst"
    """Pairs: the best answer against the worst, against one of the worse ones by chance, or against the one whose
    reward is nearest to `margin` below the best; or all pairs of different rewards. Single answers, for sft: the best,
    or all whose reward is at least `threshold`. ratings: all answers with their rewards, for nca and its like."""
    gap: NotNegative = 0.0
    """Pairs are kept where the rewards differ by at least this much. Equal rewards are never a pair."""
    margin: NotNegative = 1.0
    """best-margin: how far below the best."""
    threshold: Finite | None = None
    """above, and best: the lowest reward of an answer that is learnt from."""
    threshold_step: Finite = 0.0
    """By how much `threshold` grows with each round."""
    length_penalty: NotNegative = 0.0
    """Subtracted from the reward for each token of an answer, before anything is chosen."""
    fewer: Literal["skip", "use"] = "skip"
    """What becomes of prompts of which some answers cannot be used."""
    unfinished: Literal["drop", "keep"] = "drop"
    """What becomes of answers that were cut off at the longest length. drop: they are not used. keep: they are, and no
    end that was not sampled is trained."""
