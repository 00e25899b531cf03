"""The path of a SQLite database, and whether this account can have a database there.

Root works on databases of other accounts, and some directories are open to all accounts. So another account may have
put a link, a pipe or a second name of another file where a file is looked for. Links in the path of a database are
followed where root or this account has made them, and no others.

A file or directory that cannot be used is reported in the words of an operator.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from storage.errors import StoreFailed, StoreFull, StoreReadOnly, StoreUnavailable

# The files that SQLite itself makes next to a database.
LOGS = ("-wal", "-shm", "-journal")

# The user id of root, which may write everywhere.
ROOT = 0
# The most links that Linux follows in one path.
_MAX_LINKS = 40
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
        if link.owner not in (ROOT, os.geteuid()):
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
    """A symbolic link."""

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
        check_kind(database, os.lstat(database))
        if not _has_access(database, os.R_OK | os.W_OK):
            raise _make_access_error(f"read and write {database}", database)


def _check_file(path: str) -> None:
    """Checks a file that SQLite will open by its path. Raises: StoreFailed if the file may be of another place."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    check_kind(path, status)
    check_names(path, status)
    directory = os.stat(os.path.dirname(path))
    is_of_stranger = status.st_uid not in (ROOT, os.geteuid(), directory.st_uid)
    if is_of_stranger and directory.st_mode & stat.S_IWOTH:
        raise StoreFailed(
            f"{path} belongs to the account {name_account(status.st_uid)}, and every account may make files in its "
            "directory. Name a file in a directory of your own with --db."
        )


def check_kind(path: str, status: os.stat_result) -> None:
    """Checks that a path is of a regular file. Raises: StoreFailed."""
    if not stat.S_ISREG(status.st_mode):
        kind_name = next((name for is_kind, name in _OTHER_KINDS if is_kind(status.st_mode)), "a device")
        raise StoreFailed(
            f"{path} is {kind_name}, not a regular file. Move it away, or name another file with --db."
        )


def check_names(path: str, status: os.stat_result) -> None:
    """Checks that a file has one name. Raises: StoreFailed."""
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
