"""How a process learns which rank it is, and meets the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from assent.errors import ConfigError
from assent.foreign import brief

JOIN_LIMIT = 300.0
"""Seconds in which all ranks must be there."""
LAUNCH = (
    "Start ranks with torchrun (torchrun --nproc-per-node N -m assent ...); for one process unset RANK and WORLD_SIZE."
)


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Which process this is of how many, over all machines and on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched(variables: Mapping[str, str]) -> RankPlace:
    """What launchers say in environment variables. Raises ConfigError where that cannot be."""
    if not {"RANK", "WORLD_SIZE"} & variables.keys():
        return RankPlace()
    rank, size = _whole(variables, "RANK"), _whole(variables, "WORLD_SIZE")
    if size is None and rank == 0:
        size = 1
    if rank is None and size == 1:
        rank = 0
    if rank is None or size is None:
        name, other = ("WORLD_SIZE", "RANK") if rank is None else ("RANK", "WORLD_SIZE")
        raise ConfigError(f"{name} is {variables[name]}, but {other} is not set. {LAUNCH}")
    if not rank < size:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {size}: ranks are counted from 0 to WORLD_SIZE - 1. {LAUNCH}")
    if size == 1:
        return RankPlace()
    local_rank, local_size = _whole(variables, "LOCAL_RANK"), _whole(variables, "LOCAL_WORLD_SIZE")
    local_rank, local_size = rank if local_rank is None else local_rank, local_size or size
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not variables.get(name)]:
        raise ConfigError(f"RANK is {rank} of WORLD_SIZE {size}, but there is no {' and '.join(missing)}. {LAUNCH}")
    _whole(variables, "MASTER_PORT", most=65535)
    return RankPlace(rank, size, local_rank, local_size)


def _whole(variables: Mapping[str, str], name: str, most: int = 1 << 31) -> int | None:
    """The whole number that a variable holds; None where it is not set."""
    text = variables.get(name)
    if text is None:
        return None
    least = 1 if "SIZE" in name or "PORT" in name else 0
    if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
        raise ConfigError(f"{name} is {text[:40]!r}; expected a whole number from {least}. {LAUNCH}")
    return int(text)


def join(place: RankPlace, device: torch.device) -> None:
    """Meets the other ranks where MASTER_ADDR and MASTER_PORT say."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    # gloo stays available beside NCCL: flags and Python objects travel without touching the device.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_LIMIT)))
        store.set_timeout(default_pg_timeout)  # from now on ranks may be long at work
        dist.init_process_group(backend, store=PrefixStore("assent", store), rank=place.rank, world_size=place.size)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        first, *_frames = str(error).strip().splitlines() or [""]
        reason = brief(first) or type(error).__name__
        raise ConfigError(
            f"Rank {place.rank} of {place.size} did not meet the others at {where} (MASTER_ADDR and MASTER_PORT) in "
            f"{JOIN_LIMIT:g} s: {reason}. Do all ranks run, and is that the address of rank 0? {LAUNCH}"
        ) from error
