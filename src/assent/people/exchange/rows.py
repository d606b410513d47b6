"""Shapes that every trainer reads, also `assent data`: assent's own, TRL, ShareGPT, HelpSteer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from assent.data.formats import to_row
from assent.data.formats.detect import known_columns
from assent.data.formats.native import message_row
from assent.data.jsonl import plain_json
from assent.data.records import Binary, Message, Pair
from assent.measures.closest import averaged
from assent.people.exchange.shape import (
    ANNOTATORS,
    COLUMNS,
    PLAIN_PROMPT,
    UNASKED,
    Labelled,
    Lost,
    Row,
    Shape,
    note_item,
    note_labels,
)
from assent.people.items import Label, example_of
from assent.people.kinds import KINDS, changed
from assent.people.task import HELPSTEER, Item, TaskDefinition

ANNOTATOR, FIRST, COMMENT = "annotator", "first", "comment"
"""Columns of rows of pairs beside those that trainers read."""
OWN = (ANNOTATOR, FIRST, COMMENT)
TIES, BAD, UNJUDGED = "ties", "that both are bad, or none is good", "that it cannot be judged"
NO_STRENGTH = "verdicts without a strength"
SHAREGPT = {"user": "human", "assistant": "gpt"}
CALLS = "prompts with calls of tools: left out"


def _assent(labelled: Labelled, task: TaskDefinition, lost: Lost) -> Iterator[Row]:
    example = example_of(labelled.item, labelled.labels, task)
    yield to_row(example) | {"meta": plain_json(example.meta)}


# ---- votes on two answers, yes/no labels, and demonstrations, as rows of one prompt each


@cache
def _taken() -> frozenset[str]:
    """Names of columns that some shape reads, or an export adds."""
    return frozenset((*known_columns(), *OWN))


def _extra(item: Item, lost: Lost) -> Row:
    """The row's own columns, where the shape's own do not stand in their way."""
    known = _taken()
    lost.note(COLUMNS, any(name in known for name in item.meta))
    row = {name: plain_json(value) for name, value in item.meta.items() if name not in known}
    if item.tools is not None:
        row["tools"] = item.tools
    if item.template_kwargs:
        row["chat_template_kwargs"] = dict(item.template_kwargs)
    return row


def _said(label: Label) -> Row:
    comment = (label.value.get("comment") or "").strip()
    return {ANNOTATOR: label.annotator} | ({COMMENT: comment} if comment else {})


def _votes(labelled: Labelled, lost: Lost, task: TaskDefinition) -> Iterator[tuple[Label, Pair]]:
    """Every two answers that a label compares; what no pair can say is lost."""
    item, kind = labelled.item, KINDS[task.kind]
    for label in labelled.labels:
        verdict = label.value.get("verdict")
        lost.note(TIES, verdict == "tie" or any(len(level) > 1 for level in label.value.get("levels", ())))
        lost.note(BAD, verdict == "both_bad" or (task.kind == "best" and label.value["best"] is None))
        lost.note(UNJUDGED, verdict == "cannot_judge")
        if task.kind == "ranking":
            lost.note("rankings as such: they become pairs", len(label.value["levels"]) > 2)
            places = {answer: place for place, level in enumerate(label.value["levels"]) for answer in level}
            for one, other in ((a, b) for a in places for b in places if places[a] < places[b]):
                yield label, _shown_pair(one, other, label)
        else:
            lost.note("the best of several as such: it becomes pairs", task.kind == "best" and len(item.responses) > 2)
            for each in kind.feedback(label.value, item, label.annotator, label.shown):
                if isinstance(each, Pair):
                    yield label, each


def _shown_pair(chosen: int, rejected: int, label: Label) -> Pair:
    at = label.shown.index if label.shown else None
    first = None if at is None else "chosen" if at(chosen) < at(rejected) else "rejected"
    return Pair(chosen, rejected, None, label.annotator, first=first)  # type: ignore[arg-type]


def _label_rows(labelled: Labelled, lost: Lost, task: TaskDefinition) -> Iterator[tuple[Label, int, bool]]:
    lost.note("that several answers were judged together", len(labelled.item.responses) > 1)
    for label in labelled.labels:
        lost.note(UNJUDGED, None in label.value["labels"])
        for each in KINDS["yesno"].feedback(label.value, labelled.item, label.annotator, label.shown):
            assert isinstance(each, Binary)
            yield label, each.response, each.label


def _written(labelled: Labelled, lost: Lost) -> Iterator[tuple[Label, str]]:
    """What annotators wrote, as demonstrations."""
    for label in labelled.labels:
        lost.note("which answer it was made from", label.value.get("from") is not None)
        lost.note("answers that were left as they are, as such", not changed(label.value, labelled.item))
        yield label, label.value["text"]


def _begin(labelled: Labelled, task: TaskDefinition, lost: Lost, text: bool = False) -> Row:
    """The columns of every row of an item; notes what no row of such a shape carries."""
    lost.note(UNASKED, not labelled.labels)
    note_item(labelled.item, lost, tools=True, text=text)
    note_labels(labelled.labels, lost, sides=task.kind in ("pair", "best", "ranking"), comments=True)
    return _extra(labelled.item, lost)


# ---- TRL


def _trl(labelled: Labelled, task: TaskDefinition, lost: Lost) -> Iterator[Row]:
    item = labelled.item
    as_text = _is_text(item)
    lost.note(PLAIN_PROMPT, item.prompt_text is not None and not as_text)
    base = _begin(labelled, task, lost, text=True)
    prompt: Any = item.prompt_text if as_text else [message_row(turn) for turn in item.prompt]

    def said(text: str) -> Any:
        return text if as_text else [message_row(Message("assistant", text))]

    def alone(text: str) -> Row:
        return {"prompt": prompt, "completion": said(text)}

    yield from _rows(labelled, task, lost, base, alone, {"prompt": prompt}, said, "label")


def _rows(
    labelled: Labelled,
    task: TaskDefinition,
    lost: Lost,
    base: Row,
    alone: Callable[[str], Row],
    before: Row,
    said: Callable[[str], Any],
    good_name: str,
) -> Iterator[Row]:
    """A row for each label: `alone` makes those of one answer, `before` is what stands before two of them, `good_name`
    the column of a yes/no label."""
    responses = labelled.item.responses
    if task.kind == "yesno":
        for label, answer, good in _label_rows(labelled, lost, task):
            yield base | alone(responses[answer]) | {good_name: good} | _said(label)
    elif task.kind == "edit":
        for label, text in _written(labelled, lost):
            yield base | alone(text) | _said(label)
    else:
        for label, pair in _votes(labelled, lost, task):
            two = {"chosen": said(responses[pair.chosen]), "rejected": said(responses[pair.rejected])}
            yield base | before | two | _strength(pair) | _said(label)


def _is_text(item: Item) -> bool:
    """Whether the row's prompt was text, which is all that there is to it."""
    return item.prompt_text is not None and item.prompt == (Message("user", item.prompt_text),)


