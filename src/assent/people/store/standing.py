"""Who may work: screening before the work, and the share of right answers to gold items during it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, exists, func, select, update

from assent.foreign import printable
from assent.people.kinds import KINDS
from assent.people.store import audit
from assent.people.store import tables as t
from assent.people.store.records import Project, User

UNLOCKED = "annotator unlocked"


def screening(c: Connection, project: Project, user: User) -> Row[Any] | None:
    """The next screening item of somebody who has not passed; None where there are none left to give."""
    if project.task.screening is None:
        return None
    had = (t.slots.c.item_id == t.items.c.id) & (t.slots.c.user_id == user.id) & (t.slots.c.purpose == "screening")
    mine = exists().where(had, t.in_state(t.slots, "leased", "done", "skipped"))
    query = select(t.items).where(t.items.c.project_id == project.id, t.items.c.purpose == "screening")
    query = query.where(t.items.c.state != "withdrawn", ~mine).order_by(t.items.c.id).limit(1)
    return c.execute(query).first()


def judge(c: Connection, project: Project, user: User, purpose: str, now: float) -> str | None:
    """Looks at an annotator's answers to items of known answer after one more of them: says why they are locked out
    from now on, or None. Who passes the screening is let in to the work."""
    if purpose == "screening":
        return _screened(c, project, user, now)
    thresholds = project.task.thresholds
    if purpose != "gold" or thresholds.gold is None:
        return None
    right, given = known_answers(c, project, user, "gold", _let_in(c, project, user))
    if given < thresholds.at_least or _reaches(right, given, thresholds.gold):
        return None
    why = f"{right} of {given} items of known answer were right; this task needs {thresholds.gold:.0%}. Ask the lead."
    lock(c, project, user, None, why, now)
    return why


def _screened(c: Connection, project: Project, user: User, now: float) -> str | None:
    rules = project.task.screening
    there = select(func.count()).select_from(t.items).where(t.items.c.project_id == project.id)
    there = there.where(t.items.c.purpose == "screening", t.items.c.state != "withdrawn")
    right, given = known_answers(c, project, user, "screening")
    if rules is None or not given or given < min(rules.at_least, c.execute(there).scalar_one()):
        return None
    if _reaches(right, given, rules.threshold):
        c.execute(update(t.memberships).where(_of(project, user)).values(screened_at=now))
        audit.record(c, None, "screening passed", user.name, {"right": right, "of": given}, now, project)
        return None
    why = f"{right} of {given} screening items were right; this task needs {rules.threshold:.0%}. Ask the lead."
    lock(c, project, user, None, why, now)
    return why


def _reaches(right: int, given: int, least: float) -> bool:
    """Whether so many right ones are the share that is asked for; 0.56 of 25 are 14, whatever binary fractions say."""
    return right >= least * given - 1e-9


def _let_in(c: Connection, project: Project, user: User) -> float:
    """When a lead let an annotator in again, last; what they answered before is not held against them once more."""
    query = select(func.max(t.audit.c.made_at)).where(t.audit.c.project_id == project.id)
    found = c.execute(query.where(t.audit.c.what == UNLOCKED, t.audit.c.target == user.name)).scalar()
    return -1.0 if found is None else float(found)


def known_answers(c: Connection, project: Project, user: User, purpose: str, after: float = -1.0) -> tuple[int, int]:
    """How many of an annotator's answers to items of known answer, given `after` that time, are right, and of how many.
    A skip is no answer to a gold item; of the screening it is a wrong one."""
    query = select(t.labels.c.value, t.items.c.expected)
    query = query.join(t.slots, t.slots.c.label_id == t.labels.c.id).join(t.items, t.items.c.id == t.slots.c.item_id)
    states = ("done", "skipped") if purpose == "screening" else ("done",)
    mine = (t.slots.c.user_id == user.id) & (t.slots.c.project_id == project.id) & (t.slots.c.purpose == purpose)
    mine &= t.slots.c.ended_at > after
    rows = c.execute(query.where(mine, t.in_state(t.slots, *states), t.items.c.state != "withdrawn")).all()
    right = KINDS[project.kind].right
    known = [row.value is not None and right(row.value, row.expected, project.task) for row in rows]
    return sum(known), len(known)


def lock(c: Connection, project: Project, user: User, by: User | None, why: str, now: float) -> None:
    """Locks an annotator out of a project; what they hold goes back to the queue, what they answered stays."""
    why = printable(why)
    c.execute(update(t.memberships).where(_of(project, user)).values(locked_at=now, locked_why=why))
    held = (t.slots.c.user_id == user.id) & (t.slots.c.project_id == project.id) & t.in_state(t.slots, "leased")
    c.execute(update(t.slots).where(held).values(leased_until=now))
    audit.record(c, by, "annotator locked", user.name, {"why": why}, now, project)


def unlock(c: Connection, project: Project, user: User, by: User | None, now: float) -> None:
    """Lets an annotator in again, past the screening, too."""
    values = {"locked_at": None, "locked_why": None, "screened_at": now}
    c.execute(update(t.memberships).where(_of(project, user)).values(values))
    audit.record(c, by, UNLOCKED, user.name, None, now, project)


def _of(project: Project, user: User):  # type: ignore[no-untyped-def]
    return (t.memberships.c.project_id == project.id) & (t.memberships.c.user_id == user.id)
