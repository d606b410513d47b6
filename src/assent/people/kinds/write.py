"""Kinds in which annotators write: edit, spans."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from assent.data.records import Binary, Critique, Feedback
from assent.people.kinds.base import (
    COMMENT,
    TEXT,
    Kind,
    LabelError,
    Shown,
    Value,
    called,
    capital,
    choice,
    fields_of,
    index,
    listed,
    pair,
    said,
    text,
    whole,
)
from assent.people.task import Item, TaskDefinition

# ---- edit: {"text": "...", "from": 0}; from null: written without an answer to begin from


def _check_edit(value: Any, item: Item, task: TaskDefinition) -> None:
    value = fields_of(value, ("text", "from"), task)
    text(value.get("text"), "text", TEXT)
    if value.get("from") is not None:
        index(value["from"], "answer it was made from", item)


def changed(value: Value, item: Item) -> bool:
    """Whether an annotator wrote anything: an answer may also be left as it is, for good."""
    origin = value.get("from")
    return origin is None or bool(value["text"].strip() != item.responses[origin].strip())


def _edit_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    """What was written is good, and better than what it was made from; an answer that was left as it is is good."""
    origin = value.get("from")
    if origin is not None and not changed(value, item):
        return (Binary(origin, True, annotator),)
    written = len(item.responses)
    better = () if origin is None else (pair(written, origin, None, annotator, ()),)
    return (*better, Binary(written, True, annotator))


def _no_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    return None


def _edit_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    """How much of the words is not in common."""
    a, b = one["text"].split()[:2000], other["text"].split()[:2000]
    return 1 - SequenceMatcher(None, a, b, autojunk=False).ratio()


def _edit_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    return bool(value["text"].strip() == known["text"].strip())


def _edit_summary(value: Value, item: Item, shown: Shown) -> str:
    origin, length = value.get("from"), len(value["text"])
    if origin is None:
        return f"Written: {length:,} characters"
    name = capital(called(origin, shown))
    return f"{name} rewritten: {length:,} characters" if changed(value, item) else f"{name} left as it is"


EDIT = Kind(
    "edit", "an answer rewritten, or written", "Make the answer as good as you can.",
    _check_edit, _edit_feedback, _no_value, _edit_differs, _edit_right, _edit_summary,
)  # fmt: skip


# ---- spans: {"spans": [{"answer": 0, "start": 3, "end": 9, "label": "wrong", "comment": "..."}]}, code points

SPAN = ("answer", "start", "end", "label", "comment")
MOST_SPANS = 500
NOTED = re.compile(
    r'(?P<label>.+?), (?P<start>\d+) to (?P<end>\d+): (?P<quote>"(?:[^"\\]|\\.)*")(?:: (?P<comment>.*))?', re.DOTALL
)


def _check_spans(value: Any, item: Item, task: TaskDefinition) -> None:
    spans = listed(fields_of(value, ("spans",), task).get("spans"), "spans")
    if len(spans) > MOST_SPANS:
        raise LabelError(f"There are {len(spans):,} spans; at most {MOST_SPANS} are kept.")
    taken: dict[int, list[tuple[int, int]]] = {}
    for span in spans:
        if not isinstance(span, Mapping):
            raise LabelError(f"A span is an object with {', '.join(SPAN)}. Got {said(span)}.")
        if unknown := set(span) - set(SPAN):
            raise LabelError(f"A span has no field '{sorted(map(str, unknown))[0]}'. Its fields: {', '.join(SPAN)}.")
        answer = index(span.get("answer"), "span's answer", item)
        end = len(item.responses[answer])
        first = whole(span.get("start"), "span's start", 0, end - 1)
        last = whole(span.get("end"), "span's end", first + 1, end)
        choice(span.get("label"), "span's label", task.labels)
        if span.get("comment") is not None:
            text(span["comment"], "span's comment", COMMENT, blank=True)
        for other in taken.setdefault(answer, []):
            if first < other[1] and other[0] < last:
                raise LabelError(
                    f"Two spans overlap in {called(answer, ())}: {other[0]} to {other[1]}, and {first} to {last}. "
                    "Change one of them."
                )
        taken[answer].append((first, last))


def _spans_feedback(value: Value, item: Item, annotator: str | None, shown: Shown) -> tuple[Feedback, ...]:
    """A critique for each: label, characters, the passage in JSON's quotes, and the comment."""
    return tuple(Critique(span["answer"], _noted(span, item), annotator) for span in value["spans"])


def _noted(span: Mapping[str, Any], item: Item) -> str:
    passage = item.responses[span["answer"]][span["start"] : span["end"]]
    quote = json.dumps(passage, ensure_ascii=False)
    comment = (span.get("comment") or "").strip()
    return f"{span['label']}, {span['start']} to {span['end']}: {quote}" + (f": {comment}" if comment else "")


def _spans_value(feedback: Sequence[Feedback], item: Item, task: TaskDefinition) -> Value | None:
    """Of critiques in the words of `_noted`, whose passages stand where they say; others are none of spans."""
    spans = []
    for each in feedback:
        if not isinstance(each, Critique):
            continue
        found = NOTED.fullmatch(each.text)
        if found is None or found["label"] not in task.labels:
            return None
        start, end = int(found["start"]), int(found["end"])
        if item.responses[each.response][start:end] != json.loads(found["quote"]):
            return None
        span: dict[str, Any] = {"answer": each.response, "start": start, "end": end, "label": found["label"]}
        spans.append(span | ({"comment": found["comment"]} if found["comment"] else {}))
    return {"spans": spans} if spans else None


def _marked(value: Value) -> set[tuple[int, int, str]]:
    return {(s["answer"], place, s["label"]) for s in value["spans"] for place in range(s["start"], s["end"])}


def _spans_differs(one: Value, other: Value, task: TaskDefinition) -> float:
    """The share of marked characters that only one has marked so (Jaccard's distance)."""
    a, b = _marked(one), _marked(other)
    return 1 - len(a & b) / len(a | b) if a | b else 0.0


def _spans_right(value: Value, known: Value, task: TaskDefinition) -> bool:
    """At least half of the characters are marked as the known ones (F1)."""
    a, b = _marked(value), _marked(known)
    return 2 * len(a & b) >= 0.5 * (len(a) + len(b))


def _spans_summary(value: Value, item: Item, shown: Shown) -> str:
    counts = Counter(span["label"] for span in value["spans"])
    return ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "Nothing marked"


SPANS = Kind(
    "spans", "passages marked, with a comment", "Mark the passages.",
    _check_spans, _spans_feedback, _spans_value, _spans_differs, _spans_right, _spans_summary,
)  # fmt: skip
