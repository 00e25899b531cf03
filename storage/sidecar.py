"""The path of a SQLite database, and the files that the gateway opens next to it: its lock, its token, its `.keyed`.

Root works on databases of other accounts, and some directories are open to all accounts. So another account may have
put something where a file is looked for: a link, a second name of a file elsewhere, a pipe. Therefore

- links in the path of a database are followed where root or this account has made them, and no others;
- a file next to the database is never opened through a link, and is checked by its descriptor: a regular file with one
  name, of an account that could replace the database as well;
- only a file that was made here is given to the owner of the database.

A file or directory that cannot be used is reported in the words of an operator.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from storage.errors import StoreFailed, StoreFull, StoreReadOnly, StoreUnavailable

# The suffixes of the files next to a database: its lock, its token for commands, and its mark of having keys.
LOCK = ".lock"
ADMIN = ".admin"
KEYED = ".keyed"
# The files that SQLite itself makes next to a database.
LOGS = ("-wal", "-shm", "-journal")

# The user id of root, which may write everywhere.
_ROOT = 0
# The most links that Linux follows in one path.
_MAX_LINKS = 40
# Another process may make or remove a file between two calls. Not measured; any value from 3 to 10 behaves alike.
_MAX_TRIES = 5
# The flags with which files are opened. A pipe that was put there must not make an open wait.
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# The flags with which directories are opened. A directory may be searchable and not readable, which is enough for
# O_PATH; macOS has no such flag.
_DIRECTORY_FLAGS = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
# The kinds of files that no database is, each with its name in errors.
_OTHER_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
# The errors of the system that become `StoreReadOnly` and `StoreFull`.
_NO_ACCESS = (errno.EPERM, errno.EACCES, errno.EROFS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


# -- paths


def resolve_path(database: str | Path) -> str:
    """Returns the absolute path of a database, without links: two names of one file must not be two databases.

    Raises: StoreFailed if a link on the way belongs to another account, or there are too many.
    """
    try:
        names = [*reversed(os.path.join("" if os.path.isabs(database) else os.getcwd(), database).split("/"))]
    except FileNotFoundError:
        raise StoreFailed(
            "The current directory does not exist any more. Start this in another one."
        ) from None
    resolved = "/"
    link_count = 0
    while names:
        name = names.pop()
        if name == "..":
            resolved = os.path.dirname(resolved)
        if name in ("", ".", ".."):
            continue
        path = os.path.join(resolved, name)
        link = _read_link(path)
        if link is None:
            resolved = path
            continue
        link_count += 1
        if link.owner not in (_ROOT, os.geteuid()):
            raise StoreFailed(
                f"{path} is a link that the account {name_account(link.owner)} has made, so it is not followed. "
                f"If it is right, name the file itself with --db: it leads to {link.target}."
            )
        if link_count > _MAX_LINKS:
            raise StoreFailed(f"The path {database} has too many links. Name another file with --db.")
        if link.target.startswith("/"):
            resolved = "/"
        names += reversed(link.target.split("/"))
    return resolved


class _Link(NamedTuple):
    # The path to which the link leads.
    target: str
    # The account that has made the link.
    owner: int


def _read_link(path: str) -> _Link | None:
    """Returns the link at a path; None: there is none, or it cannot be read."""
    try:
        status = os.lstat(path)
        return _Link(os.readlink(path), status.st_uid) if stat.S_ISLNK(status.st_mode) else None
    except OSError:  # whoever opens the path gets the same error
        return None


def name_account(account: int) -> str:
    """Returns the name of an account, or its number if the account has no name."""
    try:
        return pwd.getpwuid(account).pw_name
    except KeyError:
        return str(account)


# -- checks


def check_location(database: str) -> None:
    """Checks that this account could have a database at a resolved path. Raises: StoreFailed, StoreReadOnly."""
    check_reach(database)
    directory = os.path.dirname(database)
    if not _has_access(directory, os.W_OK | os.X_OK):
        raise _make_access_error(f"write in the directory {directory}", directory)
    for path in (database, *(f"{database}{suffix}" for suffix in LOGS)):
        _check_file(path)


def check_reach(database: str) -> None:
    """Checks that this account can read and write the file at a resolved path. Raises: StoreFailed, StoreReadOnly."""
    directory = os.path.dirname(database)
    for parent in reversed(Path(database).parents):
        try:
            mode = os.stat(parent).st_mode
        except FileNotFoundError:
            raise StoreFailed(
                f"The directory {directory} does not exist. Make it, or name another file with --db."
            ) from None
        except OSError as error:
            raise make_unavailable(f"The directory {parent} cannot be used", error) from error
        if not stat.S_ISDIR(mode):
            raise StoreFailed(f"{parent} is a file, not a directory. Name another file with --db.")
        if not _has_access(str(parent), os.X_OK):
            raise _make_access_error(f"look into the directory {parent}", str(parent))
    if os.path.lexists(database):
        _check_kind(database, os.lstat(database))
        if not _has_access(database, os.R_OK | os.W_OK):
            raise _make_access_error(f"read and write {database}", database)


def _check_file(path: str) -> None:
    """Checks a file that SQLite will open by its path. Raises: StoreFailed if the file may be of another place."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    _check_kind(path, status)
    _check_names(path, status)
    directory = os.stat(os.path.dirname(path))
    is_of_stranger = status.st_uid not in (_ROOT, os.geteuid(), directory.st_uid)
    if is_of_stranger and directory.st_mode & stat.S_IWOTH:
        raise StoreFailed(
            f"{path} belongs to the account {name_account(status.st_uid)}, and every account may make files in its "
            "directory. Name a file in a directory of your own with --db."
        )


