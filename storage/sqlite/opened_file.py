"""The file on which the connection that writes was opened: whether it still lies at its path, as it was then."""

from __future__ import annotations

import contextlib
import os
import sqlite3

from storage.database_path import LOGS
from storage.errors import StoreFailed
from storage.sqlite.connection import read_schema_version


class OpenedFile:
    """The file that is open, or was open last. Its methods may be called in any thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        # The inode of the file; None: it is not known.
        self._inode: int | None = None
        # The inodes of its logs, by the suffixes of their names.
        self._log_inodes: dict[str, int] = {}
        # The version of the schema when the file was opened; 0: none was ever open. A copy that is restored into the
        # file changes it.
        self.schema_version = 0
        # The number of times that another file than before was opened (`Database.generation`).
        self.generation = 0

    def find_inode(self) -> int | None:
        """Returns the inode of the file at the path; None: there is no file, or it cannot be looked up."""
        try:
            return os.stat(self._path).st_ino
        except OSError:
            return None  # the next write reports the error

    def differs_from(self, inode: int | None, schema_version: int) -> bool:
        """Returns whether the file that was open last, if there was any, is not the file with these two values."""
        if self.schema_version == 0:
            return False
        return self._inode not in (None, inode) or schema_version != self.schema_version

    def record_opened(self, inode: int | None, schema_version: int, *, is_different: bool) -> None:
        """Records the file that is open from now on. is_different: the result of `differs_from` for this file."""
        self.schema_version = schema_version
        self.generation += is_different
        self._inode = inode
        self._log_inodes.clear()
        for suffix in LOGS:
            with contextlib.suppress(OSError):  # as a rule one is not there
                self._log_inodes[suffix] = os.stat(self._path + suffix).st_ino

    def is_replaced(self) -> bool:
        """Returns whether another file, or none, is at the path now: writes to the open file would be lost."""
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return True
        except OSError:
            return False  # the next write reports the error
        return self._inode not in (None, inode)

    def make_replaced_error(self) -> StoreFailed:
        """Returns the fault of a file that `is_replaced`."""
        return StoreFailed(f"{self._path} was removed or replaced while the gateway had it open")

    def is_overwritten(self, connection: sqlite3.Connection) -> bool:
        """Returns whether another program has written a copy into the open file, or changed its schema.

        Then ids that were read before may be those of other users. Called in the thread of the connection.
        """
        try:
            return read_schema_version(connection) != self.schema_version
        except sqlite3.Error:
            return False  # the next write reports the error

    def make_overwritten_error(self) -> StoreFailed:
        """Returns the fault of a file that `is_overwritten`."""
        return StoreFailed(
            f"{self._path} was restored or changed by another program while the gateway had it open"
        )

    def delete_logs(self) -> None:
        """Deletes the logs of a file that was closed and `is_replaced`.

        SQLite would apply them to the file that is at the path now.
        """
        for suffix, inode in [*self._log_inodes.items()]:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path + suffix).st_ino == inode:
                    os.unlink(self._path + suffix)
            del self._log_inodes[suffix]  # from now on another file may have this inode