def _strength(pair: Pair) -> Row:
    margin = {} if pair.strength is None else {"margin": pair.strength}
    return margin | ({} if pair.first is None else {FIRST: pair.first})


# ---- ShareGPT


def _sharegpt(labelled: Labelled, task: TaskDefinition, lost: Lost) -> Iterator[Row]:
    item = labelled.item
    base = _begin(labelled, task, lost)
    lost.note("thoughts and attributes in the prompt", any(turn.reasoning or turn.attributes for turn in item.prompt))
    if any(turn.tool_calls or turn.role == "tool" for turn in item.prompt):
        lost.note(CALLS)
        return
    answered = any(turn.role == "assistant" for turn in item.prompt)
    lost.note("that earlier answers are only read: trainers learn them as well", task.kind == "edit" and answered)
    turns = [{"from": SHAREGPT.get(turn.role, turn.role), "value": turn.content} for turn in item.prompt]

    def said(text: str) -> Row:
        return {"from": "gpt", "value": text}

    def alone(text: str) -> Row:
        return {"conversations": [*turns, said(text)]}

    yield from _rows(labelled, task, lost, base, alone, {"conversations": turns}, said, "kto_tag")


# ---- HelpSteer

MARK = "<extra_id_1>"
NAMES = {"user": "User", "assistant": "Assistant"}
BAD_PROMPT = f"prompts with other turns than user's and assistant's, or with {MARK} in them"


