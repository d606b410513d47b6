r"""The number that an answer ends on.

Where it stands: in the last complete \boxed{}; else behind the last "####"; else behind the last "answer is" or
"answer:"; else it is the last number of the text. What counts as a number: 1,450,000  1 450 000  $28.00  -5  3/4
\frac{3}{4}  1 1/2  1.5e3  1.5 \times 10^3  2^5  .5  12%. Dates, times of day, exponents of units, and numbers inside of
words (CO2), under a root or times pi are none. Numbers are exact fractions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

MARK = "####"
"""What GSM8K writes before the final answer."""
BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
BARE = re.compile(r"[^\s{$.,;]+(?:\.[0-9]+)?")
CUE = re.compile(r"answer\b[\s*_]*(?:is\b[\s*_]*[:=]?|[:=])[\s*_]*", re.IGNORECASE)
"""What is written before an answer in words; the answer stands in the same line."""
CUES, LINE = 8, 400
"""How many of them are looked at, and how many characters behind each."""

MINUS = "-\u2212\u2013\ufe63\uff0d"  # hyphen, minus sign, en dash, small and full-width hyphen
BLANK = " \u00a0\u2007\u2009\u202f"  # between groups of three digits: space, no-break, figure, thin, narrow no-break
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)\]}}])[{MINUS}])?[$\u20ac\u00a3\u00a5\u20b9]?(?P<inner>(?<=[$\u20ac\u00a3])[{MINUS}])?"
    r"(?:"
    r"(?P<whole>(?<![A-Za-z^0-9.])[0-9]+)[ -](?P<over>[0-9]+)/(?P<under>[0-9]+)(?![0-9/])"  # 1 1/2
    r"|(?P<size>(?<![A-Za-z^0-9])(?<![0-9]\.)(?:"
    rf"[0-9]{{1,3}}(?:[{BLANK}'\u2019][0-9]{{3}})+(?![0-9])"  # 1 450 000
    r"|[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9])"  # 1.450.000
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"  # 1,450,000  540  28.00
    r"|(?<![\w.^])\.[0-9]+)"  # .5
    r"(?:[eE](?P<e>[-+]?[0-9]{1,3})(?![0-9A-Za-z]))?"
    rf"(?:\s?[*x\u00d7]\s?10(?:\^|\*\*)(?P<ten>[{MINUS}+]?[0-9]{{1,3}}))?"
    rf"(?:(?:\^|\*\*)(?P<power>[{MINUS}+]?[0-9]{{1,3}}))?"
    r"(?:\s?/\s?(?P<parts>[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?))?"
    r")(?!\s?(?:\\?pi\b|\u03c0|\\?sqrt\b|\u221a))"
)
STEP = re.compile(rf"\s*(?:[A-Za-z%]+\s*)?[-+*/=x\u00d7\u00f7{MINUS}]+\s*")
"""What stands between two numbers of one calculation: an operator, perhaps behind a unit."""
MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December|Jan|Feb|Mar|Apr|Jun|Jul|"
    "Aug|Sept?|Oct|Nov|Dec)\\.?"
)
DATES = re.compile(
    r"(?<![0-9])(?:"
    r"[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}"  # 2026-11-29
    r"|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{4}"  # 29.11.2026
    r"|[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?:\s?[ap]\.?m\b\.?)?"  # 7:30 pm
    r"|[0-9]{1,2}\s?[ap]\.?m\b\.?"  # 7 pm
    r")(?![0-9])"
    rf"|\b{MONTH}\s[0-9]{{1,2}}(?:st|nd|rd|th)?,?\s[0-9]{{4}}\b"
    rf"|\b[0-9]{{1,2}}(?:st|nd|rd|th)?\s(?:of\s)?{MONTH},?\s[0-9]{{4}}\b"
    rf"|\b(?:on|by|until|till|before|after|since|from)\s(?:{MONTH}\s[0-9]{{1,2}}(?:st|nd|rd|th)?\b(?!,?[0-9])"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)?\s{MONTH}(?![A-Za-z]))(?:,?\s[0-9]{{4}}\b)?"
)
LATEX = (
    (re.compile(r"<<[^<>]*>>"), ""),  # GSM8K's calculator
    (re.compile(r"(?<=[0-9])(?=\\[dtc]?frac)"), " "),  # 1\frac{1}{2}
    (re.compile(r"\\[dtc]?frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}"), r"\1/\2 "),
    (re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])"), r"\1/\2 "),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|operatorname)\s*\{[^0-9{}]*\}"), " "),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"(?<=[0-9])(?:,\\!|\\[,!;: ]|\{,\})(?=[0-9]{3})"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "\u00d7"),
    (re.compile(r"\\div\b"), "\u00f7"),
    (re.compile(r"\^\s*\{\s*([-+]?[0-9]+)\s*\}"), r"^\1"),
    (re.compile(r"\\(?:left|right|displaystyle|[,!;: ]|\(|\)|\[|\])"), " "),
    (re.compile(r"\\(?=[$%])"), ""),
    (re.compile(r"([=({:\[])[ \t]*[-\u2212][ \t]+(?=[0-9.$])"), r"\1-"),  # "= - 5"
    (re.compile(r"(?:\\?sqrt|\u221a)\s*(?:\[[0-9]+\])?\s*[({]?\s*[0-9.]+\s*[)}]?"), " sqrt "),
)
BITS = 2**17
"""Of a power. No right answer is as long, and the longest that can be written takes seconds."""
HALVES = {"\u00bd": "1/2", "\u2153": "1/3", "\u2154": "2/3", "\u00bc": "1/4", "\u00be": "3/4", "\u2155": "1/5"}


def final_number(text: str) -> Fraction | None:
    """The number that a text ends on. None where there is none."""
    if (box := last_box(text)) is not None:
        return _only(box)
    if (marked := behind_mark(text)) is not None:
        return _first(marked)
    for cue in reversed([*CUE.finditer(text)][-CUES:]):
        behind = text[cue.end() : cue.end() + LINE].lstrip()
        line = re.split(r"\n|[.!?](?:\s|$)", behind, maxsplit=1)[0]
        if (found := _first(line)) is not None:
            return found
    numbers = [*_numbers(_plain(text))]
    return _value(numbers[-1]) if numbers else None


def gold_number(gold: str) -> Fraction:
    """The number of a gold answer: alone, or where `final_number` finds a marked one. Raises ValueError where anything
    but one number stands there."""
    box, marked = last_box(gold), behind_mark(gold)
    cues = [*CUE.finditer(gold)]
    written = box if box is not None else marked
    if written is None:
        written = gold[cues[-1].end() :] if cues else gold
    plain = _plain(written).strip().strip("*$").strip().removesuffix(".").removesuffix("%").strip()
    found = NUMBER.fullmatch(plain)
    number = _value(found) if found else None
    if number is None:
        shown = written.strip().removesuffix(".")[:40]
        raise ValueError(f"expected a number, alone or at the end after '{MARK}' or in \\boxed{{}}; got '{shown}'")
    return number


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{} whose braces are closed; None where there is none."""
    found = [*BOXED.finditer(text)]
    ends = _closing(text) if found else {}
    for start in reversed([box.end() for box in found]):
        if start in ends:
            return text[start + 1 : ends[start]]
        if (bare := BARE.match(text, start)) is not None:  # \boxed 7
            return bare[0]
    return None


