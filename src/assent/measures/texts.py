"""What of an answer's form can be counted: what a reward may follow instead of the answer's worth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

BULLET = re.compile(r"[ \t]*[-*+•][ \t]+\S")
ITEM = re.compile(r"[ \t]*([-*+•]|\d{1,3}[.)])[ \t]+\S")
HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+\S")
BOLD = re.compile(r"(\*\*|__)(?=\S)[^\n]+?(?<=\S)\1")
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Chinese characters
)
"""Letters of scripts that write no blanks between words."""
_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+(?:['’]\w+)*|[^\w\s]")
_UNSPACED = re.compile(f"[{UNSPACED}]")


def words(text: str) -> list[str]:
    """Words in lower case and marks of punctuation, one by one; of scripts without blanks between words, letters."""
    return _WORD.findall(text.lower())


def unspaced(text: str) -> bool:
    """Whether most letters are of scripts that write no blanks between words."""
    return 2 * len(_UNSPACED.findall(text)) > sum(letter.isalnum() for letter in text)


def length(text: str) -> int:
    """Characters, which exist in every language and for every tokenizer."""
    return len(text)


def list_items(text: str) -> int:
    """Lines that begin with a bullet or a number."""
    return sum(ITEM.match(line) is not None for line in text.splitlines())


def headings(text: str) -> int:
    """Markdown headings."""
    return sum(HEADING.match(line) is not None for line in text.splitlines())


def bold(text: str) -> int:
    """Spans in bold."""
    return len(BOLD.findall(text))


LENGTH = "length"
FEATURES: dict[str, Callable[[str], int]] = {
    LENGTH: length,
    "list items": list_items,
    "headings": headings,
    "bold": bold,
}
"""Name -> how much of it a text has. Length is the first: the others are also looked at with it held fixed."""


def features(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Each feature of all texts, [S]."""
    return {name: np.array([count(text) for text in texts], dtype=np.float64) for name, count in FEATURES.items()}
