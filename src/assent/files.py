"""Files that are complete or absent."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

_PREFIX = ".assent-"
_LEFTOVER = re.compile(rf"{re.escape(_PREFIX)}.+|\.(resolved\.yaml|environment\.json|data\.json)\.\d+")


def write_whole(file: Path, text: str) -> None:
    """Replaces `file`: whoever reads it, now or after a crash, finds the old text or the new one, never a part. A byte
    of a name that is no UTF-8 is written as its escape. Raises OSError, with the old file untouched."""
    temporary = file.with_name(f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(file.parent)


def sync(path: Path) -> None:
    """Forces a file, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def leftovers(folder: Path) -> set[str]:
    """What writes that were killed have left in a folder."""
    return {child.name for child in folder.iterdir() if _LEFTOVER.fullmatch(child.name)}
