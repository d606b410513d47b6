"""Answers that were made elsewhere: {prompt, response}, alpaca_eval's model outputs {instruction, output, generator},
conversations that end with the answer, and what `assent generate` writes; as JSON lines, JSON, CSV, TSV or parquet."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from assent.data.formats.message import messages
from assent.data.readers import read_rows
from assent.data.records import Problem, RowError
from assent.errors import DataError
from assent.evaluate.policies import PolicySource
from assent.evaluate.prompts import PROMPTS, PromptSet, by_key, key_of, keys_of
from assent.measures.answers import Answers

log = logging.getLogger(__name__)

TEXTS = ("response", "output", "completion", "answer")
"""Columns that are the answer; the first that a row has counts."""
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that are prompt and answer in one, for rows without any of the others."""
UNANSWERED = "no answer in its file"


class Row(NamedTuple):
    """A row: what it may call its prompt, the answer (None: it has none), and what it says of that."""

    keys: list[str]
    text: str | None
    tokens: int | None
    finished: bool | None


def read_answers(policy: PolicySource, prompts: PromptSet) -> Answers:
    """The answers of a file to these prompts, in their order. A prompt without any is unanswered. Raises DataError for
    a row without an answer column, and for a file that answers other prompts; where the prompts are the first of a
    file, answers to its others are not counted."""
    places, found, strange = by_key(prompts), list[tuple[int, Row]](), 0
    first = ""
    for origin, raw in read_rows(policy.path):
        if isinstance(raw, Problem):
            raise DataError(f"POLICY {policy.path}: {raw}")
        try:
            row = _read(raw)
        except RowError as error:
            raise DataError(f"POLICY {error.at(origin)}") from None
        place = next((places[key] for key in row.keys if key in places), None)
        if place is None:
            strange += 1
            first = first or f"{origin} ({_said(raw)})"
        elif row.text is not None:  # else the prompt stays unanswered
            found.append((place, row))
    if strange and not (prompts.limited and found):
        raise DataError(
            f"POLICY {policy.path}: {strange} of its rows answer no prompt of {prompts.file}, the first is {first}. "
            "Give answers to the same prompts."
        )
    if strange:
        log.info(f"POLICY {policy.path}: {strange} of its rows answer prompts beyond --limit, and are not counted.")
    return _columns(policy.name, sorted(found, key=lambda each: each[0]), prompts)


def _read(raw: Mapping[str, Any]) -> Row:
    """Raises RowError for a row without an answer column, and for a value of another kind."""
    name = next((name for name in TEXTS if name in raw), None)
    tokens, finished = _count(raw.get("tokens")), _truth(raw.get("finished"))
    if name is None:
        column = next((name for name in CONVERSATIONS if raw.get(name) is not None), None)
        if column is None or any(raw.get(name) is not None for name in PROMPTS):
            known = ", ".join((*TEXTS, *CONVERSATIONS))
            raise RowError(None, f"it has no answer. Expected one of the columns {known}")
        turns = messages(raw[column], column)
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise RowError(column, "expected a conversation that ends with the answer")
        return Row([key_of(turns[:-1])], turns[-1].content, tokens, finished)
    value = raw[name]
    if isinstance(value, list) and value:
        value = messages(value, name)[-1].content
    if value is not None and not isinstance(value, str):
        raise RowError(name, f"expected a text; got {type(value).__name__}")
    return Row(keys_of(raw), value, tokens, finished)


def _count(value: object) -> int | None:
    """A number of tokens, also as the text of a CSV file."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _truth(value: object) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower())


def _columns(name: str, rows: list[tuple[int, Row]], prompts: PromptSet) -> Answers:
    """A column that some row lacks is known of none."""
    prompt = np.array([place for place, _ in rows], np.int64)
    counted = bool(rows) and all(row.tokens is not None for _, row in rows)
    ended = bool(rows) and all(row.finished is not None for _, row in rows)
    return Answers(
        name,
        prompts.columns,
        prompt,
        tuple(str(row.text) for _, row in rows),
        tokens=np.array([row.tokens for _, row in rows], np.int64) if counted else None,
        finished=np.array([row.finished for _, row in rows], bool) if ended else None,
        unanswered=dict.fromkeys(sorted(set(range(len(prompts))) - set(prompt.tolist())), UNANSWERED),
    )


def _said(raw: Mapping[str, Any]) -> str:
    prompt = next((raw[name] for name in (*PROMPTS, *CONVERSATIONS) if raw.get(name) is not None), None)
    text = json.dumps(prompt, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
