"""One process owns a database file: an operating-system lock on a file next to it that names the owner.

The lock is `flock` on `<real path>.lock`. It ends with the process, however that ends. The file stays, and means
nothing without the lock. It is never deleted: another process may just have opened it, and would then hold a lock that
no other sees. A program started by the owner does not inherit the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import orjson
from msgspec import Struct

from storage.database_path import check_reach, make_unavailable, resolve_path
from storage.errors import FileOwned
from storage.sidecar import LOCK, ensure_sidecar, open_sidecar

# `find_lock_owner` holds a shared lock for an instant, which refuses a start as an owner's lock does. So a start
# tries again, with pauses. Not measured: one further try is enough, unless several commands look up the owner at once.
_MAX_TRIES = 5
_PAUSE_S = 0.02


class LockOwner(Struct, frozen=True):
    """The process that owns a database file, as the lock file names it.

    Between its lock and its write, the file still names the owner before it.
    """

    # The owner's process id; None: the lock file is empty, or not completely written yet.
    pid: int | None
    # The address at which the owner serves; None: as for `pid`, or the owner has given no address.
    address: str | None


class Lock:
    """The lock of one database, held from `acquire` to `release` or the end of the process."""

    def __init__(self, database: str | Path, address: str | None = None) -> None:
        """Makes a lock that is not held yet. Raises: as `resolve_path`.

        address: the address at which this process serves, shown to a process that is refused; None: it is not known.
        """
        self._database = resolve_path(database)
        self._address = address
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> None:
        """Acquires the lock, unless it is held. If its file was removed with the database, it is acquired again.

        Raises: FileOwned, with the fields of `LockOwner`; StoreFailed, StoreReadOnly, StoreFull: the lock file cannot
            be made.
        """
        path = f"{self._database}{LOCK}"
        if self._descriptor is not None:
            if _is_file_at(path, self._descriptor):
                return
            self.release()
        descriptor = ensure_sidecar(self._database, LOCK)
        try:
            self._lock_exclusively(descriptor)
            # The owner writes its process and address, for the processes that are refused. The file is cut last, so
            # that no reader finds it empty.
            data = orjson.dumps({"pid": os.getpid(), "address": self._address})
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        except OSError as error:
            os.close(descriptor)
            raise make_unavailable(f"{path} cannot be locked", error) from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _lock_exclusively(self, descriptor: int) -> None:
        for attempt in range(1, _MAX_TRIES + 1):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt == _MAX_TRIES:
                    owner = _read_owner(descriptor)
                    raise FileOwned(self._database, owner.pid, owner.address) from None
                time.sleep(_PAUSE_S)

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._descriptor is not None:
            descriptor = self._descriptor
            self._descriptor = None
            os.close(descriptor)


def find_lock_owner(database: str | Path) -> LockOwner | None:
    """Returns the process that owns the file now; None: no process.

    Raises: StoreReadOnly: the database is another account's; StoreFailed: the lock file cannot be read.
    """
    path = resolve_path(database)
    check_reach(path)
    try:
        descriptor = open_sidecar(path, LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_owner(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _is_file_at(path: str, descriptor: int) -> bool:
    """Returns whether an open file is still the file at a path."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _read_owner(descriptor: int) -> LockOwner:
    try:
        content = orjson.loads(os.pread(descriptor, 4096, 0))
    except (OSError, orjson.JSONDecodeError):
        content = None
    fields = content if isinstance(content, dict) else {}
    return LockOwner(fields.get("pid"), fields.get("address"))
