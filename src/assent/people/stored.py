"""Between a database of labels and files: a project's labels as `assent.people.exchange` writes them, and what it read
into a project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from assent.people.exchange.shape import Labelled
from assent.people.items import Label
from assent.people.store import items, labels, projects
from assent.people.store.records import Project, Purpose, StoredLabel


@dataclass(frozen=True)
class Taken:
    """What a file brought: items, labels, and annotators for whom an account without a password was made."""

    items: int
    known: int
    labels: int
    repeated: int
    people: tuple[str, ...]


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


def _labelled(c: Connection, found: Iterable[StoredLabel]) -> Labelled:
    said = tuple(
        Label(each.value, each.name, each.shown, each.seconds, each.made_at) for each in found if each.value is not None
    )
    return Labelled(items.content(c, next(iter(found)).item), said)
