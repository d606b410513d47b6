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
SURE = 0.8
"""Likeness from which a section is the one that was meant, and so is a name in another section."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: one with the same last part, else one of its section, else the one that is
    spelt most alike, here or in `ALIASES`, with its section or without."""
    known, last = list(names), _last(name)
    same = [other for other in known if _last(other) == last]
    if same:
        return max(same, key=lambda other: _likeness(name, other))
    scores = {other: (max(_scores(name, other)), _likeness(name, other)) for other in known}
    best = max(scores, key=scores.__getitem__, default=None)
    if (section := _section_meant(name, known)) is not None:
        beside = [other for other in known if _section(other) == section]
        own = max(beside, key=lambda other: _likeness(last, _last(other)))
        if _likeness(last, _last(own)) >= CUTOFF:
            return own
        return best if best is not None and scores[best][0] >= SURE else None
    return best if best is not None and scores[best][0] >= CUTOFF else None


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The sentence that goes after "unknown option"; empty where nothing is near."""
    known = list(names)
    if near := nearest(name, known):
        return f" Perhaps you meant '{prefix}{near}'."
    section = _section_meant(name, known)
    beside = [f"{prefix}{other}" for other in known if section is not None and _section(other) == section]
    return f" There are: {', '.join(beside)}." if beside else ""


def _section_meant(name: str, known: Iterable[str]) -> str | None:
    """Of a dotted name, the section of `known` that is spelt like its own."""
    own = _section(name)
    sections = {section for other in known if (section := _section(other))} if own else ()
    best = max(sorted(sections), key=lambda section: _likeness(own, section), default=None)
    return best if best is not None and _likeness(own, best) >= SURE else None


def _scores(name: str, other: str) -> Iterator[float]:
    yield _likeness(name, other)
    if (likeness := _likeness(_last(name), _last(other))) >= SURE or not _section(name):
        yield likeness
    section = _section(other)
    for alias, ours in ALIASES.items():
        if any(f".{option}".endswith(f".{other}") for option in ours):
            yield _likeness(_last(name), alias)
            yield _likeness(name, f"{section}.{alias}")


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _section(name: str) -> str:
    return name.rpartition(".")[0]
