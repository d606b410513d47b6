"""From the fields of a page's form to a label, and back: fields name answers by where they stand on the page, labels by
their index in the item.

    pair        choice: left-3 to left-1, tie, right-1 to right-3, both_bad, cannot_judge (left-0, right-0: no strength)
    ranking     rank-0, rank-1, …: the place of each answer, 1 for the best; like places are ties
    best        best: where it stands, or none
    attributes  score-0-helpfulness, …
    yesno       label-0, …: yes, no, unsure
    edit        text, from: where the answer stands that it was made from, or none
    spans       spans: a JSON list; without a script quote-0, in-0, mark-0, note-0, …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assent.people.kinds import LabelError
from assent.people.kinds.base import LETTERS
from assent.people.task import Item, TaskDefinition

Fields = Mapping[str, str]
QUOTES = 3
"""Passages that can be marked at a time where no script runs."""


def value_of(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    """The label that a form says. Raises LabelError for one that is not filled in; `kinds` checks the rest."""
    value = _VALUES[task.kind](task, item, shown, fields)
    comment = _text(fields.get("comment", ""))
    return value | ({"comment": comment} if comment.strip() else {})


def fields_of(task: TaskDefinition, shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    """The fields that say a label."""
    fields = _FIELDS[task.kind](shown, value)
    return {name: text for name, text in fields.items() if text} | {"comment": str(value.get("comment") or "")}


# ---- to a label


def _pair(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    side, _, strength = fields.get("choice", "").partition("-")
    if not side:
        raise LabelError("Nothing is chosen yet: say which answer is better.")
    if side not in ("left", "right"):
        return {"verdict": side, "better": None, "strength": None}
    return {
        "verdict": "better",
        "better": shown[0 if side == "left" else 1],
        "strength": _number(strength) or None,
    }


def _ranking(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    places: dict[int, list[int]] = {}
    for at, answer in enumerate(shown):
        rank = _number(fields.get(f"rank-{at}", ""))
        if rank is None:
            raise LabelError(f"Answer {LETTERS[at]} has no place yet.")
        places.setdefault(rank, []).append(answer)
    return {"levels": [sorted(places[rank]) for rank in sorted(places)]}


def _best(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    best = fields.get("best", "")
    if not best:
        raise LabelError("Nothing is chosen yet: say which answer is best.")
    return {"best": _answer(best, shown)}


def _attributes(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    scores: list[dict[str, int]] = [{} for _ in shown]
    for at, answer in enumerate(shown):
        for name in task.attributes:
            score = _number(fields.get(f"score-{at}-{name}", ""))
            if score is None:
                raise LabelError(f"Answer {LETTERS[at]}: {name} is not rated yet.")
            scores[answer][name] = score
    return {"scores": scores}


def _yesno(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    words = {"yes": True, "no": False, "unsure": None}
    labels: list[bool | None] = [None] * len(shown)
    for at, answer in enumerate(shown):
        said = fields.get(f"label-{at}", "")
        if said not in words:
            raise LabelError(f"Answer {LETTERS[at]}: neither yes nor no is chosen yet.")
        labels[answer] = words[said]
    return {"labels": labels}


def _edit(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    text, origin = _text(fields.get("text", "")), _answer(fields.get("from", "none"), shown)
    if origin is not None and text == _text(item.responses[origin]):
        text = item.responses[origin]  # left as it is, with its own line ends
    return {"text": text, "from": origin}


def _spans(task: TaskDefinition, item: Item, shown: Sequence[int], fields: Fields) -> dict[str, Any]:
    try:
        marked = json.loads(fields.get("spans") or "[]")
        spans = [
            {
                "answer": shown[int(each["answer"])],
                "start": each["start"],
                "end": each["end"],
                "label": each["label"],
                **({"comment": _text(each["comment"])} if each.get("comment") else {}),
            }
            for each in marked
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise LabelError("The marked passages came damaged. Load the page again, and mark them once more.") from None
    for number in range(QUOTES):
        if quote := _text(fields.get(f"quote-{number}", "")):
            spans.append(_quoted(item, shown, fields, number, quote))
    return {"spans": sorted(spans, key=lambda span: (span["answer"], span["start"]))}


def _quoted(item: Item, shown: Sequence[int], fields: Fields, number: int, quote: str) -> dict[str, Any]:
    """A passage that is given by its words."""
    answer = _answer(fields.get(f"in-{number}", "0"), shown)
    text = item.responses[answer if answer is not None else shown[0]]
    found = text.count(quote)
    if found != 1:
        why = "is not there as it is written" if not found else f"is there {found} times: give more of it"
        raise LabelError(f"The passage “{quote[:60]}” {why}.")
    start, note = text.index(quote), _text(fields.get(f"note-{number}", ""))
    span = {"answer": answer, "start": start, "end": start + len(quote), "label": fields.get(f"mark-{number}", "")}
    return span | ({"comment": note} if note else {})


def _answer(place: str, shown: Sequence[int]) -> int | None:
    """The index of the answer at a place of the page; None for "none"."""
    if place == "none":
        return None
    at = _number(place)
    if at is None or not 0 <= at < len(shown):
        raise LabelError(f"There is no answer at place '{place[:20]}' of this page.")
    return shown[at]


def _number(text: str) -> int | None:
    return int(text) if len(text) < 10 and text.removeprefix("-").isdecimal() else None


def _text(text: Any) -> str:
    """A text with the line ends that it was typed with: forms send \\r\\n."""
    return str(text).replace("\r\n", "\n")


_VALUES: dict[str, Callable[[TaskDefinition, Item, Sequence[int], Fields], dict[str, Any]]] = {
    "pair": _pair,
    "ranking": _ranking,
    "best": _best,
    "attributes": _attributes,
    "yesno": _yesno,
    "edit": _edit,
    "spans": _spans,
}


# ---- to the fields


def _of_pair(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    if value["verdict"] != "better":
        return {"choice": value["verdict"]}
    side = "left" if value["better"] == shown[0] else "right"
    return {"choice": f"{side}-{value.get('strength') or 0}"}


def _of_ranking(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    ranks = {answer: rank for rank, level in enumerate(value["levels"], 1) for answer in level}
    return {f"rank-{at}": str(ranks[answer]) for at, answer in enumerate(shown)}


def _of_best(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    return {"best": _place(value["best"], shown)}


def _of_attributes(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    scores = value["scores"]
    return {f"score-{at}-{name}": str(score) for at, a in enumerate(shown) for name, score in scores[a].items()}


def _of_yesno(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    words = {True: "yes", False: "no", None: "unsure"}
    return {f"label-{at}": words[value["labels"][answer]] for at, answer in enumerate(shown)}


def _of_edit(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    return {"text": value["text"], "from": _place(value.get("from"), shown)}


def _of_spans(shown: Sequence[int], value: Mapping[str, Any]) -> dict[str, str]:
    spans = [dict(span) | {"answer": list(shown).index(span["answer"])} for span in value["spans"]]
    return {"spans": json.dumps(spans)}


def _place(answer: int | None, shown: Sequence[int]) -> str:
    return "none" if answer is None else str(list(shown).index(answer))


_FIELDS: dict[str, Callable[[Sequence[int], Mapping[str, Any]], dict[str, str]]] = {
    "pair": _of_pair,
    "ranking": _of_ranking,
    "best": _of_best,
    "attributes": _of_attributes,
    "yesno": _of_yesno,
    "edit": _of_edit,
    "spans": _of_spans,
}