def _marked(item: Item) -> str | None:
    """HelpSteer's prompt: later turns behind lines <extra_id_1>User and <extra_id_1>Assistant; None where it has no
    such form."""
    if item.prompt[0].role != "user" or any(turn.role not in NAMES or MARK in turn.content for turn in item.prompt):
        return None
    if any(turn.content != turn.content.rstrip("\n") for turn in item.prompt[:-1]):
        return None  # a last line end would be taken for the mark's
    first, *later = item.prompt
    return first.content + "".join(f"\n{MARK}{NAMES[turn.role]}\n{turn.content}" for turn in later)


def _helpsteer(labelled: Labelled, task: TaskDefinition, lost: Lost) -> Iterator[Row]:
    item = labelled.item
    base = _begin(labelled, task, lost)
    prompt = _marked(item)
    if prompt is None:
        lost.note(BAD_PROMPT)
    elif task.kind == "pair":
        for label in labelled.labels:
            yield from _preference(item, prompt, base, label, lost)
    elif labelled.labels:
        several = len(labelled.labels) > 1
        lost.note("ratings of several annotators: their mean is written", several)
        lost.note(ANNOTATORS, several)
        lost.note(
            "comments of several annotators", several and any(label.value.get("comment") for label in labelled.labels)
        )
        said = {} if several else _said(labelled.labels[0])
        for answer, text in enumerate(item.responses):
            scores = averaged([label.value["scores"][answer] for label in labelled.labels])
            whole = {name: int(score) if score == int(score) else score for name, score in scores.items()}
            yield base | {"prompt": prompt, "response": text} | whole | said


def _preference(item: Item, prompt: str, base: Row, label: Label, lost: Lost) -> Iterator[Row]:
    """From -3, the first is much better, to 3."""
    value, strength = label.value, label.value.get("strength")
    lost.note(BAD, value["verdict"] == "both_bad")
    lost.note(UNJUDGED, value["verdict"] == "cannot_judge")
    lost.note(NO_STRENGTH, value["verdict"] == "better" and strength is None)
    if value["verdict"] == "tie":
        signed = 0
    elif value["verdict"] == "better" and strength is not None:
        signed = -strength if value["better"] == 0 else strength
    else:
        return
    first = {FIRST: f"response_{label.shown[0] + 1}"} if label.shown else {}
    answers = {"response_1": item.responses[0], "response_2": item.responses[1]}
    yield base | {"prompt": prompt, **answers, "preference_strength": signed} | first | _said(label)


def _check_helpsteer(task: TaskDefinition) -> str | None:
    if task.kind == "pair":
        return None if task.strength else (
            "HelpSteer's preferences have strengths from -3 to 3, and this task asks for none (strength: 0)"
        )  # fmt: skip
    if set(task.attributes) != set(HELPSTEER) or any((a.lowest, a.highest) != (0, 4) for a in task.attributes.values()):
        return f"HelpSteer's rows have {', '.join(HELPSTEER)} from 0 to 4, and this task has other attributes"
    return None


COMPARED = ("pair", "ranking", "best", "yesno", "edit")
ASSENT = Shape("assent", "assent's own rows: all of it", tuple(KINDS), _assent)  # type: ignore[arg-type]
TRL = Shape("trl", "TRL: prompt, chosen, rejected; prompt, completion, label; prompt, completion", COMPARED, _trl)  # type: ignore[arg-type]
SHARE = Shape("sharegpt", "ShareGPT: conversations, with chosen and rejected or kto_tag", COMPARED, _sharegpt)  # type: ignore[arg-type]
STEER = Shape(
    "helpsteer", "HelpSteer2: five attributes, or preferences from -3 to 3", ("pair", "attributes"), _helpsteer,
    check=_check_helpsteer,
)  # fmt: skip
