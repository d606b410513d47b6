"""The processors of this process: how many it may use, and how threads without work wait for it. Loads no torch: both
are settled before torch, whose OpenMP reads the environment once, when it is loaded."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path, PurePosixPath

WAIT: Mapping[str, Mapping[str, str]] = {
    "alone": {},
    "shared": {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"},
}
"""How a thread waits for the others of its step: "alone" as OpenMP does by itself (it spins for as long as it takes,
which is quickest where every thread has a core), "shared" asleep at once (a thread that spins keeps the core from the
very thread that it waits for; docs/LOG.md has what was measured). OMP_WAIT_POLICY is read by the libgomp in torch's
wheels, KMP_BLOCKTIME (milliseconds) by Intel's and LLVM's libraries."""
BUSY = 0.5
"""Processes at work besides, for each core of the machine, from which cores count as shared."""
LOOKS, PAUSE = 3, 0.002
"""How often, and after how many seconds again, it is counted what runs: short jobs are no neighbours."""
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Whoever has set one of these has decided."""


def usable() -> int:
    """Cores that this process may use: those it is allowed on, or fewer where its container has a quota of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return within(allowed, quota())


def within(cores: int, quota: float | None) -> int:
    """Whole cores of a quota; a part of a core counts, or its time would be lost."""
    return cores if quota is None else max(1, min(cores, math.ceil(quota - 1e-6)))


def quota(root: str | Path = "/") -> float | None:
    """The smallest quota of CPU time among the control groups around this process, in cores; None without one. Both
    generations of control groups are looked through; `root` stands in for the file system's."""
    found = [cores for folder in _groups(Path(root)) if (cores := _quota_in(folder)) is not None]
    return min(found, default=None)


def waiting(load: float, cores: int) -> Mapping[str, str]:
    """The environment variables by which OpenMP's threads wait, for `load` processes at work besides on `cores`."""
    return WAIT["shared" if load >= BUSY * cores else "alone"]


def configure(environment: MutableMapping[str, str] = os.environ) -> None:
    """Settles how threads wait, unless torch is loaded already, or the user (or the process that started this one) has
    settled it."""
    if "torch" not in sys.modules and not any(name in environment for name in CHOSEN_BY_USER):
        environment.update(waiting(load(), os.cpu_count() or 1))


def load(root: str | Path = "/") -> float:
    """Processes at work on this machine besides this one and its fellow ranks; 0 where nobody knows. It is what runs
    now, not the average of the last minute: the command before this one is over, a neighbour may just have begun."""
    counts = []
    for look in range(LOOKS):
        time.sleep(PAUSE if look else 0)
        words = " ".join(_lines(Path(root) / "proc/loadavg")).split()  # "2.05 1.98 1.50 3/345 1234"
        counts.append(int(words[3].partition("/")[0]) if len(words) > 3 else 1)
    fellows = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(counts) - fellows)


def shares(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether threads wait as beside neighbours."""
    return WAIT["shared"].items() <= environment.items()


def said(environment: Mapping[str, str] = os.environ) -> str:
    """How threads wait, in words."""
    chosen = [f"{name}={environment[name]}" for name in CHOSEN_BY_USER if name in environment]
    return ", ".join(chosen) or "as OpenMP does by itself"


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of all groups around them, where they are mounted."""
    mounts = _mounts(root)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for kind, inside, mount in mounts:
            if (kind == "cgroup2") != (controllers == "") or (controllers and "cpu" not in kind.split(",")):
                continue
            # Within a container the group is named from the host's root, but only what lies below `inside` is mounted.
            below = PurePosixPath(group)
            base = PurePosixPath(inside)
            part = below.relative_to(base) if below.is_relative_to(base) else PurePosixPath(".")
            for level in (part, *part.parents):
                yield root / mount.lstrip("/") / str(level).lstrip("/")


def _mounts(root: Path) -> list[tuple[str, str, str]]:
    """(cgroup2, or the controllers of the first generation; the group that is mounted; where) of each mount."""
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        words, kinds = fields.split(), rest.split()
        if len(words) >= 5 and kinds and kinds[0] in ("cgroup", "cgroup2"):
            kind = "cgroup2" if kinds[0] == "cgroup2" else kinds[-1]
            found.append((kind, words[3], words[4]))
    return found


def _quota_in(folder: Path) -> float | None:
    """The quota in cores of one control group, of either generation."""
    limit = " ".join(_lines(folder / "cpu.max")).split()  # "200000 100000", "max 100000"
    if not limit:
        limit = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]  # -1: none
    try:
        time, period = (float(part) for part in limit)
    except ValueError:
        return None
    return time / period if time > 0 and period > 0 else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
