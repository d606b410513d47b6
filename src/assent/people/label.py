"""`assent label`: the annotation server, from its task files to the last answer; and what is done to its database from
the command line."""

from __future__ import annotations

import importlib.util
import logging
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from assent.config import LabelConfig
from assent.config.serve import is_loopback
from assent.errors import ConfigError, UserError
from assent.names import suggestion

if TYPE_CHECKING:
    from assent.people.store import Store
    from assent.people.store.records import Project
    from assent.people.task import TaskDefinition

log = logging.getLogger(__name__)

NEEDED = (
    "alembic", "argon2", "fastapi", "latex2mathml", "markdown_it", "mdit_py_plugins", "nh3", "pygments",
    "python_multipart", "sqlalchemy", "uvicorn",
)  # fmt: skip
FIRST_DAYS = 2.0
"""How long the link for the first lead holds."""


def label(config: LabelConfig) -> None:
    """Serves until it is asked to stop, or does the one thing that an option asks for.

    Raises ConfigError where the extra is not installed, an address cannot be had, or a project is not there; DataError
    for tasks and items that cannot be used; StoreError for the database; DrainError where requests were left."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"assent label needs {', '.join(missing)}. Install it with: pip install 'assent[people]'")
    from assent.people.store import Store

    if config.backup is not None:
        with Store.open(config.db, create=False) as store:
            store.backup(config.backup)
        log.info(f"{config.backup}: a copy of {config.db}, as it was at one moment")
        return
    action = next((do for name, do in ACTIONS.items() if getattr(config, name) is not None), None)
    tasks = _tasks(config)
    if action is not None:
        with Store.open(config.db, create=bool(tasks)) as store:
            action(config, store, _project(config, store, tasks))
        return
    _serve(config, tasks)


def _tasks(config: LabelConfig) -> list[TaskDefinition]:
    from assent.people.taskfile import read_task

    tasks = [read_task(file) for file in config.tasks]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{' '.join(config.tasks)}: two tasks are named '{twice}'. A name stands for one project.")
    return tasks


def _project(config: LabelConfig, store: Store, tasks: list[TaskDefinition]) -> Project:
    """The project that an action is about, as its file defines it where that is given. Raises ConfigError."""
    from assent.people.store import projects

    with store.writing() as c:
        for task in tasks:
            projects.put_project(c, task, new_version=config.new_version)
        known = {each.name: each for each in projects.projects(c)}
    if config.project is not None:
        name = config.project
    elif len(tasks) == 1 or (not tasks and len(known) == 1):
        name = tasks[0].name if tasks else next(iter(known))
    else:
        there = f"There are: {', '.join(known)}." if known else f"{config.db} has none yet: give a task's file."
        raise ConfigError(f"Which project is meant? Say it with --project NAME. {there}")
    if name not in known:
        raise ConfigError(f"--project {name}: there is none of this name in {config.db}.{suggestion(name, known)}")
    return known[name]


# ---- one thing


def _export(config: LabelConfig, store: Store, project: Project) -> None:
    from assent.people import exchange, stored

    assert config.export is not None
    format = config.format or "assent"
    with store.reading() as c:
        found = exchange.export(stored.chosen(c, project, config.of), project.task, format, config.export)
    with store.writing() as c:
        stored.note_export(c, project, format, config.of, len(found.rows))
    log.info(f"{config.export}: {len(found.rows):,} rows of {project.name}")


def _load(config: LabelConfig, store: Store, project: Project) -> None:
    from assent.people import exchange, stored

    assert config.load is not None
    read = exchange.read(config.load, project.task, config.format or "auto")
    for problem in read.problems[:10]:
        log.warning(f"{problem}")
    if (more := len(read.problems) - 10) > 0:
        log.warning(f"{config.load}: and {more:,} more rows or labels that cannot be used")
    with store.writing() as c:
        taken = stored.add(c, project, read)
        stored.note_import(c, project, Path(config.load).name, taken)
    log.info(f"{project.name}: {taken.words} from {config.load}")


def _invite(config: LabelConfig, store: Store, project: Project) -> None:
    from assent.people.store import sessions

    assert config.invite is not None
    with store.writing() as c:
        word = sessions.invite(c, project, config.invite, None, uses=config.uses, days=config.days)
    people = "one person" if config.uses == 1 else f"{config.uses:,} people"
    log.info(f"Lets {people} in as {config.invite} of {project.name}, for {config.days:g} days:")
    print(f"{_base(config)}/join/{word}", flush=True)


def _machine(config: LabelConfig, store: Store, project: Project) -> None:
    from assent.people.store import accounts, sessions
    from assent.people.store.errors import MissingError

    assert config.machine is not None
    with store.writing() as c:
        try:
            user = accounts.user(c, config.machine)
        except MissingError:
            user = accounts.add_user(c, config.machine, None, "judge", None)
        if user.role != "judge":
            raise UserError(f"--machine {config.machine}: that is a person's account. Choose another name.")
        accounts.add_member(c, project, user, "judge", None)
        word = sessions.api_token(c, user, None)
    log.info(f"The token of {user.name} for {project.name}, as the header Authorization: Bearer TOKEN:")
    print(word, flush=True)


ACTIONS = {"export": _export, "load": _load, "invite": _invite, "machine": _machine}


def _base(config: LabelConfig) -> str:
    """How links of this server begin."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return (config.public_url or f"http://{host}:{config.port}").rstrip("/")


