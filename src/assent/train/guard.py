"""Where every run ends that does not come to its end: the last good state is saved, and the person is told what exists
and how to go on."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from assent import process
from assent.carried import all_here, raised_by_all, shared_store
from assent.errors import AssentError, CheckpointError, Interrupted, ShutdownRequested, UserError
from assent.foreign import brief
from assent.guest import blamed, ends_programs
from assent.interrupt import Interrupt

log = logging.getLogger(__name__)

TOGETHER = 5.0
"""Seconds within which all ranks must meet to save."""
NOTHING = "No checkpoint exists yet: no step was finished."


class Guarded(Protocol):
    """A run, as far as it is guarded."""

    total: int
    began: dict[str, Any]
    kept: dict[str, Any]
    written: dict[str, Any] | None

    @property
    def intact(self) -> bool: ...

    def save(self) -> None: ...


class CodeEnded(UserError):
    """Code that is not ours ended the program: `sys.exit`, or an exception that is no error."""


@contextmanager
def guard(state: Guarded) -> Iterator[None]:
    """Whatever is raised or received in here leads to a save of the last good state, where that is later than the
    newest checkpoint. Then it goes on: a signal as ShutdownRequested, `SystemExit` and its like as CodeEnded, what we
    raise on purpose with what was saved as part of its text, and everything else with that as a note."""

    def rescue(number: int) -> None:
        if sys.stderr.isatty():
            process.tell("\x1b[?25h")  # the live bar has hidden the cursor
        log.error(ShutdownRequested(number, secured(state, Interrupted(number))))
        process.leave(128 + number)

    with process.steady_output(), Interrupt(rescue, shared_store()) as interrupt:
        try:
            yield
        except BaseException as error:
            interrupt.close()
            if isinstance(error, MemoryError | torch.OutOfMemoryError):
                traceback.clear_frames(error.__traceback__)  # what they hold is needed to save
            said = secured(state, error)
            if isinstance(error, Interrupted):
                raise ShutdownRequested(error.number, said) from error.__cause__
            if isinstance(error, AssentError):
                error.args = (f"{error}\n{said}",)
                raise
            if ends_programs(error):
                raise CodeEnded(f"The run was ended by {blamed(error)}.\n{said}") from error
            error.add_note(said)
            raise


def secured(state: Guarded, error: BaseException) -> str:
    """Saves the last good state of a run that `error` ends, where it can be and is not saved yet; what there is."""
    step = state.kept["run"]["step"]
    saved = f"Checkpoint of step {step} saved; continue with --resume auto."
    if state.written is state.kept:
        return saved + (" That only writes the model: all steps are done." if step == state.total else "")
    if state.began is state.kept:
        return NOTHING
    if not state.intact:
        return f"The update of step {step + 1} was under way: its weights are those of no step. {_exists(state)}"
    if not raised_by_all(error):
        return f"It ended one rank alone, and the state of step {step} is spread over all. {_exists(state)}"
    if isinstance(error, CheckpointError):
        return _exists(state)
    if not all_here(f"save/{step}", TOGETHER):
        return f"Not all ranks came together to save step {step}. {_exists(state)}"
    try:
        state.save()
    except Exception as problem:
        why = "" if str(problem) == str(error) else f" ({brief(problem)})"
        return f"The state of step {step} could not be saved{why}. {_exists(state)}"
    return saved


def _exists(state: Guarded) -> str:
    if state.written is None:
        return "No checkpoint exists yet: --resume auto begins anew."
    return f"The newest checkpoint is that of step {state.written['run']['step']}; continue with --resume auto."
