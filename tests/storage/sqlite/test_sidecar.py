"""Files next to a database are opened through no link, by root and by other accounts.

Each trap is put there by the account that owns the directory of the database, as an attacker could; its target is a
file that this account may neither read nor write.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from gateway.core.memory.rules import RULES
from gateway.run.admin.command_line.serving import AdminFile, ServingProcess
from storage import sidecar
from storage.database_path import check_location, resolve_path
from storage.errors import StoreFailed, StoreReadOnly, StoreUnavailable
from storage.open import open_store as make_store
from storage.sidecar import (
    ADMIN,
    KEYED,
    LOCK,
    ensure_sidecar,
    make_sidecar,
    open_sidecar,
    replace_sidecar,
    restrict,
)
from storage.sql.keyed_file import was_keyed
from storage.sqlite import connection
from storage.sqlite.connection import DatabaseFile, open_reader
from storage.sqlite.lock import Lock, find_lock_owner

NOBODY, STRANGER = 65534, 65533
SECRET = b"root:*:the secret of another account"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")


@contextmanager
def account(uid: int) -> Iterator[None]:
    """Does something as another account, whose files are checked for it alone."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def in_child(uid: int, act: Callable[[], None]) -> None:
    """Does something in a child that has given up root for good, and has its failure reported."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            act()
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of another account, within one that all accounts can look into."""
    with TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        folder = Path(top, "home")
        folder.mkdir(mode=0o755)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder


@pytest.fixture
def secret(home: Path) -> Path:
    path = home.parent / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def is_untouched(secret: Path) -> bool:
    found = secret.stat()
    mode = stat.S_IMODE(found.st_mode)
    return (secret.read_bytes(), found.st_uid, mode) == (SECRET, os.getuid(), 0o600)


def link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def name_twice(path: Path, secret: Path) -> None:
    os.link(secret, path)


def pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, secret: Path) -> None:
    path.mkdir()


TRAPS = pytest.mark.parametrize("trap", [link, name_twice, pipe, folder])
KINDS = {link: "is a link", name_twice: "has 2 names", pipe: "is a pipe", folder: "is a directory"}
Trap = Callable[[Path, Path], None]


def make_database(path: Path) -> None:
    path.touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


@TRAPS
def test_no_lock_is_taken_through_a_trap(home: Path, secret: Path, trap: Trap) -> None:
    """Root's command gave the target of a link to the owner of the database."""
    path = home / "m.db"
    make_database(path)
    trap(home / "m.db.lock", secret)
    with pytest.raises(StoreFailed, match=KINDS[trap]):
        Lock(path).acquire()
    with pytest.raises(StoreFailed, match=KINDS[trap]):
        find_lock_owner(path)
    assert is_untouched(secret)


@TRAPS
def test_the_token_goes_into_no_trap(home: Path, secret: Path, trap: Trap) -> None:
    path = home / "m.db"
    make_database(path)
    trap(home / "m.db.admin", secret)
    assert ServingProcess.find(str(path)) is None
    admin = AdminFile(str(path))
    if trap is folder:
        with pytest.raises(OSError, match="directory"):
            admin.write("http://127.0.0.1:1")
    else:
        admin.write("http://127.0.0.1:1")
        assert ServingProcess.find(str(path)) == ("http://127.0.0.1:1", admin.token)
        found = admin.path.lstat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, path.stat().st_uid)
    admin.remove()
    assert is_untouched(secret)


@TRAPS
async def test_the_sign_of_keys_goes_into_no_trap_and_whatever_lies_there_counts(
    home: Path, secret: Path, trap: Trap
) -> None:
    path = home / "m.db"
    store = await make_store(path, RULES)
    trap(home / "m.db.keyed", secret)
    await store.keys.create("default", "ann")
    await store.close()
    assert was_keyed(path)
    assert is_untouched(secret)


def test_a_link_that_leads_nowhere_does_not_hide_that_there_are_keys(home: Path) -> None:
    (home / "m.db.keyed").symlink_to("nowhere")
    assert was_keyed(home / "m.db")


