"""A task whose answers mean something else from now on: what was answered before is kept and counts no more, and its
items are asked again; back at an earlier meaning, its own answers count again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, case, delete, func, select, update

from assent.people.items import item_of
from assent.people.kinds import KINDS, LabelError
from assent.people.store import places
from assent.people.store import tables as t
from assent.people.task import ANSWERS, TaskDefinition

OLD_ANSWER = "its known answer is of an earlier version of the task"
"""Why an item of known answer is out: it comes back once the new version's answer to it is added."""


def change(c: Connection, project: int, task: TaskDefinition, now: float) -> None:
    """Brings slots, items and memberships of a project to a task of another meaning than the one before. The project is
    locked."""
    alike = select(t.definitions.c.id).where(
        t.definitions.c.project_id == project, t.definitions.c.meaning == task.meaning
    )
    mine = t.slots.c.project_id == project
    held = mine & t.in_state(t.slots, "leased", "done", "skipped") & t.slots.c.definition_id.not_in(alike)
    ended = func.coalesce(t.slots.c.ended_at, now)
    c.execute(update(t.slots).where(held).values(state="lapsed", ended_at=ended))
    action = select(t.labels.c.action).where(t.labels.c.id == t.slots.c.label_id).scalar_subquery()
    again = mine & t.in_state(t.slots, "lapsed") & t.slots.c.label_id.is_not(None) & t.slots.c.definition_id.in_(alike)
    c.execute(update(t.slots).where(again).values(state=case((action == "skip", "skipped"), else_="done")))
    mine_too = select(t.items.c.id).where(t.items.c.project_id == project)
    c.execute(delete(t.drafts).where(t.drafts.c.item_id.in_(mine_too)))  # which no form of the new task could show
    _items(c, project, task, now)
    places.count_anew(c, project)
    done = select(func.count()).select_from(t.slots).where(mine, t.in_state(t.slots, "done"))
    done = done.where(t.slots.c.user_id == t.memberships.c.user_id).correlate(t.memberships)
    values = {"done": done.scalar_subquery(), "cursor_0": 0, "cursor_1": 0}
    c.execute(update(t.memberships).where(t.memberships.c.project_id == project).values(values))


def _items(c: Connection, project: int, task: TaskDefinition, now: float) -> None:
    """Takes out what such a task cannot ask, and counts all others anew."""
    query = select(t.items).where(t.items.c.project_id == project, t.items.c.state != "withdrawn")
    decided = select(t.slots.c.item_id).where(t.slots.c.project_id == project, t.slots.c.purpose == "adjudication")
    stand = set(c.execute(decided.where(t.in_state(t.slots, "done"))).scalars())
    for item in c.execute(query.order_by(t.items.c.id)).all():
        if (why := _unfit(c, item, task)) is not None:
            places.withdraw(c, item, why, now)
        elif item.purpose == "work" and (item.taken or item.skips or item.state == "decided" or item.id in stand):
            state = {"state": "decided", "lane": None, "turn": None} if item.id in stand else {"state": "open"}
            c.execute(update(t.items).where(t.items.c.id == item.id).values(state))
            places.settle(c, places.locked(c, item.id), task)


def _unfit(c: Connection, item: Any, task: TaskDefinition) -> str | None:
    """Why an item is none of such a task."""
    fewest, most = ANSWERS[task.kind]
    if not fewest <= item.answers <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        return f"it has {item.answers} answers, and a task of kind {task.kind} shows {wanted}"
    if item.purpose == "work":
        return None
    payload = c.execute(select(t.contents.c.payload).where(t.contents.c.item_id == item.id)).scalar_one()
    answer = {name: value for name, value in item.expected.items() if name != "strength"}
    try:
        KINDS[task.kind].check(answer, item_of(payload), places.of_known(task))
    except LabelError:
        return OLD_ANSWER
    return None


def renewed(c: Connection, known: Sequence[Any], answers: dict[str, Any]) -> int:
    """Gives items of known answer the answers that are known now, by key; of how many they are others than before."""
    count = 0
    for item in known:
        if item.key in answers and item.expected != answers[item.key]:
            values: dict[str, Any] = {"expected": answers[item.key]}
            if item.state == "withdrawn" and item.withdrawn_why == OLD_ANSWER:
                values |= {"state": "open", "withdrawn_at": None, "withdrawn_why": None}
            c.execute(update(t.items).where(t.items.c.id == item.id).values(values))
            count += 1
    return count
