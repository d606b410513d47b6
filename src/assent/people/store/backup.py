"""A copy of an SQLite database while it is written to."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from assent.foreign import brief
from assent.outputs import sync, writing
from assent.people.store.errors import OpenError

NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
NO_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
"""What file systems say that know no second name of a file, as those of sticks and of shared folders."""


def backup(source: Path, target: Path) -> None:
    """Copies the database as it is at one moment; the copy is whole, or absent. Writers go on meanwhile.

    Raises OpenError where the target exists already, or what was copied is damaged; OutputError where it cannot be
    written."""
    if target.exists():
        raise OpenError(f"--backup {target}: it exists already. Give another name.")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with writing(target, f"--backup {target}"):
            os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        _copy(source, part, target)
        with writing(target, f"--backup {target}"):
            sync(part)
            _place(part, target)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            part.with_name(part.name + suffix).unlink(missing_ok=True)
    sync(target.parent)


def _place(part: Path, target: Path) -> None:
    """Gives the copy its name, but not over what has come there meanwhile."""
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        part.replace(target)


def _copy(source: Path, part: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(source, timeout=10)) as old, closing(sqlite3.connect(part)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")  # one file, which a read-only place can hold
            found = new.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = " Make room there, or choose another place." if kind in NO_ROOM else ""
        raise OpenError(f"--backup {target}: the copy could not be made: {brief(error)}.{advice}") from error
    if found != "ok":
        raise OpenError(f"--backup {target}: the database is damaged ({brief(found)}); no copy was kept.")
