"""The errors a person can meet. A `UserError` is a person's mistake: the command line prints its text, and nothing
else, and exits with code 2."""

import signal


class AssentError(Exception):
    """Base of every error that assent raises on purpose."""

    exit_code = 1


class UserError(AssentError, ValueError):
    """Something the user can put right: what was wrong, where, what was expected, what to do."""

    exit_code = 2


class ConfigError(UserError):
    """An option that does not exist, has the wrong type, or contradicts another."""


class DataError(UserError):
    """A data file that cannot be used: missing, unreadable, of unknown shape, or with too many problem rows."""


class ModelError(UserError):
    """A model folder or hub id that cannot be loaded, or does not fit the task."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete, corrupt, or belongs to another run."""


class RunFolderError(UserError):
    """A run folder that exists already, cannot be written, or lacks what was asked of it."""


class OutputError(RunFolderError):
    """A file or folder that cannot be written: no room, no permission, or no place for it."""


class NonFiniteError(AssentError, ArithmeticError):
    """A loss, gradient, weight or reward that is not a finite number. Nothing of it is saved."""

    exit_code = 3


class Incomplete(AssentError):
    """Work that was done and written, but for what a server did not answer. What is missing can be asked for again."""

    exit_code = 4


class ShutdownRequested(AssentError):
    """The run was asked to stop by a signal, and has saved: 130 after Ctrl-C (SIGINT), 143 after SIGTERM, 129 after
    SIGHUP."""

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}.{' ' + saved if saved else ''}")
        self.exit_code = 128 + number


class Interrupted(BaseException):
    """A signal, while a run waits or computes what may be given up. It becomes ShutdownRequested once the run is saved;
    `except Exception` does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
