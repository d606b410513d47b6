"""Prompts and the answers to them as the columns that measures read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from assent.data.chat import Chat
from assent.data.records import Example
from assent.errors import ConfigError, DataError
from assent.measures.answers import Answers, Prompts
from assent.rewards.judge.source import conversation
from assent.rollout.rollout import Rollout

REFERENCES = ("references", "reference", "answer", "solution", "correct_answers")
"""Columns that are right answers; the first that a row has counts."""
KINDS = ("kind", "category", "type")
"""Columns that are kinds of prompts; the first that any row has counts."""


def prompt_columns(rows: Sequence[Sequence[Example]], file: str, kind: str | None = None) -> Prompts:
    """What is known of P prompts, each with the rows of `file` that ask it. Raises ConfigError where no row has the
    column `kind`, DataError for references that are no texts or numbers."""
    first = [same[0] for same in rows]
    return Prompts(
        texts=tuple(example.prompt[-1].content for example in first),
        whole=tuple(conversation(example.prompt) for example in first),
        references=tuple(references_of(same) for same in rows),
        kinds=_kinds(first, kind, file),
    )


def answers_of(
    rollout: Rollout,
    chat: Chat,
    policy: str,
    prompts: Prompts,
    places: Sequence[int] | None = None,
    unanswered: Mapping[int, str] | None = None,
) -> Answers:
    """The answers of a rollout. `places` say which of `prompts` each of the rollout's is; default: the same."""
    texts = [
        chat.decode(ids, rollout.prompts[prompt], finished=bool(ended))
        for prompt, ids, ended in zip(rollout.prompt, rollout.answers, rollout.finished, strict=True)
    ]

    def sums(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else rollout.sums(column.astype(np.float64))

    return Answers(
        policy,
        prompts,
        rollout.prompt if places is None else np.asarray(places, np.int64)[rollout.prompt],
        tuple(texts),
        tokens=rollout.lengths,
        finished=rollout.finished,
        log_prob=sums(rollout.old),
        reference_log_prob=sums(rollout.reference),
        entropy=sums(rollout.entropy),
        unanswered=dict(unanswered or {}),
    )


# ---- columns of prompts


def references_of(rows: Sequence[Example]) -> tuple[str, ...]:
    """The right answers to one prompt: of the first column in `REFERENCES` that its rows have, else the demonstrations,
    which are answers that nobody has judged."""
    found: list[str] = []
    for example in rows:
        name = next((name for name in REFERENCES if example.meta.get(name) is not None), None)
        if name is not None:
            found += texts_of(example.meta[name], f"{example.origin}: column '{name}'")
        elif not example.feedback:
            found += [response.text for response in example.responses]
    return tuple(dict.fromkeys(text for text in found if text))


def texts_of(value: object, where: str) -> list[str]:
    """The texts of a cell: one or a list of them, numbers as they are written, none where it is None. Raises DataError,
    which begins with `where`, for anything else."""
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise DataError(f"{where}: expected a text, a number or a list of them; got {type(each).__name__}.")
    return [each if isinstance(each, str) else repr(each) for each in values]


def _kinds(examples: Sequence[Example], kind: str | None, file: str) -> tuple[str, ...]:
    names = KINDS if kind is None else (kind,)
    name = next((name for name in names if any(example.meta.get(name) for example in examples)), None)
    if kind is not None and name is None:
        there = ", ".join(dict.fromkeys(key for example in examples for key in example.meta)) or "none"
        raise ConfigError(f"--kind {kind}: no row of {file} has that column. Other columns: {there}.")
    return tuple("" if name is None else str(example.meta.get(name) or "") for example in examples)
