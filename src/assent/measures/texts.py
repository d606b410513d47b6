"""What of an answer's form can be counted: what a reward may follow instead of the answer's worth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

BULLET = re.compile(r"[ \t]*[-*+•][ \t]+\S")
ITEM = re.compile(r"[ \t]*([-*+•]|\d{1,3}[.)])[ \t]+\S")
HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+\S")
BOLD = re.compile(r"(\*\*|__)(?=\S)[^\n]+?(?<=\S)\1")


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
