"""The table of measures: every number that a policy's answers can be given, by name.

A new measure is a function and a row in a tuple `ROWS` of its module, and the module in `MODULES`."""

from __future__ import annotations

from assent.measures.shapes import Measure

MODULES: tuple[tuple[Measure, ...], ...] = ()

MEASURES: dict[str, Measure] = {row.name: row for rows in MODULES for row in rows}
