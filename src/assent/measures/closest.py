"""Ratings of several annotators as one: means, medians, and HelpSteer2's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

SPREAD = 2.0
"""Ratings further apart disagree."""
ENOUGH, MOST = 3, 5
"""HelpSteer2: annotators of each answer, and where they disagree."""


@dataclass(frozen=True, slots=True)
class Combined:
    """Scores by attribute, from the ratings `kept` (indices); None, and why, where they are too far apart or too
    few."""

    scores: Mapping[str, float] | None
    kept: tuple[int, ...] = ()
    why: str = ""


def needs_more(values: Sequence[float], spread: float = SPREAD) -> bool:
    """Whether HelpSteer2's recipe asks for further annotators: there are fewer than three, or those there are differ by
    more than `spread` and there are fewer than five."""
    return len(values) < ENOUGH or (max(values) - min(values) > spread and len(values) < MOST)


def helpsteer2(ratings: Sequence[Mapping[str, float]], by: str, spread: float = SPREAD) -> Combined:
    """HelpSteer2's rule (arXiv 2406.08673): of three to five ratings of an answer the three that are closest in the
    attribute `by` (the smallest range, then the smallest variance, then the earliest) are kept, and their means,
    rounded to whole numbers, are the scores; three that still differ by more than `spread` are dropped."""
    values = [rating[by] for rating in ratings]
    if len(values) < ENOUGH:
        return Combined(None, why=f"fewer than {ENOUGH} ratings")

    def apart(three: tuple[int, ...]) -> tuple[float, float]:
        low, middle, high = sorted(values[index] for index in three)
        return high - low, abs(2 * middle - low - high)  # of the same range, as variances are, but exact

    kept = min(combinations(range(len(values)), ENOUGH), key=apart)
    if apart(kept)[0] > spread:
        return Combined(None, kept, f"the {ENOUGH} closest ratings differ by more than {spread:g}")
    means = averaged([ratings[index] for index in kept])
    return Combined({name: float(np.floor(value + 0.5)) for name, value in means.items()}, kept)


def averaged(ratings: Sequence[Mapping[str, float]], median: bool = False) -> dict[str, float]:
    """The mean (or median) of each attribute over those that rated it."""
    names = dict.fromkeys(name for rating in ratings for name in rating)
    middle = np.median if median else np.mean
    return {name: float(middle([rating[name] for rating in ratings if name in rating])) for name in names}
