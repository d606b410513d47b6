"""Eight annotators write to one database from processes of their own, which are killed at any moment: nothing that was
acknowledged is lost, and nothing is there twice.

`ASSENT_LABEL_SECONDS=300 ASSENT_LABEL_ITEMS=20000` runs it for longer; with `ASSENT_POSTGRES` on that server."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from assent.people.store import Store, accounts, drafts, items, labels, projects, queue
from assent.people.store import tables as t
from assent.people.store.errors import BusyError, LeaseError, MissingError, StaleError
from assent.people.store.records import Slot, Waiting
from tests.labelling import BETTER, START, item, opened, task

SECONDS = float(os.environ.get("ASSENT_LABEL_SECONDS", 5))
ITEMS = int(os.environ.get("ASSENT_LABEL_ITEMS", 40))
USERS, OVERLAP, GOLD = 8, 3, 10
FAST = 600
"""Seconds of a lease's time that pass in a second."""


def now() -> float:
    return START + time.time() % 1e8 * FAST


# ---- one annotator


class Annotator:
    """Works as `name`, and writes into a journal what it is about to send and what was acknowledged."""

    def __init__(self, database: str, name: str, journal: Path) -> None:
        self.store = Store.open(database)
        self.random = random.Random()
        with self.store.reading() as c:
            self.project = projects.project(c, "pairs")
            self.user = accounts.user(c, name)
        self.journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        pending = {}
        for entry in entries(journal):
            pending = pending if "busy" in entry else {} if entry["said"] == "done" else entry
        if pending:
            self.send(pending)

    def note(self, **entry: Any) -> dict[str, Any]:
        os.write(self.journal, (json.dumps(entry) + "\n").encode())
        return entry

    def send(self, entry: dict[str, Any]) -> None:
        """Sends a request, perhaps not for the first time."""
        key, request = entry.get("slot"), entry["request"]
        try:
            with self.store.writing() as c:
                if entry["said"] == "label":
                    labels.save(c, key, self.user, request, entry["value"], 1.0, now())
                elif entry["said"] == "skip":
                    labels.skip(c, key, self.user, request, "unclear", now())
                else:
                    labels.undo(c, self.user, self.project, request, now())
        except BusyError:
            self.note(busy=request)
            self.send(entry)
        except (LeaseError, StaleError, MissingError) as error:
            self.note(said="done", refused=type(error).__name__, request=request)
        else:
            self.note(said="done", request=request)

    def step(self) -> bool:
        """Does something; False where nothing is left."""
        try:
            return self.act()
        except BusyError:  # nothing was done
            self.note(busy="")
            return True

    def act(self) -> bool:
        drawn = self.random.random()
        request = f"{self.user.id}-{os.getpid()}-{time.monotonic_ns()}"
        if drawn < 0.04:
            self.send(self.note(said="undo", request=f"{request}-undo"))
        with self.store.writing() as c:
            slot = queue.next_slot(c, self.project, self.user, now())
        if isinstance(slot, Waiting):
            time.sleep(0.05)
            return slot.reason != "done"
        if drawn > 0.97:
            with self.store.writing() as c:
                queue.release(c, slot.id, self.user, now())
            return True
        if drawn > 0.93:  # goes away with it
            time.sleep(self.random.random() * 6 * 60 * self.project.task.lease_minutes / FAST / 3)
        if drawn > 0.90:
            with self.store.writing() as c:
                drafts.keep_draft(c, slot.id, self.user, {"comment": "so far"}, now())
        entry = self.note(
            said="skip" if 0.04 < drawn < 0.06 else "label", slot=slot.id, request=request, value=said(slot)
        )
        self.send(entry)
        if self.random.random() < 0.1:
            self.send(entry)  # a click too much
        return True


def said(slot: Slot) -> dict[str, Any]:
    return BETTER | {"comment": f"of item {slot.item.id}"}


def annotate(database: str, name: str, journal: str, until: float) -> None:
    """The process of an annotator."""
    worker = Annotator(database, name, Path(journal))
    while worker.step() if until == 0 else time.time() < until:
        if until:
            worker.step()


def entries(journal: Path) -> Iterator[dict[str, Any]]:
    """The journal's lines; the last may be cut."""
    lines = journal.read_text().split("\n") if journal.exists() else []
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            assert line == lines[-1] or not line or '"said"' not in line.rpartition("{")[2]


# ---- all of them


@pytest.mark.slow
def test_eight_writers_that_are_killed_lose_and_duplicate_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "labels.db") as store:
        database = store.engine.url.render_as_string(hide_password=False)
        names = prepared(store)
    killed = 0
    fork = multiprocessing.get_context("fork")

    def start(name: str, until: float) -> Any:
        process = fork.Process(target=annotate, args=(database, name, str(tmp_path / name), until))
        process.start()
        return process

    end = time.time() + SECONDS
    running = {name: start(name, math.inf) for name in names}
    try:
        while time.time() < end or killed < SECONDS / 2:
            time.sleep(random.random() * 0.4)
            name = random.choice(names)
            os.kill(running[name].pid, signal.SIGKILL)
            running[name].join()
            killed += running[name].exitcode == -signal.SIGKILL
            running[name] = start(name, math.inf)
        for process in running.values():
            process.kill()
            process.join()
        running = {name: start(name, 0 if ITEMS <= 1000 else time.time()) for name in names}  # to the end of all of it
        finished(running)
    finally:
        for process in running.values():
            process.kill()
            process.join()
    with Store.open(database) as store:
        found = check(store, {name: list(entries(tmp_path / name)) for name in names})
        if ITEMS <= 1000:
            assert found["done"] == ITEMS, found
    print(f"{killed} kills, {found}")


