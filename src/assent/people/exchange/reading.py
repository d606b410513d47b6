"""Rows that `assent data` knows, read back as items and what annotators said of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from assent.data.formats import Loaded, load_examples
from assent.data.formats.load import moved
from assent.data.records import ANNOTATED, Example, Feedback, Pair, Ranking, RowError
from assent.people.exchange.rows import ANNOTATOR, COMMENT, FIRST, OWN
from assent.people.exchange.shape import Imported, Labelled
from assent.people.items import WRITTEN, Label, item_from, last_answers, seconds_of
from assent.people.kinds import KINDS, LabelError, Value
from assent.people.task import Item, TaskDefinition, digest_of

UNNAMED = "imported"
"""The annotator of feedback that names none."""
LABEL = ("annotator", "value", "shown", "seconds", "at")
"""Fields of an entry of the column `annotated`."""


def read_rows(path: str, task: TaskDefinition, format: str = "auto") -> Imported:
    """Items and labels of a file of any shape that `assent data` knows. Rows of the same prompt and answers, in
    whatever order, are one item. Raises DataError for a file of no such shape."""
    return labelled_of(load_examples(path, format=format), task)


def labelled_of(loaded: Loaded, task: TaskDefinition) -> Imported:
    """The same of rows that are read."""
    items: dict[str, Item] = {}
    labels: dict[str, list[Label]] = defaultdict(list)
    problems = list(loaded.problems)
    for example in loaded.examples:
        try:
            item, said = _row(example, task, items)
        except RowError as error:
            problems.append(error.at(example.origin))
            continue
        labels[_key(item)] += said
    return Imported([Labelled(item, tuple(labels[key])) for key, item in items.items()], problems)


def _key(item: Item) -> str:
    """The same for the same prompt and answers in any order."""
    return digest_of([replace(item, responses=()).digest, sorted(item.responses)])


def _row(example: Example, task: TaskDefinition, items: dict[str, Item]) -> tuple[Item, list[Label]]:
    """The item of a row, as it is known, or will be from now on, and its labels."""
    meta = {name: value for name, value in example.meta.items() if name != ANNOTATED}
    entries = example.meta.get(ANNOTATED)
    own = {} if entries is not None else {name: str(meta.pop(name)) for name in OWN if _is_own(name, meta.get(name))}
    plain = replace(example, meta=meta)
    if entries is not None:
        plain = _without_written(plain, task)
        item = item_from(plain, task)
        said = [_entry(entry, f"meta.{ANNOTATED}[{n}]", item, task) for n, entry in enumerate(_listed(entries))]
    elif task.kind == "edit" and len(example.responses) == 1 and not example.feedback:
        who = own.get(ANNOTATOR, UNNAMED)  # a demonstration is what somebody wrote
        prompt, (response,) = last_answers(plain)
        item = item_from(replace(plain, prompt=prompt, responses=()), task)
        said = [Label(_with(own, {"text": response.text, "from": None}), who)]
    else:
        item = item_from(plain, task)
        said = _of_feedback(plain, item, own, task)
    known = items.get(_key(item), item)
    place = [known.responses.index(text) for text in item.responses]
    if place != sorted(place):
        said = [_turned(label, place, plain, item, known, own, task) for label in said]
    for label in said:
        try:
            KINDS[task.kind].check(label.value, known, task)
        except LabelError as error:
            raise RowError("feedback", f"{label.annotator}: {str(error).removesuffix('.')}") from None
    items[_key(item)] = known
    return known, said


def _is_own(name: str, value: object) -> bool:
    """Whether a column is one that an export adds."""
    return isinstance(value, str) and (name != FIRST or value in ("chosen", "rejected", "response_1", "response_2"))


def _listed(entries: object) -> Sequence[Any]:
    if not isinstance(entries, list):
        raise RowError(f"meta.{ANNOTATED}", "expected a list of what annotators said")
    return entries


def _entry(entry: Any, where: str, item: Item, task: TaskDefinition) -> Label:
    """A label as `assent label` writes it."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), Mapping):
        raise RowError(where, f"expected an object with {', '.join(LABEL)}")
    if unknown := set(entry) - set(LABEL):
        raise RowError(where, f"has no field {sorted(map(str, unknown))[0]!r}; known: {', '.join(LABEL)}")
    who, shown = entry.get("annotator"), entry.get("shown") or ()
    if not isinstance(who, str) or not who.strip():
        raise RowError(f"{where}.annotator", "expected a name")
    if shown and (not isinstance(shown, list) or sorted(shown, key=str) != [*range(len(item.responses))]):
        raise RowError(f"{where}.shown", f"expected every answer once, from 0 to {len(item.responses) - 1}")
    seconds, at = (seconds_of(entry.get(name), f"{where}.{name}") for name in ("seconds", "at"))
    return Label(dict(entry["value"]), who, tuple(shown), seconds, at)


