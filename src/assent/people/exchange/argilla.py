"""Argilla 2.x: records as JSON, as `dataset.records.to_json` writes and `rg.Dataset.records.from_json` reads them.

Fields: `prompt` (a chat field) and `response_1`, `response_2`, ... (text fields). Questions by kind:

    pair        preference (label: response_1, response_2, tie, both_bad, cannot_judge), strength (rating 1 to 3)
    ranking     ranking (ranking of response_1, ...; equal ranks are tied)
    best        best (label: response_1, ..., none)
    attributes  response_1_helpfulness, ... (ratings)
    yesno       response_1_good, ... (label: yes, no)
    edit        text (text), from (label: response_1, ..., nothing)
    spans       response_1_spans, ... (spans of the field)

and `comment` (text) in all. Argilla names users by UUID: `metadata.annotators` has "UUID name" for each."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from assent.data.formats.message import messages
from assent.data.formats.values import in_words
from assent.data.records import RowError
from assent.people.exchange.marks import Questions, labels_of, questions_of, value_of
from assent.people.exchange.shape import (
    COLUMNS,
    Labelled,
    Lost,
    Row,
    Shape,
    note_item,
    note_labels,
)
from assent.people.items import Label
from assent.people.kinds import KINDS
from assent.people.task import Item, TaskDefinition

OWN = "annotators"
SOURCE = re.compile(r"source_(\d+)")
ATTRIBUTE = re.compile(r"[a-z0-9_-]+")
UNNAMED = "imported"
"""Who said what nobody is named for."""
RATINGS = (0, 10)
"""What Argilla's ratings may be."""
RECORD = ("id", "fields", "metadata", "suggestions", "responses", "vectors", "status", "_server_id")
TOP = (*RECORD, "inserted_at", "updated_at", "external_id", "dataset_id")
"""Keys of a record, of the SDK's files and of the server's."""


