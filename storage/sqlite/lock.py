"""One process owns a database file: an operating-system lock on a file beside it that says who.

The lock is `flock` on `<real path>.lock`. It goes with the process, however that ends; the file stays and means nothing
by itself. It is never deleted: somebody might just have opened it, and would then hold a lock that nobody else sees.
A program started by the owner does not inherit the descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from storage.errors import Broken, Owned, ReadOnly

# `owner_of` holds a shared lock for an instant. A start that meets one tries again before it believes in an owner.
_TRIES = 5
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class LockOwner:
    """The process that owns a database file; None where it has not said so."""

    pid: int | None
    address: str | None


class Lock:
    """The lock of one database, held from `take` to `release` or the end of the process. is_held: by this one."""

    def __init__(self, database: str | Path, address: str | None = None) -> None:
        """address: where this process serves, for whoever is refused."""
        self._database, self._address = str(database), address
        self._descriptor: int | None = None
        self.is_held = False

    def take(self) -> None:
        """Takes the lock, unless it is held. One whose file was taken away, with the database, is no lock any more.

        Raises: Owned, with what the owner wrote; ReadOnly, Broken: there can be no lock file.
        """
        path = lock_path(self._database)
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(self._descriptor)):
                    return
            self.release()
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        try:
            for attempt in range(_TRIES):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == _TRIES - 1:
                        owner = _read(descriptor)
                        raise Owned(self._database, owner.pid, owner.address) from None
                    time.sleep(_PAUSE_S)
            self._give_to_owner(descriptor)
            # The owner says who it is, for whoever is refused. The file is cut last, so that no reader finds it empty.
            data = orjson.dumps({"pid": os.getpid(), "address": self._address})
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        except OSError as error:
            os.close(descriptor)
            raise Broken(f"{path} cannot be locked: {error}") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self.is_held = descriptor, True

    def _give_to_owner(self, descriptor: int) -> None:
        """Gives what root has made to the account that has the database, as SQLite does with its log."""
        if os.geteuid() == 0:
            with contextlib.suppress(OSError):  # there may be no database yet
                found = os.stat(self._database)
                os.fchown(descriptor, found.st_uid, found.st_gid)

    def release(self) -> None:
        """Gives the lock back. Idempotent."""
        descriptor, self._descriptor, self.is_held = self._descriptor, None, False
        if descriptor is not None:
            os.close(descriptor)


def owner_of(database: str | Path) -> LockOwner | None:
    """Returns who owns the file now; None: nobody.

    Raises: ReadOnly: the database is another account's. Broken: the lock file cannot be read.
    """
    _check_reach(database)
    path = lock_path(database)
    if not os.path.exists(path):
        return None
    descriptor = _open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _check_reach(database: str | Path) -> None:
    """Says whether this account may come to the file, if there is one.

    Raises: ReadOnly: it is another account's, or lies in a folder of such a one.
    """
    real = Path(os.path.realpath(database))
    for each in (*reversed(real.parents), real):
        if not each.exists():
            return
        wanted = os.R_OK | os.W_OK if each == real else os.X_OK
        owner = each.stat().st_uid
        if owner != os.geteuid() and not os.access(each, wanted, effective_ids=True):
            raise ReadOnly(f"{each} is of the account {_name_of(owner)}: run this as that account")


def _name_of(account: int) -> str:
    try:
        return pwd.getpwuid(account).pw_name
    except KeyError:
        return str(account)


def lock_path(database: str | Path) -> str:
    """Returns where the lock of a database lies."""
    return f"{os.path.realpath(database)}.lock"


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        kind = ReadOnly if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS) else Broken
        raise kind(
            f"{path} cannot be opened: {error.strerror}. It says which process owns the database."
        ) from error


def _read(descriptor: int) -> LockOwner:
    try:
        said = orjson.loads(os.pread(descriptor, 4096, 0))
    except (OSError, orjson.JSONDecodeError):
        return LockOwner(None, None)
    return (
        LockOwner(said.get("pid"), said.get("address")) if isinstance(said, dict) else LockOwner(None, None)
    )