def _without_written(example: Example, task: TaskDefinition) -> Example:
    """Without the answers that annotators wrote, which stand behind the item's own."""
    count = len(example.responses)
    while task.kind == "edit" and count and (example.responses[count - 1].source or "").startswith(WRITTEN):
        count -= 1
    return replace(example, responses=example.responses[:count])


# ---- labels from feedback alone


def _of_feedback(example: Example, item: Item, own: Mapping[str, str], task: TaskDefinition) -> list[Label]:
    """A label for each annotator."""
    by: dict[str, list[Feedback]] = defaultdict(list)
    unnamed = Counter[str]()
    for each in example.feedback:
        who = each.annotator or own.get(ANNOTATOR)
        if who is None:
            unnamed[type(each).__name__] += 1
            # several votes without a name are of several people
            number = sum(unnamed.values()) if isinstance(each, Pair | Ranking) and task.kind == "pair" else 1
            who = UNNAMED if number < 2 else f"{UNNAMED} {number}"
        by[who].append(each)
    kind, made = KINDS[task.kind], []
    for who, feedback in by.items():
        value = kind.value(feedback, item, task)
        if value is None:
            found = ", ".join(sorted({type(each).__name__.lower() for each in feedback}))
            raise RowError("feedback", f"of {who} is not one answer to a task of kind {task.kind} (there is: {found})")
        made.append(Label(_with(own, value), who, _shown(feedback, item, own)))
    return made


def _with(own: Mapping[str, str], value: Value) -> Value:
    return {**value, "comment": own[COMMENT]} if own.get(COMMENT, "").strip() else value


def _shown(feedback: Sequence[Feedback], item: Item, own: Mapping[str, str]) -> tuple[int, ...]:
    """The order of two answers on the page, where a row says it."""
    if len(item.responses) != 2:
        return ()
    first = next((each.first for each in feedback if isinstance(each, Pair)), None) or own.get(FIRST)
    pair = next((each for each in feedback if isinstance(each, Pair)), None)
    if first in ("response_1", "response_2"):
        return (0, 1) if first == "response_1" else (1, 0)
    if pair is None or first not in ("chosen", "rejected"):
        return ()
    left = pair.chosen if first == "chosen" else pair.rejected
    return (left, 1 - left)


def _turned(
    label: Label, place: Sequence[int], example: Example, item: Item, known: Item, own: Mapping[str, str],
    task: TaskDefinition,
) -> Label:  # fmt: skip
    """A label of the same answers in another order."""
    kind = KINDS[task.kind]
    feedback = [
        moved(each, lambda index: place[index]) for each in kind.feedback(label.value, item, label.annotator, ())
    ]
    value = kind.value(feedback, known, task)
    if value is None:
        raise RowError("responses", "stand in another order than in an earlier row of the same prompt")
    comment = {"comment": label.value["comment"]} if label.value.get("comment") else {}
    return replace(label, value={**value, **comment}, shown=tuple(place[index] for index in label.shown))
