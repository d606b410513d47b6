"""The database of labels on PostgreSQL: on a server of the tests' own where its programs are installed, or on the one
that `ASSENT_POSTGRES` names (postgresql://USER@HOST/postgres), on which databases may be made. While that is set, all
other tests of the store run there, too; here are those of many at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError

from assent.people.store import Store, engine, labels, places, queue, review
from assent.people.store import tables as t
from assent.people.store.errors import BusyError, MissingError, OpenError, StaleError
from assent.people.store.records import Slot
from tests.fault import test_label_faults, test_label_kills
from tests.labelling import BETTER, START, answer, made, opened, take, work
from tests.postgres import programs, server

pytest.importorskip("psycopg")
test_threads_of_one_server = test_label_faults.test_threads_of_one_server
test_eight_writers_that_are_killed = test_label_kills.test_eight_writers_that_are_killed_lose_and_duplicate_nothing


@pytest.fixture(scope="module", autouse=True)
def given() -> Iterator[None]:
    """The server, for `opened`."""
    if "ASSENT_POSTGRES" in os.environ:
        yield
        return
    if (bin := programs()) is None:
        pytest.skip("PostgreSQL is not installed, and ASSENT_POSTGRES names no server")
    with server(bin) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSENT_POSTGRES", address)
        yield


def url(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


def test_migrations_lead_to_the_tables(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store, store.reading() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, t.metadata) == []
        checks = c.execute(text("SELECT conname FROM pg_constraint")).scalars().all()
        for table in t.metadata.tables.values():
            assert {str(constraint.name) for constraint in table.constraints} <= set(checks)


def test_two_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Whom another one is just about to serve is passed over, and not forgotten."""
    store, project, (one, two, _) = made(tmp_path / "a", count=3, overlap=2)
    with store.writing() as c:
        first = queue.next_slot(c, project, one, START)
        start = time.monotonic()
        second = take(store, project, two)
        assert time.monotonic() - start < engine.WAIT / 2
    assert (first.item.id, second.item.id) == (1, 2)
    answer(store, second, two)
    assert take(store, project, two).item.id == 1


def test_what_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT", 1.0)
    store, project, (one, *_) = made(tmp_path / "a")
    slot = take(store, project, one)
    with store.engine.begin() as other:
        other.execute(select(t.items).with_for_update())
        with pytest.raises(BusyError, match="Nothing was changed; try again"):
            answer(store, slot, one)
    answer(store, slot, one)
    with store.reading() as c:
        assert len(list(labels.labels(c, project))) == 1


def test_nothing_is_emptied(tmp_path: Path) -> None:
    store, project, (one, *_) = made(tmp_path / "a")
    work(store, project, one)
    for name in ("labels", "audit"):
        with pytest.raises(DBAPIError, match=f"{name} is append-only"), store.writing() as c:
            c.execute(text(f"TRUNCATE {name} CASCADE"))
    with store.reading() as c:
        assert len(labels.history(c, project, one)) == 1


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        address = url(store)
        with store.writing() as c:
            c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(OpenError, match="a newer assent has made it"):
        Store.open(address)
    with opened(tmp_path / "b") as store:
        address = url(store)
        with store.writing() as c:
            c.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(OpenError, match="another program's database"):
        Store.open(address)
    with pytest.raises(OpenError, match="cannot be reached|does not exist"):
        Store.open(address + "x" if "?" not in address else address.replace("?", "x?"))
    with pytest.raises(OpenError, match="cannot be reached") as caught:
        Store.open("postgresql://ada:topsecret@127.0.0.1:1/labels")
    assert "topsecret" not in str(caught.value)


def test_a_backup_is_the_servers_own(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store, pytest.raises(OpenError, match="pg_dump --format=custom labels_"):
        store.backup(tmp_path / "copy")


def test_an_isolation_that_the_server_sets_fails_nobody(tmp_path: Path) -> None:
    """Serialisable transactions would have to be tried again: writers wait for one another's rows instead, and readers
    see one moment."""
    with opened(tmp_path / "a") as store:
        address, name = url(store), store.engine.url.database
        with store.writing() as c:
            c.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"))
    store = Store.open(address)
    store, project, people = made(tmp_path / "a", count=1, users=2, overlap=2, store=store)
    slots = [take(store, project, user) for user in people]
    failures: list[BaseException] = []

    def save(place: int) -> None:
        try:
            answer(store, slots[place], people[place])
        except BaseException as error:
            failures.append(error)

    with store.reading() as c:
        assert len(list(labels.labels(c, project))) == 0
        threads = [threading.Thread(target=save, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(labels.labels(c, project))) == 0  # still of that moment
    assert failures == []
    with store.reading() as c:
        assert len(list(labels.labels(c, project))) == 2
        assert queue.ahead(c, project, people[0]).done == 1


def test_leads_and_annotators_at_one_item_do_not_hold_each_other_up(tmp_path: Path) -> None:
    """Everybody locks members before items, and items before their project: none is turned away for a deadlock."""
    store, project, (one, lead) = made(tmp_path / "a", count=2, users=2, overlap=1)
    failures: list[Exception] = []

    def both(*actions) -> None:
        barrier = threading.Barrier(len(actions))

        def run(does) -> None:
            barrier.wait()
            try:
                with store.writing() as c:
                    does(c)
            except (StaleError, MissingError) as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(does,)) for does in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def whole() -> None:
        with store.reading() as c:
            for item in (1, 2):
                actions = [row.action for row in labels.of_item(c, item) if row.purpose == "work"]
                assert actions == ["label", "undo"] * (len(actions) // 2) + ["label"] * (len(actions) % 2)

    for number in range(8):
        with store.writing() as c:
            while isinstance(slot := queue.next_slot(c, project, one, START), Slot):
                labels.save(c, slot.id, one, f"{number} {slot.id}", BETTER, 1.0, START)
        with store.reading() as c:
            last = max(labels.labels(c, project), key=lambda row: row.id)
        both(
            lambda c, number=number: labels.undo(c, one, project, f"undo {number}", START),
            lambda c, last=last: review.send_back(c, project, last.id, lead, "look", START),
        )
        whole()
        both(*(lambda c, i=i, number=number: review.decide(c, project, 1, lead, f"{i} {number}", BETTER, START)
               for i in range(2)))  # fmt: skip
        with store.writing() as c:
            review.undecide(c, project, 1, lead, START)
        whole()
    assert all("does not hold any more" in str(error) or "nothing to undo" in str(error) for error in failures)
    with store.writing() as c:  # what is counted is what is there
        before = queue.ahead(c, project, one)
        places.count_anew(c, project.id)
        assert queue.ahead(c, project, one) == before


def test_a_server_that_ends_connections_is_told_and_found_again(tmp_path: Path) -> None:
    """As one that is started anew does."""
    store, project, (one, *_) = made(tmp_path / "a")
    slot = take(store, project, one)
    other = create_engine(url(store))
    everybody = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with pytest.raises(BusyError, match="has ended the connection.*is saved once"), store.writing() as c:
        labels.save(c, slot.id, one, "r", BETTER, 1.0, START)
        with other.begin() as outside:
            outside.execute(text(f"{everybody} AND pid <> pg_backend_pid()"))
        c.execute(text("SELECT 1"))
    other.dispose()
    assert not answered(store, project)
    answer(store, slot, one, request="r")
    assert len(answered(store, project)) == 1


def answered(store: Store, project) -> list:
    with store.reading() as c:
        return list(labels.labels(c, project))
