"""Where one text differs from another, word by word. `templates/report.js` does the same in the browser."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_WORD = re.compile(r"\s*(?:\w+|[^\w\s])")
LEAST = 0.25
"""Share of common words below which marks would only hide the text."""
MOST = 4_000_000
"""Most pairs of words that are compared."""

Kind = Literal["same", "added", "removed"]


class Part(NamedTuple):
    """A stretch of text: in both, only in the second (added), or only in the first (removed)."""

    kind: Kind
    text: str


class Difference(NamedTuple):
    """`parts` make the second text, with what was removed from the first between them. Where marks say nothing the
    whole second text is one part, and `note` says why."""

    parts: tuple[Part, ...]
    note: str = ""


def difference(first: str, second: str) -> Difference:
    """A longest common subsequence of words (runs of letters and digits; any other sign is a word of its own), blanks
    aside."""
    if first == second:
        return Difference((Part("same", second),), "the same answer")
    a, b = _WORD.findall(first), _WORD.findall(second)
    x, y = [word.strip() for word in a], [word.strip() for word in b]
    start, most = 0, min(len(x), len(y))
    while start < most and x[start] == y[start]:
        start += 1
    end = 0
    while end < most - start and x[-1 - end] == y[-1 - end]:
        end += 1
    n, m = len(x) - start - end, len(y) - start - end
    if n * m > MOST:
        return Difference((Part("same", second),), "too long to compare word by word")
    kinds = _steps(x[start : start + n], y[start : start + m])
    common = start + end + sum(kind == "same" for kind in kinds)
    if 2 * common < LEAST * (len(x) + len(y)):
        return Difference((Part("same", second),), "other words throughout")
    same: Kind = "same"
    kinds = [same] * start + kinds + [same] * end
    tail = second[sum(map(len, b)) :]  # blanks behind the last word
    return Difference(tuple(_parts(kinds, a, b, tail)))


def _steps(x: list[str], y: list[str]) -> list[Kind]:
    """From x to y: bit-parallel rows of the table of longest common subsequences (Crochemore et al. 2001), where bit j
    of row i is 0 if word j makes it longer; and back through them."""
    whole = (1 << len(y)) - 1
    places: dict[str, int] = {}
    for j, word in enumerate(y):
        places[word] = places.get(word, 0) | 1 << j
    rows, row = [], whole
    for word in x:
        at = row & places.get(word, 0)
        row = (row + at | row - at) & whole
        rows.append(row)
    steps: list[Kind] = []
    i, j = len(x), len(y)
    while i or j:
        if i and j and x[i - 1] == y[j - 1]:
            steps.append("same")
            i, j = i - 1, j - 1
        elif j and (not i or rows[i - 1] >> (j - 1) & 1):
            steps.append("added")
            j -= 1
        else:
            steps.append("removed")
            i -= 1
    return steps[::-1]


def _parts(kinds: list[Kind], a: list[str], b: list[str], tail: str) -> list[Part]:
    """Neighbours of one kind as one part; between two common stretches first all that was removed, then all that was
    added. Blanks before what was added stand outside of it: all but what was removed is the second text."""
    found: list[Part] = []
    i = j = 0

    def put(kind: Kind, text: str) -> None:
        blank = text[: len(text) - len(text.lstrip())] if kind == "added" else ""
        if blank:
            put("same", blank)
        text = text[len(blank) :]
        if text and found and found[-1].kind == kind:
            found[-1] = Part(kind, found[-1].text + text)
        elif text:
            found.append(Part(kind, text))

    at = 0
    while at < len(kinds):
        removed = added = ""
        while at < len(kinds) and kinds[at] != "same":
            if kinds[at] == "removed":
                removed, i = removed + a[i], i + 1
            else:
                added, j = added + b[j], j + 1
            at += 1
        put("removed", removed)
        put("added", added)
        if at < len(kinds):
            put("same", b[j])
            i, j, at = i + 1, j + 1, at + 1
    put("same", tail)
    return found
