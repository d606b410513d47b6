"""Connections: SQLite such that several processes write without loss, or PostgreSQL by URL."""

from __future__ import annotations

import json
import math
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as NoConnection

from assent.foreign import brief
from assent.people.store.errors import BusyError, OpenError, RoomError, StoreError

WAIT = 10.0
"""Seconds that one waits for a database that another program holds."""
LOOKS = (0.001, 0.006)
"""Seconds between two looks whether it is free, by chance."""
LATELY = 1.0
"""Seconds for which one is considerate of others that one has met."""
LOWEST = (3, 35, 0)
"""The oldest SQLite that has all that is used here."""
NETWORK = frozenset(
    "9p afs afpfs beegfs ceph cifs coda fuse.ceph fuse.glusterfs fuse.rclone fuse.s3fs fuse.sshfs gfs2 gfs "
    "glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2 smb2 smb3 smbfs".split()
)
"""File systems that other machines write to: SQLite's write-ahead log needs memory that all writers share."""
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_CLOSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_BUSY_STATES = {"55P03", "40P01", "40001", "57014", "53300"}
_FULL_STATES = {"53100", "53200"}
_ENDED_STATES = {"57P01", "57P02", "57P03", "08000", "08003", "08006"}


def url_of(database: str | Path) -> URL:
    """The URL of a database that is given as a path or as a URL. Raises OpenError where it is neither."""
    text = str(database)
    if "://" not in text:
        return URL.create("sqlite", database=os.path.abspath(text))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise OpenError("--db: this is no URL of a database. Give a file, or postgresql://USER@HOST/NAME.") from None
    kind = url.drivername.partition("+")[0]
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if kind == "sqlite" and url.database and url.database != ":memory:" and not url.query:
        return URL.create("sqlite", database=os.path.abspath(url.database))
    raise OpenError(f"--db {url.render_as_string()}: give a file (SQLite), or postgresql://USER@HOST/NAME.")


def connect(url: URL) -> Engine:
    """An engine whose transactions are as `Store` wants them."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        options = f"-c lock_timeout={int(WAIT * 1000)} -c client_encoding=UTF8"
        return create_engine(
            url,
            json_serializer=as_json,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"options": options, "connect_timeout": int(WAIT)},
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise OpenError("--db: PostgreSQL needs the package psycopg: pip install 'psycopg[binary]'.") from None


def _sqlite(url: URL) -> Engine:
    if sqlite3.sqlite_version_info < LOWEST:
        have, need = sqlite3.sqlite_version, ".".join(map(str, LOWEST))
        raise OpenError(
            f"This Python has SQLite {have}; labels need {need} or newer. Use another Python, or PostgreSQL."
        )
    engine = create_engine(
        url,
        json_serializer=as_json,
        hide_parameters=True,
        pool_size=16,
        max_overflow=48,
        pool_timeout=WAIT,
        connect_args={"timeout": WAIT, "check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _Turns().begin)
    return engine


def _prepare(connection: Any, record: object) -> None:
    connection.isolation_level = None  # `_Turns` says how a transaction begins
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(WAIT * 1000)}")
    mode = _write_ahead(cursor)
    if mode != "wal":
        raise sqlite3.OperationalError(f"unable to use a write-ahead log (journal_mode is {mode})")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA cache_size = -16384")
    cursor.close()


def _write_ahead(cursor: Any) -> str:
    """Turns the write-ahead log on. SQLite does not wait for others that are about to do the same."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) not in _BUSY or time.monotonic() > end:
                raise
        time.sleep(0.02)


@dataclass(slots=True)
class _Turns:
    """How this process begins transactions. SQLite itself looks less and less often whether nobody writes, and whoever
    has just written is the first to write again, so that among many writers one may never get its turn. Here those who
    have waited long look most often, and who has met others lately lets them go first. `met` is when that was."""

    met: float = -math.inf

    def begin(self, connection: Connection) -> None:
        """A writer takes the lock before it reads, so that what it read is true when it writes."""
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        if not writes:
            connection.exec_driver_sql("BEGIN")
            return
        plain: Any = connection.connection.dbapi_connection
        plain.execute("PRAGMA busy_timeout = 0")
        try:
            if not self._began(plain):
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # tells why not
        finally:
            plain.execute(f"PRAGMA busy_timeout = {int(WAIT * 1000)}")

    def _began(self, plain: Any) -> bool:
        start = time.monotonic()
        if start - self.met < LATELY:
            time.sleep(LOOKS[1])
        while (waited := time.monotonic() - start) < WAIT:
            try:
                plain.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError as error:
                if (error.sqlite_errorcode & 0xFF) not in _BUSY:
                    return False
            self.met = time.monotonic()
            time.sleep(random.uniform(*LOOKS) / (1 + 5 * waited))
        return False


