"""The label server is killed while annotators save: what it has acknowledged is there once, and work goes on."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from assent import http
from assent.data.formats import to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Response
from assent.lab.labellers import CROWD, Desk, Given
from assent.lab.world import AssistantWorld
from assent.people.store import Store, accounts, projects, sessions
from assent.people.store import tables as t
from tests.labserver import LabelProcess

ITEMS, OVERLAP, AT_WORK = 40, 3, 5
KILLED = (15, 50, 90)
"""After how many labels, of 120."""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    world, rng, rows = AssistantWorld(0), np.random.default_rng(0), {}
    while len(rows) < ITEMS:
        prompt = world.draw_prompt(rng)
        texts = [world.respond(prompt, style, rng) for style in ("full", "rude")]
        rows[prompt] = Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts))
    (tmp_path / "items.jsonl").write_text("".join(json_line(to_row(row)) for row in rows.values()))
    file = tmp_path / "task.yaml"
    file.write_text(f"name: pairs\nkind: pair\nitems: {tmp_path / 'items.jsonl'}\noverlap: {OVERLAP}\n")
    return file


def test_what_was_acknowledged_before_a_kill_is_there_once(task: Path, tmp_path: Path, children) -> None:
    with LabelProcess(children, tmp_path, task) as server:
        with Store.open(server.db) as store, store.writing() as c:
            project = projects.project(c, "pairs")
            desks = []
            for labeller in CROWD[:AT_WORK]:
                user = accounts.add_user(c, labeller.name, None, "judge", None)
                accounts.add_member(c, project, user, "judge", None)
                token = sessions.api_token(c, user, None)
                desks.append(Desk(labeller, server.url, "pairs", token, AssistantWorld(0), 0, budget=600.0))
        given: list[Given] = []
        enough, over = threading.Event(), threading.Event()
        left = [*KILLED]

        async def all_of(desk: Desk) -> None:
            while (one := await desk.label()) is not None:
                given.append(one)
                if left and len(given) >= left[0]:
                    left.pop(0)
                    enough.set()

        def at_work() -> None:
            try:
                http.run(http.together([lambda desk=desk: all_of(desk) for desk in desks], AT_WORK))
            finally:
                over.set()
                enough.set()

        thread = threading.Thread(target=at_work)
        thread.start()
        kills = 0
        while enough.wait(600) and not over.is_set():
            enough.clear()
            assert server.kill() == -9  # while the others' requests are under way
            kills += 1
            server.start()
        thread.join(600)
        assert kills == len(KILLED) and over.is_set()
        with Store.open(server.db) as store, store.reading() as c:
            rows = c.execute(select(t.labels, t.users.c.name).join(t.users, t.users.c.id == t.labels.c.user_id)).all()
    there = {(row.name, row.request): row for row in rows}
    assert len(there) == len(rows) == len(given) == ITEMS * OVERLAP
    for one in given:
        row = there[one.name, one.request]
        assert (row.slot_id, row.value, row.action) == (one.slot, dict(one.value), "label")
    assert set(Counter(row.item_id for row in rows).values()) == {OVERLAP}
    assert set(Counter((row.item_id, row.user_id) for row in rows).values()) == {1}
