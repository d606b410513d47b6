"""What the page of one item shows. It has nothing that would tell an annotator who wrote an answer, what the item is
for, or what others said."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from assent.data.records import Message
from assent.people.kinds import KINDS
from assent.people.kinds.base import COMMENT, LETTERS, TEXT
from assent.people.kinds.compare import CLEARLY
from assent.people.store.records import Slot
from assent.people.task import Item, TaskDefinition
from assent.people.web import forms, render

FOLDED = 1500
"""Characters of a conversation's earlier turns above which they are folded."""
LONG = 4000
"""Characters of one turn above which it scrolls by itself."""
WHO = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "System", "tool": "Tool"}
SKIPS = (
    "I do not know enough about this",
    "I do not understand the language",
    "Something is broken or missing",
    "It disturbs me",
)
"""Reasons that are offered for leaving an item out; others are written."""


@dataclass(frozen=True)
class Turn:
    """A message of the conversation."""

    role: str
    who: str
    html: Markup
    long: bool


@dataclass(frozen=True)
class Answer:
    """An answer where it stands on the page."""

    at: int
    letter: str
    key: str
    html: Markup
    raw: Markup
    empty: bool


@dataclass(frozen=True)
class Choice:
    """One of several values of a field, with the key that chooses it."""

    value: str
    words: str
    key: str = ""
    about: str = ""

    @property
    def side(self) -> str:
        """Of a strength: left or right."""
        return self.value.partition("-")[0]


@dataclass(frozen=True)
class Rated:
    """An attribute that answers are rated in."""

    name: str
    about: str
    levels: tuple[Choice, ...]

    @property
    def keyed(self) -> bool:
        """Whether the keys must be shown, for they are not what the levels are called."""
        return any(level.key != level.words for level in self.levels)


@dataclass(frozen=True)
class Example:
    """A worked example of the instructions."""

    prompt: Markup
    answers: tuple[tuple[str, Markup], ...]
    answer: str
    why: str


@dataclass(frozen=True)
class Help:
    """What a task says about itself."""

    instructions: Markup
    examples: tuple[Example, ...]


class Fields(dict[str, str]):
    """The values of a form; "" for what it does not say."""

    def __missing__(self, name: str) -> str:
        return ""


@dataclass(frozen=True)
class Sheet:
    """All of a page. `fields` are the values of its form; `draft` is the name under which a browser keeps them, of this
    slot in this database alone."""

    slot: int
    kind: str
    question: str
    earlier: tuple[Turn, ...]
    turns: tuple[Turn, ...]
    answers: tuple[Answer, ...]
    fields: Fields
    scale: tuple[Choice, ...]
    others: tuple[Choice, ...]
    rated: tuple[Rated, ...]
    labels: tuple[Choice, ...]
    ties: bool
    comment: str
    note: str
    help: Help
    request: str
    draft: str
    leased_until: float
    opened: float
    comment_limit: int = COMMENT
    text_limit: int = TEXT

    @property
    def width(self) -> str:
        """How answers stand beside each other."""
        counts = {0: "one", 1: "one", 2: "two", 3: "three", 5: "six", 6: "six", 9: "six"}
        return counts.get(len(self.answers), "many")


def sheet_of(slot: Slot, fields: Mapping[str, str], now: float, request: str = "") -> Sheet:
    """The page of a slot, with what its form already says."""
    task, item = slot.definition.task, slot.item.content
    earlier, turns = _folded(item.prompt)
    order = slot.shown or range(len(item.responses))  # of a label from a file it may not be known
    return Sheet(
        slot=slot.id,
        kind=task.kind,
        question=task.question or KINDS[task.kind].question,
        earlier=tuple(map(_turn, earlier)),
        turns=tuple(map(_turn, turns)),
        answers=tuple(_answer(at, item.responses[answer]) for at, answer in enumerate(order)),
        fields=Fields(fields),
        scale=_scale(task),
        others=_others(task),
        rated=_rated(task),
        labels=tuple(Choice(name, name, str(place)) for place, name in enumerate(task.labels, 1)),
        ties=task.ties,
        comment=task.comment,
        note=slot.note or "",
        help=help_of(task),
        request=request or secrets.token_hex(16),
        draft=_draft(slot.id, item),
        leased_until=slot.leased_until,
        opened=now,
    )


