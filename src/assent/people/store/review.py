"""What a lead does with answers: which items are looked at again and why, what is decided about them, and what goes
back to its annotator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, func, select, update

from assent.people.kinds import KINDS
from assent.people.store import accounts, audit, labels, places
from assent.people.store import tables as t
from assent.people.store.errors import GoneError, MissingError, StaleError
from assent.people.store.projects import definitions
from assent.people.store.records import Entry, Project, Saved, User
from assent.people.task import TaskDefinition

DIFFER = 0.5
"""Labels that are further apart are looked at again: opposite verdicts, ratings more than half of their range apart."""
BACK_DAYS = 7.0
"""Days that an annotator has for what was sent back."""
LONGEST = 2000
"""Characters of a reason."""
MARKED, UNMARKED, PASSED = "item marked", "mark taken away", "item passed over"
DECIDED, UNDECIDED, SENT_BACK = "item decided", "decision taken back", "answer sent back"
OF_ITEMS = (MARKED, UNMARKED, PASSED, DECIDED, UNDECIDED, SENT_BACK, "item withdrawn")
"""What the audit log says of items, each with the item's number as its target."""


@dataclass(frozen=True, slots=True)
class Dispute:
    """Why an item is looked at again. `differs` is how far its two most different labels are apart, from 0 to 1."""

    item: int
    differs: float = 0.0
    both_bad: int = 0
    skips: int = 0
    mark: str | None = None

    def reasons(self, threshold: float = DIFFER) -> tuple[str, ...]:
        """In words; none where there is nothing to decide."""
        return tuple(
            words
            for words, holds in (
                ("marked", self.mark is not None),
                ("annotators differ", self.differs > threshold),
                ("both bad" if self.both_bad == 1 else f"both bad, says {self.both_bad}", bool(self.both_bad)),
                ("skipped" if self.skips == 1 else f"skipped by {self.skips}", bool(self.skips)),
            )
            if holds
        )


def dispute(
    task: TaskDefinition, item: int, values: Sequence[Mapping[str, Any]], skips: int, mark: str | None = None
) -> Dispute:
    """What labels and skips of an item say. Texts that annotators wrote always differ, and are not compared."""
    differs = KINDS[task.kind].differs
    gaps = [] if task.kind == "edit" else [differs(one, other, task) for one, other in combinations(values, 2)]
    bad = sum(value.get("verdict") == "both_bad" or value.get("best", 0) is None for value in values)
    return Dispute(item, max(gaps, default=0.0), bad, skips, mark)


def dispute_of(c: Connection, project: Project, item: int) -> Dispute:
    """The same of an item as it is now."""
    asked = {each.id for each in definitions(c, project) if each.meaning == project.definition.meaning}
    rows = [one for one in labels.of_item(c, item) if one.purpose == "work" and one.current]
    rows = [one for one in rows if one.definition in asked]
    values = [one.value for one in rows if one.action == "label" and one.value is not None]
    return dispute(project.task, item, values, len(rows) - len(values), marks(c, project).get(item))


def waiting(
    c: Connection, project: Project, disputes: Mapping[int, Dispute], threshold: float = DIFFER
) -> list[Dispute]:
    """What is to be decided, of what `disputes` say: marked items first, then those with labels furthest apart."""
    marked, passed = marks(c, project), passed_over(c, project)
    closed = (t.items.c.project_id == project.id) & t.items.c.state.in_(("decided", "withdrawn"))
    query = select(t.items.c.id).where(closed, t.items.c.purpose == "work")
    gone = set(c.execute(query).scalars()) | {item for item, upto in passed.items() if _newest(c, item) <= upto}
    known = {item: replace(disputes.get(item) or Dispute(item), mark=note) for item, note in marked.items()}
    found = [one for item, one in {**disputes, **known}.items() if item not in gone and one.reasons(threshold)]
    return sorted(found, key=lambda one: (one.mark is None, -one.differs, one.item))


def _newest(c: Connection, item: int) -> int:
    """The last row of an item's history."""
    return c.execute(select(func.max(t.labels.c.id)).where(t.labels.c.item_id == item)).scalar() or 0


# ---- marks, and what was passed over: rows of the audit log


