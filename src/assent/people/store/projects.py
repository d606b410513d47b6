"""Projects: tasks by name, in versions."""

from __future__ import annotations

import functools

from sqlalchemy import Connection, Row, func, select, update

from assent.foreign import printable
from assent.people.store import audit, places, versions
from assent.people.store import tables as t
from assent.people.store.errors import ChangedError, MissingError
from assent.people.store.records import Definition, Project, User, clock
from assent.people.task import TaskDefinition, changes
from assent.people.taskfile import dump_task, load_task


@functools.lru_cache(maxsize=64)
def _task(digest: str, body: str) -> TaskDefinition:
    return load_task(body, "the task in the database")


def put_project(
    c: Connection,
    task: TaskDefinition,
    by: User | None = None,
    now: float | None = None,
    new_version: bool = False,
) -> Project:
    """The project of a task: made, or brought to this definition of it.

    Raises ChangedError where the definition means something else by a label than the labels that there are, unless
    `new_version` says that they stay as those of the version before."""
    query = select(t.projects).where(t.projects.c.name == task.name)
    row = c.execute(query).first()
    if row is not None:
        before = project_of(c, row.id)
        if _wanted(before.task) != _wanted(task) or before.definition.meaning != task.meaning:
            # items are locked first, as everybody does
            every = select(t.items.c.id).where(t.items.c.project_id == row.id).order_by(t.items.c.id)
            c.execute(every.with_for_update()).all()
        row = c.execute(query.with_for_update(key_share=True)).one()
    if row is None:
        start = {"name": task.name, "kind": task.kind, "seed": task.seed, "made_at": clock(now)}
        key = t.made(c, t.projects, start)
        _add_version(c, key, 1, task, now)
        audit.record(c, by, "project made", task.name, {"digest": task.digest}, now, key)
        return project_of(c, key)
    old = project_of(c, row.id)
    if old.definition.digest == task.digest:
        return old
    found = changes(old.task, task)
    labelled = c.execute(select(t.labels.c.id).where(t.labels.c.project_id == row.id).limit(1)).first()
    if found.meaning and labelled and not new_version:
        raise ChangedError(
            f"The task {task.name} has labels, and {', '.join(found.meaning)} changed what they mean. Give the task a "
            "new name, or --new_version: then labels of before are kept as those of the version before."
        )
    _add_version(c, row.id, old.definition.version + 1, task, now)
    c.execute(update(t.projects).where(t.projects.c.id == row.id).values(kind=task.kind))
    if old.definition.meaning != task.meaning:
        versions.change(c, row.id, task, clock(now))
        row = c.execute(select(t.projects).where(t.projects.c.id == row.id)).one()
    if _wanted(old.task) != _wanted(task):
        _change_overlap(c, row.id, task, row.turn)
    changed = {"meaning": found.meaning, "presented": found.presented, "run": found.run}
    detail = {"version": old.definition.version + 1, "digest": task.digest, **{k: list(v) for k, v in changed.items()}}
    audit.record(c, by, "task changed", task.name, detail, now, row.id)
    return project_of(c, row.id)


def _wanted(task: TaskDefinition) -> object:
    """What decides how many annotators an item wants."""
    return task.overlap, task.extra


def _add_version(c: Connection, project: int, version: int, task: TaskDefinition, now: float | None) -> None:
    row = {"project_id": project, "version": version, "digest": task.digest, "meaning": task.meaning}
    row |= {"body": dump_task(task), "made_at": clock(now)}
    key = t.made(c, t.definitions, row)
    c.execute(update(t.projects).where(t.projects.c.id == project).values(definition_id=key))


def _change_overlap(c: Connection, project: int, task: TaskDefinition, turn: int) -> None:
    """Items without an overlap of their own want as many annotators as the task says now, but no fewer than they have.
    Those that are open again stand in the first lane, in their order. Where the task asks for more annotators of some
    items, these are looked at one by one."""
    overlap = task.overlap
    mine = (
        (t.items.c.project_id == project)
        & (t.items.c.purpose == "work")
        & t.items.c.state.in_(("open", "full", "done"))
    )
    own = mine & t.items.c.overlap.is_(None)
    wanted = func.max if c.dialect.name == "sqlite" else func.greatest
    c.execute(update(t.items).where(own).values(wanted=wanted(t.items.c.taken, overlap)))
    full = own & (t.items.c.taken >= t.items.c.wanted)
    c.execute(update(t.items).where(full).values(lane=None, turn=None, state="full"))
    c.execute(update(t.items).where(full, t.items.c.done >= t.items.c.wanted).values(state="done"))
    again = own & (t.items.c.taken < t.items.c.wanted) & t.items.c.lane.is_(None)
    c.execute(update(t.items).where(again).values(lane=0, turn=turn + t.items.c.id, state="open"))
    highest = c.execute(select(func.max(t.items.c.id)).where(t.items.c.project_id == project)).scalar() or 0
    c.execute(update(t.projects).where(t.projects.c.id == project).values(turn=turn + highest))
    places.count_anew(c, project)
    if task.extra is not None:
        heard = mine & (t.items.c.done >= func.coalesce(t.items.c.overlap, overlap))
        for key in c.execute(select(t.items.c.id).where(heard).order_by(t.items.c.id)).scalars().all():
            places.settle(c, places.locked(c, key), task)


def _joined():  # type: ignore[no-untyped-def]
    found = select(
        t.projects.c.id,
        t.projects.c.name,
        t.projects.c.kind,
        t.projects.c.seed,
        t.projects.c.made_at,
        t.definitions.c.id.label("definition"),
        t.definitions.c.version,
        t.definitions.c.digest,
        t.definitions.c.meaning,
        t.definitions.c.body,
        t.definitions.c.made_at.label("defined_at"),
    )
    return found.join(t.definitions, t.definitions.c.id == t.projects.c.definition_id)


def _project(r: Row[tuple[object, ...]]) -> Project:
    task = _task(r.digest, r.body)
    definition = Definition(r.definition, r.id, r.version, r.digest, r.meaning, task, r.defined_at)
    return Project(r.id, r.name, r.kind, r.seed, definition, r.made_at)


def project_of(c: Connection, key: int) -> Project:
    """The project of an id."""
    return _project(c.execute(_joined().where(t.projects.c.id == key)).one())


def project(c: Connection, name: str) -> Project:
    """The project of a name. Raises MissingError."""
    row = c.execute(_joined().where(t.projects.c.name == printable(name))).first()
    if row is None:
        raise MissingError(f"There is no project '{name}'.")
    return _project(row)


def projects(c: Connection, user: User | None = None) -> list[Project]:
    """All projects, or those that a user works in; of an admin, all."""
    query = _joined().order_by(t.projects.c.id)
    if user is not None and user.role != "admin":
        query = query.join(t.memberships, t.memberships.c.project_id == t.projects.c.id)
        query = query.where(t.memberships.c.user_id == user.id)
    return [_project(row) for row in c.execute(query)]


def definition(c: Connection, key: int) -> Definition:
    """The definition of an id."""
    return _definition(c.execute(select(t.definitions).where(t.definitions.c.id == key)).one())


def definitions(c: Connection, project: Project) -> list[Definition]:
    """All versions of a project's task, the newest first."""
    query = select(t.definitions).where(t.definitions.c.project_id == project.id)
    return [_definition(r) for r in c.execute(query.order_by(t.definitions.c.version.desc()))]


def _definition(r: Row[tuple[object, ...]]) -> Definition:
    return Definition(r.id, r.project_id, r.version, r.digest, r.meaning, _task(r.digest, r.body), r.made_at)
