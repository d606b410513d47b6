"""Whose a run folder is: one process owns it from the first file to the last, and no other writes there meanwhile.

The owner holds an operating-system lock (flock) on `run.lock` in the folder, which ends with the process however that
ends, and has written there who it is. Where flock cannot decide (the file system has none, or the folder is shared with
another machine and was left behind by it), the owner's sign of life does: it touches the file every few seconds.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import platform
import shlex
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from assent.errors import RunFolderError
from assent.outputs import leftovers, write_text

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NAME = "run.lock"
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 25.0
"""Seconds without one after which an owner that cannot be asked for counts as gone."""
ATTEMPTS = 10
"""A lock is tried this often, 50 ms apart: someone may only be looking whether it is held."""
RIVALS = 0.5
"""Seconds in which others that found the same record have written theirs."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that owns a folder. `machine` is one boot of one kernel, `born` when the process was started in the
    kernel's own time; both are empty where the system does not say."""

    host: str
    machine: str
    pid: int
    born: str
    since: str
    command: str

    def __str__(self) -> str:
        shown = self.command if len(self.command) <= 200 else self.command[:200] + "…"
        return f"process {self.pid} on {self.host} since {self.since} ({shown})"

    @property
    def is_here(self) -> bool:
        """Whether this kernel would know of it."""
        return self.machine == _machine() if self.machine and _machine() else self.host == platform.node()

    @property
    def lives(self) -> bool:
        """Whether the process is there, as far as this machine can tell."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return not self.born or _born(self.pid) in ("", self.born)


@dataclass(slots=True)
class _Held:
    """A folder that this process owns; without `handle` by its record alone. `made` are the folders that were missing,
    innermost first."""

    file: Path
    handle: int | None
    made: list[Path]
    thread: threading.Thread = field(default_factory=threading.current_thread)


_held: dict[Path, _Held] = {}
_beating: threading.Thread | None = None


def own(folder: Path) -> None:
    """Makes this process the owner of a folder, which is made where it is missing, until `release` or its end. What the
    same thread owns already it takes over from itself.

    Raises RunFolderError where another process owns the folder or one that it lies in, and where nothing can be written
    there."""
    try:
        key = folder.resolve()
        if (mine := _held.get(key)) is not None:
            if mine.thread.is_alive() and mine.thread is not threading.current_thread():
                raise RunFolderError(f"--out {folder}: another thread of this process is at work there.")
            if mine.handle is None or _is_at(mine.handle, mine.file):
                mine.thread = threading.current_thread()
                return
            release(folder)  # somebody has removed the folder, or the lock
        check_free(folder.parent, by=os.getppid())
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"--out {folder}: it is a file. Choose another --out.")
        made = [place for place in (key, *key.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        mine = _Held(key / NAME, _take(folder, key / NAME), made)
        _record(mine)
    except RunFolderError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        raise RunFolderError(f"--out {folder}: cannot be used as a folder to write to: {error}.") from error
    _held[key] = mine
    _start_beating()


def release(folder: Path) -> None:
    """Gives the folder up, and leaves none behind that holds nothing. Nothing where this process does not own it."""
    mine = _held.pop(folder.resolve(), None)
    if mine is None:
        return
    with suppress(OSError):
        if mine.handle is None or _is_at(mine.handle, mine.file):
            mine.file.unlink()
    if mine.handle is not None:
        os.close(mine.handle)
    with suppress(OSError):
        for place in mine.made:
            place.rmdir()


def check_free(path: Path, by: int | None = None) -> None:
    """Raises RunFolderError where `path` is, or lies in, a folder that another process owns. That may be the process
    `by`: the one that started this one, which is then at work for it."""
    place = Path(os.path.abspath(path))
    for folder in (place, *place.parents):
        file = folder / NAME
        if folder.resolve() not in _held and _is_held(file):
            owner = _read(file)
            if owner is None or not owner.is_here or owner.pid != by:
                raise _refusal(folder, owner)


def holder(folder: Path) -> Owner | None:
    """Who is at work in a folder, as far as that can be told without waiting: on another machine, who gave a sign of
    life just now. None where nobody is."""
    file = folder / NAME
    owner = _read(file)
    if _is_held(file):
        return owner
    try:
        signs = time.time() - file.stat().st_mtime < SILENCE
    except OSError:
        return None
    return owner if owner is not None and not owner.is_here and signs else None


def content(folder: Path) -> set[str]:
    """The names in a folder, but for its lock and what killed writes have left."""
    return {child.name for child in folder.iterdir()} - leftovers(folder) - {NAME}


# ---- the lock


def _take(folder: Path, file: Path) -> int | None:
    """The handle that holds the lock; None where the file system has none, and the record alone must do."""
    try:
        handle = _locked(file)
    except OSError as error:
        if fcntl is not None and error.errno not in _NO_LOCKS:
            raise
        _take_by_record(folder, file)
        return None
    if handle is None:
        raise _refusal(folder, _read(file))
    before = _read(file)
    if before is not None and not before.is_here and _gives_signs(file, before):
        os.close(handle)
        raise _refusal(folder, before)
    return handle


def _locked(file: Path) -> int | None:
    """A handle with the lock on what is at `file` now; None where another process has it."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no flock")
    for attempt in range(ATTEMPTS):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, file):  # not what an owner has just removed
                return handle
        except BlockingIOError:
            if attempt + 1 < ATTEMPTS:
                time.sleep(0.05)
        except OSError:
            os.close(handle)
            raise
        os.close(handle)
    return None


