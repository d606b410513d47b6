"""What the machine does to a database of labels: no room, many threads, a killed server, an image of a crash."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event, select

from assent.people.store import Store, items, labels, queue
from assent.people.store import tables as t
from assent.people.store.errors import RoomError
from assent.people.store.records import Slot
from tests.labelling import BETTER, START, answer, made, take, work

sqlite_only = pytest.mark.skipif("ASSENT_POSTGRES" in os.environ, reason="about files")


def in_child(does: Callable[[], None]) -> int:
    """Runs something in a process of its own, for what cannot be taken back; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            does()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@sqlite_only
def test_a_limit_on_files_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    """The system itself refuses to write, in the middle of a transaction or of a checkpoint."""
    path = tmp_path / "labels.db"
    store, project, (one, *_) = made(path, count=2000)
    store.close()
    journal = tmp_path / "saved"

    def fill() -> None:
        limit = path.stat().st_size + 300_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        store = Store.open(path)
        for number in range(2000):
            try:
                slot = work(store, project, one, BETTER | {"comment": "x" * 3000})
            except RoomError as error:
                assert "Nothing of this was saved" in str(error)
                with store.reading() as c:
                    assert len(labels.history(c, project, one, limit=5000)) == number
                break
            with journal.open("a") as file:
                file.write(f"{slot.id}\n")
        else:
            raise AssertionError("there was room")

    assert in_child(fill) == 0
    saved = [int(line) for line in journal.read_text().split()]
    assert len(saved) >= 5
    with Store.open(path) as store:
        with store.reading() as c:
            assert c.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert [row.slot for row in labels.labels(c, project)] == saved
        work(store, project, one)


@sqlite_only
def test_an_acknowledged_answer_is_there_after_a_crash_of_the_machine(tmp_path: Path) -> None:
    """What lies on the disk at any moment, as a copy of the files, is whole, and has all that was acknowledged."""
    store, project, (one, *_) = made(tmp_path / "labels.db", count=30)
    for number in range(1, 21):
        work(store, project, one)
        image = tmp_path / f"image{number}"
        image.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"labels.db{suffix}", image)
        if number % 2:  # a write that was cut
            with (image / "labels.db-wal").open("ab") as file:
                file.write(os.urandom(5000))
        with Store.open(image / "labels.db", create=False) as crashed, crashed.reading() as c:
            assert len(list(labels.labels(c, project))) == number
            assert c.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_threads_of_one_server(tmp_path: Path) -> None:
    """Eight annotators at once, and two tabs of each: exactly the overlap, nobody twice, one lease for two tabs."""
    store, project, people = made(tmp_path / "labels.db", count=12, users=8, overlap=2)
    failures: list[BaseException] = []
    twice: list[tuple[int, int]] = []

    def annotate(user, tab: int) -> None:
        try:
            while True:
                with store.writing() as c:
                    slot = queue.next_slot(c, project, user, START)
                if not isinstance(slot, Slot):
                    if slot.reason == "done":
                        return
                    continue
                try:
                    answer(store, slot, user, request=f"{slot.id}")  # both tabs send the same form
                except Exception as error:
                    twice.append((slot.id, tab))
                    assert "perhaps in another tab" in str(error), error
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=annotate, args=(user, tab)) for user in people for tab in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with store.reading() as c:
        rows = list(labels.labels(c, project))
        assert len(rows) == 24 == len({(row.item, row.user) for row in rows})
        assert {row.state for row in items.page(c, project)} == {"done"}
        assert len(c.execute(select(t.slots)).all()) == 24


@sqlite_only
def test_an_error_in_a_transaction_undoes_all_of_it(tmp_path: Path) -> None:
    """Whatever statement fails: the slot is as it was, and the answer can be sent again."""
    store, project, (one, *_) = made(tmp_path / "labels.db", overlap=2)
    slot = take(store, project, one)
    counts = []
    for fails_at in range(1, 40):
        seen = 0

        def count(connection, cursor, statement, *_, at=fails_at) -> None:
            nonlocal seen
            if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "COMMIT")):
                seen += 1
                if seen == at:
                    raise KeyboardInterrupt

        event.listen(store.engine, "before_cursor_execute", count)
        try:
            answer(store, slot, one, request="r")
        except KeyboardInterrupt:
            counts.append(fails_at)
        else:
            break
        finally:
            event.remove(store.engine, "before_cursor_execute", count)
        with store.reading() as c:
            assert labels.history(c, project, one) == []
            assert queue.slot_of(c, slot.id).item.done == 0
            assert c.execute(select(t.memberships.c.done).where(t.memberships.c.user_id == one.id)).scalar() == 0
    assert len(counts) >= 4
    with store.reading() as c:
        assert len(labels.history(c, project, one)) == 1


def test_the_hot_path_looks_at_no_whole_table(tmp_path: Path) -> None:
    """Every statement of an annotator's page finds its rows by an index."""
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=30, overlap=2, second_pass=0.3)
    if store.engine.dialect.name != "sqlite":
        pytest.skip("explained by SQLite")
    plans: dict[str, list[str]] = {}
    explain = sqlite3.connect(tmp_path / "labels.db")

    def look(connection, cursor, statement, parameters, *_) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            rows = explain.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans[statement] = [row[3] for row in rows]

    event.listen(store.engine, "after_cursor_execute", look)
    for number in range(25):
        work(store, project, one, now=START + number)
    with store.writing() as c:
        labels.undo(c, one, project, "u", START + 100)
        labels.skip(c, queue.next_slot(c, project, one, START + 100).id, one, "s", "", START + 100)
        queue.release(c, queue.next_slot(c, project, two, START + 100).id, two, START + 100)
        queue.next_slot(c, project, two, START + 10_000)
        queue.ahead(c, project, one)
        labels.history(c, project, one)
        labels.of_item(c, 1)
        items.page(c, project, items.Filter(state="open"), after=10)
    explain.close()
    assert len(plans) > 25
    for statement, plan in plans.items():
        for step in plan:
            assert not step.startswith("SCAN") or "CONSTANT ROW" in step or "SCAN anon_" in step, f"{statement}\n{plan}"
            assert "slots" not in step or "project_id=?)" not in step or "user_id" in step, f"{statement}\n{plan}"
