"""The files that the gateway opens next to a SQLite database: its lock, its token for commands, its mark of keys.

Another account may have put something where such a file is looked for (storage/database_path.py). Therefore

- a file is never opened through a link, and is checked by its descriptor: a regular file with one name, of an account
  that could replace the database as well;
- only a file that was made here is given to the owner of the database.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from storage.database_path import ROOT, check_kind, check_names, make_unavailable, name_account
from storage.errors import StoreFailed

# The suffixes of the files next to a database: its lock, its token for commands, and its mark of having keys.
LOCK = ".lock"
ADMIN = ".admin"
KEYED = ".keyed"

# Another process may make or remove a file between two calls. Not measured; any value from 3 to 10 behaves alike.
_MAX_TRIES = 5
# The flags with which files are opened. A pipe that was put there must not make an open wait.
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# The flags with which directories are opened. A directory may be searchable and not readable, which is enough for
# O_PATH; macOS has no such flag.
_DIRECTORY_FLAGS = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


def has_sidecar(database: str, suffix: str) -> bool:
    """Returns whether anything has the name, even a link that leads nowhere."""
    return os.path.lexists(f"{database}{suffix}")


def open_sidecar(database: str, suffix: str, access: int) -> int:
    """Opens a file next to a database, and returns its descriptor. access: `os.O_RDONLY` or `os.O_RDWR`.

    Raises: FileNotFoundError if there is no file; StoreFailed, StoreReadOnly if the file cannot be used, or is another
        file.
    """
    path = f"{database}{suffix}"
    with _open_directory(database) as directory:
        try:
            descriptor = os.open(os.path.basename(path), access | _FILE_FLAGS, dir_fd=directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                check_kind(path, os.lstat(path))
            raise make_unavailable(f"{path} cannot be opened", error) from error
        try:
            _check_open(path, os.fstat(descriptor), _list_trusted_accounts(database, directory))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _check_open(path: str, status: os.stat_result, trusted_accounts: set[int]) -> None:
    check_kind(path, status)
    check_names(path, status)
    if status.st_uid not in trusted_accounts:
        raise StoreFailed(
            f"{path} belongs to the account {name_account(status.st_uid)}, which has no part in this database. "
            "Remove it."
        )


def make_sidecar(database: str, suffix: str) -> int:
    """Makes a file next to a database, for its owner alone, and returns its descriptor.

    Raises: FileExistsError if something has the name. StoreFailed, StoreReadOnly, StoreFull if it cannot be made.
    """
    path = f"{database}{suffix}"
    with _open_directory(database) as directory:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
            descriptor = os.open(os.path.basename(path), flags, 0o600, dir_fd=directory)
        except FileExistsError:
            raise
        except OSError as error:
            raise make_unavailable(f"{path} cannot be made", error) from error
        try:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            owner = _find_owner(database, directory)
            if os.geteuid() == ROOT and owner is not None:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        except OSError as error:
            os.close(descriptor)
            raise make_unavailable(f"{path} cannot be made", error) from error
        return descriptor


def ensure_sidecar(database: str, suffix: str) -> int:
    """Opens a file next to a database for writing, and makes it if there is none. Raises: StoreUnavailable."""
    for _ in range(_MAX_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return open_sidecar(database, suffix, os.O_RDWR)
        with contextlib.suppress(FileExistsError):
            return make_sidecar(database, suffix)
    raise StoreFailed(f"{database}{suffix} comes and goes: another program makes and removes it.")


def replace_sidecar(database: str, suffix: str, data: bytes) -> None:
    """Makes a file with this content next to a database, in place of what has the name.

    Raises: OSError, StoreUnavailable.
    """
    remove_sidecar(database, suffix)
    try:
        with os.fdopen(make_sidecar(database, suffix), "wb") as file:
            file.write(data)
    except OSError as error:
        remove_sidecar(database, suffix)
        raise make_unavailable(f"{database}{suffix} cannot be written", error) from error


def remove_sidecar(database: str, suffix: str) -> None:
    """Removes a file next to a database, if there is one. If it is a link, the link is removed. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{database}{suffix}")


def restrict(path: str) -> None:
    """Forbids a file to all accounts but its owner, if it is there.

    It is not opened for reading: a process that closes a descriptor of a file loses SQLite's locks on it.

    Raises: OSError, StoreFailed.
    """
    if not hasattr(os, "O_PATH"):  # macOS
        with contextlib.suppress(FileNotFoundError):
            os.chmod(path, 0o600, follow_symlinks=False)
        return
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(descriptor)
        check_kind(path, status)
        check_names(path, status)
        os.chmod(f"/proc/self/fd/{descriptor}", 0o600)
    finally:
        os.close(descriptor)


@contextmanager
def _open_directory(database: str) -> Iterator[int]:
    """Opens the directory of a database, so that files are checked and opened in the same directory."""
    path = os.path.dirname(database)
    try:
        descriptor = os.open(path, _DIRECTORY_FLAGS)
    except OSError as error:
        raise make_unavailable(f"The directory {path} cannot be opened", error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _find_owner(database: str, directory: int) -> os.stat_result | None:
    """Returns the entry of a database in its directory; None if there is no such file."""
    try:
        status = os.stat(os.path.basename(database), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _list_trusted_accounts(database: str, directory: int) -> set[int]:
    """Returns the accounts that have every right on the database anyway."""
    owner = _find_owner(database, directory)
    accounts = {ROOT, os.geteuid(), os.fstat(directory).st_uid}
    return accounts if owner is None else {*accounts, owner.st_uid}
