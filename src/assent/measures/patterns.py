"""Whether a pattern of Python's `re` is found in a text, in time that grows with the text alone where that can be.

`re` tries one way after the other, and some patterns have more ways than there are seconds. RE2 (an extra) follows all
ways at once, but means other things by many a letter: \\w, \\d and ignored case are ASCII there, and $ does not look
past a last line end. So a pattern is not handed on but written anew from what `re` has read in it, each set of
characters as `re` has it. What looks around, looks back or stands at edges of words cannot be written so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

Search = Callable[[str], Any]
Ranges = list[tuple[int, int]]

LARGEST = sys.maxunicode
FOLDS = {"k": "\u212a", "s": "\u017f", "i": "\u0130\u0131"}
"""What `re` finds beside an ASCII letter and its capital where case is ignored."""
FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.ASCII | re.UNICODE
SETS: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda letter: letter.isalnum() or letter == "_",
}
OPPOSITES = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}


def found(pattern: str, text: str) -> bool:
    """Whether `re.search(pattern, text)` finds something. Raises re.error for a pattern that is none."""
    search = linear(pattern)
    try:
        return (re.search(pattern, text) if search is None else search(text)) is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return re.search(pattern, text) is not None


@lru_cache
def linear(pattern: str) -> Search | None:
    """A search whose time grows with the text alone; None where there is none, or RE2 is not installed. Raises re.error
    for a pattern that is none."""
    re.compile(pattern)
    try:
        import re2
    except ImportError:
        return None
    options = re2.Options()
    options.log_errors = False
    try:
        search: Search = re2.compile(translated(pattern), options).search
    except (_Unlike, re2.error):
        return None
    return search


class _Unlike(Exception):
    """RE2 has nothing that means the same."""


def translated(pattern: str) -> str:
    """The pattern as RE2 reads it. Raises `_Unlike`."""
    read = _parser.parse(pattern)
    return _sequence(read, read.state.flags, True)


def _sequence(items: Iterable[tuple[Any, Any]], flags: int, last: bool) -> str:
    """`last`: nothing of the pattern follows."""
    listed = list(items)
    return "".join(_item(op, about, flags, last and n == len(listed)) for n, (op, about) in enumerate(listed, 1))


def _item(op: Any, about: Any, flags: int, last: bool) -> str:
    if flags & ~FLAGS:
        raise _Unlike
    if op is sre.LITERAL:
        return _written(_folded([(about, about)], flags))
    if op is sre.NOT_LITERAL:
        return _written(_others(_folded([(about, about)], flags)))
    if op is sre.ANY:
        return "(?s:.)" if flags & re.DOTALL else "[^\\n]"
    if op is sre.IN:
        return _written(_members(about, flags))
    if op is sre.BRANCH:
        return f"(?:{'|'.join(_sequence(each, flags, last) for each in about[1])})"
    if op is sre.SUBPATTERN:
        _, added, removed, inner = about
        return f"(?:{_sequence(inner, (flags | added) & ~removed, last)})"
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = about
        times = f"{{{least},{'' if most is sre.MAXREPEAT else most}}}"
        return f"(?:{_sequence(inner, flags, False)}){times}"
    if op is sre.AT:
        return _place(about, flags, last)
    raise _Unlike


def _place(place: Any, flags: int, last: bool) -> str:
    if place is sre.AT_BEGINNING:
        return "(?m:^)" if flags & re.MULTILINE else "\\A"
    if place is sre.AT_END and flags & re.MULTILINE:
        return "(?m:$)"
    if place is sre.AT_END and last:
        return "(?:\\n?\\z)"
    places = {sre.AT_BEGINNING_STRING: "\\A", sre.AT_END_STRING: "\\z"}
    if place not in places:
        raise _Unlike
    return places[place]


# ------------------------------------------------------------------------------------------------ sets of characters


def _members(items: Sequence[tuple[Any, Any]], flags: int) -> Ranges:
    listed: Ranges = []
    for op, about in items:
        if op is sre.LITERAL:
            listed += _folded([(about, about)], flags)
        elif op is sre.RANGE:
            listed += _folded([about], flags)
        elif op is sre.CATEGORY:
            listed += _category(about, bool(flags & re.ASCII))
        elif op is not sre.NEGATE:
            raise _Unlike
    return _others(listed) if items[0][0] is sre.NEGATE else listed


@lru_cache
def _category(category: Any, ascii_only: bool) -> Ranges:
    if category in OPPOSITES:
        return _others(_category(OPPOSITES[category], ascii_only))
    if category not in SETS:
        raise _Unlike
    holds, made = SETS[category], list[tuple[int, int]]()
    for code in range(128 if ascii_only else LARGEST + 1):
        # Of ASCII, `isspace` has four separators that re.ASCII has not.
        if holds(chr(code)) and not (ascii_only and 0x1C <= code <= 0x1F):
            made.append((made.pop()[0] if made and made[-1][1] == code - 1 else code, code))
    return made


def _folded(ranges: Ranges, flags: int) -> Ranges:
    """With what else they stand for where case is ignored."""
    if not flags & re.IGNORECASE:
        return ranges
    if any(end > 127 for _, end in ranges):
        raise _Unlike
    letters = {letter for start, end in ranges for letter in map(chr, range(start, end + 1)) if letter.isalpha()}
    more = {*map(str.lower, letters), *map(str.upper, letters)}
    if not flags & re.ASCII:
        more |= {other for letter in letters for other in FOLDS.get(letter.lower(), "")}
    return ranges + [(ord(letter), ord(letter)) for letter in sorted(more)]


def _others(ranges: Ranges) -> Ranges:
    """All characters but these."""
    made, start = list[tuple[int, int]](), 0
    for first, end in sorted(ranges):
        if first > start:
            made.append((start, first - 1))
        start = max(start, end + 1)
    return made + ([(start, LARGEST)] if start <= LARGEST else [])


def _written(ranges: Ranges) -> str:
    if not ranges:
        raise _Unlike
    letters = sorted({end for start, end in ranges if start == end})
    if len(letters) == 2 and all(start == end for start, end in ranges) and _one_letter(*letters):
        # As a set RE2 takes the two for one letter whose case is ignored, and finds its FOLDS as well.
        return f"(?:\\x{{{letters[0]:x}}}|\\x{{{letters[1]:x}}})"
    inside = "".join(f"\\x{{{start:x}}}-\\x{{{end:x}}}" for start, end in ranges)
    return f"[{inside}]"


def _one_letter(capital: int, small: int) -> bool:
    return small < 128 and chr(capital) == chr(small).upper()