def _closing(text: str) -> dict[int, int]:
    """Where the brace is closed that is opened at each place."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            ends[opened.pop()] = brace.start()
    return ends


def behind_mark(text: str) -> str | None:
    """What stands behind the last "####" that anything stands behind; None where there is no such mark."""
    _, *behind = text.split(MARK)
    return next((part for part in reversed(behind) if part.strip()), behind[-1] if behind else None)


def _plain(text: str) -> str:
    """The text without dates and times, and with LaTeX's numbers written plainly."""
    for pattern, plain in LATEX:
        text = pattern.sub(plain, text)
    for sign, fraction in HALVES.items():
        text = text.replace(sign, f" {fraction}")
    return DATES.sub(" ; ", text)


def _numbers(plain: str) -> Iterator[re.Match[str]]:
    return NUMBER.finditer(plain)


def _first(text: str) -> Fraction | None:
    """The first number, or what the calculation that it begins comes to: of "9 * 2 = 18, less 3" 18."""
    chain = _calculation(_plain(text))
    return _value(chain[-1]) if chain else None


def _only(text: str) -> Fraction | None:
    """The number of a text that holds one, or one calculation."""
    plain = _plain(text)
    chain = _calculation(plain)
    if not chain or NUMBER.search(plain, chain[-1].end()):
        return None
    return _value(chain[-1])


def _calculation(plain: str) -> list[re.Match[str]]:
    numbers = [*_numbers(plain)]
    chain = numbers[:1]
    for number in numbers[1:]:
        between = plain[chain[-1].end() : number.start()]
        signed = number["sign"] is not None and not between.strip()  # "2 -8": an operator
        if not (signed or STEP.fullmatch(between)):
            break
        chain.append(number)
    return chain


def _value(found: re.Match[str]) -> Fraction | None:
    """None for a division by zero and for more digits than Python reads: no right answer looks like that."""
    try:
        if found["whole"]:
            size = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"])
        else:
            size = Fraction(_ungrouped(found["size"]))
            size *= Fraction(10) ** (_exponent(found["e"]) + _exponent(found["ten"]))
            if found["power"]:
                power = _exponent(found["power"])
                if abs(power) * max(size.numerator.bit_length(), size.denominator.bit_length()) > BITS:
                    return None
                size **= power
            size /= Fraction((found["parts"] or "1").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return -size if found["sign"] or found["inner"] else size


def _ungrouped(written: str) -> str:
    """A number without what stands between its groups of three digits."""
    plain = re.sub(rf"[,{BLANK}'\u2019]", "", written)
    return plain.replace(".", "") if plain.count(".") > 1 else plain


def _exponent(written: str | None) -> int:
    return int(re.sub(rf"[{MINUS}]", "-", written)) if written else 0
