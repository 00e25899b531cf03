"""The errors of a store.

StoreError
├── StoreUnavailable           the store cannot serve now; chat goes on without memory; `status` is what health shows
│   ├── StoreFull              no room on the disk
│   ├── StoreReadOnly          the file or its directory may not be written
│   ├── StoreLocked            another process holds the database
│   ├── StoreCorrupt           the file is damaged, or is no database
│   ├── StoreFailed            any other failure of the disk or the server
│   ├── StoreBusy              a queue of this process, or the server, has no room
│   ├── StoreTimeout           a read passed its deadline, or waited too long for a connection
│   └── StoreClosed            the store was closed
├── FileOwned                  at start: another process owns the file
├── SchemaTooNew               at start: the file was written by a newer program
├── SchemaTooOld               at start: the schema is from before this program's oldest upgrade step
├── ForeignDatabase            at start: the database belongs to another program
├── ServerRefused              at start: the server does not let this program in, or cannot serve it
├── NotFound                   the requested record does not exist
├── WriteConflict              another writer was faster, or a rule of the schema forbids it
│   ├── LimitExceeded          more than there may be: attached memories, files of a folder
│   │   └── BlockTooLong       a value is longer than its block may be
│   └── RecordChanged          the record was changed since it was read: read it again
├── StaleWrite                 the memory has changed since the write was planned: resolve again
├── CannotFork                 a fork cannot begin after the named message: name another message
├── RunEnded                   a run that was to begin has ended, or its send is another run's: nothing is left to do
└── StatementFailed            a bug of this program: a statement that the database does not understand
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

# The state of a store in one word, as health shows it. `ok`, `slow` and `closed` are no faults.
StoreStatus = Literal[
    "ok", "slow", "closed", "failing", "broken", "full", "readonly", "locked", "corrupt", "busy"
]


class StoreError(Exception):
    """An error of a store. message: a sentence about the fault, what was seen, and what to do."""

    status: ClassVar[StoreStatus] = "failing"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StoreUnavailable(StoreError):
    """The store cannot serve now. Chat goes on without memory."""

    status: ClassVar[StoreStatus] = "broken"
    # True if the fault was found before, so that health shows it; the error is raised for another caller.
    is_known = False

    def copy(self) -> Self:
        """Returns a copy of the error for another waiter, since an exception carries the traceback of its raiser."""
        error = type(self)(self.message)
        error.__cause__ = self.__cause__
        error.is_known = True
        return error


class StoreFull(StoreUnavailable):
    """The disk, or the memory of the server, has no room."""

    status = "full"


class StoreReadOnly(StoreUnavailable):
    """The file or its directory may not be written."""

    status = "readonly"


class StoreLocked(StoreUnavailable):
    """The database is held by another process."""

    status = "locked"


class StoreCorrupt(StoreUnavailable):
    """The file is damaged, or is no database."""

    status = "corrupt"


class StoreFailed(StoreUnavailable):
    """The disk or the server has failed in another way."""

    status = "broken"


class StoreBusy(StoreUnavailable):
    """A queue of this process, or the server, has no room."""

    status = "busy"


class StoreTimeout(StoreUnavailable):
    """A read passed its deadline, or waited too long for a connection."""

    status = "slow"


class StoreClosed(StoreUnavailable):
    """The store was closed."""

    status = "closed"


class FileOwned(StoreError):
    """The file is owned by another process."""

    def __init__(self, path: str, pid: int | None, address: str | None) -> None:
        """Makes the error. pid, address: the owner's; None: the owner has written no file with them."""
        owner = f"process {pid}" if pid else "another process"
        at_address = f", serving {address}" if address else ""
        super().__init__(
            f"{path} is in use by {owner}{at_address}. "
            "One process owns a database file: stop that one, or give this one another file."
        )
        self.pid = pid
        self.address = address


class SchemaTooNew(StoreError):
    """A newer program has written the file."""

    def __init__(self, path: str, version: int, latest_version: int) -> None:
        super().__init__(
            f"{path} has schema version {version}, this program knows versions up to {latest_version}: "
            "it was written by a newer Mnemogate. Upgrade this one."
        )


class SchemaTooOld(StoreError):
    """The file is too old to be upgraded."""

    def __init__(self, path: str, version: int) -> None:
        super().__init__(
            f"{path} has schema version {version}, from which this program has no upgrade. "
            "Export its memories with the Mnemogate that made it (mnemogate memory export), and import them into a "
            "new database with this one."
        )


class ForeignDatabase(StoreError):
    """The database belongs to another program."""


class ServerRefused(StoreError):
    """The server does not admit this program, or cannot serve it."""


class NotFound(StoreError):
    """The requested record does not exist."""


class WriteConflict(StoreError):
    """The write is refused: another writer was faster, or a rule of the schema forbids it."""


class LimitExceeded(WriteConflict):
    """There would be too many records: attached memories, files of a folder."""


class BlockTooLong(LimitExceeded):
    """A value is longer than its block may be."""


class RecordChanged(WriteConflict):
    """The record was changed since it was read. The caller reads it again."""


class StaleWrite(StoreError):
    """The memory was changed since the write was planned. The caller plans again."""


class CannotFork(StoreError):
    """A fork cannot begin after the named message."""


class RunEnded(StoreError):
    """A run that was to begin has ended, or another run has its send. Nothing is left to do."""


class StatementFailed(StoreError):
    """The database does not understand a statement: a fault of this program."""


def is_known(error: BaseException) -> bool:
    """Returns whether an error is a fault of the whole store that was found before, so that a log has it already."""
    return isinstance(error, StoreUnavailable) and error.is_known
