"""Which prompts are asked next: in a fresh order each pass, by difficulty, without those that teach nothing now."""

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
        self.wakes = np.zeros(number, np.int64)
        """The pass, from 0, in which a prompt is asked again."""
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
        awake = indices[self.wakes[indices] <= self.passes]
        self.passes += 1
        if not len(awake):  # everything rests: nothing is won by waiting
            awake = indices
        if self.config.order == "random":
            return awake
        hardness = (self.difficulty if self.difficulty is not None else -self.means())[awake]
        if self.config.order == "hard":
            hardness = -hardness
        return awake[np.argsort(hardness, kind="stable")]

    def means(self) -> np.ndarray:
        """Mean reward of each prompt's answers so far, [number]; of those not asked yet, the mean of all others."""
        asked = self.count > 0
        means = np.divide(self.total, self.count, out=np.zeros(self.number), where=asked)
        means[~asked] = means[asked].mean() if asked.any() else 0.0
        return means

    def record(self, indices: Sequence[int] | np.ndarray, rewards: Sequence[np.ndarray]) -> None:
        """The scored answers of these prompts. A prompt whose answers are all worth the same rests from now on."""
        self.wakes, self.total, self.count = self.wakes.copy(), self.total.copy(), self.count.copy()
        for index, values in zip(indices, rewards, strict=True):
            self.total[index] += values.sum(dtype=np.float64)
            self.count[index] += len(values)
            if self.config.rest and len(values) > 1 and values.min() == values.max():
                self.wakes[index] = self.passes + self.config.rest

    @property
    def resting(self) -> float:
        """Share of the prompts that the next pass leaves out."""
        return float((self.wakes > self.passes).mean())

    def state_dict(self) -> dict[str, Any]:
        """The arrays are replaced when they change, never written to."""
        return {name: getattr(self, name) for name in ("passes", "queue", "wakes", "total", "count")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.passes = int(state["passes"])
        self.queue, self.wakes, self.total, self.count = (
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