def user_of(name: str) -> str:
    """The UUID of an annotator: their own, if that is what they are called."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"assent:{name}"))


def _check(task: TaskDefinition) -> str | None:
    for name, each in task.attributes.items():
        if each.lowest < RATINGS[0] or each.highest > RATINGS[1]:
            return f"Argilla's ratings are from 0 to 10, and {name} is from {each.lowest} to {each.highest}"
        if not ATTRIBUTE.fullmatch(name):
            return f"Argilla's questions are named in small letters, digits, _ and -, and the attribute {name!r} is not"
    return None


# ---- out


def _rows(labelled: Labelled, task: TaskDefinition, lost: Lost) -> Iterator[Row]:
    item = labelled.item
    note_item(item, lost, sources=True)
    note_labels(labelled.labels, lost, comments=True)
    lost.note("calls of tools, thoughts and attributes in the prompt", any(_more(turn) for turn in item.prompt))
    responses: dict[str, list[Row]] = defaultdict(list)
    names: dict[str, str] = {}
    for label in labelled.labels:
        user = user_of(label.annotator)
        if user in names:
            lost.note("a second label by the same annotator")
            continue
        names[user] = label.annotator
        for question, value in _answers(label, item, task, lost).items():
            responses[question].append({"value": value, "user_id": user, "status": "submitted"})
    yield {
        "id": item.digest[:32],
        "fields": {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in item.prompt],
            **{f"response_{place}": text for place, text in enumerate(item.responses, 1)},
        },
        "metadata": _metadata(item, lost)
        | ({OWN: [f"{user} {name}" for user, name in names.items()]} if names else {}),
        "suggestions": {},
        "responses": dict(responses),
        "vectors": {},
        "status": "completed" if labelled.labels else "pending",
        "_server_id": None,
    }


def _more(turn: Any) -> bool:
    return bool(turn.tool_calls or turn.reasoning or turn.attributes or turn.name or turn.tool_call_id)


def _answers(label: Label, item: Item, task: TaskDefinition, lost: Lost) -> Row:
    """Questions and their values; spans and ranks as Argilla has them."""
    answers: Row = {}
    for question, value in questions_of(label.value, item, task).items():
        if question == "ranking":
            value = [
                {"value": name, "rank": rank} for rank, level in enumerate(value, 1) for name in level
            ]  # equal ranks are tied
        elif question.endswith("_spans"):
            lost.note("comments on spans", any("comment" in span for span in value))
            value = [{name: span[name] for name in ("start", "end", "label")} for span in value]
            if not value:
                continue
        answers[question] = value
    if task.kind == "spans" and not answers:
        lost.note("that nothing was marked")
    if task.kind == "yesno":
        lost.note("that it cannot be judged", None in label.value["labels"])
    return answers


def _metadata(item: Item, lost: Lost) -> Row:
    """The row's columns that Argilla's metadata can be: text, numbers, lists of text; and who wrote each answer."""
    kept = {
        name: value for name, value in item.meta.items()
        if name != OWN and not SOURCE.fullmatch(name) and _is_metadata(value)
    }  # fmt: skip
    lost.note(COLUMNS, len(kept) < len(item.meta))
    return kept | {f"source_{place}": name for place, name in enumerate(item.sources, 1) if name is not None}


def _is_metadata(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) for each in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


# ---- in


def read_record(row: Mapping[str, Any], task: TaskDefinition, found: Questions) -> Labelled:
    """A record. Raises RowError."""
    for key in row:
        if key not in TOP:
            found.unknown[str(key)] += 1
    fields = row.get("fields")
    if not isinstance(fields, Mapping):
        raise RowError("fields", f"expected an object, got {in_words(fields)}")
    metadata = dict(row.get("metadata") or {})
    names = _names(metadata.pop(OWN, None) or [])
    item = _item(fields, metadata, found)
    by: dict[str, dict[str, Any]] = {}
    for user, question, value, status in _given(row):
        if status in ("discarded", "draft"):
            found.skipped[f"{status} by {names.get(user, user)}"] += 1
            continue
        by.setdefault(names.get(user, user), {})[question] = value

    def make(who: str) -> Label:
        return Label(value_of(_plain(by[who]), item, task, found), who)

    return Labelled(item, labels_of(((who, partial(make, who)) for who in by), found))


def _names(entries: object) -> dict[str, str]:
    if not isinstance(entries, list) or not all(isinstance(entry, str) and " " in entry for entry in entries):
        raise RowError(f"metadata.{OWN}", "expected a list of texts, each a UUID and a name")
    return dict(entry.split(" ", 1) for entry in entries)


def _item(fields: Mapping[str, Any], metadata: dict[str, Any], found: Questions) -> Item:
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    count = 0
    while isinstance(fields.get(f"response_{count + 1}"), str):
        count += 1
    own = {"prompt", *(f"response_{place}" for place in range(1, count + 1))}
    for name in fields:
        if name not in own:
            found.unknown[f"fields.{name}"] += 1
    sources = [metadata.pop(f"source_{place}", None) for place in range(1, count + 1)]
    return found.item(
        messages(prompt, "fields.prompt"), tuple(fields[f"response_{place}"] for place in range(1, count + 1)),
        tuple(sources), metadata,
    )  # fmt: skip


def _given(row: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, str]]:
    """(user, question, value, status) of all responses and suggestions: of the SDK's files, where responses are listed
    by question, and of the server's, where they are listed by user."""
    responses = row.get("responses") or {}
    if isinstance(responses, Mapping):
        for question, given in responses.items():
            for each in given:
                yield (
                    str(each.get("user_id") or UNNAMED),
                    question,
                    each.get("value"),
                    each.get("status") or "submitted",
                )
    elif isinstance(responses, list):
        for each in responses:
            for question, value in (each.get("values") or {}).items():
                yield (
                    str(each.get("user_id") or UNNAMED),
                    question,
                    value.get("value"),
                    each.get("status") or "submitted",
                )
    suggestions = row.get("suggestions") or {}
    if isinstance(suggestions, Mapping):
        for question, each in suggestions.items():
            if each is not None and each.get("value") is not None:
                yield str(each.get("agent") or "suggestion"), question, each["value"], "submitted"


def _plain(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Ranks as levels; all else as it is."""
    plain = dict(answers)
    if "ranking" in plain:
        by_rank: dict[Any, list[str]] = defaultdict(list)
        for place, each in enumerate(plain["ranking"] if isinstance(plain["ranking"], list) else [{}], 1):
            if isinstance(each, str):
                each = {"value": each}
            if not isinstance(each, Mapping) or not isinstance(each.get("value"), str):
                raise RowError("responses.ranking", "expected a list of {value, rank}")
            by_rank[each.get("rank") if each.get("rank") is not None else place].append(each["value"])
        plain["ranking"] = [by_rank[rank] for rank in sorted(by_rank)]
    return plain


ARGILLA = Shape("argilla", "Argilla 2.x: records as JSON", tuple(KINDS), _rows, array=True, check=_check)  # type: ignore[arg-type]