def _take_by_record(folder: Path, file: Path) -> None:
    """Owns by the record alone. Of two processes that find the same dead owner's, the one whose record stays wins."""
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        return
    except FileExistsError:
        before = _read(file)
    if before is not None and before.is_here and before.lives:
        raise _refusal(folder, before)
    if not (before is not None and before.is_here) and _gives_signs(file, before):
        raise _refusal(folder, _read(file))
    write_text(file, json.dumps(asdict(_myself())))
    time.sleep(RIVALS)
    if (winner := _read(file)) != _myself():
        raise _refusal(folder, winner)


def _is_held(file: Path) -> bool:
    """Whether a process holds the lock, without taking it."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(handle)
    owner = _read(file)
    return owner is not None and owner.is_here and owner.lives


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _gives_signs(file: Path, owner: Owner | None) -> bool:
    """Whether the owner's file is touched while one waits."""
    log.warning(
        "%s: left there by %s; looking for %.0f seconds whether that still runs",
        file,
        owner or "another process",
        SILENCE,
    )
    first, end = file.stat().st_mtime_ns, time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(0.5, SILENCE / 10))
        with suppress(FileNotFoundError):
            if file.stat().st_mtime_ns != first:
                return True
    return False


def _refusal(folder: Path, owner: Owner | None) -> RunFolderError:
    return RunFolderError(
        f"{folder}: another run is at work there: {owner or 'a process that has just started'}. Wait for its end or "
        f"stop it, or choose another --out. (If it surely runs no more: remove {folder / NAME}.)"
    )


# ---- the record


def _record(mine: _Held) -> None:
    text = json.dumps(asdict(_myself()))
    if mine.handle is None:
        write_text(mine.file, text)
        return
    os.ftruncate(mine.handle, 0)
    os.pwrite(mine.handle, text.encode("utf-8", "backslashreplace"), 0)


def _read(file: Path) -> Owner | None:
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _myself() -> Owner:
    return Owner(platform.node(), _machine(), os.getpid(), _born(os.getpid()), _began, command_line())


def command_line() -> str:
    """What this process was started with."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    words = ["python", "-m", Path(program).parent.name] if name == "__main__.py" else [name]
    return shlex.join([*words, *arguments])


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _born(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


_began = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


# ---- signs of life


def _start_beating() -> None:
    global _beating
    if _beating is None or not _beating.is_alive():
        _beating = threading.Thread(target=_beat, name="assent run.lock", daemon=True)
        _beating.start()


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        for mine in list(_held.values()):
            with suppress(OSError):
                os.utime(mine.file)


def _release_all() -> None:
    for folder in list(_held):
        release(folder)


def _forget() -> None:
    """In a forked child: the folders are its parent's, also when that has ended."""
    global _beating
    for mine in _held.values():
        if mine.handle is not None:
            os.close(mine.handle)
    _held.clear()
    _beating = None


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
