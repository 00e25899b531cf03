"""One transaction of many writes, as the writer's thread performs it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from storage.errors import Broken, StatementFailed, Unavailable
from storage.sqlite.connection import translate
from storage.value import frozen

WriteResult = tuple[bool, Any]  # (True, the function's result) or (False, the exception)


@frozen
class BatchReport:
    """The end of a batch. outcomes: one for each write. fault: what is wrong with the database itself, if anything.

    is_whole: each function ran once, and nothing of it was undone.
    """

    outcomes: Sequence[WriteResult]
    fault: Unavailable | None = None
    is_whole: bool = False


def run_batch(
    connection: sqlite3.Connection, functions: Sequence[Callable[[sqlite3.Connection], Any]], path: str
) -> BatchReport:
    """Runs one transaction. Whatever goes wrong, every function has an outcome and no transaction is left open.

    Savepoints are taken only once a function has failed: each costs two statements, around each of which the thread
    gives the interpreter's lock away.
    """
    if len(functions) > 1:
        report = _run_together(connection, functions, path)
        if report is not None:
            return report
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return _all_failed(connection, len(functions), error, path)
    alone = len(functions) == 1
    outcomes: list[WriteResult] = []
    fault: Unavailable | None = None
    for function in functions:
        try:
            if not alone:
                connection.execute("SAVEPOINT write")
            result = function(connection)
            if not alone:
                connection.execute("RELEASE write")
            outcomes.append((True, result))
        except Exception as error:
            answer: Exception = translate(error, path) if isinstance(error, sqlite3.Error) else error
            outcomes.append((False, answer))
            if isinstance(error, sqlite3.Error) and isinstance(answer, Unavailable):
                fault = answer
            try:
                connection.execute("ROLLBACK" if alone else "ROLLBACK TO write")
                if not alone:
                    connection.execute("RELEASE write")
            except sqlite3.Error:
                # The database has ended the whole transaction by itself, or cannot even undo.
                return _all_failed(connection, len(functions), error, path)
    if alone and not outcomes[0][0]:
        return BatchReport(outcomes, fault)
    return _committed(connection, outcomes, fault, path, is_whole=alone)


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
