"""A file is brought to the schema this program knows, or refused by name."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from storage.errors import Foreign, StoreError, TooNew
from storage.sqlite.connection import DatabaseFile, open_writer
from storage.sqlite.migration import load_migrations, migrate

KNOWN = load_migrations()[-1][0]


@pytest.fixture
def connection(path: Path) -> Any:
    connection = open_writer(DatabaseFile(str(path)))
    yield connection
    connection.close()


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_new_file_gets_the_whole_schema_and_a_second_start_changes_nothing(
    connection: sqlite3.Connection,
) -> None:
    assert migrate(connection, "x") == KNOWN == version(connection)
    before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    assert len(before) > 20
    migrate(connection, "x")
    assert connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before


def test_only_what_is_missing_is_applied(connection: sqlite3.Connection) -> None:
    first = (1, "CREATE TABLE a (x);")
    migrate(connection, "x", (first,))
    connection.execute("INSERT INTO a VALUES (7)")
    migrate(connection, "x", (first, (2, "ALTER TABLE a ADD COLUMN y DEFAULT 8;")))
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(7, 8)]
    assert version(connection) == 2


def test_a_step_that_fails_leaves_nothing_of_itself(connection: sqlite3.Connection) -> None:
    first = (1, "CREATE TABLE a (x);")
    with pytest.raises(StoreError):
        migrate(connection, "x", (first, (2, "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1);")))
    assert version(connection) == 1
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    migrate(connection, "x", (first, (2, "CREATE TABLE b (x);")))
    assert version(connection) == 2


@pytest.mark.parametrize(
    ("earlier", "says"),
    [
        ("CREATE TABLE a (x); CREATE INDEX i ON a (x);", "no table a, column y"),
        ("CREATE TABLE a (y, x);", "no index i"),  # the order of columns is the file's own affair
    ],
)
def test_a_file_that_its_version_does_not_describe_is_refused(
    connection: sqlite3.Connection, earlier: str, says: str
) -> None:
    migrate(connection, "x", ((1, earlier),))
    steps = ((1, "CREATE TABLE a (x, y); CREATE INDEX i ON a (x);"), (2, "CREATE TABLE b (x);"))
    with pytest.raises(Foreign, match=says):
        migrate(connection, "x", steps)
    assert version(connection) == 1  # the one that made it can still read it


async def test_a_newer_file_is_refused_by_name_and_left_alone(open_store: Any, path: Path) -> None:
    await (await open_store()).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {KNOWN + 3}")
    connection.close()
    with pytest.raises(TooNew, match=f"version {KNOWN + 3}.*up to {KNOWN}"):
        await open_store()
    connection = sqlite3.connect(path)
    assert version(connection) == KNOWN + 3
    connection.close()


async def test_a_database_of_something_else_is_refused(open_store: Any, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(Foreign):
        await open_store()


async def test_an_exchange_moves_its_conversation_and_its_agent(store: Any, agent: Any) -> None:
    def add(connection: sqlite3.Connection) -> tuple[Any, Any]:
        connection.execute(
            "INSERT INTO conversations (agent, uid, begun, last_at) VALUES (?, 'c', 1, 1)", (agent.id,)
        )
        for ended, span in ((5.0, 2), (3.0, 3)):
            connection.execute(
                "INSERT INTO exchanges (agent, conversation, depth, seq, span, offset, begun, touched, ended, state,"
                " path, inputs, media)"
                " SELECT ?, 1, 0, next_seq, ?, 0, 1, 1, ?, 'finished', x'00', x'', x'' FROM agents",
                (agent.id, span, ended),
            )
        return (
            connection.execute("SELECT rev, last_at FROM conversations").fetchone(),
            connection.execute("SELECT seq FROM exchanges ORDER BY id").fetchall(),
        )

    assert await store.database.writer.submit(add) == ((2, 5.0), [(1,), (3,)])
    assert store.database.reader.connection.execute("SELECT next_seq FROM agents").fetchone() == (6,)
