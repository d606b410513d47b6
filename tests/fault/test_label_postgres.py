"""The database of labels on PostgreSQL, where `ASSENT_POSTGRES` names a server (postgresql://USER@HOST/postgres) on
which databases may be made. All other tests of the store run there, too, while it is set."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from assent.people.store import Store, engine, labels, queue
from assent.people.store import tables as t
from assent.people.store.errors import BusyError, OpenError
from tests.labelling import START, answer, made, opened, take, work

pytestmark = pytest.mark.skipif("ASSENT_POSTGRES" not in os.environ, reason="ASSENT_POSTGRES names no server")


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
