"""Answers side by side as the page holds them: compact JSON for its script, which shows a page of them at a time, and
the first page written out, so that it is read and printed without any script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np

from assent.data.records import Message
from assent.evaluate.differences import Part, difference
from assent.evaluate.samples import Asked, Sample, SampleRow, SampleSet
from assent.foreign import printable

PAGE = 10
"""Rows in the page at a time."""
LIMIT = 40_000_000
"""Most bytes of answers in one page: more than that makes browsers slow to open it."""
LONGEST = 20_000
"""Most characters of one text; more is cut, and said."""
MANY = 4
"""Most columns that are shown from the start."""
_SPECIAL = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def fitting(sets: Sequence[SampleSet], limit: int = LIMIT) -> list[SampleSet]:
    """The sets as far as they fit into `limit` bytes; of one that does not, rows drawn by chance, in their order."""
    fitted, room = [], limit
    for each in sets:
        sizes = np.array([_size(each, row) for row in each.rows], np.int64)
        if sizes.sum() > room:
            drawn = np.random.default_rng(0).permutation(len(sizes))
            kept = np.sort(drawn[np.cumsum(sizes[drawn]) <= room])
            each = replace(each, rows=tuple(each.rows[place] for place in kept.tolist()))
            sizes = sizes[kept]
        room -= int(sizes.sum())
        fitted.append(each)
    return [each for each in fitted if each.rows]


def _size(each: SampleSet, row: SampleRow) -> int:
    texts = [answer.text for answer in row.answers if answer is not None]
    texts += [message.content for message in each.prompts[row.prompt].messages] if row.repeat == 0 else []
    numbers = 12 * len(row.answers) * (3 + len(each.sources))
    return numbers + sum(len(text[:LONGEST].encode("utf-8", "replace")) for text in texts)


def page_data(sets: Sequence[SampleSet], colors: Mapping[str, str]) -> str:
    """The JSON of all sets, safe inside a script element: no sign in it can end the element or a line of script."""
    whole = {"page": PAGE, "many": MANY, "sets": [_set(each, colors) for each in sets]}
    return json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_SPECIAL)


def _set(each: SampleSet, colors: Mapping[str, str]) -> dict[str, Any]:
    kept = {place: new for new, place in enumerate(sorted({row.prompt for row in each.rows}))}
    prompts = [each.prompts[place] for place in kept]
    kinds, why = _Numbered(), _Numbered()
    repeats = repeated(each)
    return {
        "name": printable(each.name),
        "about": printable(each.about),
        "columns": [printable(name) for name in each.columns],
        "colors": [_color(each, name, colors) for name in each.columns],
        "baseline": -1 if each.baseline is None else each.baseline,
        "sources": [[printable(source.name), int(source.judged)] for source in each.sources],
        "total": each.total,
        "prompts": [[asked.number, kinds.place(printable(asked.kind)), _asked(asked)] for asked in prompts],
        "rows": [
            [kept[row.prompt], row.repeat, repeats[row.prompt], [_answer(answer, why) for answer in row.answers]]
            for row in each.rows
        ],
        "kinds": [*kinds],
        "why": [*why],
    }


class _Numbered(dict[str, int]):
    """Texts by the order in which they were first asked for."""

    def place(self, text: str) -> int:
        return self.setdefault(text, len(self))


def _asked(asked: Asked) -> str | list[list[str]]:
    if len(asked.messages) == 1 and asked.messages[0].role == "user":
        return cut(asked.messages[0].content)
    return [[printable(message.role), cut(message.content)] for message in asked.messages]


def _answer(answer: Sample | None, why: _Numbered) -> Any:
    if answer is None:
        return 0
    values = [None if value is None else float(f"{value:.6g}") for value in answer.values]
    tokens = -1 if answer.tokens is None else answer.tokens
    finished = -1 if answer.finished is None else int(answer.finished)
    told = {str(place): why.place(printable(reason)) for place, reason in answer.why.items()}
    return [cut(answer.text), tokens, finished, values, *([told] if told else [])]


def cut(text: str) -> str:
    """A text as it is shown: printable, and no longer than `LONGEST`."""
    more = len(text) - LONGEST
    return printable(text if more <= 0 else f"{text[:LONGEST]} … ({more:,} more characters)")


def repeated(each: SampleSet) -> dict[int, int]:
    """Prompt -> the most answers that a column has to it."""
    found: dict[int, int] = {}
    for row in each.rows:
        found[row.prompt] = max(found.get(row.prompt, 0), row.repeat + 1)
    return found


def _color(each: SampleSet, name: str, colors: Mapping[str, str]) -> str:
    return colors.get(name, colors.get(each.name, "var(--line)"))


# ---- the first page, written out


@dataclass(frozen=True)
class Shown:
    """One answer as it is shown. `chips` are a label, what stands in bold, and whether it is a warning."""

    name: str
    color: str
    parts: tuple[Part, ...]
    note: str
    outcome: str
    chips: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Card:
    """One row as it is shown."""

    title: str
    tags: tuple[str, ...]
    messages: tuple[Message, ...]
    answers: tuple[Shown | None, ...]
    """None: there is no answer to this prompt, whose name is in `missing` at the same place."""
    missing: tuple[str, ...]


def first_page(each: SampleSet, colors: Mapping[str, str]) -> list[Card]:
    """What the script shows at first: the first rows, the columns of `shown_first`, the first source."""
    repeats = repeated(each)
    return [_card(each, row, repeats[row.prompt], colors) for row in each.rows[:PAGE]]


def shown_first(each: SampleSet, row: SampleRow) -> list[int]:
    """Columns: of a run the first and the last that there are; else all, or, of many, the baseline and the last."""
    if each.baseline is None:
        there = [place for place, answer in enumerate(row.answers) if answer is not None]
        return sorted({there[0], there[-1]})
    if len(each.columns) <= MANY:
        return [each.baseline, *(place for place in range(len(each.columns)) if place != each.baseline)]
    return [each.baseline, len(each.columns) - (2 if each.baseline == len(each.columns) - 1 else 1)]


def _card(each: SampleSet, row: SampleRow, repeats: int, colors: Mapping[str, str]) -> Card:
    asked, columns = each.prompts[row.prompt], shown_first(each, row)
    tags = [printable(asked.kind)] if asked.kind else []
    tags += [f"answer {row.repeat + 1} of {repeats}"] if repeats > 1 else []
    return Card(
        title=f"Prompt {asked.number + 1:,}",
        tags=tuple(tags),
        messages=tuple(replace(message, content=cut(message.content)) for message in asked.messages),
        answers=tuple(_shown(each, row, column, colors) for column in columns),
        missing=tuple(printable(each.columns[column]) for column in columns),
    )


def _shown(each: SampleSet, row: SampleRow, column: int, colors: Mapping[str, str]) -> Shown | None:
    answer, base = row.answers[column], each.baseline_of(row)
    if answer is None:
        return None
    text, name = cut(answer.text), each.columns[column]
    parts: tuple[Part, ...] = (Part("same", text),) if text.strip() else ()
    note = ""
    theirs = None if base is None or base == column else row.answers[base]
    if theirs is not None and text.strip():
        parts, note = difference(cut(theirs.text), text)
    return Shown(name, _color(each, name, colors), parts, note, _outcome(each, row, column), _chips(each, answer))


def _outcome(each: SampleSet, row: SampleRow, column: int) -> str:
    if not each.sources or each.baseline is None or column == each.baseline:
        return ""
    gain = each.gain(row, column, 0)
    return "no verdict" if gain is None else "wins" if gain > 0 else "loses" if gain < 0 else "ties"


def _chips(each: SampleSet, answer: Sample) -> tuple[tuple[str, str, bool], ...]:
    chips = []
    for place, (name, judged) in enumerate(each.sources):
        value, reason = answer.values[place], answer.why.get(place)
        if value is not None:
            shown = ("won" if value > 0.5 else "lost" if value < 0.5 else "tie") if judged else two_digits(value)
            chips.append((printable(name), shown, False))
        elif reason is not None:
            chips.append((printable(name), f"unscored: {printable(reason)}", True))
        elif not judged and each.baseline is not None:  # what a run logs differs by step
            chips.append((printable(name), "unscored", True))
    if answer.tokens is not None:
        chips.append((f"{answer.tokens} tokens", "", False))
    if answer.finished is False:
        chips.append(("cut at the length limit", "", True))
    return tuple(chips)


def two_digits(value: float) -> str:
    """As JavaScript's toFixed(2) writes the number that stands in the data; numbers beyond its range as they are."""
    value = float(f"{value:.6g}") + 0.0  # no negative zero
    if not math.isfinite(value) or abs(value) >= 1e21:
        return str(value)
    text = str(Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP))
    return text.replace("-", "\N{MINUS SIGN}")
