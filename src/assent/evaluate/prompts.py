"""The prompts of an evaluation: each once, with what the file knows of it (right answers, kinds, choices), and the
answers that the file itself gives."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from assent.algorithms.answers import prompt_columns, texts_of
from assent.data.columns import column
from assent.data.dataset import count_reasons, prompt_id
from assent.data.formats import load_examples, message_row
from assent.data.formats.message import messages
from assent.data.formats.values import Row
from assent.data.records import Binary, Example, Message, Pair, Ranking, Rating, Response, RowError
from assent.data.views import pair_view
from assent.errors import ConfigError, DataError
from assent.measures.answers import Prompts

log = logging.getLogger(__name__)

MC1, MC2, CHOICES = "mc1_targets", "mc2_targets", ("choices", "labels")


class GivenRow(NamedTuple):
    """Answers that the file gives to prompt `prompt`. `right` says of each whether it is (None: nobody said); `one` and
    `some` that they are the choices of a question with a single right answer, and with right and wrong ones."""

    example: Example
    prompt: int
    right: tuple[float | None, ...] = ()
    one: bool = False
    some: bool = False

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The better and the worse answer of each comparison."""
        return [(item.chosen, item.rejected) for item in self.example.feedback if isinstance(item, Pair)]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """P prompts of `file`. `examples` are the prompts with their columns and without answers, `columns` what is known
    of each, `given` the file's own answers, `left_out` rows that cannot be used, by reason. `contexts` are P tuples of
    texts that claims are checked against, of the column `context_of`; empty where nobody asked for them."""

    file: str
    examples: tuple[Example, ...]
    columns: Prompts
    given: tuple[GivenRow, ...]
    left_out: Mapping[str, int]
    limited: bool = False
    """Whether the file has more, which other files may be about."""
    contexts: tuple[tuple[str, ...], ...] = ()
    context_of: str = ""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def messages(self) -> list[tuple[Message, ...]]:
        return [example.prompt for example in self.examples]

    @property
    def digest(self) -> str:
        """sha256 of all that a policy is asked."""
        asked = [[[message_row(m) for m in e.prompt], e.tools, dict(e.template_kwargs)] for e in self.examples]
        return _sha256(asked)

    @property
    def given_digest(self) -> str:
        """sha256 of the file's own answers."""
        return _sha256([[row.prompt, [r.text for r in row.example.responses]] for row in self.given])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def read_prompts(
    file: str,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    kind: str | None = None,
    context: str | None = None,
) -> PromptSet:
    """The prompts of a file in any known shape. `context` is the column that claims are checked against, "" for the
    usual one, None where none is needed. Raises DataError where there are no prompts, ConfigError where no row has the
    column `kind` or `context`."""
    loaded = load_examples(file, format=format, columns=columns, split=split, limit=limit)
    asked = [example for example in loaded.examples if example.prompt]
    for problem in loaded.problems[:_LISTED]:
        log.warning(f"left out: {problem}")
    if not asked:
        raise DataError(f"{file}: no row has a prompt to answer.")
    places: dict[tuple[Any, ...], int] = {}
    rows: list[list[Example]] = []
    for example in asked:
        place = places.setdefault(_asks(example), len(places))
        if place == len(rows):
            rows.append([])
        rows[place].append(example)
    first = tuple(replace(same[0], responses=(), feedback=()) for same in rows)
    prompts = prompt_columns(rows, file, kind)
    given = [row for place, same in enumerate(rows) for row in _given(same, place)]
    contexts, of = ((), "") if context is None else _contexts(rows, prompts, file, context)
    return PromptSet(
        file, first, prompts, tuple(given), count_reasons(loaded.problems), limit is not None, contexts, of
    )


_LISTED = 10


def _asks(example: Example) -> tuple[Any, ...]:
    return example.prompt, example.tools, json.dumps(dict(example.template_kwargs), sort_keys=True, default=str)


CONTEXTS = ("context", "contexts", "documents", "document")
"""Columns with the texts that claims are checked against; the first that any row has counts."""


