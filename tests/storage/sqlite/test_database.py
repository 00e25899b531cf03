"""The doors to a SQLite file, and how operations are driven through them without a loop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest

from storage.database import Connection, Database
from storage.errors import StatementFailed, StoreFull, WriteConflict
from storage.sql.store import Store
from storage.sqlite.operations import drive
from tests.patience import PATIENCE_S
from tests.storage.conftest import OpenStore

NOTE = "INSERT INTO marks (agent, kind, hash, exchange) VALUES (1, 'head', ?, 1)"
NOTED = "SELECT hash FROM marks ORDER BY hash"


@pytest.fixture
def doors(store: Store) -> Database:
    return store.database


async def noted(doors: Database) -> list[bytes]:
    return [hash_ for (hash_,) in await doors.read(lambda connection: connection.fetch_rows(NOTED))]


def test_a_coroutine_that_never_waits_is_driven_to_its_end() -> None:
    async def one() -> int:
        return 1

    async def two() -> int:
        return await one() + await one()

    assert drive(two()) == 2


def test_an_error_of_the_coroutine_is_raised() -> None:
    async def fail() -> None:
        raise StoreFull("no room")

    with pytest.raises(StoreFull):
        drive(fail())


async def test_a_coroutine_that_waits_is_an_error_and_is_closed() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="waited"):
        drive(wait())
    assert ended == [True]


@pytest.mark.parametrize("door", ["read", "long_read", "write", "bulk_write"])
async def test_an_operation_may_await_its_connection_alone(doors: Database, door: str) -> None:
    async def wait(connection: Connection) -> None:
        if door in ("write", "bulk_write"):
            await connection.run(NOTE, (b"lost",))
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waited"):
        await getattr(doors, door)(wait)
    assert await noted(doors) == []


@pytest.mark.parametrize("door", ["read", "long_read", "write", "bulk_write"])
async def test_where_an_operation_runs(doors: Database, door: str) -> None:
    """A short read is no hop to a thread; all else never holds the loop's."""

    async def name(connection: Connection) -> str:
        return threading.current_thread().name

    expected = {"read": threading.current_thread().name, "long_read": "mnemogate-reader"}
    assert await getattr(doors, door)(name) == expected.get(door, "mnemogate-writer")


@pytest.mark.parametrize(
    "begin",
    [
        lambda doors: doors.write(lambda connection: connection.run(NOTE, (b"x",))),
        lambda doors: doors.bulk_write(lambda connection: connection.run(NOTE, (b"x",))),
        lambda doors: doors.write_one(NOTE, (b"x",)),
    ],
    ids=["write", "bulk_write", "write_one"],
)
async def test_a_write_begins_though_nobody_waits_for_it(
    doors: Database, begin: Callable[[Database], asyncio.Future[Any]]
) -> None:
    begin(doors).cancel()
    assert await doors.drain(PATIENCE_S)
    assert await noted(doors) == [b"x"]


async def test_a_statement_returns_its_rows(doors: Database) -> None:
    assert await doors.write_one(NOTE + " RETURNING hash, exchange", (b"x",)) == [(b"x", 1)]


async def test_whoever_remembers_hears_that_the_database_works_again(store: Any) -> None:
    heard: list[int] = []
    store.database.add_recovery_listener(lambda: heard.append(1))
    store.database.writer.report_fault(StoreFull("no room"))
    assert await store.database.writer.recover()
    assert heard == [1]


async def test_a_value_of_each_kind_comes_back_and_none_is_searched_for_an_adapter(doors: Database) -> None:
    values = (None, b"\x00a", b"", True, False, 7, 1.5, "text")
    statement = f"SELECT {', '.join('?' * len(values))}"
    (row,) = await doors.read(lambda connection: connection.fetch_rows(statement, values))
    assert repr(row) == repr((None, b"\x00a", b"", 1, 0, 7, 1.5, "text"))
    for kind in {type(value) for value in values} - {int, float, str}:  # those are taken as they are
        assert (kind, sqlite3.PrepareProtocol) in sqlite3.adapters


# -- a row that reports itself

TOLD = "INSERT INTO sections (agent, text, known) VALUES ((SELECT report_row(7, 8) WHERE ?), '', ?)"


@pytest.mark.parametrize("is_only_statement", [False, True])
async def test_a_row_that_is_refused_takes_no_id(doors: Database, is_only_statement: bool) -> None:
    async def write(connection: Connection) -> list[Any]:
        return [
            await connection.insert(TOLD, (planned, b""), is_only_statement=is_only_statement)
            for planned in (1, 0, 1)
        ]

    assert await doors.write(write) == [(1, 7, 8), None, (2, 7, 8)]


async def test_a_row_that_breaks_a_rule_of_its_table_is_an_error(doors: Database) -> None:
    with pytest.raises(WriteConflict, match=r"sections\.known"):
        await doors.write(lambda connection: connection.insert(TOLD, (1, None), is_only_statement=True))
    assert doors.health.ok


async def test_a_row_that_comes_alone_needs_no_transaction_around_it(open_store: OpenStore) -> None:
    noted: list[str] = []
    doors = (await open_store(note=noted.append)).database

    async def write(connection: Connection) -> None:
        if await connection.insert(TOLD, (len(noted) == 0, b""), is_only_statement=True) is None:
            await connection.run(NOTE, (b"a",))

    noted.clear()
    await doors.write(write)
    await doors.write(write)
    assert noted == [TOLD, TOLD, "BEGIN IMMEDIATE", NOTE, "COMMIT"]


async def test_a_write_that_ends_its_transaction_fails(doors: Database) -> None:
    async def write(connection: Connection) -> None:
        await connection.run(NOTE, (b"a",))
        await connection.run("ROLLBACK")

    with pytest.raises(StatementFailed, match="ended its transaction"):
        await doors.write(write)
    assert await noted(doors) == []
    await doors.write(lambda connection: connection.run(NOTE, (b"b",)))
    assert await noted(doors) == [b"b"]
