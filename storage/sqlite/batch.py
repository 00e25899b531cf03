"""One transaction of many writes, as the writer's thread performs it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from storage.errors import Broken, StatementFailed, Unavailable
from storage.sqlite.connection import translate

WriteResult = tuple[bool, Any]  # (True, the function's result) or (False, the exception)


class BatchReport(Struct, frozen=True):
    """The end of a batch. outcomes: one for each write. fault: what is wrong with the database itself, if anything.

    is_whole: each function ran once, and nothing of it was undone.
    """

    outcomes: Sequence[WriteResult]
    fault: Unavailable | None = None
    is_whole: bool = False


def run_batch(
    connection: sqlite3.Connection,
    functions: Sequence[Callable[[sqlite3.Connection], Any]],
    path: str,
    *,
    begins: bool,
) -> BatchReport:
    """Runs one transaction. Whatever goes wrong, every function has an outcome and no transaction is left open.

    Savepoints are taken only once a function has failed: each costs two statements, around each of which the thread
    gives the interpreter's lock away. begins: the first function begins a transaction itself where it needs one.
    """
    if len(functions) > 1:
        return _run_together(connection, functions, path) or _run_apart(connection, functions, path)
    try:
        if not begins:
            connection.execute("BEGIN IMMEDIATE")
        result = functions[0](connection)
    except Exception as error:
        outcome, fault = _failed(error, path)
        try:
            if connection.in_transaction or not begins:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            return _all_failed(connection, 1, error, path)
        return BatchReport([outcome], fault)
    outcomes: list[WriteResult] = [(True, result)]
    if begins and not connection.in_transaction:
        return BatchReport(outcomes, is_whole=True)  # a statement that was a transaction by itself
    return _committed(connection, outcomes, None, path, is_whole=True)


def _failed(error: Exception, path: str) -> tuple[WriteResult, Unavailable | None]:
    """Returns the outcome of a write that raised an error, and what that means for the database itself."""
    if not isinstance(error, sqlite3.Error):
        return (False, error), None
    answer = translate(error, path)
    return (False, answer), answer if isinstance(answer, Unavailable) else None


def _run_apart(
    connection: sqlite3.Connection, functions: Sequence[Callable[[sqlite3.Connection], Any]], path: str
) -> BatchReport:
    """Runs one transaction, each function in a savepoint."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return _all_failed(connection, len(functions), error, path)
    outcomes: list[WriteResult] = []
    fault: Unavailable | None = None
    for function in functions:
        try:
            connection.execute("SAVEPOINT write")
            result = function(connection)
            connection.execute("RELEASE write")
            outcomes.append((True, result))
        except Exception as error:
            outcome, found = _failed(error, path)
            outcomes.append(outcome)
            fault = found or fault
            try:
                connection.execute("ROLLBACK TO write")
                connection.execute("RELEASE write")
            except sqlite3.Error:
                # The database has ended the whole transaction by itself, or cannot even undo.
                return _all_failed(connection, len(functions), error, path)
    return _committed(connection, outcomes, fault, path, is_whole=False)


def _run_together(
    connection: sqlite3.Connection, functions: Sequence[Callable[[sqlite3.Connection], Any]], path: str
) -> BatchReport | None:
    """Runs one transaction without savepoints. None: a function has failed, and nothing is written."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[WriteResult] = [(True, function(connection)) for function in functions]
    except Exception:
        with contextlib.suppress(sqlite3.Error):  # the database may have ended the transaction by itself
            connection.execute("ROLLBACK")
        return None
    return _committed(connection, outcomes, None, path, is_whole=True)


def _committed(
    connection: sqlite3.Connection,
    outcomes: list[WriteResult],
    fault: Unavailable | None,
    path: str,
    *,
    is_whole: bool,
) -> BatchReport:
    """Commits what the functions of a batch have written."""
    if not connection.in_transaction:
        # A function has swallowed an error that made the database end the transaction, or has ended it itself.
        lost = StatementFailed(f"{path}: a write ended its transaction")
        return BatchReport([(False, lost)] * len(outcomes), fault)
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        return _all_failed(connection, len(outcomes), error, path)
    return BatchReport(outcomes, fault, is_whole)


def _all_failed(connection: sqlite3.Connection, count: int, error: Exception, path: str) -> BatchReport:
    answer = translate(error, path) if isinstance(error, sqlite3.Error) else None
    if not isinstance(answer, Unavailable):
        answer = Broken(f"{path}: the transaction was lost: {error!r}")
        answer.__cause__ = error
    with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
    return BatchReport([(False, answer.again()) for _ in range(count)], answer)
