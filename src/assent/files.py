"""What stands at a path where a file is expected. Opening a pipe or a device would wait, or read, for ever."""

from __future__ import annotations

import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def not_a_file(path: str | Path) -> str | None:
    """What `path` is instead of a file ("a named pipe"), or None where it is a file, or nothing that can be seen."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # nothing there, no permission, a name that cannot be
        return None
    return next((words for holds, words in _KINDS if holds(mode)), None)