def marks(c: Connection, project: Project) -> dict[int, str]:
    """Items that a lead has marked for another look, with what they wrote."""
    found: dict[int, str] = {}
    for row in _said(c, project, MARKED, UNMARKED):
        if row.what == MARKED:
            found[int(row.target)] = str((row.detail or {}).get("note", ""))
        else:
            found.pop(int(row.target), None)
    return found


def passed_over(c: Connection, project: Project) -> dict[int, int]:
    """Items that a lead left as they are, each with the last row of its history at that time: a newer one brings it
    back."""
    return {int(row.target): int(row.detail["upto"]) for row in _said(c, project, PASSED)}


def _said(c: Connection, project: Project, *what: str):  # type: ignore[no-untyped-def]
    query = select(t.audit.c.what, t.audit.c.target, t.audit.c.detail).where(t.audit.c.project_id == project.id)
    return c.execute(query.where(t.audit.c.what.in_(what)).order_by(t.audit.c.id)).all()


def log_of(c: Connection, project: Project, item: int) -> list[Entry]:
    """What leads did with an item, the newest first."""
    query = select(t.audit, t.users.c.name).outerjoin(t.users, t.users.c.id == t.audit.c.user_id)
    query = query.where(t.audit.c.project_id == project.id, t.audit.c.target == str(item), t.audit.c.what.in_(OF_ITEMS))
    rows = c.execute(query.order_by(t.audit.c.id.desc()))
    return [Entry(r.id, r.made_at, r.name, r.project_id, r.what, r.target, r.detail) for r in rows]


def mark(c: Connection, project: Project, item: int, by: User, note: str, now: float) -> None:
    """Marks an item for another look."""
    _own(c, project, item)
    audit.record(c, by, MARKED, str(item), {"note": note.strip()[:LONGEST]}, now, project)


def unmark(c: Connection, project: Project, item: int, by: User, now: float) -> None:
    """Takes the mark away."""
    _own(c, project, item)
    audit.record(c, by, UNMARKED, str(item), None, now, project)


def pass_over(c: Connection, project: Project, item: int, by: User, now: float) -> None:
    """Leaves an item as it is, until somebody says something new about it."""
    _own(c, project, item)
    audit.record(c, by, PASSED, str(item), {"upto": _newest(c, item)}, now, project)


def _own(c: Connection, project: Project, item: int, *users: int):  # type: ignore[no-untyped-def]
    """The item, locked, and before it what the project knows of these users, in the order in which annotators lock
    them. Raises MissingError where it is none of the project's, StaleError where it is no work."""
    members = (t.memberships.c.project_id == project.id) & t.memberships.c.user_id.in_(users)
    query = select(t.memberships.c.user_id).where(members).order_by(t.memberships.c.user_id)
    c.execute(query.with_for_update()).all()
    found = c.execute(select(t.items.c.project_id).where(t.items.c.id == item)).scalar()
    if found != project.id:
        raise MissingError(f"There is no item {item} in {project.name}.")
    row = places.locked(c, item)
    if row.purpose != "work":
        raise StaleError("This is an item of known answer, about which nothing is decided. Correct the file of them.")
    return row


# ---- decisions


def decide(
    c: Connection,
    project: Project,
    item: int,
    by: User,
    request: str,
    value: Mapping[str, Any],
    now: float,
    shown: Sequence[int] = (),
    seconds: float | None = None,
    known: int | None = None,
) -> Saved:
    """A lead's word on an item, which is then decided: nobody gets it any more, and its labels cannot be changed. A
    later decision supersedes it. The same request again changes nothing.

    `known` is the decision, as its label, that its maker saw (0: none), None: whichever there is.

    Raises LabelError where the value is none of the task's, GoneError where the item was withdrawn, StaleError where
    somebody else has decided it, or taken the decision back, in the meantime."""
    accounts.member(c, project, by, lock=True)
    row = _own(c, project, item)
    if row.state == "withdrawn":
        raise GoneError("The item was withdrawn: nothing can be decided about it.")
    before = select(t.labels.c.id, t.labels.c.slot_id, t.labels.c.value)
    said = c.execute(before.where(t.labels.c.user_id == by.id, t.labels.c.request == request)).first()
    if said is not None:
        return labels.save(c, said.slot_id, by, request, value, seconds, now)
    if known is not None and known != (there := decision(c, project, item)):
        raise StaleError(
            "Another lead has decided this item since you opened it. Look at what they say; what you save then "
            "supersedes it."
            if there
            else "The decision that you saw was taken back in the meantime. Load the page again."
        )
    if row.state == "decided":
        undecide(c, project, item, by, now)
    slot = _slot(c, project, row, by, shown, now)
    saved = labels.save(c, slot, by, request, value, seconds, now)
    places.change(c, places.locked(c, item), state="decided", lane=None, turn=None)
    audit.record(c, by, DECIDED, str(item), {"value": dict(value)}, now, project)
    return saved


