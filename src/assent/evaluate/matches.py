"""How policies did against each other, and by how much each prefers the better of given answers, as evaluation.json has
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assent.measures.aggregate import of_duels
from assent.measures.answers import Given
from assent.measures.estimates import Estimate
from assent.measures.margins import histograms, pair_margins
from assent.measures.shapes import Duels, Measured
from assent.measures.wins import WINS

AllDuels = Mapping[str, Mapping[tuple[int, int], Duels]]
"""Source -> pair of policies (the first before the second) -> their comparisons."""


@dataclass(frozen=True)
class Outcomes:
    """How the comparisons with the baseline went."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Match:
    """One policy against another on the same prompts, by one source of verdicts: the share of comparisons that `ours`
    won, ties half."""

    ours: str
    theirs: str
    source: str
    rate: Measured
    outcomes: Outcomes

    def turned(self) -> Match:
        """The same from the other side."""
        number, count = self.rate.number, self.outcomes
        value, low, high = (None if v is None else 1 - v for v in (number.value, number.high, number.low))
        rate = replace(self.rate, number=replace(number, value=value, low=low, high=high))
        return Match(self.theirs, self.ours, self.source, rate, Outcomes(count.losses, count.ties, count.wins))


@dataclass(frozen=True)
class Margins:
    """By how much each policy prefers the better answer of the prompt file's pairs: `counts` of margins between
    `edges`, by policy; those beyond the edges are in the first and last. `unread` pairs have no margin."""

    of: str
    """What is subtracted, in nats: "likelihood", or "implicit reward" (log pi - log pi_ref)."""
    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    unread: Mapping[str, int]


def outcomes_of(duels: Duels) -> Outcomes:
    """Wins, ties and losses of the comparisons that have a verdict."""
    known = duels.outcome[~np.isnan(duels.outcome)]
    return Outcomes(int((known > 0.5).sum()), int((known == 0.5).sum()), int((known < 0.5).sum()))


def matches_of(names: Sequence[str], everyone: AllDuels) -> list[Match]:
    """Every two policies, by each source."""
    return [
        Match(names[i], names[j], source, of_duels(WINS, duels), outcomes_of(duels))
        for source, pairs in everyone.items()
        for (i, j), duels in pairs.items()
    ]


def margins_of(given: Mapping[str, Given | None]) -> list[Margins]:
    """Of the pairs that the prompt file gives, by each policy that can be asked."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, own in given.items():
        if own is not None and len(own.pairs):
            for kind, values in pair_margins(own).items():
                found.setdefault(kind, {})[name] = values
    made = []
    for kind, columns in found.items():
        edges, counts = histograms(columns)
        shown = {name: tuple(each.tolist()) for name, each in counts.items()}
        unread = {name: int(np.isnan(values).sum()) for name, values in columns.items()}
        made.append(Margins(kind, tuple(edges.tolist()), shown, unread))
    return made


def load_measured(raw: Mapping[str, Any]) -> Measured:
    """A number with its failures."""
    return Measured(Estimate(**raw["number"]), dict(raw["failures"]), raw.get("prompts", 0))


def load_match(raw: Mapping[str, Any]) -> Match:
    """What `dataclasses.asdict` made of one."""
    rate, outcomes = load_measured(raw["rate"]), Outcomes(**raw["outcomes"])
    return Match(raw["ours"], raw["theirs"], raw["source"], rate, outcomes)


def load_margins(raw: Mapping[str, Any]) -> Margins:
    """What `dataclasses.asdict` made of them."""
    counts = {name: tuple(own) for name, own in raw["counts"].items()}
    return Margins(raw["of"], tuple(raw["edges"]), counts, dict(raw["unread"]))
