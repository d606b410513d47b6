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
from assent.people.curate.texts import extra, plain, system_text, turns_text

RUN = 5
"""Letters in a row that are compared."""
PERMUTATIONS = 128
FOUND = 0.99
"""Least probability with which a pair at the threshold is to be found."""
PART = 4096
"""Runs of a text that are hashed at once."""
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
    signatures = np.stack([signature(text) for text, _ in texts]) if texts else np.zeros((0, PERMUTATIONS), np.uint32)
    bands_of = _shared_bands(signatures, how)
    kept: dict[int, list[int]] = {}
    """Shared band -> the rows with it that are kept so far."""
    sets = lru_cache(maxsize=4096)(runs)
    fates: list[Fate | None] = []
    for place, (text, system) in enumerate(texts):
        earlier = sorted({other for band in bands_of[place] for other in kept.get(band, ())})
        fate = None
        alike = (signatures[earlier] == signatures[place]).mean(axis=1)
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
    letters = np.frombuffer(plain(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(letters) == 0:
        return letters
    width = min(RUN, len(letters))
    windows = np.lib.stride_tricks.sliding_window_view(letters, width)
    hashed = np.full(len(windows), width, np.uint64)
    for column in windows.T:
        hashed = _mixed(hashed ^ column)
    return np.unique(hashed)


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


def _itself(value: int) -> int:
    return value


@lru_cache(maxsize=1)
def _blank() -> object:
    return extra("datasketch", "near duplicates").MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=_itself)


def signature(text: str) -> np.ndarray:
    """Its MinHash, [PERMUTATIONS] uint32."""
    made = _blank().copy()  # type: ignore[attr-defined]
    hashed = runs(text) >> np.uint64(32)
    for start in range(0, len(hashed), PART):
        made.update_batch(hashed[start : start + PART].tolist())
    return np.asarray(made.hashvalues).astype(np.uint32)


def _shared_bands(signatures: np.ndarray, how: Near) -> list[list[int]]:
    """For each row the numbers of those of its bands that another row has as well."""
    found: list[list[int]] = [[] for _ in signatures]
    number = 0
    for band in range(how.bands):
        part = np.ascontiguousarray(signatures[:, band * how.rows : (band + 1) * how.rows])
        for group in _alike(part.view([("", part.dtype)] * how.rows).ravel()):
            for place in group:
                found[place].append(number)
            number += 1
    return found


def _alike(keys: np.ndarray) -> Iterator[list[int]]:
    """Places of equal keys, of those that are not alone."""
    order = np.argsort(keys, kind="stable")
    new = keys[order][1:] != keys[order][:-1]
    for group in np.split(order, np.flatnonzero(new) + 1):
        if len(group) > 1:
            yield group.tolist()