# ---- the server


def _serve(config: LabelConfig, tasks: list[TaskDefinition]) -> None:
    from assent.people.store import Store
    from assent.serve.run import listener, url_of

    with listener(config.host, config.port) as place, Store.open(config.db) as store:
        from assent.people.web.app import application
        from assent.serve.server import run

        for task in tasks:
            _prepare(config, store, task)
        url = (config.public_url or url_of(place)).rstrip("/")
        names = () if is_loopback(config.host) else (config.host, socket.gethostname())
        app = application(store, hosts=names, public_url=config.public_url or "")
        run(app, place, app, config.drain, lambda: _introduce(config, store, url))


def _prepare(config: LabelConfig, store: Store, task: TaskDefinition) -> None:
    """A task's project, with its items."""
    from assent.people import sources, stored
    from assent.people.store import items, projects

    with store.writing() as c:
        project = projects.put_project(c, task, new_version=config.new_version)
    with store.reading() as c:
        known = {sources.prompt_key(item) for item in stored.work(c, project)} if task.policies else set()
    counts: dict[str, tuple[int, int]] = {}
    for batch in sources.batches(task, known):
        with store.writing() as c:
            added = items.add_items(c, project, batch.items, batch.purpose, batch.expected)
        new, old = counts.get(batch.purpose, (0, 0))
        counts[batch.purpose] = (new + added.new, old + added.known)
    for purpose, (new, old) in counts.items():
        log.info(f"{task.name}: {new:,} new items ({purpose}), {old:,} that were there")


def _introduce(config: LabelConfig, store: Store, url: str) -> None:
    from assent.people.store import projects

    if not is_loopback(config.host) and not (config.public_url or "").startswith("https:"):
        log.warning(
            f"--host {config.host} is reached by other machines, and passwords go there unencrypted. Put a proxy with "
            "TLS before the server, and give its address: --public_url https://NAME"
        )
    with store.reading() as c:
        names = [each.name for each in projects.projects(c)]
    log.info(f"Labels are in {store.name}; projects: {', '.join(names) or 'none yet'}")
    if (word := _first_link(store)) is not None:
        log.info(f"Nobody has an account yet. This link makes the first lead's, once: {url}/join/{word}")
    log.info(f"Open {url} (Ctrl-C stops it)")
    with suppress(OSError, ValueError):
        print(url, flush=True)


def _first_link(store: Store) -> str | None:
    """A new link for the first lead where there is no account; older ones hold no longer."""
    from sqlalchemy import update

    from assent.people.store import accounts, sessions
    from assent.people.store import tables as t

    with store.writing() as c:
        if accounts.any_user(c):
            return None
        held = (t.invitations.c.role == "admin") & t.invitations.c.made_by.is_(None)
        c.execute(update(t.invitations).where(held).values(revoked_at=time.time()))
        return sessions.invite(c, None, "admin", None, days=FIRST_DAYS)
