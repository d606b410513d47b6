"""The table of measures: every number that a policy's answers can be given, by name.

A new measure is a function and a row in the tuple `ROWS` of its module, and the module in `MODULES`."""

from __future__ import annotations

from assent.measures import basic, likelihood, wins
from assent.measures.shapes import Measure

MODULES: dict[str, tuple[Measure, ...]] = {
    "Rewards and wins": (*basic.ROWS[:1], *wins.ROWS),
    "Answers": basic.ROWS[1:],
    "Answers that the prompt file gives": likelihood.ROWS,
}
"""Heading of the documentation -> rows."""

MEASURES: dict[str, Measure] = {row.name: row for rows in MODULES.values() for row in rows}
