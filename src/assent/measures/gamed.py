"""AlpacaEval's own rows for its length-controlled win rate: its baseline against the concise and verbose variants of
that, and through them how difficult each of its instructions is. The file is df_gamed.csv of the hub's data set
tatsu-lab/alpaca_eval, which its package downloads when it is first asked for that rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assent.errors import DataError


@dataclass(frozen=True, slots=True)
class Gamed:
    """AlpacaEval's rows of the baseline against its own concise and verbose variants, [G] each, and through them the
    difficulty of each instruction."""

    preference: np.ndarray
    """0 to 1: the chance that the variant is preferred to the baseline."""
    length: np.ndarray
    """Baseline's length minus the variant's, in standard deviations (`std_delta_len`)."""
    difficulty: np.ndarray
    """`instruction_difficulty`."""
    index: np.ndarray
    """int: which instruction."""

    def difficulties(self, index: np.ndarray) -> np.ndarray:
        """[M]: of instructions; the first row of each says it. Raises DataError for one that has no row."""
        known, first = np.unique(self.index, return_index=True)
        place = np.clip(np.searchsorted(known, index), 0, len(known) - 1)
        if len(missing := np.flatnonzero(known[place] != index)):
            raise DataError(
                f"AlpacaEval's file of gamed rows has instructions {known[0]} to {known[-1]}. "
                f"Got instruction {index[missing[0]]}"
            )
        return self.difficulty[first[place]]


@dataclass(frozen=True, slots=True)
class Instructions:
    """AlpacaEval's rows, and which of its instructions each of P prompts is: `index` [P] int64."""

    gamed: Gamed
    index: np.ndarray


def gamed_rows(rows: Sequence[Mapping[str, object]]) -> Gamed:
    """From the rows of df_gamed.csv as a reader of tables gives them. Raises DataError for a file without its columns,
    and for a cell that is no number."""
    columns = []
    for name in ("preference", "std_delta_len", "instruction_difficulty", "index"):
        values = []
        for number, row in enumerate(rows, 1):
            if name not in row:
                known = ", ".join(map(str, row))
                raise DataError(f"AlpacaEval's file of gamed rows needs a column '{name}'. Row {number} has: {known}")
            cell = row[name]
            try:
                values.append(math.nan if cell in (None, "") else float(str(cell)))
            except ValueError:
                raise DataError(f"row {number}, column '{name}': expected a number. Got {str(cell)[:40]!r}") from None
        columns.append(np.array(values, np.float64))
    preference, length, difficulty, index = columns
    if not len(index) or np.isnan(np.concatenate([length, difficulty, index])).any():
        raise DataError("AlpacaEval's file of gamed rows has no rows, or rows without length, difficulty or index")
    if len(wrong := np.flatnonzero((preference < 0) | (preference > 1))):
        raise DataError(f"row {wrong[0] + 1}, column 'preference': from 0 to 1. Got {preference[wrong[0]]:g}")
    return Gamed(preference, length, difficulty, index.astype(np.int64))
