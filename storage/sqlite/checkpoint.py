"""Checkpoints: they copy the write-ahead log into the database file (sqlite.org/wal.html).

`Checkpointer` has a connection and a thread of its own, so that no write waits for its checkpoints.

SQLite before 3.51.3 can corrupt a database when one connection checkpoints the log while another restarts it (the
WAL-reset bug). Only a write that finds the whole log copied restarts the log. So the caller of `Checkpointer.run` makes
sure that there is something to copy, and that no other checkpoint runs meanwhile: then the log is not wholly copied
before this checkpoint ends, and the state that the checkpoint publishes last is true. The writer alone copies the rest
of the log, in its own thread, between two writes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

from storage.sqlite.driver import Driver


class Checkpointer:
    """Checkpoints the log while the writer goes on."""

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], check_in_place: Callable[[], None] = lambda: None
    ) -> None:
        """Opens no connection before the first checkpoint.

        connect: a function that opens the connection. It is called in the checkpointer's thread.
        check_in_place: a function that raises StoreFailed if the file at the path is not the file that is written. It
            is called before the connection is opened, since a checkpoint would write into any file at the path.
        """
        self._connect = connect
        self._check_in_place = check_in_place
        self._driver: Driver | None = None

    async def run(self) -> None:
        """Checkpoints the present log, without waiting for readers. Raises: sqlite3.Error, StoreError."""
        if self._driver is None:
            self._check_in_place()
            self._driver = await Driver(self._connect, "mnemogate-checkpoint").open()
        await self._driver.call(checkpoint)

    async def close(self) -> None:
        """Closes the connection after a checkpoint that runs. The next checkpoint opens a connection again."""
        driver, self._driver = self._driver, None
        if driver is not None:
            try:
                with contextlib.suppress(sqlite3.Error):
                    await driver.call(lambda connection: connection.close())
            finally:
                driver.abandon()

    def abandon(self) -> None:
        """Has the connection closed after a checkpoint that runs, and returns at once."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.abandon()


def checkpoint(connection: sqlite3.Connection) -> bool:
    """Copies the log as far as readers allow. Returns True if all is copied: then the next write restarts the log."""
    _, pages, copied_pages = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(pages == copied_pages)


def empty_log(connection: sqlite3.Connection, wait_ms: int) -> bool:
    """Copies the log and empties its file. Returns whether the log is empty.

    wait_ms: the longest time for which readers of the log are waited for.
    """
    (busy_timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {wait_ms:d}")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms:d}")
    return not busy
