"""Errors of one rank that every rank must raise, so that none is left waiting and all can save together."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from assent.errors import AssentError, Interrupted
from assent.interrupt import interruptible

T = TypeVar("T")


def tried(action: Callable[[], T], ends: bool = False) -> tuple[T | None, BaseException | None]:
    """What `action` gives, or what it raises; a signal may end it where `ends`."""
    try:
        with interruptible(ends):
            return action(), None
    except BaseException as problem:
        return None, problem


def portable(error: BaseException | None) -> BaseException | None:
    """The error where other ranks can read it, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def by_all(error: BaseException) -> BaseException:
    """The error, marked as one that every rank raises at this point."""
    error.by_all = True  # type: ignore[attr-defined]
    return error


def raised_by_all(error: BaseException) -> bool:
    """Whether every rank raised this error, so that all can go on together: what one rank has carried to the others,
    and what we raise on purpose, which follows from what all ranks know."""
    return not dist.is_initialized() or isinstance(error, AssentError | Interrupted) or hasattr(error, "by_all")


def all_here(name: str, seconds: float) -> bool:
    """Whether every rank comes to the point `name` within this time; unlike a barrier, it is left then."""
    if (store := shared_store()) is None:
        return True
    names = [f"assent/{name}/{rank}" for rank in range(dist.get_world_size())]
    store.set(names[dist.get_rank()], "1")
    try:
        store.wait(names, timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True


def shared_store() -> Any:
    """What all ranks can read and write without a collective; None with one rank."""
    return dist.distributed_c10d._get_default_store() if dist.is_initialized() else None
