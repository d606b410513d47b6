"""Prompts that repeat earlier ones: to the letter, or nearly, by Jaccard similarity of runs of letters.

Near duplicates are found by MinHash (Broder 1997) with bands (Indyk & Motwani 1998) and then compared exactly, so none
is dropped that is less alike than the threshold; one that is just as alike as the threshold is found with the
probability `Near.found`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from assent.data.records import Example
from assent.people.curate.sieve import Fate
from assent.people.curate.texts import plain, system_text, turns_text

RUN = 5
"""Letters in a row that are compared."""
PERMUTATIONS = 128
FOUND = 0.99
"""Least probability with which a pair at the threshold is to be found."""
PART = 1 << 17
"""About how many runs are hashed at once."""
EXACT = "the same as an earlier prompt"
NEAR = "nearly the same as an earlier prompt"


@dataclass(frozen=True)
class Near:
    """How near duplicates are looked for: `bands` of `rows` hashes each; `found` is the probability that a pair whose
    similarity is just the threshold is found."""

    threshold: float
    bands: int
    rows: int
    found: float
    permutations: int = PERMUTATIONS
    letters: int = RUN


def plan(threshold: float) -> Near:
    """The longest bands that find a pair at the threshold with probability `FOUND`, 1 - (1 - threshold^rows)^bands."""
    plans = [
        Near(threshold, bands, rows, 1 - (1 - threshold**rows) ** bands)
        for rows in range(1, PERMUTATIONS + 1)
        if (bands := PERMUTATIONS // rows) > 0
    ]
    return next((each for each in reversed(plans) if each.found >= FOUND), plans[0])


def exact(examples: Sequence[Example]) -> list[Fate | None]:
    """Rows whose messages are those of an earlier one, but for case, blanks and forms of letters."""
    first: dict[tuple[object, ...], Example] = {}
    fates: list[Fate | None] = []
    for example in examples:
        key = (example.tools, *((message.role, plain(message.content)) for message in example.prompt))
        kept = first.setdefault(key, example)
        fates.append(None if kept is example else Fate(EXACT, kept.origin))
    return fates


def near(examples: Sequence[Example], threshold: float) -> list[Fate | None]:
    """Rows that are at least so much alike a row that is kept, in their turns and in their system messages; compared
    with earlier rows in the order of their likely similarity."""
    how = plan(threshold)
    texts = [(turns_text(example), system_text(example)) for example in examples]
    hashes = signatures([text for text, _ in texts])
    bands_of = _shared_bands(hashes, how)
    kept: dict[int, list[int]] = {}
    """Shared band -> the rows with it that are kept so far."""
    sets = lru_cache(maxsize=4096)(runs)
    fates: list[Fate | None] = []
    for place, (text, system) in enumerate(texts):
        earlier = sorted({other for band in bands_of[place] for other in kept.get(band, ())})
        fate = None
        alike = (hashes[earlier] == hashes[place]).mean(axis=1)
        for nth in np.argsort(-alike, kind="stable"):
            other = earlier[nth]
            value = jaccard(sets(text), sets(texts[other][0]))
            if value >= threshold and jaccard(sets(system), sets(texts[other][1])) >= threshold:
                fate = Fate(NEAR, examples[other].origin, {"similarity": round(value, 4)})
                break
        if fate is None:
            for band in bands_of[place]:
                kept.setdefault(band, []).append(place)
        fates.append(fate)
    return fates


# ---- similarity


def runs(text: str) -> np.ndarray:
    """The distinct runs of `RUN` letters of a text in plain form, as hashes of 64 bits; one run where it is shorter."""
    return np.unique(_hashed(text))


def _hashed(text: str) -> np.ndarray:
    """All of its runs."""
    letters = np.frombuffer(plain(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(letters) == 0:
        return letters
    width = min(RUN, len(letters))
    hashed = np.full(len(letters) - width + 1, width, np.uint64)
    for column in np.lib.stride_tricks.sliding_window_view(letters, width).T:
        hashed = _mixed(hashed ^ column)
    return hashed


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared ones of all, of two sorted sets; two empty sets are alike."""
    if not len(one) and not len(other):
        return 1.0
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, which no two values share."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- MinHash


def signatures(texts: Sequence[str]) -> np.ndarray:
    """The MinHash of each text, [N, PERMUTATIONS] uint32: the least of the hashes of its runs, by each of
    `PERMUTATIONS` permutations of 64 bits, of which the upper half counts."""
    rng = np.random.default_rng(1)
    masks, factors = rng.integers(1 << 64, size=(2, PERMUTATIONS), dtype=np.uint64)
    found = np.zeros((len(texts), PERMUTATIONS), np.uint32)
    for first, hashed in _batches(texts):
        starts = np.cumsum([0, *map(len, hashed[:-1])])
        together = np.concatenate(hashed)
        for column, (mask, factor) in enumerate(zip(masks, factors | np.uint64(1), strict=True)):
            values = ((together ^ mask) * factor) >> np.uint64(32)
            found[first : first + len(hashed), column] = np.minimum.reduceat(values, starts)
    return found


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The runs of several texts at once, and the place of the first of these; of a text without letters one number."""
    batch, first, size = list[np.ndarray](), 0, 0
    for place, text in enumerate(texts):
        hashed = _hashed(text)
        batch.append(hashed if len(hashed) else np.zeros(1, np.uint64))
        size += len(batch[-1])
        if size >= PART or place == len(texts) - 1:
            yield first, batch
            batch, first, size = [], place + 1, 0


def _shared_bands(signatures: np.ndarray, how: Near) -> list[list[int]]:
    """For each row the numbers of those of its bands that another row has as well."""
    found: list[list[int]] = [[] for _ in signatures]
    number = 0
    for band in range(how.bands):
        keys = np.zeros(len(signatures), np.uint64)
        for column in signatures[:, band * how.rows : (band + 1) * how.rows].T:
            keys = _mixed(keys ^ column)
        for group in _alike(keys):
            for place in group:
                found[place].append(number)
            number += 1
    return found


def _alike(keys: np.ndarray) -> Iterator[list[int]]:
    """Places of equal keys, of those that are not alone."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.append(keys[order][1:] != keys[order][:-1], True)) + 1
    starts = np.append(0, ends[:-1])
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield order[start:end].tolist()
