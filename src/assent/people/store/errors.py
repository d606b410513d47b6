"""What can go wrong between an annotator and the database, in words for the one who meets it."""

from __future__ import annotations

from assent.errors import AssentError, UserError


class StoreError(AssentError):
    """Base of all that the store raises. What was done in the same transaction is undone, unless `keeps` is true."""

    keeps = False


class OpenError(StoreError, UserError):
    """A database that cannot be used: of another program, of a newer version, damaged, read-only, or out of reach."""


class BusyError(StoreError):
    """Another program held the database for longer than one waits. Nothing was done; it can be tried again."""


class RoomError(StoreError):
    """The disk is full, or a limit on the size of files was met. Nothing was done; all that was saved is there."""


class AccessError(StoreError):
    """Somebody who may not do this: no member, locked, or disabled."""


class AccountError(StoreError):
    """A name, password or role that an account cannot have."""


class MissingError(StoreError):
    """Something that is not there: a slot, an item, a project, a user."""


class GoneError(StoreError):
    """The item was withdrawn while somebody worked on it. What they had is kept as a draft."""

    keeps = True


class LeaseError(StoreError):
    """The time for a slot ran out, and somebody else has it. What was written is kept as a draft."""

    keeps = True


class StaleError(StoreError):
    """A form of yesterday: its slot is answered already, or its request came before with another answer. What was
    written is kept as a draft."""

    keeps = True


class ChangedError(StoreError, UserError):
    """A task whose meaning changed while there are labels of its old meaning."""
