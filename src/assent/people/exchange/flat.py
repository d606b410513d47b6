"""Rows in which annotation tools write an item and what was said of it side by side, as the nested objects that their
other exports have: Argilla's tables (`to_datasets`, the hub, and those of 1.x), Label Studio's JSON_MIN and CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from assent.people.exchange.shape import Row

FIELD = re.compile(r"prompt|response_\d+")
DATA = re.compile(r"prompt|responses|sources|meta|response_\d+")
ANNOTATION = {"annotator", "annotation_id", "lead_time"}
KEPT = ("id", "created_at", "updated_at", *ANNOTATION)
"""Columns of Label Studio's own beside data and answers."""
NAMED = {"selected": "pairwise", "ranker": "ranker", "rating": "rating", "number": "number", "labels": "labels",
         "choices": "choices", "text": "textarea"}  # fmt: skip
"""What kind of result it is that has such a key."""
WRITTEN = re.compile(r"text|comment|.*_note")
RESPONSES, SUGGESTION, OLD = ".responses", ".suggestion", "-suggestion"


def tool_of(row: Mapping[str, Any]) -> str | None:
    """The tool that writes such a row; None where it is none of theirs."""
    if "fields" in row and ("responses" in row or "suggestions" in row):
        return "argilla"
    if isinstance(row.get("data"), Mapping) or ANNOTATION <= row.keys():
        return "labelstudio"
    return "argilla" if any(_is_answer(name, value, row) for name, value in row.items()) else None


def _is_answer(name: str, value: Any, row: Mapping[str, Any]) -> bool:
    if name.endswith(RESPONSES):
        return f"{name}.users" in row
    if name.endswith(SUGGESTION):
        return f"{name}.agent" in row
    return f"{name}-suggestion-metadata" in row or _is_old(value)


def _is_old(value: Any) -> bool:
    """Whether it is what Argilla 1.x writes of a question: a list of {user_id, value, status}."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(each, Mapping) and {"user_id", "value"} <= each.keys() for each in value
    )  # fmt: skip


def record(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of Argilla's from a row of its tables; what is one already stays as it is."""
    if "fields" in row:
        return row
    responses: Row = {}
    suggestions: Row = {}
    fields: Row = {}
    metadata: Row = {}
    for name, value in row.items():
        stem = name.removesuffix(RESPONSES).removesuffix(SUGGESTION).removesuffix(OLD)
        if name.endswith(RESPONSES):
            users, states = (row.get(f"{name}.{of}") or [] for of in ("users", "status"))
            responses[stem] = [
                {"value": said, "user_id": user, "status": status}
                for said, user, status in zip_longest(value or [], users, states)
            ]
        elif name.endswith(SUGGESTION) or (name.endswith(OLD) and f"{name}-metadata" in row):
            about = row.get(f"{name}-metadata")
            agent = about.get("agent") if isinstance(about, Mapping) else row.get(f"{name}.agent")
            suggestions[stem] = {"value": value, "agent": agent}
        elif _is_old(value) or f"{name}-suggestion-metadata" in row:
            responses[name] = value or []
        elif FIELD.fullmatch(name):
            fields[name] = value
        elif not re.search(rf"{re.escape(RESPONSES)}\.|{re.escape(SUGGESTION)}\.|-suggestion-metadata$", name):
            metadata[name] = value
    more = metadata.pop("metadata", None)
    for own in ("id", "status", "_server_id", "external_id", "vectors"):
        metadata.pop(own, None)
    metadata |= _parsed(more) if isinstance(_parsed(more), Mapping) else {}
    kept = {name: value for name, value in metadata.items() if value is not None}
    return {"fields": fields, "metadata": kept, "responses": responses, "suggestions": suggestions}


def task_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task of Label Studio's, with one annotation, from a row of its short exports; what is one already stays as it
    is. A cell of a CSV that was a list or an object is read as that."""
    if isinstance(row.get("data"), Mapping) or not ANNOTATION <= row.keys():
        return row
    data: Row = {}
    results: list[Row] = []
    for name, value in row.items():
        if name in KEPT or value is None or value == "":
            continue
        if DATA.fullmatch(name):
            data[name] = _parsed(value) if not FIELD.fullmatch(name) or name == "prompt" else value
        else:
            results += _results(name, value)
    seconds = row.get("lead_time")
    annotation = {
        "completed_by": row["annotator"],
        "created_at": row.get("created_at") or None,
        "lead_time": None if seconds in (None, "") else float(seconds),
        "result": results,
    }
    return {"data": data, "annotations": [annotation]}


def _results(name: str, value: Any) -> list[Row]:
    listed = _parsed(value) if isinstance(value, str) and value.startswith(("[", "{")) else value
    if isinstance(listed, Mapping):
        listed = [listed]
    if isinstance(listed, list) and listed and all(isinstance(each, Mapping) for each in listed):
        return [
            {"from_name": name, "type": next((NAMED[key] for key in NAMED if key in each), "?"), "value": each}
            for each in listed
        ]
    texts = listed if isinstance(listed, list) else [value]
    if WRITTEN.fullmatch(name):
        return [{"from_name": name, "type": "textarea", "value": {"text": [str(each) for each in texts]}}]
    return [{"from_name": name, "type": "choices", "value": {"choices": [str(each) for each in texts]}}]


def _parsed(value: Any) -> Any:
    """A cell as JSON, where it is that."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
