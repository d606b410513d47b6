"""Rows on their way through the stages, each of which says why a row goes no further."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assent.data.records import Example, Origin

SHOWN = 200
"""Characters of a prompt in the list of dropped rows."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Why a row goes no further; `of` is the row that it repeats, `notes` what else is known."""

    reason: str
    of: Origin | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage: rows that came and were left, and the others by why."""

    name: str
    came: int
    left: int
    dropped: Mapping[str, int]


@dataclass
class Sieve:
    """`examples` are those that are still there; `dropped` all others, with stage and fate."""

    examples: list[Example]
    stages: list[Stage] = field(default_factory=list)
    dropped: list[tuple[str, Example | Origin, Fate]] = field(default_factory=list)

    def drop(self, name: str, fates: Sequence[Fate | None]) -> list[int]:
        """Leaves out the rows that have a fate; gives the places of the others."""
        kept = [place for place, fate in enumerate(fates) if fate is None]
        why = Counter(fate.reason for fate in fates if fate is not None)
        self.stages.append(Stage(name, len(fates), len(kept), dict(why)))
        self.dropped += [
            (name, example, fate) for example, fate in zip(self.examples, fates, strict=True) if fate is not None
        ]
        self.examples = [self.examples[place] for place in kept]
        return kept

    def rows(self) -> Iterator[dict[str, Any]]:
        """The dropped rows as JSON objects."""
        for stage, what, fate in self.dropped:
            origin = what if isinstance(what, Origin) else what.origin
            row: dict[str, Any] = {"file": origin.file, "row": origin.row, "stage": stage, "reason": fate.reason}
            if fate.of is not None:
                row["of"] = {"file": fate.of.file, "row": fate.of.row}
            row |= dict(fate.notes)
            if isinstance(what, Example):
                row["prompt"] = what.prompt[-1].content[:SHOWN] if what.prompt else ""
            yield row
