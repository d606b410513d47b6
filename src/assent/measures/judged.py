"""What is measured: answers with their rewards, and what people, or a gold reward, say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Judged:
    """S answers with M comparisons of them. Example: one prompt with three answers, the first better than the second:
    rewards [1.5, 0.2, nan], prompt [0, 0, 0], pairs [[0, 1]]; the third answer is unscored."""

    rewards: np.ndarray
    """[S] float64; NaN where unscored: counted and left out."""
    prompt: np.ndarray
    """[S] int64: which prompt each answers."""
    texts: tuple[str, ...]
    """S answers."""
    pairs: np.ndarray
    """[M, 2] int64: the better and the worse answer of a comparison."""
    strength: np.ndarray
    """[M] float64: how clearly, NaN where nobody said."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of a column -> its M values, "" where a row has none: what accuracy is told apart by."""
    ties: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """[T, 2]: answers that people found equally good."""
    gold: np.ndarray | None = None
    """[S] float64: what each is truly worth, or how it is rated; NaN where unknown."""
    members: np.ndarray | None = None
    """[E, S]: the rewards of each member of an ensemble."""

    def __post_init__(self) -> None:
        size, pairs = len(self.rewards), len(self.pairs)
        assert self.prompt.shape == (size,) and len(self.texts) == size, "one entry for each answer"
        assert self.pairs.shape == (pairs, 2) and self.strength.shape == (pairs,), "one entry for each comparison"
        assert all(len(labels) == pairs for labels in self.groups.values()), "one label for each comparison"
        assert self.gold is None or self.gold.shape == (size,)
        assert self.members is None or self.members.shape[1:] == (size,)

    def gap(self, values: np.ndarray) -> np.ndarray:
        """values(better) - values(worse) [M] of one number for each answer [S]."""
        return values[self.pairs[:, 0]] - values[self.pairs[:, 1]]

    @property
    def pair_prompt(self) -> np.ndarray:
        """[M]: the prompt of each comparison."""
        return self.prompt[self.pairs[:, 0]]
