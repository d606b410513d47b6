"""The database of labels: opened, migrated, backed up, and what is refused."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from assent.errors import OutputError, UserError
from assent.people.store import Store, accounts, engine, items, labels, migrate, projects
from assent.people.store.errors import BusyError, OpenError, RoomError
from assent.people.store.store import connect, url_of
from assent.people.store.tables import metadata
from tests.labelling import START, answer, item, made, take, work

pytestmark = pytest.mark.skipif("ASSENT_POSTGRES" in os.environ, reason="about files")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "labels.db"


def test_migrations_lead_to_the_tables_from_the_first_revision_on(path):
    store = Store(connect(url_of(path)), "x")
    with store._begun(writes=True) as c:
        migrate.upgrade(c, "0001")
        c.execute(text("INSERT INTO users (name, folded, role, made_at) VALUES ('ada', 'ada', 'lead', 0)"))
        c.execute(text("INSERT INTO projects (name, kind, seed, made_at) VALUES ('p', 'pair', 0, 0)"))
        for state in ("open", "done", "decided", "withdrawn"):
            c.execute(
                text(
                    'INSERT INTO items (project_id, purpose, "key", answers, wanted, state, made_at) '
                    f"VALUES (1, 'work', '{state}', 2, 1, '{state}', 0)"
                )
            )
    store.close()
    with Store.open(path) as store:
        with store.reading() as c:
            assert migrate.state(c, "x") == "current"
            context = MigrationContext.configure(c, opts={"compare_type": True, "compare_server_default": True})
            assert compare_metadata(context, metadata) == []
            assert accounts.user(c, "ada").role == "lead"  # and nothing was lost on the way
            assert c.execute(text("SELECT size, finished FROM projects")).one() == (3, 2)
            checks = c.execute(text("SELECT group_concat(sql) FROM sqlite_master")).scalar_one()
    for table in metadata.tables.values():  # what alembic does not compare
        for constraint in table.constraints:
            assert str(constraint.name) in checks
        for index in table.indexes:
            where = index.dialect_options["sqlite"]["where"]
            assert where is None or str(where) in checks


def test_a_database_is_its_owners_alone_and_safe(path):
    with Store.open(path) as store, store.writing() as c:
        for name in ("labels.db", "labels.db-wal", "labels.db-shm"):
            assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600, name
        pragma = {name: c.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS}
    assert pragma == PRAGMAS


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 10_000, "foreign_keys": 1}


def test_it_opens_again_with_what_was_saved(path):
    store, project, (one, *_) = made(path)
    work(store, project, one)
    store.close()
    with Store.open(path, create=False) as store, store.reading() as c:
        assert len(list(labels.labels(c, project))) == 1


def test_many_open_a_new_one_at_once(path):
    failures = []

    def go() -> None:
        try:
            Store.open(path).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with Store.open(path) as store, store.reading() as c:
        assert c.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1


# ---- what cannot be opened


def refused(path, match: str, create: bool = True) -> None:
    with pytest.raises(OpenError, match=match) as caught:
        Store.open(path, create)
    assert caught.value.exit_code == 2 and isinstance(caught.value, UserError)


def test_a_newer_database_is_refused_and_left_alone(path):
    made(path)[0].close()
    with sqlite3.connect(path) as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    c.close()
    before = path.read_bytes()
    refused(
        path, r"labels\.db: a newer assent has made it \(revision 9999; this one knows up to 0004\)\. Update assent"
    )
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE bookmarks (url)")
    c.close()
    refused(path, r"another program's database \(tables: bookmarks\)")
    with sqlite3.connect(path) as c:
        assert c.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    c.close()


@pytest.mark.parametrize("damage", ["text", "cut", "noise"])
def test_a_damaged_database_is_named(path, damage):
    made(path, count=300)[0].close()
    whole = path.read_bytes()
    if damage == "text":
        path.write_text("id,prompt\n" * 100)
    elif damage == "cut":
        path.write_bytes(whole[:5000])
    else:
        path.write_bytes(whole[:100] + os.urandom(len(whole) - 100))
    refused(path, r"labels\.db: it is damaged, or no database .*newest backup")


def test_damage_that_is_met_later_is_named(path):
    made(path, count=300)[0].close()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 :] = os.urandom(len(whole) - len(whole) // 2)
    path.write_bytes(whole)
    with pytest.raises(OpenError, match="damaged"), Store.open(path) as store, store.reading() as c:
        for name in metadata.tables:
            c.execute(text(f"SELECT * FROM {name}")).all()


def test_what_is_no_place_for_a_database(path, tmp_path, monkeypatch):
    refused(tmp_path, "it is a folder")
    refused(tmp_path / "none" / "labels.db", "the folder .*none does not exist")
    refused(path, "there is no such file", create=False)
    refused("/dev/null", "it is no regular file")
    refused(tmp_path / ("x" * 300), "cannot be looked at|File name too long")
    assert not path.exists()
    refused("mysql://somewhere/x", "give a file .*, or postgresql://")
    refused("a://b://c[", "no URL|give a file")
    refused("foo://x/y", "give a file")
    refused("sqlite://", "give a file")
    monkeypatch.setattr(engine, "file_system", lambda folder: "nfs4")
    refused(path, r"it lies on a network file system \(nfs4\)")
    assert not path.exists()


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path):
    mounts = tmp_path / "mounts"
    inner = tmp_path / "with space"
    inner.mkdir()
    shown = str(inner).replace(" ", "\\040")
    mounts.write_text(f"dev / ext4 rw 0 0\nhost:/x {tmp_path} nfs4 rw 0 0\ntmpfs {shown} tmpfs rw 0 0\nbroken\n")
    assert engine.file_system(tmp_path, mounts) == "nfs4"
    assert engine.file_system(tmp_path / "other", mounts) == "nfs4"
    assert engine.file_system(inner, mounts) == "tmpfs"
    assert engine.file_system(tmp_path.parent, mounts) == "ext4"
    assert engine.file_system(tmp_path, tmp_path / "none") == ""
    assert engine.file_system(tmp_path) not in engine.NETWORK


@pytest.mark.parametrize("which", ["labels.db", "labels.db-wal"])
def test_a_read_only_file_is_named(path, monkeypatch, which):
    made(path)[0].close()
    path.with_name(which).touch()
    with monkeypatch.context() as patch:  # root may write everything
        patch.setattr(os, "access", lambda name, mode: Path(name).name != which)
        patch.setattr(os, "open", _denied(os.open, which))
        refused(path, "cannot be opened for writing: Permission denied|labels.db-wal cannot be written by this user")
    Store.open(path).close()


def _denied(usual, which):
    def opened(name, flags, *more, **options):
        if Path(os.fsdecode(name)).name == which and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(name))
        return usual(name, flags, *more, **options)

    return opened


def test_a_read_only_database_is_named(path, monkeypatch):
    """What SQLite itself says, where the rights of the file seem to allow writing."""
    store, project, (one, *_) = made(path)
    slot = take(store, project, one)
    with pytest.raises(OpenError, match="cannot be written: attempt to write a readonly database"):
        with store.writing() as c:
            c.exec_driver_sql("PRAGMA query_only = ON")
            labels.save(c, slot.id, one, "r", {"verdict": "tie"}, 1.0, START)


# ---- while it runs


def test_a_database_that_another_program_holds(path, monkeypatch):
    monkeypatch.setattr(engine, "WAIT", 0.3)
    store, project, (one, *_) = made(path)
    slot = take(store, project, one)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match=r"locked for 0 seconds\. Nothing was changed; try again"):
        answer(store, slot, one)
    with store.reading() as c:  # readers are not kept waiting
        assert list(labels.labels(c, project)) == []
    other.execute("COMMIT")
    other.close()
    answer(store, slot, one)
    with store.reading() as c:
        assert len(list(labels.labels(c, project))) == 1


def test_a_short_lock_is_waited_for(path):
    store, project, (one, *_) = made(path)
    slot = take(store, project, one)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    timer.start()
    answer(store, slot, one)
    timer.join()
    other.close()


def test_a_full_disk_loses_nothing_that_was_saved(path):
    store, project, (one, *_) = made(path, count=40)
    work(store, project, one)
    with store.reading() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar()
    with pytest.raises(RoomError, match=r"cannot grow: database or disk is full\. Nothing of this was saved"):
        with store.writing() as c:
            c.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            items.add_items(c, project, (item(i) for i in range(1000, 3000)))
    with store.writing() as c:
        c.exec_driver_sql("PRAGMA max_page_count = 1000000")
    work(store, project, one)
    with store.reading() as c:
        assert len(list(labels.labels(c, project))) == 2
        assert c.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert len(items.page(c, project, limit=5000)) == 40


# ---- backup


def test_a_backup_while_it_is_written_to(path):
    store, project, (one, two, _) = made(path, count=400, overlap=2)
    stop = threading.Event()
    saved = []

    def write() -> None:
        while not stop.is_set():
            saved.append(work(store, project, two).id)

    thread = threading.Thread(target=write)
    thread.start()
    counts = []
    try:
        for number in range(3):
            work(store, project, one)
            store.backup(path.with_name(f"copy{number}.db"))
            counts.append(len(saved))
    finally:
        stop.set()
        thread.join()
    for number, count in enumerate(counts):
        copy = path.with_name(f"copy{number}.db")
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        with Store.open(copy, create=False) as opened, opened.reading() as c:
            assert c.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            found = list(labels.labels(c, project))
            assert number + 1 <= len(found) <= number + 1 + count + 1
    assert sorted(each.name for each in path.parent.iterdir() if "copy" in each.name and "-" not in each.name) == [
        "copy0.db",
        "copy1.db",
        "copy2.db",
    ]


def test_a_backup_to_a_place_without_hard_links(path, tmp_path, monkeypatch):
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    store, *_ = made(path)
    monkeypatch.setattr(os, "link", link)
    store.backup(tmp_path / "copy.db")
    with Store.open(tmp_path / "copy.db", create=False) as copy, copy.reading() as c:
        assert len(items.page(c, projects.project(c, "pairs"))) == 5
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".part")]


def test_a_backup_overwrites_nothing_and_is_whole_or_absent(path, tmp_path):
    store, *_ = made(path)
    target = tmp_path / "copy.db"
    target.write_text("precious")
    with pytest.raises(OpenError, match="exists already"):
        store.backup(target)
    assert target.read_text() == "precious"
    with pytest.raises(OutputError, match="No such file or directory"):
        store.backup(tmp_path / "none" / "copy.db")
    store.close()
    whole = bytearray(path.read_bytes())
    whole[8192:12288] = os.urandom(4096)
    path.write_bytes(whole)
    from assent.people.store.backup import backup

    with pytest.raises(OpenError, match="damaged"):
        backup(path, tmp_path / "damaged.db")
    assert not [each for each in tmp_path.iterdir() if "damaged" in each.name]