def _draft(slot: int, item: Item) -> str:
    said = repr((slot, item.prompt, item.responses)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(said).hexdigest()[:16]


def fields_of(slot: Slot, value: Mapping[str, Any] | None) -> dict[str, str]:
    """The fields of a form that says a value; none where it cannot be told any more."""
    if value is None:
        return {}
    try:
        return forms.fields_of(slot.definition.task, slot.shown, value)
    except (KeyError, ValueError, TypeError, IndexError):
        return {}


def help_of(task: TaskDefinition) -> Help:
    """Instructions and examples."""
    return Help(
        render.markdown(task.instructions) if task.instructions.strip() else Markup(),
        tuple(
            Example(
                render.markdown(each.prompt),
                tuple((LETTERS[at % len(LETTERS)], render.markdown(text)) for at, text in enumerate(each.responses)),
                each.answer,
                each.why,
            )
            for each in task.examples
        ),
    )


def _folded(prompt: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """(earlier turns, those that are in sight): all of a short conversation, the last turn of a long one."""
    earlier = prompt[:-1]
    short = sum(len(turn.content) for turn in earlier) <= FOLDED
    return ((), prompt) if short and len(earlier) <= 4 else (earlier, prompt[-1:])


def _turn(message: Message) -> Turn:
    text = render.text_of(message)
    name = f" ({message.name})" if message.name else ""
    return Turn(message.role, WHO.get(message.role, message.role) + name, render.markdown(text), len(text) > LONG)


def _answer(at: int, text: str) -> Answer:
    return Answer(at, LETTERS[at], str(at + 1), render.markdown(text), render.plain(text), not text.strip())


def _scale(task: TaskDefinition) -> tuple[Choice, ...]:
    if task.kind != "pair":
        return ()
    strengths = range(1, task.strength + 1) if task.strength else (0,)

    def better(side: str, letter: str, strength: int) -> tuple[str, str]:
        words = "is better" if task.strength <= 1 else CLEARLY[strength]
        return f"{side}-{strength}", f"{letter} {words}"

    rows = [better("left", "A", strength) for strength in reversed(strengths)]
    rows += [("tie", "Equally good")] if task.ties else []
    rows += [better("right", "B", strength) for strength in strengths]
    return tuple(Choice(value, words, str(key)) for key, (value, words) in enumerate(rows, 1))


def _others(task: TaskDefinition) -> tuple[Choice, ...]:
    if task.kind == "best":
        return (Choice("none", "None is good", "0"),) if task.both_bad else ()
    if task.kind != "pair":
        return ()
    bad = (Choice("both_bad", "Both are bad", "b"),) if task.both_bad else ()
    return (*bad, *((Choice("cannot_judge", "I cannot judge", "n"),) if task.cannot_judge else ()))


def _rated(task: TaskDefinition) -> tuple[Rated, ...]:
    if task.kind == "yesno":
        unsure = (Choice("unsure", "Can't say", "x"),) if task.cannot_judge else ()
        return (Rated("", "", (Choice("yes", "Yes", "y"), Choice("no", "No", "n"), *unsure)),)
    if task.kind != "attributes":
        return ()
    return tuple(
        Rated(
            name,
            each.about,
            tuple(
                Choice(str(level), str(level), key, each.levels.get(level, ""))
                for level, key in zip(levels, _level_keys(levels), strict=True)
            ),
        )
        for name, each in task.attributes.items()
        if (levels := range(each.lowest, each.highest + 1))
    )


def _level_keys(levels: range) -> list[str]:
    """The keys that choose a level: its digit; where some have none, they are counted from 1, and 0 is the tenth."""
    if levels[0] >= 0 and levels[-1] <= 9:
        return [str(level) for level in levels]
    if levels[0] == 0:
        return [*map(str, range(10)), "-"]
    return [*"1234567890-"][: len(levels)]