def as_json(value: object) -> str:
    """A value as columns of JSON hold it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character, which only an escape can hold
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text


def prepare_file(path: Path, create: bool) -> None:
    """The file of a database, made where it is missing, readable for its owner alone; and a complaint where a database
    cannot be kept there."""
    try:
        if path.is_dir():
            raise OpenError(f"--db {path}: it is a folder. Give a file.")
        if not path.parent.is_dir():
            raise OpenError(f"--db {path}: the folder {path.parent} does not exist.")
        if path.exists() and not path.is_file():
            raise OpenError(f"--db {path}: it is no regular file. Give one.")
    except OSError as error:
        raise OpenError(f"--db {path}: cannot be looked at: {error.strerror}.") from None
    if (kind := file_system(path.parent)) in NETWORK:
        raise OpenError(
            f"--db {path}: it lies on a network file system ({kind}), where a database that several programs write is "
            "damaged sooner or later. Give a file on a local disk, or a PostgreSQL URL."
        )
    try:
        flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_CLOEXEC", 0)
        os.close(os.open(path, flags, 0o600))
    except FileNotFoundError:
        raise OpenError(f"--db {path}: there is no such file.") from None
    except OSError as error:
        raise OpenError(f"--db {path}: cannot be opened for writing: {error.strerror}.") from None
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        if name.exists() and not os.access(name, os.W_OK):
            raise OpenError(f"--db {path}: {name.name} cannot be written by this user.")


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """What file system a folder lies on, as the kernel calls it; empty where it does not say."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    here, best, kind = folder.resolve(), -1, ""
    for line in lines:
        _, place, found, *_ = [*line.split(" "), "", "", ""]
        place = place.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        if here.is_relative_to(place) and len(place) >= best:
            best, kind = len(place), found
    return kind


@contextmanager
def told(name: str) -> Iterator[None]:
    """What the database says, as an error of ours about the database `name`."""
    try:
        yield
    except DBAPIError as error:
        raise _as_ours(name, error) from error
    except NoConnection as error:
        raise BusyError(f"{name}: all connections are in use. Try again in a moment.") from error


def _as_ours(name: str, error: DBAPIError) -> StoreError | DBAPIError:
    said = error.orig
    code = getattr(said, "sqlite_errorcode", None)
    state = getattr(said, "sqlstate", None)
    kind = None if code is None else code & 0xFF
    if kind in _BUSY or state in _BUSY_STATES:
        return BusyError(
            f"{name}: another program has kept the database locked for {WAIT:.0f} seconds. Nothing was changed; try "
            "again, and end the program that holds it."
        )
    if state in _ENDED_STATES or (state is None and code is None and error.connection_invalidated):
        return BusyError(
            f"{name}: the server of the database has ended the connection: {brief(said)}. Try again in a moment; what "
            "is sent again is saved once."
        )
    if kind in _FULL or state in _FULL_STATES:
        return RoomError(
            f"{name}: the database cannot grow: {brief(said)}. Nothing of this was saved; all that was saved before is "
            "there. Make room on the disk and try again."
        )
    if kind in _DAMAGED:
        return OpenError(
            f"{name}: it is damaged, or no database ({brief(said)}). Keep a copy of it, and go on with the newest "
            "backup, or save what can be read with: sqlite3 FILE .recover"
        )
    if kind in _CLOSED or "write-ahead log" in str(said):
        return OpenError(f"{name}: it cannot be written: {brief(said)}. Look at the rights of the file and its folder.")
    if state is None and code is None and "connect" in str(said):
        return OpenError(f"{name}: cannot be reached: {brief(said)}.")
    if state is not None and state[:2] in ("28", "3D", "08", "42") and "permission" in str(said):
        return OpenError(f"{name}: {brief(said)}.")
    return error
