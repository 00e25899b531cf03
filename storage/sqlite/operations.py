"""The connections that the store's operations run on over SQLite, and the running of an operation to its end.

SQLite never waits, so an operation is driven without an event loop, in whichever thread holds the connection.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from storage.database import Operation, Row, Statement
from storage.errors import StatementFailed
from storage.sqlite.padding import make_padding, measure_record
from storage.sqlite.watch import Watch
from storage.text import replace_unstorable

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends, to its end. Raises: RuntimeError if it suspends after all."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waited: an operation may await nothing but its connection")


def _bind_values(statement: str, values: Sequence[object]) -> Sequence[object]:
    """Returns a statement's values as SQLite takes them: with lists spread, and with the sizes of padded rows."""
    if not isinstance(statement, Statement):
        return values
    if not statement.sized_columns:
        return statement.spread(values)
    # The row's size, or the room and padding of a new row (storage/sqlite/padding.py).
    columns = values[: statement.sized_columns]
    return (*values, *(make_padding(columns) if statement.is_padded else (measure_record(columns),)))


def _execute_statement(raw: sqlite3.Connection, statement: str, values: Sequence[object]) -> sqlite3.Cursor:
    """Executes a statement. Half a surrogate pair in a value, which SQLite cannot store, is replaced."""
    try:
        return raw.execute(statement, _bind_values(statement, values))
    except UnicodeEncodeError:  # raised before anything was done
        return raw.execute(statement, _bind_values(statement, replace_unstorable(values)))


class SqliteConnection:
    """A connection that reads, over the sqlite3 module. Implements `Connection`, which documents the methods."""

    __slots__ = ("_raw",)

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def _execute(self, statement: str, values: Sequence[object]) -> sqlite3.Cursor:
        return _execute_statement(self._raw, statement, values)

    async def fetch_rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        return self._execute(statement, values).fetchall()

    async def fetch_row(self, statement: str, values: Sequence[object] = ()) -> Row | None:
        # The cursor ends with this line: a statement left open would keep its snapshot, and the log with it.
        row: Row | None = self._execute(statement, values).fetchone()
        return row

    async def fetch_value(self, statement: str, values: Sequence[object] = ()) -> Any:
        row = self._execute(statement, values).fetchone()
        return None if row is None else row[0]

    async def run(self, statement: str, values: Sequence[object] = ()) -> int:
        return self._execute(statement, values).rowcount

    run_single = fetch_row  # SQLite has no round trip to save

    async def insert(
        self, statement: str, values: Sequence[object], *, is_only_statement: bool
    ) -> Row | None:
        raise StatementFailed("a read cannot add a row")

    # The locks: none is needed, since SQLite has one writer.

    async def lock(self, *agent_rows: int) -> None:
        pass

    async def lock_sharers(self, *agent_rows: int) -> None:
        pass

    async def lock_profile_blocks(self, agent_row: int) -> None:
        pass

    async def lock_seers(self, block_row: int) -> None:
        pass


class WritingConnection(SqliteConnection):
    """The writer's connection, which begins a transaction before its first statement.

    It begins none if one is open, or if the statement is the whole transaction: then SQLite needs no journal to undo
    the statement alone, and the thread gives the interpreter's lock away less often.
    """

    __slots__ = ("_has_begun", "_watch")

    def __init__(self, raw: sqlite3.Connection, watch: Watch) -> None:
        super().__init__(raw)
        self._watch = watch
        self._has_begun = raw.in_transaction

    def _begin_transaction(self) -> None:
        if not self._has_begun:
            self._raw.execute("BEGIN IMMEDIATE")
            self._has_begun = True

    def _execute(self, statement: str, values: Sequence[object]) -> sqlite3.Cursor:
        self._begin_transaction()
        return _execute_statement(self._raw, statement, values)

    async def insert(
        self, statement: str, values: Sequence[object], *, is_only_statement: bool
    ) -> Row | None:
        if not is_only_statement:
            self._begin_transaction()
        watch = self._watch
        watch.row = None
        try:
            row_id = _execute_statement(self._raw, statement, values).lastrowid
        except sqlite3.IntegrityError:
            # A refusal before `report_row` means that the statement adds no row; a later failure is an error.
            if watch.row is not None:
                raise
        return None if watch.row is None else (row_id, *watch.row)

    def check_transaction(self) -> None:
        """Raises: StatementFailed if the operation has ended its transaction.

        It has run COMMIT or ROLLBACK, or has swallowed an error at which SQLite rolled the transaction back.
        """
        if self._has_begun and not self._raw.in_transaction:
            raise StatementFailed("a write ended its transaction")


def run_read(operation: Operation[T], raw: sqlite3.Connection) -> T:
    """Runs an operation that reads."""
    return drive(operation(SqliteConnection(raw)))


def run_write(operation: Operation[T], watch: Watch, raw: sqlite3.Connection) -> T:
    """Runs an operation in a transaction that it must not end. Raises: StatementFailed if it has ended."""
    connection = WritingConnection(raw, watch)
    result = drive(operation(connection))
    connection.check_transaction()
    return result
