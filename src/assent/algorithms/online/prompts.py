"""Which prompts are sampled next: in a fresh order each pass, by difficulty, without those that are skipped now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assent.config import CurriculumConfig
from assent.data.columns import column, column_names
from assent.data.formats.values import number
from assent.data.packing import order
from assent.data.records import Example, RowError
from assent.errors import DataError
from assent.foreign import shown


class Prompts:
    """A queue over the training prompts. It is filled pass by pass; rollouts take from it, so one may reach over the
    end of a pass, and none is ever smaller than the others."""

    def __init__(self, number: int, config: CurriculumConfig, seed: int, difficulty: np.ndarray | None = None) -> None:
        """`difficulty` [number]: larger is harder; without it, the mean reward so far tells."""
        self.number, self.config, self.seed, self.difficulty = number, config, seed, difficulty
        self.passes = 0
        self.queue = np.zeros(0, np.int64)
        self.skipped_until = np.zeros(number, np.int64)
        """The pass, from 0, in which a prompt is sampled again."""
        self.total = np.zeros(number)
        self.count = np.zeros(number, np.int64)

    def next(self, size: int) -> np.ndarray:
        """The next `size` prompts, as indices."""
        while len(self.queue) < size:
            self.queue = np.concatenate([self.queue, self._pass()])
        taken, self.queue = self.queue[:size], self.queue[size:]
        return taken

    def _pass(self) -> np.ndarray:
        indices = order(self.number, seed=self.seed, epoch=self.passes)
        chosen = indices[self.skipped_until[indices] <= self.passes]
        self.passes += 1
        if not len(chosen):  # all would be skipped: nothing is won by waiting
            chosen = indices
        if self.config.order == "random":
            return chosen
        hardness = (self.difficulty if self.difficulty is not None else -self.means())[chosen]
        if self.config.order == "hard":
            hardness = -hardness
        return chosen[np.argsort(hardness, kind="stable")]

    def means(self) -> np.ndarray:
        """Mean reward of each prompt's answers so far, [number]; of those not sampled yet, the mean of all others."""
        known = self.count > 0
        means = np.divide(self.total, self.count, out=np.zeros(self.number), where=known)
        means[~known] = means[known].mean() if known.any() else 0.0
        return means

    def record(self, indices: Sequence[int] | np.ndarray, rewards: Sequence[np.ndarray]) -> None:
        """The scored answers of these prompts. A prompt whose answers are all worth the same is skipped from now on."""
        self.skipped_until, self.total = self.skipped_until.copy(), self.total.copy()
        self.count = self.count.copy()
        for index, values in zip(indices, rewards, strict=True):
            self.total[index] += values.sum(dtype=np.float64)
            self.count[index] += len(values)
            if self.config.rest and len(values) > 1 and values.min() == values.max():
                self.skipped_until[index] = self.passes + self.config.rest

    @property
    def skipped(self) -> float:
        """Share of the prompts that the next pass leaves out."""
        return float((self.skipped_until > self.passes).mean())

    def state_dict(self) -> dict[str, Any]:
        """The arrays are replaced when they change, never written to."""
        return {
            "passes": self.passes,
            "queue": self.queue,
            "wakes": self.skipped_until,
            "total": self.total,
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.passes = int(state["passes"])
        self.queue, self.skipped_until, self.total, self.count = (
            np.array(state[name]) for name in ("queue", "wakes", "total", "count")
        )


def difficulty(examples: Sequence[Example], name: str) -> np.ndarray:
    """The numbers of a column of the rows, [P]. Raises DataError where one is missing or no number."""
    values = np.zeros(len(examples))
    for index, example in enumerate(examples):
        value = column(example.meta, name)
        try:
            values[index] = number(value, name)
        except RowError:
            found = ", ".join(column_names([example.meta])) or "none beside the prompt"
            raise DataError(
                f"--curriculum.column {name}: {example.origin} has {shown(value)} there; expected a number. Its "
                f"columns: {found}."
            ) from None
    return values
