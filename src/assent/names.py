"""The name that was probably meant, for messages about one that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from assent.counterparts import NAMES

ALIASES: dict[str, list[str]] = {
    "num_threads": ["train.threads"],
    "run_folder": ["out"],
    **{
        name: [option for row in rows for option in row.ours.split()] for name, rows in NAMES.items() if "." not in name
    },
}
"""What other tools, and people, call an option -> its names here."""
CUTOFF = 0.6
"""Least likeness, from 0 to 1, at which a name is suggested."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: one with the same last part, else the one that is spelt most alike, here or in
    `ALIASES`, with its section or without."""
    known, last = list(names), _last(name)
    same = [other for other in known if _last(other) == last]
    if same:
        return max(same, key=lambda other: _likeness(name, other))
    scores = {other: max(_scores(name, other)) for other in known}
    best = max(scores, key=lambda other: scores[other], default=None)
    return best if best is not None and scores[best] >= CUTOFF else None


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The sentence that goes after "unknown option"; empty where nothing is near."""
    near = nearest(name, names)
    return f" Perhaps you meant '{prefix}{near}'." if near else ""


def _scores(name: str, other: str) -> Iterator[float]:
    yield _likeness(name, other)
    yield _likeness(_last(name), _last(other))
    section = other.rpartition(".")[0]
    for alias, ours in ALIASES.items():
        if any(f".{option}".endswith(f".{other}") for option in ours):
            yield _likeness(_last(name), alias)
            yield _likeness(name, f"{section}.{alias}")


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _last(name: str) -> str:
    return name.rpartition(".")[2]
