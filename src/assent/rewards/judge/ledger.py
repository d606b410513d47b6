"""What is counted while judges are asked."""

from __future__ import annotations

from dataclasses import dataclass, field

CACHED = "time/cached"
"""Share of the answers that were there already: of no two runs the same, as times are."""


@dataclass(slots=True)
class Ledger:
    """Numbers by name, one for each question or comparison; their means are shown."""

    metrics: dict[str, list[float]] = field(default_factory=dict)

    def note(self, **values: float | bool) -> None:
        for name, value in values.items():
            self.metrics.setdefault(name, []).append(float(value))
