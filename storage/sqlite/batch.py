"""Runs many writes in one transaction, in the writer's thread.

Many writes share a commit, since a commit waits for the disk, which costs far more than a write. Each write succeeds
or fails by itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from storage.errors import StatementFailed, StoreFailed, StoreUnavailable
from storage.sqlite.result_codes import translate_error

WriteFunction = Callable[[sqlite3.Connection], Any]


class WriteOutcome(NamedTuple):
    """The outcome of one write."""

    # The function's result; None as well if the write has failed.
    result: Any = None
    # The error of the write; None: the write has succeeded.
    error: BaseException | None = None


class BatchReport(Struct, frozen=True):
    """The result of a batch."""

    # The outcomes of the writes, in their order.
    outcomes: Sequence[WriteOutcome]
    # The fault of the database itself; None: the database works.
    fault: StoreUnavailable | None = None
    # True if each function ran once, and no statement was rolled back.
    is_whole: bool = False


class BatchRunner:
    """Runs batches on a connection. Whatever fails, every function has an outcome, and no transaction stays open."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        """Makes a runner. path: the path of the database, for errors."""
        self._connection = connection
        self._path = path

    def run(self, functions: Sequence[WriteFunction], *, begins_own_transaction: bool) -> BatchReport:
        """Runs one transaction.

        Savepoints are taken only once a function has failed: each costs two statements, around each of which the
        thread gives the interpreter's lock away.

        begins_own_transaction: True if a function that comes alone begins a transaction itself if it needs one.
        """
        if len(functions) > 1:
            return self._run_together(functions) or self._run_apart(functions)
        return self._run_alone(functions[0], begins_own_transaction=begins_own_transaction)

    def _run_alone(self, function: WriteFunction, *, begins_own_transaction: bool) -> BatchReport:
        try:
            if not begins_own_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [WriteOutcome(function(self._connection))]
        except Exception as error:
            outcome, fault = self._make_failure(error)
            try:
                if self._connection.in_transaction or not begins_own_transaction:
                    self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                return self._fail_all(1, error)
            return BatchReport([outcome], fault)
        if begins_own_transaction and not self._connection.in_transaction:
            return BatchReport(outcomes, is_whole=True)  # a statement that was a transaction by itself
        return self._commit_batch(outcomes, is_whole=True)

    def _run_together(self, functions: Sequence[WriteFunction]) -> BatchReport | None:
        """Runs one transaction without savepoints. Returns None if a function has failed; then nothing is written."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [WriteOutcome(function(self._connection)) for function in functions]
        except Exception:
            with contextlib.suppress(sqlite3.Error):  # the database may have ended the transaction by itself
                self._connection.execute("ROLLBACK")
            return None
        return self._commit_batch(outcomes, is_whole=True)

    def _run_apart(self, functions: Sequence[WriteFunction]) -> BatchReport:
        """Runs one transaction with each function in a savepoint, so that a function that fails is undone alone."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            return self._fail_all(len(functions), error)
        outcomes: list[WriteOutcome] = []
        fault: StoreUnavailable | None = None
        for function in functions:
            try:
                self._connection.execute("SAVEPOINT write")
                result = function(self._connection)
                self._connection.execute("RELEASE write")
                outcomes.append(WriteOutcome(result))
            except Exception as error:
                outcome, new_fault = self._make_failure(error)
                outcomes.append(outcome)
                fault = new_fault or fault
                try:
                    self._connection.execute("ROLLBACK TO write")
                    self._connection.execute("RELEASE write")
                except sqlite3.Error:
                    # The database has ended the whole transaction by itself, or cannot even undo.
                    return self._fail_all(len(functions), error)
        return self._commit_batch(outcomes, fault, is_whole=False)

    def _commit_batch(
        self, outcomes: list[WriteOutcome], fault: StoreUnavailable | None = None, *, is_whole: bool
    ) -> BatchReport:
        """Commits a batch in which every function has an outcome. fault: a fault of the database that a write met."""
        if not self._connection.in_transaction:
            # A function has ended the transaction, or has swallowed an error at which the database ended it.
            message = f"{self._path}: a write ended its transaction"
            return BatchReport([WriteOutcome(error=StatementFailed(message)) for _ in outcomes], fault)
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            return self._fail_all(len(outcomes), error)
        return BatchReport(outcomes, fault, is_whole)

    def _make_failure(self, error: Exception) -> tuple[WriteOutcome, StoreUnavailable | None]:
        """Returns the outcome of a write that raised an error, and the fault of the database if the error shows one."""
        if not isinstance(error, sqlite3.Error):
            return WriteOutcome(error=error), None
        translated = translate_error(error, self._path)
        fault = translated if isinstance(translated, StoreUnavailable) else None
        return WriteOutcome(error=translated), fault

    def _fail_all(self, count: int, error: Exception) -> BatchReport:
        """Rolls back the transaction, if one is open. Returns a report in which every write has failed."""
        fault = translate_error(error, self._path) if isinstance(error, sqlite3.Error) else None
        if not isinstance(fault, StoreUnavailable):
            fault = StoreFailed(f"{self._path}: the transaction was lost: {error!r}")
            fault.__cause__ = error
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")
        return BatchReport([WriteOutcome(error=fault.copy()) for _ in range(count)], fault)
