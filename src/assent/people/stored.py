"""Between a database of labels and files: a project's labels as `assent.people.exchange` writes them, and what it read
into a project."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from assent.people.exchange.shape import Imported, Labelled
from assent.people.items import Label
from assent.people.store import accounts, audit, items, labels, places, projects
from assent.people.store import tables as t
from assent.people.store.errors import AccessError, MissingError
from assent.people.store.records import Project, Purpose, StoredLabel, User, clock
from assent.people.task import Item

if TYPE_CHECKING:
    from sqlalchemy import Connection

PAGE = 500
"""Items that are read at a time."""
Of = Literal["best", "labels", "decisions"]
"""What is exported: of each item a lead's decision where there is one, else all labels; all labels, without decisions;
decisions alone."""


@dataclass(frozen=True)
class Taken:
    """What a file brought: items, labels, and annotators for whom an account without a password was made."""

    items: int
    known: int
    labels: int
    repeated: int
    people: tuple[str, ...]

    @property
    def words(self) -> str:
        """All of it in a line."""
        made = f"; accounts were made for {', '.join(self.people)}" if self.people else ""
        return (
            f"{self.items:,} new items ({self.known:,} were there), {self.labels:,} labels ({self.repeated:,} were "
            f"there){made}"
        )


def labelled(c: Connection, project: Project, purpose: Purpose = "work") -> Iterator[Labelled]:
    """The items of a project that have labels, in their order, with all that holds now; labels of an earlier meaning of
    the task are left out."""
    meanings = {each.id: each.meaning for each in projects.definitions(c, project)}
    found: list[StoredLabel] = []
    for each in labels.labels(c, project, purpose):
        if each.value is None or meanings[each.definition] != project.definition.meaning:
            continue
        if found and found[-1].item != each.item:
            yield _labelled(c, found)
            found = []
        found.append(each)
    if found:
        yield _labelled(c, found)


def chosen(c: Connection, project: Project, of: Of = "best") -> Iterator[Labelled]:
    """A project's items with what is asked for (`Of`)."""
    if of == "labels":
        yield from labelled(c, project)
        return
    decided = {each.item.digest: each for each in labelled(c, project, "adjudication")}
    if of == "best":
        for each in labelled(c, project):
            yield decided.pop(each.item.digest, each)
    yield from decided.values()  # decided without a label


def work(c: Connection, project: Project) -> Iterator[Item]:
    """The items of a project that are to be labelled, without those that were withdrawn."""
    after = 0
    while found := items.page(c, project, after=after, limit=PAGE):
        yield from (each.content for each in found)
        after = found[-1].id


def _labelled(c: Connection, found: Iterable[StoredLabel]) -> Labelled:
    said = tuple(
        Label(each.value, each.name, each.shown, each.seconds, each.made_at) for each in found if each.value is not None
    )
    return Labelled(items.content(c, next(iter(found)).item), said)


def note_export(
    c: Connection, project: Project, format: str, of: Of, rows: int, by: User | None = None, now: float | None = None
) -> None:
    """Writes into the audit log who took labels out."""
    audit.record(c, by, "labels exported", project.name, {"format": format, "of": of, "rows": rows}, now, project)


# ---- in


def add(c: Connection, project: Project, found: Imported, by: User | None = None, now: float | None = None) -> Taken:
    """Adds items, and labels as if their annotators had given them here. Whoever has no account gets one without a
    password. An annotator's label of an item that they have had is there already, whatever it says.

    Raises AccessError where an annotator's account is shut."""
    added = items.add_items(c, project, [each.item for each in found.labelled], by=by, now=now)
    people: dict[str, User] = {}
    made: list[str] = []
    counts = [0, 0]
    keys = _keys(c, project, [each.item.digest for each in found.labelled if each.labels])
    for each in found.labelled:
        for label in each.labels:
            if label.annotator not in people:
                people[label.annotator] = _annotator(c, project, label.annotator, by, now, made)
            new = _add_label(c, project, keys[each.item.digest], people[label.annotator], label, clock(now))
            counts[0 if new else 1] += 1
    return Taken(added.new, added.known, counts[0], counts[1], tuple(made))


def note_import(
    c: Connection, project: Project, name: str, taken: Taken, by: User | None = None, now: float | None = None
) -> None:
    """Writes into the audit log what a file brought."""
    counts = {"items": taken.items, "labels": taken.labels, "accounts": len(taken.people)}
    detail = {"purpose": "work"} | {what: number for what, number in counts.items() if number}
    audit.record(c, by, "file imported", name, detail, now, project)


def _keys(c: Connection, project: Project, digests: list[str]) -> dict[str, int]:
    """The ids of work items by their digest."""
    from sqlalchemy import select

    mine = (t.items.c.project_id == project.id) & (t.items.c.purpose == "work")
    found: dict[str, int] = {}
    for start in range(0, len(digests), PAGE):
        some = t.items.c.key.in_(digests[start : start + PAGE])
        found |= {row.key: row.id for row in c.execute(select(t.items.c.key, t.items.c.id).where(mine, some))}
    return found


def _annotator(c: Connection, project: Project, name: str, by: User | None, now: float | None, made: list[str]) -> User:
    """The account of an annotator's name, which may be a member from now on."""
    name = (re.sub(r"[^\w.@+' -]", "_", name).strip().lstrip("_.@+'-") or "imported")[:64].strip()
    try:
        user = accounts.user(c, name)
    except MissingError:
        user = accounts.add_user(c, name, None, "annotator", by, now)
        made.append(user.name)
    if user.disabled:
        raise AccessError(f"There are labels of {user.name}, whose account is shut. Open it first; nothing was added.")
    if accounts.membership(c, project, user) is None:
        accounts.add_member(c, project, user, "judge" if user.role == "judge" else "annotator", by, now)
    return user


def _add_label(c: Connection, project: Project, item: int, user: User, label: Label, now: float) -> bool:
    """Whether the label is new."""
    from sqlalchemy import select

    mine = (t.slots.c.item_id == item) & (t.slots.c.user_id == user.id) & (t.slots.c.purpose == "work")
    if c.execute(select(t.slots.c.id).where(mine, t.in_state(t.slots, "leased", "done", "skipped"))).first():
        return False
    accounts.member(c, project, user, lock=True)
    at = now if label.at is None else label.at
    row = {
        "project_id": project.id,
        "item_id": item,
        "user_id": user.id,
        "definition_id": project.definition.id,
        "purpose": "work",
        "number": places.free_number(c, item),
        "state": "leased",
        "shown": list(label.shown),
        "leased_at": at,
        "leased_until": at,
    }
    slot = t.made(c, t.slots, row)
    labels.save(c, slot, user, f"{labels.OWN}import {slot}", label.value, label.seconds, at)
    return True
