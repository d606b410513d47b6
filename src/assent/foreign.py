"""Text that others wrote (exceptions, servers, templates, reward code), made fit for a message: short, on one line, and
without keys. Whatever comes from outside goes into a message through `brief`; whatever is printed, through
`without_keys`."""

from __future__ import annotations

import os
import re
import reprlib
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import quote

LENGTH = 300
"""Characters of others' words in one message."""
LONGEST = 8_000
"""Characters of a whole message."""
SHORTEST_KEY = 8
"""A shorter value of a variable is no key, and might be a word of the message."""
HIDDEN = "[key]"

_NAMED_SO = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?|AUTH)(?:_|$)", re.IGNORECASE
)
_SHAPES = re.compile(
    r"(?P<before>\b(?:Bearer|Basic)\s+(?=\S*[0-9=])"  # Authorization: Bearer KEY
    r"|://[^\s/:@]*:(?=[^\s/@]+@)"  # https://user:KEY@host
    r"|[?&;](?:api_?key|access_token|token|key|secret|password|sig|signature)=)[^\s&@\"'<>]+"
    r"|\bhf_[A-Za-z0-9]{16,}\b|\bsk-[A-Za-z0-9_-]{16,}|\bgh[opsu]_[A-Za-z0-9]{20,}\b|\bgithub_pat_\w{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[a-z]-[A-Za-z0-9-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}",
    re.IGNORECASE,
)
_told: set[str] = set()


def hide(key: str) -> None:
    """Keeps a key out of all messages of this process, whatever its variable is called."""
    if len(key) >= SHORTEST_KEY:
        _told.add(key)


def brief(said: object, limit: int = LENGTH) -> str:
    """Others' words, or an exception's, for a message: on one line, without keys and a final dot, and at most `limit`
    characters. The type's name where an exception says nothing."""
    try:
        whole = said if isinstance(said, bytes) else str(said)
    except Exception as error:  # a stranger's __str__
        whole = f"{type(said).__name__}, whose text cannot be had ({type(error).__name__})"
    start = whole[: 16 * LONGEST]
    text = " ".join(without_keys(start.decode("utf-8", "replace") if isinstance(start, bytes) else start).split())
    text = text if text.endswith("..") else text.removesuffix(".")
    if not text:
        return type(said).__name__ if isinstance(said, BaseException) else ""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(whole):,} characters)"


def named(error: BaseException, limit: int = LENGTH) -> str:
    """An exception as its type and what it says."""
    kind, said = type(error).__name__, brief(error, limit)
    return kind if said in ("", kind) else f"{kind}: {said}"


# Lone surrogates cannot be encoded; control and direction-override characters would change what a reader sees.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]"
)


def printable(text: str) -> str:
    """`text` with every character that cannot be shown as itself written as its escape, such as \\x00 or \\ud800."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class _Shown(reprlib.Repr):
    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(without_keys(x[: 16 * LONGEST]), level)


shown = _Shown().repr
"""A value as Python writes it, for a message: without keys, and cut in its middle."""


def without_keys(text: str) -> str:
    """The text with every key in it replaced: those of the environment's variables that are named like one, those that
    `hide` was told of, and what has the shape of one."""
    for key in sorted({*_told, *_in_environment()}, key=len, reverse=True):
        for spelling in {key, quote(key, safe=""), key.encode("unicode_escape").decode()}:
            text = text.replace(spelling, HIDDEN)
    return _SHAPES.sub(lambda found: (found["before"] or "") + HIDDEN, text)


def message(text: object) -> str:
    """A whole message as it is printed: without keys, and cut in its middle where it is longer than a person reads."""
    whole = without_keys(str(text))
    if len(whole) <= LONGEST:
        return whole
    half = LONGEST // 2
    return f"{whole[:half]} … ({len(whole) - LONGEST:,} characters left out) … {whole[-half:]}"


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`, with the same care."""
    print(message("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _in_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_KEY and _NAMED_SO.search(name) and not os.path.exists(value):
            yield value
