"""Files that a person asked for: tried before long work, written whole or not at all, and one message where they cannot
be."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from assent.errors import OutputError

_LEFTOVER = re.compile(r"\.(\d+\.part|(resolved\.yaml|environment\.json|data\.json)\.\d+)")
_RUST = re.compile(r"\(os error (\d+)\)")  # how tokenizers and safetensors tell what the system said
_ADVICE = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room within the quota",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
    errno.EIO: "Look at the disk",
    errno.EROFS: "It is mounted read-only: choose another place",
    errno.EACCES: "Choose a place that this user may write to",
    errno.EPERM: "Choose a place that this user may write to",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def problem_of(error: BaseException) -> int | None:
    """The system's number for why something could not be written, where that is what `error` says."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST.search(str(error))
    return int(found[1]) if found and int(found[1]) in _ADVICE else None


@contextmanager
def writing(path: str | Path, name: str = "", inside: Path | None = None) -> Iterator[None]:
    """Raises OutputError where what is done in here cannot write `path`, which messages call `name`. With `inside`,
    errors about files outside of that folder are left alone."""
    try:
        yield
    except Exception as error:
        number = problem_of(error)
        file = getattr(error, "filename", None)
        if number is None or isinstance(error, OutputError) or (file and inside and not _is_in(file, inside)):
            raise
        where = f" ({os.fsdecode(file)})" if file and Path(os.fsdecode(file)) != Path(path) else ""
        reason = os.strerror(number) if number in _ADVICE else getattr(error, "strerror", None) or os.strerror(number)
        if number in (errno.EEXIST, errno.ENOTDIR):
            reason = "a file is in the way"
        advice = _ADVICE.get(number, "Choose another place")
        raise OutputError(f"{name or path} cannot be written: {reason}{where}. {advice}.") from error


def _is_in(file: str | bytes, folder: Path) -> bool:
    return Path(os.path.abspath(os.fsdecode(file))).is_relative_to(os.path.abspath(folder))


def write_text(path: str | Path, text: str, name: str = "") -> None:
    """Writes the file as `whole_file` does."""
    with whole_file(path, name) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name may be no UTF-8


@contextmanager
def whole_file(path: str | Path, name: str = "", *, forced: bool = True) -> Iterator[Path]:
    """A file to write that replaces `path` at the end, so that there is the old or the new one at any time. Makes its
    folder. `forced` False leaves it to the system when it is on the disk: for what can be made again. Raises
    OutputError where that cannot be."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}{secrets.randbelow(10**9):09}.part")  # pods share folders, and pids
    with writing(path, name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if forced:
                sync(temporary)
            temporary.replace(path)
            if forced:
                sync(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Forces a file, or a folder's list of names, onto the disk, where the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def leftovers(folder: Path) -> set[str]:
    """What writes that were killed have left in a folder."""
    return {child.name for child in folder.iterdir() if _LEFTOVER.fullmatch(child.name)}


def append(file: FileIO, data: bytes) -> None:
    """Writes all of `data` at the end of an unbuffered file, or nothing of it. Raises OutputError."""
    start = file.tell()
    with writing(os.fsdecode(file.name)):
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(start)
                file.seek(start)
            raise


def cache_folder(kind: str) -> Path:
    """Where caches of that kind lie: in ASSENT_CACHE, or in assent in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ASSENT_CACHE") or Path(base) / "assent") / kind


def try_file(path: str | Path, name: str = "") -> None:
    """Raises OutputError where a file of this name could not be written, or written to. A file is written there, and is
    gone again with all that was made for it; one that stands there stays as it is."""
    path = Path(path)
    missing: list[Path] = []
    with writing(path, name):
        try:
            missing = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            there = os.path.lexists(path)
            if there:
                _check_file(path)
            _write_and_remove(path.with_name(f".{os.getpid()}.part") if there else path)
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()


def check_apart(written: Mapping[str, str | None], read: Iterable[str | None]) -> None:
    """Raises OutputError where two of the files to be written, by their flags, are one, or one is a file that is read,
    or would lie among the files of a folder that is."""
    flags: dict[Path, str] = {}
    sources = {Path(source).resolve() for source in read if source is not None}
    for flag, name in written.items():
        if name is None:
            continue
        path = Path(name).resolve()
        if path in flags:
            raise OutputError(f"{flags[path]} and {flag} are the same file, {name}. Choose another name for one.")
        if path in sources:
            raise OutputError(f"{flag} {name} is a file that is read, which would be lost. Choose another name.")
        if path.parent in sources:
            raise OutputError(f"{flag} {name} lies in a folder that is read. Choose a place outside of it.")
        flags[path] = flag


def _write_and_remove(path: Path) -> None:
    with path.open("xb", buffering=0) as file:
        try:
            file.write(bytes(4096))
            os.fsync(file.fileno())
        finally:
            path.unlink()


def _check_file(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("r+b"):
        pass


def free_bytes(path: str | Path) -> int:
    """What the file system of `path`, which need not exist yet, has left for this user."""
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free
