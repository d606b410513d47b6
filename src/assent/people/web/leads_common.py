"""What the leads' pages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from assent.people.kinds import KINDS
from assent.people.kinds.base import LETTERS
from assent.people.store import accounts, items, labels, projects
from assent.people.store.board import Board
from assent.people.store.errors import MissingError
from assent.people.store.records import Definition, Member, Project, Slot, StoredItem, StoredLabel, User
from assent.people.web.refusals import Refused
from assent.people.web.render import shown
from assent.people.web.sessions import Visit, require

LEAD = require("lead")
BRIEF = 160
"""Characters of a prompt in a list."""


def place(visit: Visit, path: str = "") -> str:
    """The address of a leads' page of the visit's project."""
    return f"/p/{visit.place.name}/lead{path}"


def board_of(visit: Visit) -> Board:
    """What is kept in memory of the visit's project."""
    boards, project = visit.site.boards, visit.place.id
    return boards.setdefault(project, Board(visit.site.store, project))


def member_of(visit: Visit, user: int) -> Member:
    """A member of the project. Raises MissingError."""
    with visit.reading() as c:
        found = [one for one in accounts.members(c, visit.place) if one.user.id == user]
    if not found:
        raise MissingError(f"There is nobody with number {user} in {visit.place.name}.")
    return found[0]


def item_in(c: Connection, visit: Visit, key: int) -> StoredItem:
    """An item of the visit's project. Raises MissingError."""
    found = items.item(c, key)
    if found.project != visit.place.id:
        raise MissingError(f"There is no item {key} in {visit.place.name}.")
    return found


def as_slot(visit: Visit, item: StoredItem) -> Slot:
    """An item as the slot that the form of its kind wants: answers in their own order. It is none of the queue's."""
    shown = tuple(range(len(item.content.responses)))
    return Slot(item.id, item, visit.place.id, visit.known.id, shown, "adjudication", visit.now, visit.place.definition)


def number(visit: Visit, name: str) -> int:
    """A whole number from the form. Raises Refused."""
    said = visit.field(name)
    if not said.isdecimal() or len(said) > 18:
        raise Refused(422, "form", f"The form lacks its {name}. Load the page again.")
    return int(said)


def query_number(visit: Visit, name: str, least: int = 0) -> int:
    """A whole number from the address; 0 where there is none."""
    said = visit.request.query_params.get(name, "")
    return max(least, int(said)) if said.isdecimal() and len(said) <= 18 else least


@dataclass(frozen=True)
class Said:
    """A row of the history as it is shown. `back`: it can be sent back; `version` is that of the task whose answers
    meant something else, 0 of all others."""

    label: StoredLabel
    prompt: str
    summary: str
    comment: str
    back: bool
    parts: tuple[tuple[str, str], ...] = ()
    """What the summary only counts: the text that was written, each marked passage with its mark; name and words."""
    version: int = 0

    @property
    def holds(self) -> bool:
        """Whether it counts."""
        return self.label.current and not self.version


def said_of(
    c: Connection, project: Project, rows: Iterable[tuple[StoredLabel, StoredItem]], prompts: bool = False
) -> list[Said]:
    """Rows of the history with their items, in words."""
    definitions = {each.id: each for each in projects.definitions(c, project)}
    return [
        _said(row, item, project, definitions[row.definition], brief(item) if prompts else "") for row, item in rows
    ]


def _said(label: StoredLabel, item: StoredItem, project: Project, asked: Definition, prompt: str) -> Said:
    """A row in words; answers are A, B, … in their own order, whatever order the annotator saw."""
    version = 0 if asked.meaning == project.definition.meaning else asked.version
    summary, comment, parts = "Taken back", label.reason or "", tuple[tuple[str, str], ...]()
    if label.action == "skip":
        summary = "Skipped"
    elif label.value is not None:
        kind = KINDS[asked.task.kind]
        order = range(len(item.content.responses))
        summary, comment = kind.summary(label.value, item.content, order), str(label.value.get("comment") or "")
        parts = _parts(asked.task.kind, label.value, item)
    back = label.action == "label" and label.current and label.purpose == "work" and not version
    back = back and item.state not in ("decided", "withdrawn")
    return Said(label, prompt, summary, shown(comment), back, parts, version)


def _parts(kind: str, value: Mapping[str, Any], item: StoredItem) -> tuple[tuple[str, str], ...]:
    """What an annotator wrote, or marked."""
    if kind == "edit":
        return (("", shown(value["text"])),)
    if kind != "spans":
        return ()
    made = []
    for span in value["spans"]:
        passage = item.content.responses[span["answer"]][span["start"] : span["end"]]
        note = str(span.get("comment") or "")
        where = f"{span['label']}, in {LETTERS[span['answer']]}" if len(item.content.responses) > 1 else span["label"]
        made.append((shown(where), shown(f"“{passage}”" + (f": {note}" if note.strip() else ""))))
    return tuple(made)


def label_rows(c: Connection, project: Project, user: User, limit: int) -> list[Said]:
    """Somebody's latest rows."""
    rows = labels.history(c, project, user, limit)
    known = {key: items.item(c, key) for key in {row.item for row in rows}}
    return said_of(c, project, [(row, known[row.item]) for row in rows], prompts=True)


def brief(item: StoredItem) -> str:
    """The beginning of an item's prompt, on one line."""
    turns = item.content.prompt
    text = " ".join(turns[-1].content.split()) if turns else ""
    return shown(text if len(text) <= BRIEF else f"{text[: BRIEF - 1].rstrip()}…")