def _slot(c: Connection, project: Project, item: Any, by: User, shown: Sequence[int], now: float) -> int:
    row = {
        "project_id": project.id,
        "item_id": item.id,
        "user_id": by.id,
        "definition_id": project.definition.id,
        "purpose": "adjudication",
        "number": 0,
        "state": "leased",
        "shown": list(shown or range(item.answers)),
        "leased_at": now,
        "leased_until": now + 60 * project.task.lease_minutes,
    }
    return t.made(c, t.slots, row)


def undecide(c: Connection, project: Project, item: int, by: User, now: float) -> None:
    """Takes a decision back: the item goes on where it was. Raises StaleError where there is none."""
    held = (t.slots.c.item_id == item) & (t.slots.c.project_id == project.id) & t.in_state(t.slots, "done")
    held &= t.slots.c.purpose == "adjudication"
    row = _own(c, project, item, *c.execute(select(t.slots.c.user_id).where(held)).scalars())
    if row.state != "decided":
        raise StaleError("Nothing is decided about this item, perhaps not any more.")
    places.change(c, row, state="open")
    for slot in c.execute(select(t.slots).where(held)).all():
        labels.reopen(c, slot, project, f"{labels.OWN}undecided {slot.label_id}", None, now)
        c.execute(update(t.slots).where(t.slots.c.id == slot.id).values(state="released", ended_at=now))
    places.settle(c, places.locked(c, item), project.task)
    audit.record(c, by, UNDECIDED, str(item), None, now, project)


def decision(c: Connection, project: Project, item: int) -> int:
    """The label of the decision that stands about an item; 0 where there is none."""
    mine = (t.slots.c.item_id == item) & (t.slots.c.project_id == project.id) & t.in_state(t.slots, "done")
    return c.execute(select(t.slots.c.label_id).where(mine, t.slots.c.purpose == "adjudication")).scalar() or 0


def last_decided(c: Connection, project: Project, by: User) -> int | None:
    """The item that somebody decided last, while that stands."""
    mine = (
        (t.labels.c.user_id == by.id) & (t.labels.c.project_id == project.id) & (t.labels.c.purpose == "adjudication")
    )
    mine &= t.slots.c.label_id == t.labels.c.id
    query = select(t.labels.c.item_id).join(t.slots, t.labels.c.slot_id == t.slots.c.id)
    found: int | None = c.execute(query.where(mine).order_by(t.labels.c.id.desc()).limit(1)).scalar()
    return found


def send_back(c: Connection, project: Project, label: int, by: User, reason: str, now: float) -> None:
    """Gives an answer back to its annotator, who gets the item again before all others, with the reason. The answer no
    longer counts, and stays in the history.

    Raises MissingError where there is no such answer, StaleError where it does not hold any more, or the item is
    decided; GoneError where that was withdrawn."""
    found = labels.label(c, label)
    _own(c, project, found.item, found.user)
    found = labels.label(c, label)  # as it is now that nobody changes it
    slot = c.execute(select(t.slots).where(t.slots.c.id == found.slot)).one()
    if found.action != "label" or slot.label_id != label or slot.state != "done" or slot.purpose == "adjudication":
        raise StaleError(
            "This answer does not hold any more: its annotator has changed it, or it was sent back before."
        )
    reason = " ".join(reason.split())[:LONGEST]
    labels.reopen(c, slot, project, f"{labels.OWN}sent back {label}", reason or "Please look at this once more.", now)
    until = now + 86_400 * BACK_DAYS
    c.execute(update(t.slots).where(t.slots.c.id == slot.id).values(leased_until=until))
    detail = {"label": label, "annotator": found.name, "reason": reason}
    audit.record(c, by, SENT_BACK, str(found.item), detail, now, project)
