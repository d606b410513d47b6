"""A number of each answer, or the reason why there is none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Column:
    """A number of each answer. `values` [S] float64; `reasons` S strings: why there is none, "" where there is one."""

    values: np.ndarray
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.reasons),), "one reason for each answer"
        for value, reason in zip(self.values.tolist(), self.reasons, strict=True):
            assert math.isnan(value) == bool(reason) and not math.isinf(value), f"{value} with the reason {reason!r}"

    @classmethod
    def of(cls, values: Sequence[float | None] | np.ndarray, reason: str = "") -> Column:
        """With one reason for all that are NaN or None."""
        numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        return cls(numbers, tuple(reason if math.isnan(number) else "" for number in numbers.tolist()))

    @property
    def failures(self) -> Counter[str]:
        """Reasons, and how often each."""
        return Counter(reason for reason in self.reasons if reason)