def _check_kind(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind_name = next((name for is_kind, name in _OTHER_KINDS if is_kind(status.st_mode)), "a device")
        raise StoreFailed(
            f"{path} is {kind_name}, not a regular file. Move it away, or name another file with --db."
        )


def _check_names(path: str, status: os.stat_result) -> None:
    if status.st_nlink > 1:
        raise StoreFailed(
            f"{path} has {status.st_nlink} names (hard links), so what is written to it would change another "
            "file as well. Remove the others, or name another file with --db."
        )


def _has_access(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _make_access_error(action: str, path: str) -> StoreReadOnly:
    """Returns the error for an action that this account may not perform. action: a verb with its object."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return StoreReadOnly(
            f"It is not possible to {action}: its file system is read-only. Mount it for writing, or name "
            "another file with --db."
        )
    owner = os.stat(path).st_uid
    this_account = os.geteuid()
    remedy = "Change its mode"
    owner_clause = ""
    if owner != this_account:
        remedy = f"Run this as {name_account(owner)}"
        owner_clause = f", which belongs to {name_account(owner)}"
    return StoreReadOnly(
        f"The account {name_account(this_account)} may not {action}{owner_clause}. {remedy}, or name another file with "
        "--db."
    )


def make_unavailable(failure: str, error: OSError) -> StoreUnavailable:
    """Returns the store's error for an error of the operating system. failure: a clause about what cannot be done."""
    if error.errno in _NO_ROOM:
        return StoreFull(f"{failure}: the disk is full. Make room on it, or name another file with --db.")
    error_type = StoreReadOnly if error.errno in _NO_ACCESS else StoreFailed
    return error_type(f"{failure}: {error.strerror or error}.")


# -- files next to a database


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
                _check_kind(path, os.lstat(path))
            raise make_unavailable(f"{path} cannot be opened", error) from error
        try:
            _check_open(path, os.fstat(descriptor), _list_trusted_accounts(database, directory))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _check_open(path: str, status: os.stat_result, trusted_accounts: set[int]) -> None:
    _check_kind(path, status)
    _check_names(path, status)
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
            if os.geteuid() == _ROOT and owner is not None:
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
        _check_kind(path, status)
        _check_names(path, status)
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
    accounts = {_ROOT, os.geteuid(), os.fstat(directory).st_uid}
    return accounts if owner is None else {*accounts, owner.st_uid}
