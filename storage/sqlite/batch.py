"""One transaction of many writes, as the writer's thread performs it.

Many writes share a commit, since its wait for the disk costs far more than they do. Each still succeeds or fails by
itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from storage.errors import Broken, StatementFailed, Unavailable
from storage.sqlite.connection import translate

WriteResult = tuple[bool, Any]  # (True, the function's result) or (False, the exception)
WriteFunction = Callable[[sqlite3.Connection], Any]


class BatchReport(Struct, frozen=True):
    """The result of a batch."""

    # One for each write.
    outcomes: Sequence[WriteResult]
    # What is wrong with the database itself; None: nothing.
    fault: Unavailable | None = None
    # Each function ran once, and nothing of it was undone.
    is_whole: bool = False


def run_batch(
    connection: sqlite3.Connection,
    functions: Sequence[WriteFunction],
    path: str,
    *,
    begins: bool,
) -> BatchReport:
    """Runs one transaction. Whatever goes wrong, every function has an outcome and no transaction is left open.

    Savepoints are taken only once a function has failed: each costs two statements, around each of which the thread
    gives the interpreter's lock away.

    path: of the database, for errors.
    begins: a function that comes alone begins a transaction itself where it needs one.
    """
    if len(functions) > 1:
        return _run_together(connection, functions, path) or _run_apart(connection, functions, path)
    try:
        if not begins:
            connection.execute("BEGIN IMMEDIATE")
        result = functions[0](connection)
    except Exception as error:
        outcome, fault = _failure(error, path)
        try:
            if connection.in_transaction or not begins:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            return _fail_all(connection, 1, error, path)
        return BatchReport([outcome], fault)
    outcomes: list[WriteResult] = [(True, result)]
    if begins and not connection.in_transaction:
        return BatchReport(outcomes, is_whole=True)  # a statement that was a transaction by itself
    return _commit(connection, outcomes, None, path, is_whole=True)


def _failure(error: Exception, path: str) -> tuple[WriteResult, Unavailable | None]:
    """Returns the outcome of a write that raised an error, and what that means for the database itself."""
    if not isinstance(error, sqlite3.Error):
        return (False, error), None
    answer = translate(error, path)
    return (False, answer), answer if isinstance(answer, Unavailable) else None


def _run_apart(connection: sqlite3.Connection, functions: Sequence[WriteFunction], path: str) -> BatchReport:
    """Runs one transaction with each function in a savepoint, so that one that fails is undone alone."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return _fail_all(connection, len(functions), error, path)
    outcomes: list[WriteResult] = []
    fault: Unavailable | None = None
    for function in functions:
        try:
            connection.execute("SAVEPOINT write")
            result = function(connection)
            connection.execute("RELEASE write")
            outcomes.append((True, result))
        except Exception as error:
            outcome, found = _failure(error, path)
            outcomes.append(outcome)
            fault = found or fault
            try:
                connection.execute("ROLLBACK TO write")
                connection.execute("RELEASE write")
            except sqlite3.Error:
                # The database has ended the whole transaction by itself, or cannot even undo.
                return _fail_all(connection, len(functions), error, path)
    return _commit(connection, outcomes, fault, path, is_whole=False)


def _run_together(
    connection: sqlite3.Connection, functions: Sequence[WriteFunction], path: str
) -> BatchReport | None:
    """Runs one transaction without savepoints. Returns None where a function has failed: nothing is written then."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[WriteResult] = [(True, function(connection)) for function in functions]
    except Exception:
        with contextlib.suppress(sqlite3.Error):  # the database may have ended the transaction by itself
            connection.execute("ROLLBACK")
        return None
    return _commit(connection, outcomes, None, path, is_whole=True)


def _commit(
    connection: sqlite3.Connection,
    outcomes: list[WriteResult],
    fault: Unavailable | None,
    path: str,
    *,
    is_whole: bool,
) -> BatchReport:
    """Commits a batch of which every function has an outcome. fault: what those that failed have found."""
    if not connection.in_transaction:
        # A function has ended the transaction, or has swallowed an error at which the database ended it.
        lost = StatementFailed(f"{path}: a write ended its transaction")
        return BatchReport([(False, lost)] * len(outcomes), fault)
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        return _fail_all(connection, len(outcomes), error, path)
    return BatchReport(outcomes, fault, is_whole)


def _fail_all(connection: sqlite3.Connection, count: int, error: Exception, path: str) -> BatchReport:
    """Rolls the transaction back, as far as there is one. Every write of the batch has failed."""
    answer = translate(error, path) if isinstance(error, sqlite3.Error) else None
    if not isinstance(answer, Unavailable):
        answer = Broken(f"{path}: the transaction was lost: {error!r}")
        answer.__cause__ = error
    with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
    return BatchReport([(False, answer.again()) for _ in range(count)], answer)
