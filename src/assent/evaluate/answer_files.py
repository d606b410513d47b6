"""Answers that were made elsewhere, read and written: {prompt, response}, alpaca_eval's model outputs {instruction,
output, generator}, and what `assent generate` writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assent.data.readers import read_rows
from assent.data.records import Problem
from assent.errors import DataError
from assent.evaluate.policies import PolicySource
from assent.evaluate.prompts import PromptSet, by_key, keys_of
from assent.measures.answers import Answers
from assent.outputs import write_text

TEXTS = ("response", "output", "completion", "answer")
"""Columns that are the answer; the first that a row has counts."""
UNANSWERED = "no answer in its file"


def read_answers(policy: PolicySource, prompts: PromptSet) -> Answers:
    """The answers of a file to these prompts, in their order. A prompt without any is unanswered. Raises DataError for
    a row without an answer column, and for a file that answers other prompts."""
    places, found, strange = by_key(prompts), _Found(), 0
    first = ""
    for origin, row in read_rows(policy.path):
        if isinstance(row, Problem):
            raise DataError(f"POLICY {policy.path}: {row}")
        place = next((places[key] for key in keys_of(row) if key in places), None)
        if place is None:
            strange += 1
            first = first or f"{origin} ({_said(row)})"
        else:
            found.take(place, row, str(origin))
    if strange:
        raise DataError(
            f"POLICY {policy.path}: {strange} of its rows answer no prompt of {prompts.file}, the first is {first}. "
            "Give answers to the same prompts."
        )
    return found.answers(policy.name, prompts)


class _Found:
    """Answers of rows, as they are read."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, Any, Any]] = []

    def take(self, place: int, row: Mapping[str, Any], origin: str) -> None:
        name = next((name for name in TEXTS if name in row), None)
        if name is None:
            raise DataError(f"{origin}: it has no answer. Expected one of the columns {', '.join(TEXTS)}.")
        value = row[name]
        if isinstance(value, list) and value and isinstance(value[-1], Mapping):
            value = value[-1].get("content")
        if value is None:
            return  # no answer: the prompt stays unanswered
        if not isinstance(value, str):
            raise DataError(f"{origin}: column '{name}': expected a text; got {type(value).__name__}.")
        self.rows.append((place, value, row.get("tokens"), row.get("finished")))

    def answers(self, name: str, prompts: PromptSet) -> Answers:
        rows = sorted(self.rows, key=lambda row: row[0])
        prompt = np.array([place for place, *_ in rows], np.int64)
        counted = bool(rows) and all(type(tokens) is int and tokens >= 0 for *_, tokens, _ in rows)
        ended = bool(rows) and all(isinstance(finished, bool) for *_, finished in rows)
        return Answers(
            name,
            prompts.columns,
            prompt,
            tuple(text for _, text, *_ in rows),
            tokens=np.array([tokens for *_, tokens, _ in rows], np.int64) if counted else None,
            finished=np.array([finished for *_, finished in rows], bool) if ended else None,
            unanswered=dict.fromkeys(sorted(set(range(len(prompts))) - set(prompt.tolist())), UNANSWERED),
        )


def _said(row: Mapping[str, Any]) -> str:
    text = json.dumps(row.get("prompt", row.get("instruction")), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_model_outputs(answers: Answers, path: Path) -> None:
    """alpaca_eval's model outputs: each prompt's first answer, with its last user turn as instruction."""
    seen: set[int] = set()
    rows = []
    for place, text in zip(answers.prompt.tolist(), answers.texts, strict=True):
        if place not in seen:
            seen.add(place)
            rows.append({"instruction": answers.prompts.texts[place], "output": text, "generator": answers.policy})
    write_text(path, json.dumps(rows, indent=1) + "\n")


def repeated(answers: Answers) -> int:
    """The most answers that one prompt has."""
    return max(Counter(answers.prompt.tolist()).values(), default=0)