@TRAPS
@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
async def test_sqlite_opens_no_trap(home: Path, secret: Path, trap: Trap, end: str) -> None:
    path = home / "m.db"
    if end:
        make_database(path)
    trap(home / f"m.db{end}", secret)
    if trap is link and not end:
        if os.geteuid() != 0:
            pytest.skip("a link of this account is followed")
        os.lchown(home / "m.db", NOBODY, NOBODY)
        with pytest.raises(StoreFailed, match="is a link that the account"):
            await make_store(path, RULES)
    else:
        store = await make_store(path, RULES)
        with pytest.raises(StoreUnavailable, match=KINDS[trap]):
            await store.keys.has_any()
        await store.close()
    assert is_untouched(secret)


@as_root
def test_files_that_root_makes_belong_to_the_owner_of_the_database(home: Path) -> None:
    path = home / "m.db"
    make_database(path)
    os.close(make_sidecar(str(path), KEYED))
    assert (home / "m.db.keyed").stat().st_uid == NOBODY
    # A file of root's that lay in the directory and was given the name of the lock: a move needs no right on it.
    (home / "m.db.lock").touch(mode=0o600)
    os.close(ensure_sidecar(str(path), LOCK))
    assert (home / "m.db.lock").stat().st_uid == 0


@as_root
def test_a_file_of_an_account_without_a_part_in_the_database_is_refused(home: Path) -> None:
    path = home / "m.db"
    make_database(path)
    for end in (LOCK, ADMIN):
        (home / f"m.db{end}").write_text('{"address": "http://127.0.0.1:1", "token": "theirs"}')
        os.chown(home / f"m.db{end}", STRANGER, STRANGER)
    with pytest.raises(
        StoreFailed, match=r"lock belongs to the account .* which has no part in this database"
    ):
        Lock(path).acquire()
    assert ServingProcess.find(str(path)) is None


@as_root
@pytest.mark.parametrize("uid", [0, STRANGER])
def test_no_database_of_another_account_is_used_where_all_may_make_files(home: Path, uid: int) -> None:
    shared = home / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    make_database(shared / "m.db")
    (shared / "m.db").chmod(0o666)
    with account(uid), pytest.raises(StoreFailed, match="every account may make files"):
        check_location(str(shared / "m.db"))
    with account(NOBODY):
        check_location(str(shared / "m.db"))


@as_root
def test_links_of_root_and_of_this_account_lead_to_a_database_and_others_do_not(home: Path) -> None:
    (home / "real").mkdir()
    os.chown(home / "real", NOBODY, NOBODY)
    for name, uid in (("root", 0), ("own", NOBODY), ("theirs", STRANGER)):
        (home / name).symlink_to("real")
        os.lchown(home / name, uid, uid)
    real = str((home / "real" / "m.db").resolve())

    def check() -> None:
        assert resolve_path(home / "root" / "m.db") == real
        assert resolve_path(home / "own" / ".." / "own" / "m.db") == real
        with pytest.raises(StoreFailed, match="theirs is a link that the account"):
            resolve_path(home / "theirs" / "m.db")

    in_child(NOBODY, check)
    with pytest.raises(StoreFailed, match="own is a link that the account"):
        resolve_path(home / "own" / "m.db")  # this time it is root who is led


def test_a_path_is_resolved_as_the_system_resolves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "up").symlink_to("a/b/..")
    (tmp_path / "far").symlink_to(tmp_path / "up" / "b")
    for path in (
        "m.db",
        "./m.db",
        "up/m.db",
        "far/../m.db",
        "far//m.db",
        "a/none/../m.db",
        f"{tmp_path}/m.db",
    ):
        assert resolve_path(path) == os.path.realpath(path)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(StoreFailed, match="too many links"):
        resolve_path("round/m.db")


def test_a_current_directory_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreFailed, match="current directory does not exist any more"):
        resolve_path("m.db")


