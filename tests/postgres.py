"""A PostgreSQL server of the tests' own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

SLOW = 600.0
"""Seconds that a start may take on a busy machine."""


def programs() -> Path | None:
    """Where the newest server's programs are."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    there = [each for each in Path("/usr/lib/postgresql").glob("*/bin/postgres") if each.parents[1].name.isdecimal()]
    return max(there, key=lambda each: int(each.parents[1].name)).parent if there else None


@contextmanager
def server(bin: Path) -> Iterator[str]:
    """Starts one, on a socket in a folder of its own, and says its URL. It forces nothing onto the disk."""
    root = os.geteuid() == 0
    who = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())  # it refuses to run as root
    person = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if root else {}
    folder = Path(tempfile.mkdtemp(prefix="assent-pg-"))
    data, log = folder / "data", folder / "log"
    try:
        if root:
            os.chown(folder, who.pw_uid, who.pw_gid)
        make = [bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(make, capture_output=True, text=True, cwd=folder, **person)
        assert done.returncode == 0, done.stderr
        options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "max_connections": 200}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with log.open("w") as file:
            running = subprocess.Popen(
                [bin / "postgres", "-D", data, *words], stdout=file, stderr=file, cwd=folder, **person
            )
        try:
            url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
            until = time.monotonic() + SLOW
            while True:
                try:
                    create_engine(url).connect().close()
                    break
                except OperationalError:
                    assert running.poll() is None and time.monotonic() < until, log.read_text()
                    time.sleep(0.1)
            yield url
        finally:
            running.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            running.wait(SLOW)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
