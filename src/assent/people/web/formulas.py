"""Formulas of texts as MathML: what LaTeX the converter knows under another name, and what it would set wrongly."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from latex2mathml import converter
from latex2mathml.commands import MATRICES

LONGEST = 2_000
"""Characters of a formula that is set."""

_ALIGNED = {"align", "aligned", "alignat", "alignedat", "eqnarray", "flalign"}
_LINES = {"gather", "gathered", "multline"}
_BEGIN = re.compile(r"\\(begin|end)\{([a-z]+)\*?\}(?:\s*\[[tcb]\])?")
_COLUMNS = re.compile(r"(\\begin\{align(?:ed)?at\*?\}(?:\s*\[[tcb]\])?)\s*\{\d+\}")
_ROW_SPACE = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]")
_UNPRINTED = re.compile(r"\\(?:nonumber|notag)(?![a-zA-Z])|\\label\s*\{[^{}]*\}")
_OPERATOR = re.compile(r"\\operatorname\s*\*?\s*\{([^{}]*)\}")
_TEXT = re.compile(r"(<mtext[^>]*>)([^<]*)(</mtext>)")


def mathml(source: str, display: str) -> str:
    """A formula as MathML; "" for what is none, or too long. `display` is "inline" or "block"."""
    source = source.strip()
    if not source or len(source) > LONGEST or "$$" in source:
        return ""
    try:
        known = _known(source, display)
        if any(rf"\{name}" not in MATRICES for name in re.findall(r"\\begin\s*\{([^}]*)\}", known)):
            return ""
        made = converter.convert(known, display=display)
        made = _TEXT.sub(lambda found: found[1] + re.sub(r"\\([%$#_{}])", r"\1", found[2]) + found[3], made)
        ElementTree.fromstring(made)  # what stands in \text{} goes into it as it is
    except Exception:  # not all that people write is a formula, and the converter's errors are of many kinds
        return ""
    return "" if 'linebreak="newline"' in made else str(made)  # which browsers do not break at


def _known(source: str, display: str) -> str:
    """The same formula in words of the converter. It reads environments that it does not know as letters, and their
    rows without an end."""
    source = _UNPRINTED.sub("", _COLUMNS.sub(r"\1", _ROW_SPACE.sub(r"\\\\", source)))
    source = _OPERATOR.sub(lambda found: r"\operatorname{" + re.sub(r"\\[,;:! ]", " ", found[1]) + "}", source)
    made = _BEGIN.sub(_environment, source)
    if display == "block" and r"\\" in made and not re.search(r"\\(begin|displaylines|substack)", made):
        made = rf"\displaylines{{{made}}}"
    return made


def _environment(found: re.Match[str]) -> str:
    word, name = found[1], found[2]
    if name in _LINES:
        return r"\displaylines{" if word == "begin" else "}"
    if name == "equation":
        return "{" if word == "begin" else "}"
    other = "align*" if name in _ALIGNED else "cases" if name == "dcases" else ""
    return rf"\{word}{{{other}}}" if other else found[0]
