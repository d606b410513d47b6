"""A database: opened, migrated, and the transactions on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, text

from assent.people.store import migrate
from assent.people.store.backup import backup
from assent.people.store.engine import WAIT, connect, prepare_file, told, url_of
from assent.people.store.errors import BusyError, OpenError, StoreError


class Store:
    """A database of labels. Safe to use from several threads, and by several processes at once."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        self._writer = threading.Lock() if engine.dialect.name == "sqlite" else None
        self._place: tuple[int, int] | None = None
        """Which file it is."""

    @classmethod
    def open(cls, database: str | Path, create: bool = True) -> Store:
        """The database at a path, or of a postgresql:// URL; made where it is missing, migrated where it is older.

        Raises OpenError where it is newer than this assent, another program's, damaged, or cannot be written."""
        url = url_of(database)
        path = file_of(url)
        name = str(path) if path else url.render_as_string(hide_password=True)
        if path is not None:
            prepare_file(path, create)
        store = cls(connect(url), name)
        try:
            with told(name):
                store._migrate()
            store._place = None if path is None else _place_of(path)
        except BaseException:
            store.close()
            raise
        return store

    def _migrate(self) -> None:
        with self._begun(writes=False) as connection:
            state = migrate.state(connection, self.name)
        if state == "current":
            return
        with self._begun(writes=True) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(7021601)"))
            if migrate.state(connection, self.name) != "current":  # nobody was quicker
                migrate.upgrade(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database, and writes nothing."""
        with told(self.name), self._begun(writes=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, and undone where an error leaves it; but what a LeaseError, a
        StaleError or a GoneError has kept is kept.

        Raises BusyError where another program holds the database, RoomError where the disk is full."""
        with told(self.name), self._turn(), self._begun(writes=True) as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Of several threads one writes to SQLite at a time: the others wait here rather than at the file."""
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=WAIT):
            raise BusyError(f"{self.name}: others write without a pause. Nothing was changed; try again in a moment.")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _begun(self, writes: bool) -> Iterator[Connection]:
        options: dict[str, Any] = {"writes": writes}
        if self._writer is None:  # a writer waits for others' rows, and goes on with what they have become
            options |= {"postgresql_readonly": not writes,
                        "isolation_level": "READ COMMITTED" if writes else "REPEATABLE READ"}  # fmt: skip
        elif self._place is not None and _place_of(Path(self.name)) != self._place:
            raise OpenError(
                f"{self.name}: the file was moved, removed or replaced after it was opened. Nothing of this was saved. "
                "Put it back, or end this program and start it again with the file that is meant."
            )
        with self.engine.connect().execution_options(**options) as connection:
            transaction = connection.begin()
            try:
                yield connection
            except BaseException as error:
                if isinstance(error, StoreError) and error.keeps:
                    transaction.commit()
                else:
                    transaction.rollback()
                raise
            transaction.commit()

    def backup(self, path: str | Path) -> None:
        """Writes a copy of the database, as it is at one moment, while others write to it."""
        source = file_of(self.engine.url)
        if source is None:
            name = self.engine.url.database
            raise OpenError(f"A PostgreSQL database is backed up by its own tool: pg_dump --format=custom {name}")
        backup(source, Path(path))

    def close(self) -> None:
        """Ends all connections."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _place_of(path: Path) -> tuple[int, int]:
    """Which file lies there; (0, 0) for none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def file_of(url: URL) -> Path | None:
    """Where an SQLite database lies."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
