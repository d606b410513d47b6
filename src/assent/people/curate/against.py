"""Overlap with evaluation sets: runs of words that a prompt shares with one of theirs.

As for GPT-3 (arXiv 2005.14165, appendix C): runs of 13 words. A prompt of an evaluation set that is shorter, but has
8 words or more, overlaps where it stands whole in another; one that is shorter still, where it is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from assent.data.records import Example, Origin
from assent.people.curate.sieve import Fate
from assent.people.curate.texts import plain_words, turns_text

WHOLE = 8
"""Fewest words of a prompt that is looked for within others."""


@dataclass(frozen=True)
class Overlap:
    """Of one evaluation set: its prompts, those among them that are shorter than the run (looked for whole) and than
    `WHOLE` (compared whole), those that were found, and the rows that were dropped for them."""

    prompts: int
    whole: int
    equal: int
    found: int
    dropped: int


@dataclass
class Sets:
    """Runs of words of the prompts of evaluation sets. `runs` are numbers of words as tuples, hashed, by their length;
    for each the rows that have it."""

    ngram: int
    words: dict[str, int] = field(default_factory=dict)
    runs: dict[int, dict[int, list[tuple[str, Origin]]]] = field(default_factory=dict)
    equal: dict[str, list[tuple[str, Origin]]] = field(default_factory=dict)
    texts: dict[Origin, str] = field(default_factory=dict)
    sizes: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, file: str, examples: Sequence[Example]) -> None:
        sizes = self.sizes.setdefault(file, Counter())
        for example in examples:
            found = plain_words(turns_text(example))
            if not found:
                continue
            sizes["prompts"] += 1
            where = (file, example.origin)
            if len(found) < WHOLE:
                sizes["equal"] += 1
                self.equal.setdefault(" ".join(found), []).append(where)
                continue
            sizes["whole"] += len(found) < self.ngram
            length = min(len(found), self.ngram)
            self.texts[example.origin] = " ".join(found)
            numbers = [self.words.setdefault(word, len(self.words)) for word in found]
            table = self.runs.setdefault(length, {})
            for start in range(len(numbers) - length + 1):
                rows = table.setdefault(hash(tuple(numbers[start : start + length])), [])
                if where not in rows[-1:]:
                    rows.append(where)

    def matches(self, example: Example) -> Iterator[tuple[str, list[tuple[str, Origin]]]]:
        """Each run of words that it shares, and file and row of those that have it."""
        found = plain_words(turns_text(example))
        whole = " ".join(found)
        if whole in self.equal:
            yield whole, self.equal[whole]
        for start, numbers in self._known(found):
            for length, table in self.runs.items():
                for first in range(len(numbers) - length + 1):
                    if rows := table.get(hash(tuple(numbers[first : first + length]))):
                        run = " ".join(found[start + first : start + first + length])
                        if f" {run} " in f" {self.texts[rows[0][1]]} ":  # hashes may be equal by chance
                            yield run, rows

    def _known(self, found: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """Stretches of words that evaluation sets have."""
        start, numbers = 0, list[int]()
        for place, word in enumerate(found):
            number = self.words.get(word)
            if number is not None:
                numbers.append(number)
                continue
            if numbers:
                yield start, numbers
            start, numbers = place + 1, []
        if numbers:
            yield start, numbers


def overlapping(examples: Sequence[Example], sets: Sets) -> tuple[list[Fate | None], Mapping[str, Overlap]]:
    """Rows that overlap with an evaluation set, and what that says of each set."""
    fates: list[Fate | None] = []
    dropped, found = Counter[str](), {file: set[Origin]() for file in sets.sizes}
    counted = set[str]()
    for example in examples:
        fate = None
        for run, rows in sets.matches(example):
            if fate is None:
                file, origin = rows[0]
                fate = Fate(f"overlaps with {file}", origin, {"words": run})
                dropped[file] += 1
            if run not in counted:
                counted.add(run)
                for file, origin in rows:
                    found[file].add(origin)
        fates.append(fate)
    return fates, {
        file: Overlap(sizes["prompts"], sizes["whole"], sizes["equal"], len(found[file]), dropped[file])
        for file, sizes in sets.sizes.items()
    }