def test_a_link_that_takes_the_place_of_the_lock_between_two_calls_is_not_followed(
    home: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "m.db"
    make_database(path)
    make = os.open

    def swap(name: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT and not (home / "m.db.lock").is_symlink():
            (home / "m.db.lock").symlink_to(secret)  # after it was found missing
        return make(name, flags, *rest, **named)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(StoreFailed, match="is a link"):
        Lock(path).acquire()
    assert is_untouched(secret)


def test_a_link_that_takes_the_place_of_the_database_while_it_is_opened_is_noticed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = home / "m.db", home.parent / "other.db"
    for each in (path, other):
        with contextlib.closing(sqlite3.connect(each)) as made:
            made.execute("CREATE TABLE words (word)")
    before, connect = other.read_bytes(), sqlite3.connect

    def swap(*arguments: Any, **named: Any) -> sqlite3.Connection:
        path.unlink()
        path.symlink_to(other)
        return connect(*arguments, **named)

    monkeypatch.setattr(connection.sqlite3, "connect", swap)
    with pytest.raises(StoreFailed, match="was replaced while it was opened"):
        connection.open_writer(DatabaseFile(str(path)))
    monkeypatch.undo()
    assert other.read_bytes() == before


def test_a_directory_that_takes_the_place_of_anothers_gets_no_file_of_the_owners(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is opened once, so that the owner is asked for where the file is made."""
    path = home / "m.db"
    make_database(path)
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    owner = sidecar._find_owner

    def swap(database: str, directory: int) -> os.stat_result | None:
        home.rename(home.parent / "aside")
        home.symlink_to(elsewhere)
        return owner(database, directory)

    monkeypatch.setattr(sidecar, "_find_owner", swap)
    os.close(make_sidecar(str(path), LOCK))
    assert not list(elsewhere.iterdir())
    home.unlink()
    (home.parent / "aside").rename(home)


@TRAPS
def test_no_mode_is_changed_through_a_trap(home: Path, secret: Path, trap: Trap) -> None:
    secret.chmod(0o644)
    trap(home / "m.db-wal", secret)
    with pytest.raises((StoreFailed, OSError)):
        restrict(str(home / "m.db-wal"))
    assert stat.S_IMODE(secret.stat().st_mode) == 0o644


def test_a_change_of_mode_takes_no_lock_of_sqlites(tmp_path: Path) -> None:
    """A process that closes a descriptor of a database loses the locks that it has on it."""
    path = tmp_path / "m.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as own:
        own.execute("CREATE TABLE words (word)")
        own.execute("BEGIN EXCLUSIVE")
        path.chmod(0o644)
        restrict(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

        def write() -> None:
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
                other.execute("INSERT INTO words VALUES (1)")

        child = os.fork()
        if not child:
            try:
                write()
            except sqlite3.OperationalError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_files_are_for_the_account_alone_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        replace_sidecar(str(tmp_path / "m.db"), ADMIN, b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.db.admin").stat().st_mode) == 0o600
    descriptor = open_sidecar(str(tmp_path / "m.db"), ADMIN, os.O_RDONLY)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@as_root
def test_the_error_of_an_account_that_may_not_write_says_who_may(home: Path) -> None:
    path = home / "m.db"

    def check() -> None:
        with pytest.raises(
            StoreReadOnly, match=r"may not write in the directory .*, which belongs to .*\. Run this as"
        ):
            check_location(str(path))

    in_child(STRANGER, check)
    in_child(NOBODY, lambda: check_location(str(path)))
    home.chmod(0o500)

    def own() -> None:
        with pytest.raises(StoreReadOnly, match=r"may not write in the directory .*home\. Change its mode"):
            check_location(str(path))

    in_child(NOBODY, own)


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match=r"file is a file, not a directory"):
        check_location(str(tmp_path / "file" / "m.db"))


def test_a_reader_opens_what_is_there(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db")) as made:
        made.execute("CREATE TABLE words (word)")
    open_reader(DatabaseFile(str(tmp_path / "m.db")), busy_timeout_ms=1).close()