def _contexts(
    rows: Sequence[Sequence[Example]], prompts: Prompts, file: str, asked: str
) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The texts of each prompt, all of its rows together, and of which column: the right answers where there is none of
    the usual names."""
    every = [example for same in rows for example in same]
    names = (asked,) if asked else CONTEXTS
    name = next((name for name in names if any(column(e.meta, name) is not None for e in every)), None)
    if name is not None:
        found = [
            [text for e in same for text in texts_of(column(e.meta, name), f"{e.origin}: column '{name}'")]
            for same in rows
        ]
        return tuple(tuple(dict.fromkeys(text for text in texts if text.strip())) for texts in found), name
    if asked or not any(prompts.references):
        there = ", ".join(dict.fromkeys(key for example in every for key in example.meta)) or "none"
        what = f"--context {asked}: no row of {file} has that column."
        if not asked:
            usual = ", ".join(CONTEXTS)
            what = (
                f"--consistency needs a text to check claims against: {file} has no column {usual}, nor right answers."
            )
        raise ConfigError(f"{what} Other columns: {there}. Name one with --context.")
    return prompts.references, "right answers"


# ---- the file's own answers


def _given(rows: Sequence[Example], place: int) -> list[GivenRow]:
    found = []
    for example in rows:
        if example.responses:
            found.append(_judged(example, place))
        meta = example.meta
        for name, one, some in ((MC1, True, False), (MC2, False, True)):
            if isinstance(targets := meta.get(name), Mapping):
                found.append(_choices(example, place, targets, name, one, some))
        if all(name in meta for name in CHOICES):
            made = _choices(
                example, place, dict(zip(CHOICES, map(meta.get, CHOICES), strict=True)), "choices", False, True
            )
            found.append(made._replace(one=sum(right == 1 for right in made.right) == 1))
    return found


def _judged(example: Example, place: int) -> GivenRow:
    labels = {item.response: float(item.label) for item in example.feedback if isinstance(item, Binary)}
    right = tuple(labels.get(index) for index in range(len(example.responses)))
    if any(isinstance(item, Pair | Ranking | Rating) for item in example.feedback):
        try:
            (compared,), _ = pair_view([example])
            return GivenRow(compared, place, (None,) * len(compared.responses))
        except (DataError, ValueError):
            pass  # ties alone, or a single rating: answers without a comparison
    return GivenRow(replace(example, feedback=()), place, right)


def _choices(example: Example, place: int, targets: Mapping[str, Any], name: str, one: bool, some: bool) -> GivenRow:
    texts, labels = targets.get("choices"), targets.get("labels")
    where = f"{example.origin}: column '{name}'"
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels) or not texts:
        raise DataError(f"{where}: expected choices and labels, two lists of one length.")
    if not all(isinstance(text, str) for text in texts) or not all(label in (0, 1) for label in labels):
        raise DataError(f"{where}: expected texts as choices, and 0 or 1 as labels.")
    responses = tuple(Response((Message("assistant", text),)) for text in texts)
    asked = replace(example, responses=responses, feedback=())
    return GivenRow(asked, place, tuple(map(float, labels)), bool(one), bool(some))


# ---- matching rows of other files


PROMPTS = ("prompt", "instruction", "question", "query")
"""Columns that other files call a prompt; the first that a row has counts."""


def keys_of(row: Row) -> list[str]:
    """What a row of another file may call its prompt: messages (also as JSON in a cell), or a text, with an `input`
    behind it where it has one."""
    value = next((row[name] for name in PROMPTS if row.get(name) is not None), None)
    if isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("[{")):
        try:
            return [key_of(messages(value, "prompt"))]
        except RowError:
            return [value] if isinstance(value, str) else []
    if not isinstance(value, str):
        return []
    extra = row.get("input")
    return [f"{value}{gap}{extra}" for gap in ("\n", "\n\n")] if isinstance(extra, str) and extra else [value]


def by_key(prompts: PromptSet) -> dict[str, int]:
    """Every way in which another file may name a prompt -> the prompt. A text that two prompts share names neither."""
    found: dict[str, int] = {}
    shared: set[str] = set()
    for place, example in enumerate(prompts.examples):
        texts = [example.prompt[-1].content, prompts.columns.whole[place], example.prompt_text or ""]
        for key in dict.fromkeys([key_of(example.prompt), *filter(None, texts)]):
            if found.setdefault(key, place) != place:
                shared.add(key)
    return {key: place for key, place in found.items() if key not in shared}


def key_of(turns: Iterable[Message]) -> str:
    """A conversation as a key of `by_key`."""
    return json.dumps([(turn.role, turn.content) for turn in turns])


# ---- what a run was trained on


def overlap(prompts: PromptSet, run: Path) -> str:
    """A sentence on how many of the prompts are in the training data of a run folder; "" where none are, or it is of no
    run."""
    file = run / "resolved.yaml"
    if not file.is_file():
        return ""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
        shape = {name: data[name] for name in ("format", "columns", "split", "limit")}
        trained = {prompt_id(e) for e in load_examples(data["train"], **shape).examples}
    except (OSError, yaml.YAMLError, KeyError, TypeError, DataError) as error:
        return f"whether it was trained on these prompts is not known: its data cannot be read ({error})"
    same = np.mean([prompt_id(example) in trained for example in prompts.examples])
    count = round(same * len(prompts))
    if not count:
        return ""
    return f"trained on {count} of these {len(prompts)} prompts ({same:.0%}): its numbers will be too good"
