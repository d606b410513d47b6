"""How policies did against each other, and by how much each prefers the better of given answers, as evaluation.json has
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from assent.measures.estimates import Estimate
from assent.measures.shapes import Measured


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