def finished(running: dict[str, Any]) -> None:
    for process in running.values():
        process.join(SECONDS + 300)
        assert process.exitcode == 0


def prepared(store: Store) -> list[str]:
    names = [f"annotator {i}" for i in range(USERS)]
    with store.writing() as c:
        options = {"overlap": OVERLAP, "gold": "g", "gold_share": 0.05, "second_pass": 0.05}
        project = projects.put_project(c, task(**options))
        items.add_items(c, project, (item(i) for i in range(ITEMS)))
        items.add_items(c, project, [item(10**6 + i) for i in range(GOLD)], "gold", [BETTER] * GOLD)
        for name in names:
            accounts.add_member(c, project, accounts.add_user(c, name, None, "annotator", None), "annotator", None)
    return names


def check(store: Store, journals: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """What must hold of the database, and of what was acknowledged."""
    with store.reading() as c:
        if c.dialect.name == "sqlite":
            assert c.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert c.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        history = c.execute(select(t.labels).order_by(t.labels.c.id)).all()
        slots = c.execute(select(t.slots)).all()
        stored = c.execute(select(t.items)).all()
        members = c.execute(select(t.memberships)).all()
        names = {user.name: user.id for user in accounts.users(c)}
        assert c.execute(select(func.count()).select_from(t.items)).scalar() == ITEMS + GOLD
        size, finished = c.execute(select(t.projects.c.size, t.projects.c.finished)).one()
        assert (size, finished) == (ITEMS, sum(row.state == "done" and row.purpose == "work" for row in stored))
    check_slots(slots, stored)
    check_history(history, slots)
    done = Counter(slot.user_id for slot in slots if slot.state == "done")
    assert {member.user_id: member.done for member in members} == {key: done[key] for key in names.values()}
    by_request = {(row.user_id, row.request): row for row in history}
    acknowledged = refused = busy = 0
    for name, lines in journals.items():
        busy += sum("busy" in line for line in lines)
        lines = [line for line in lines if "said" in line]
        sent = {line["request"]: line for line in lines if line["said"] != "done"}
        for line in lines:
            if line["said"] != "done":
                continue
            row = by_request.get((names[name], line["request"]))
            if "refused" in line:
                refused += 1
                continue
            acknowledged += 1
            assert row is not None, f"lost: {line}"
            assert row.action == sent[line["request"]]["said"]
            if row.action == "label":
                assert row.value == sent[line["request"]]["value"]
        assert {request for user, request in by_request if user == names[name]} <= set(sent)
    states = Counter(row.state for row in stored if row.purpose == "work")
    return {"labels": len(history), "acknowledged": acknowledged, "refused": refused, "busy": busy} | dict(states)


def check_slots(slots: list[Any], stored: list[Any]) -> None:
    """Never more than the overlap, nobody twice, and counts that are true."""
    live, known = defaultdict(list), Counter()
    for slot in slots:
        if slot.purpose == "work" and slot.state in ("leased", "done"):
            live[slot.item_id].append(slot)
        known[slot.item_id, slot.user_id, slot.purpose] += slot.state in ("leased", "done", "skipped")
    assert max(known.values()) == 1
    for row in stored:
        if row.purpose != "work":
            continue
        taken = live[row.id]
        assert len(taken) <= OVERLAP == row.wanted
        assert sorted(slot.number for slot in taken) == sorted({slot.number for slot in taken})
        assert row.taken == len(taken) and row.done == sum(slot.state == "done" for slot in taken)
        assert (row.lane is not None) == (row.taken < row.wanted) == (row.state == "open")


def check_history(history: list[Any], slots: list[Any]) -> None:
    """Each slot's rows follow from one another, and the last says what the slot says."""
    rows = defaultdict(list)
    for row in history:
        rows[row.slot_id].append(row)
    for slot in slots:
        mine = rows.pop(slot.id, [])
        assert [row.supersedes for row in mine] == [None, *(row.id for row in mine)][: len(mine)]
        assert all(row.user_id == slot.user_id and row.item_id == slot.item_id for row in mine)
        assert all((row.action == "undo") == bool(place % 2) for place, row in enumerate(mine))
        last = mine[-1] if mine else None
        state = {"label": "done", "skip": "skipped", "undo": None}[last.action] if last else None
        assert slot.state == state if state else slot.state in ("leased", "lapsed", "released")
        assert slot.label_id == (last.id if state and last else None)
        assert all(row.value["comment"] == f"of item {row.item_id}" for row in mine if row.action == "label")
    assert not rows
