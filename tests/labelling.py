"""A database of labels for tests: a task, items, people, and what they do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from assent.data.records import Message
from assent.people.store import Store, accounts, items, labels, projects, queue
from assent.people.store.records import Project, Slot, User
from assent.people.task import Item, TaskDefinition

START = 1_800_000_000.0
BETTER = {"verdict": "better", "better": 0, "strength": 2}


def task(**options: Any) -> TaskDefinition:
    return TaskDefinition(**{"name": "pairs", "kind": "pair", "items": "items.jsonl"} | options)


def item(number: int, **options: Any) -> Item:
    prompt = (Message("user", f"Question {number}?"),)
    return Item(prompt=prompt, responses=(f"yes {number}", f"no {number}"), **options)


def opened(path: Path) -> Store:
    """A database at the path; where ASSENT_POSTGRES names a server, a new one there instead."""
    if not (server := os.environ.get("ASSENT_POSTGRES")):
        return Store.open(path)
    name = f"labels_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    url = make_url(server).set(drivername="postgresql+psycopg")
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as c:
        c.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        c.execute(text(f"CREATE DATABASE {name}"))
    return Store.open(url.set(database=name).render_as_string(hide_password=False))


def made(
    path: Path, count: int = 5, users: int = 3, store: Store | None = None, **options: Any
) -> tuple[Store, Project, list[User]]:
    """A database with a project of `count` items and its annotators."""
    store = store or opened(path)
    with store.writing() as c:
        project = projects.put_project(c, task(**options), now=START)
        items.add_items(c, project, (item(i) for i in range(count)), now=START)
        people = [accounts.add_user(c, f"annotator {i}", None, "annotator", None, START) for i in range(users)]
        for user in people:
            accounts.add_member(c, project, user, "annotator", None, START)
    return store, project, people


def take(store: Store, project: Project, user: User, now: float = START) -> Slot:
    """The user's next slot, which there must be."""
    with store.writing() as c:
        slot = queue.next_slot(c, project, user, now)
    assert isinstance(slot, Slot), slot
    return slot


def answer(
    store: Store, slot: Slot, user: User, value: Mapping[str, Any] = BETTER, now: float = START, request: str = ""
) -> int:
    """Saves an answer to the slot; its label."""
    with store.writing() as c:
        return labels.save(c, slot.id, user, request or f"{slot.id} {now}", value, 1.0, now).label


def work(store: Store, project: Project, user: User, value: Mapping[str, Any] = BETTER, now: float = START) -> Slot:
    """Takes the next slot and answers it."""
    slot = take(store, project, user, now)
    answer(store, slot, user, value, now)
    return slot
