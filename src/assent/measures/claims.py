"""What answers claim, and how much of it the text that they are checked against supports."""

from __future__ import annotations

import re
from collections.abc import Callable

from assent.measures.answers import Answers, Verdict
from assent.measures.column import Column
from assent.measures.shapes import Each, Measure
from assent.measures.texts import ITEM, words

NO_CLAIM = "it makes no claim"
LEAST = 2
"""Words of a sentence that can be a claim."""
_FENCED = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"[ \t]*(?:#{1,6}|>|[-*+•]|\d{1,3}[.)])[ \t]+")
_QUOTES = "\"'”’»)\\]"
_END = re.compile(rf"(?<=[.!?…])[{_QUOTES}]*[ \t]+(?=[\"'“‘«(\[]*[^\W_a-zß-öø-ÿ])|(?<=[。！？])[{_QUOTES}]*")
_NO_END = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|No|Nos|Fig|Figs|Eq|Vol|vs|etc|cf|ca|approx|e\.g|i\.e|[A-Z]\.[A-Z])\.$"
)
_QUESTION = re.compile(rf"[?？][{_QUOTES}*_]*$")


def claims_of(text: str) -> list[str]:
    """The claims of an answer: its sentences, but for questions, code in fences, and what has fewer than two words.

    A sentence ends at the end of a line; behind . ! ? … (and what closes a quotation or a bracket) where a blank and
    anything but a small letter follow, unless a capital by itself or a usual abbreviation such as "Dr." stands before
    the full stop; and behind 。！？. Marks of lists and headings are none of it. A sentence that says several things is
    one claim, and pronouns stay as they are.

    >>> claims_of("Sure! It was Dr. Lee who found it. Was it? In 1990, they say:\\n- It rained.")
    ['It was Dr. Lee who found it.', 'In 1990, they say:', 'It rained.']
    """
    found = []
    for line in _FENCED.sub("", text).splitlines():
        found += _sentences(_MARK.sub("", line, count=1) if ITEM.match(line) or _MARK.match(line) else line)
    return [sentence for sentence in found if _claims(sentence)]


def _sentences(line: str) -> list[str]:
    made, start = [], 0
    for end in _END.finditer(line):
        piece = line[start : end.end()].strip()
        if not _NO_END.search(piece):
            made.append(piece)
            start = end.end()
    return [sentence for sentence in (*made, line[start:].strip()) if sentence]


def _claims(sentence: str) -> bool:
    spoken = [word for word in words(sentence) if any(letter.isalnum() for letter in word)]
    return len(spoken) >= LEAST and not _QUESTION.search(sentence)


def _share(verdict: Verdict) -> Callable[[Answers], Column]:
    """Of each answer the share of its claims with this verdict."""

    def of(answers: Answers) -> Column:
        claims = answers.claims
        assert claims is not None
        reasons = tuple(why or ("" if own else NO_CLAIM) for why, own in zip(claims.reasons, claims.found, strict=True))
        values = [
            None if why else sum(claim.verdict == verdict for claim in own) / len(own)
            for why, own in zip(reasons, claims.found, strict=True)
        ]
        return Column(Column.of(values, "-").values, reasons)

    return of


def _count(answers: Answers) -> Column:
    assert answers.claims is not None
    reasons = answers.claims.reasons
    values = [None if why else float(len(own)) for why, own in zip(reasons, answers.claims.found, strict=True)]
    return Column(Column.of(values, "-").values, reasons)


ROWS: tuple[Measure, ...] = (
    Each(name="supported", about="Share of an answer's claims that the prompt's context entails, averaged over "
         "answers (as FActScore, 2305.14251, of sentences or of a judge's claims).", unit="share",
         better="higher", needs=("claims",), of=_share("supported")),
    Each(name="contradicted", about="Share of an answer's claims that the prompt's context contradicts.", unit="share",
         better="lower", needs=("claims",), of=_share("contradicted")),
    Each(name="claims", about="Claims of an answer.", needs=("claims",), of=_count),
)  # fmt: skip
