"""What the store hands out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assent.people.task import Item, TaskDefinition

Role = Literal["admin", "lead", "annotator", "judge"]
Purpose = Literal["work", "second", "gold", "screening", "adjudication"]
ItemPurpose = Literal["work", "gold", "screening"]


def clock(now: float | None) -> float:
    """`now`, or the system's time."""
    return time.time() if now is None else now


@dataclass(frozen=True, slots=True)
class User:
    """An account. `role` is what it was made as; what somebody may do in a project, `accounts.membership` says."""

    id: int
    name: str
    role: Role
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a project: whether locked out, and how far they are. `cursors` are turns by lane up to which nothing of
    the queue is left for them."""

    user: User
    project: int
    role: Role
    locked: str | None
    screened: bool
    served: int
    done: int
    cursors: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Definition:
    """A version of a project's task."""

    id: int
    project: int
    version: int
    digest: str
    meaning: str
    task: TaskDefinition
    made_at: float


@dataclass(frozen=True, slots=True)
class Project:
    """A task in the database, as its newest version defines it."""

    id: int
    name: str
    kind: str
    seed: int
    definition: Definition
    made_at: float

    @property
    def task(self) -> TaskDefinition:
        return self.definition.task


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item and how far it is: `wanted` annotators, of whom `taken` have it and `done` have answered. `expected` is
    the known answer of a gold or screening item."""

    id: int
    project: int
    purpose: ItemPurpose
    content: Item
    expected: Mapping[str, Any] | None
    wanted: int
    taken: int
    done: int
    skips: int
    state: Literal["open", "full", "done", "decided", "withdrawn"]
    withdrawn: str | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """Items that came in, and those that were there already (of equal prompt and answers)."""

    new: int
    known: int


@dataclass(frozen=True, slots=True)
class Slot:
    """An item that somebody holds until `leased_until`. `shown` are the indices of its answers in the order of the
    page; `note` is why a lead sent it back."""

    id: int
    item: StoredItem
    project: int
    user: int
    shown: tuple[int, ...]
    purpose: Purpose
    leased_until: float
    definition: Definition
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why there is no slot: everything is done; all that is left is with others (`again`: when to ask again); or the
    user is locked out, `message` says why."""

    reason: Literal["done", "others", "locked"]
    message: str
    again: float | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """A label that is in the database. `repeated`: it was there before; `locked`: why it was the user's last."""

    label: int
    repeated: bool
    locked: str | None = None


@dataclass(frozen=True, slots=True)
class StoredLabel:
    """A row of the history, append-only. `current` unless a later one supersedes it. `name` is the user's."""

    id: int
    item: int
    slot: int
    user: int
    name: str
    definition: int
    action: Literal["label", "skip", "undo"]
    purpose: Purpose
    value: Mapping[str, Any] | None
    reason: str | None
    seconds: float | None
    shown: tuple[int, ...]
    supersedes: int | None
    made_at: float
    current: bool


@dataclass(frozen=True, slots=True)
class Ahead:
    """Progress: answers by this user; about how many items wait for them; items of work in the project that were not
    withdrawn, and how many of these are done or decided."""

    mine: int
    waiting: int
    items: int
    done: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the audit log."""

    id: int
    made_at: float
    by: str | None
    project: int | None
    what: str
    target: str
    detail: Any
