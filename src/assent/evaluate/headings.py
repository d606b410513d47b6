"""In which order the numbers of an evaluation are shown: under the headings of the table of measures, and the few that
most people look at first."""

from __future__ import annotations

from assent.evaluate.results import PolicyTable
from assent.measures.table import MODULES, PASS

OTHER = "Measured elsewhere"
FIRST = (
    "reward",
    "win-rate",
    "length-controlled-win-rate",
    "kl",
    "length",
    "unfinished",
    "exact-match",
    "numeric-match",
    "mc1",
    "preference-accuracy",
    "refusal-of-harmful",
    "over-refusal",
    "repetition",
    "characters",
)
"""Measures that most people look at first."""


def headed(table: PolicyTable) -> dict[str, list[str]]:
    """Heading -> the numbers under it, in the order of the table of measures; by each source, the one that decides
    first."""
    order = {row.name: (heading, place) for heading, rows in MODULES.items() for place, row in enumerate(rows)}
    found: dict[str, list[str]] = {heading: [] for heading in (*MODULES, OTHER)}

    def place(key: str) -> tuple[int, bool]:
        measure, _, source = key.partition("/")
        return order[measure][1] if measure in order else len(order), source != table.by

    for key in sorted(table.keys, key=place):
        measure = key.partition("/")[0]
        heading = "Right answers" if PASS.fullmatch(measure) else order.get(measure, (OTHER, 0))[0]
        found[heading].append(key)
    return {heading: keys for heading, keys in found.items() if keys}


def first(table: PolicyTable, most: int) -> list[str]:
    """At most `most` numbers: what most people look at first, then as they come."""
    keys = [key for own in headed(table).values() for key in own]

    def rank(key: str) -> int:
        measure = key.partition("/")[0]
        return FIRST.index(measure) if measure in FIRST else len(FIRST)

    chosen = sorted(keys, key=rank)[:most]
    return sorted(chosen, key=keys.index)
