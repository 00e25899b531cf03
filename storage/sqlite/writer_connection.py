"""The connection that writes, and its treatment when the database fails.

After a fault the file is opened again and a trial write is made. Until this first attempt has ended the fault is new:
writes wait for it. If it fails, the fault is lasting: writes are refused at once, and further attempts follow with
growing pauses until writing works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Protocol

from storage.database_path import make_unavailable
from storage.errors import StoreCorrupt, StoreError, StoreFailed, StoreUnavailable
from storage.sqlite.checkpoint import empty_log
from storage.sqlite.connection import read_schema_version, try_writing
from storage.sqlite.driver import Driver
from storage.sqlite.opened_file import OpenedFile
from storage.sqlite.result_codes import translate_error


class ConnectionUser(Protocol):
    """Writes on the connection, and is called when it fails or works again."""

    async def stop_using(self) -> None:
        """Stops all other use of the connection's file, which is then opened again."""

    def refuse_waiting(self, fault: StoreUnavailable) -> None:
        """Fails the writes that wait."""

    def resume(self) -> None:
        """Writes again: the connection was opened again after a fault."""


class WriterConnection:
    """The connection that writes, in a thread of its own."""

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        user: ConnectionUser,
        on_failure: Callable[[StoreUnavailable], None],
        retry_first_s: float,
        retry_max_s: float,
    ) -> None:
        """Makes the connection; `open` opens it.

        path: the file of the database.
        connect: the function that opens the connection; it is called in the thread.
        user: the writer, which is notified of faults.
        on_failure: the function that is called with the fault when writing fails after it worked.
        retry_first_s: the first pause between two attempts to recover from a fault.
        retry_max_s: the longest pause between two attempts.
        """
        self._path = path
        self._connect = connect
        self._user = user
        self._on_failure = on_failure
        self._retry_first_s = retry_first_s
        self._retry_max_s = retry_max_s
        # The thread with the connection; None: the database is not open.
        self.driver: Driver | None = None
        self.file = OpenedFile(path)
        # True once the database is being closed: no recovery begins any more.
        self.is_closing = False
        # The fault of the database; None: the database works.
        self.fault: StoreUnavailable | None = None
        # True if an attempt to recover from the fault has failed.
        self._is_lasting = False
        # The message of the last fault; None: the database has not failed.
        self.last_error: str | None = None
        # The task that tries to recover from the fault; None: there was no fault.
        self._recovery_task: asyncio.Task[None] | None = None
        self._recovery_lock = asyncio.Lock()

    async def open(self) -> None:
        """Opens the database for the first time. Raises: StoreError; after StoreUnavailable, call `fail`."""
        self._is_lasting = True
        try:
            self.driver = await self._open_driver(looks_for_damage=False)
        except (sqlite3.Error, OSError) as error:
            raise self._translate(error) from error
        self._is_lasting = False

    async def _open_driver(self, *, looks_for_damage: bool) -> Driver:
        """Opens a connection and has it show that it can write.

        Raises: StoreError, sqlite3.Error, OSError.
        """
        if self.file.is_replaced():
            self.file.delete_logs()
        inode_before = self.file.find_inode()
        driver = await Driver(self._connect, "mnemogate-writer").open()
        try:
            await driver.call(partial(try_writing, looks_for_damage=looks_for_damage))
            version = await driver.call(read_schema_version)
            inode = self.file.find_inode()
            if inode_before not in (None, inode):
                raise self.file.make_replaced_error()  # it is not known which of the files is open
            is_different = self.file.differs_from(inode_before, version)
            if is_different:
                await driver.call(_invalidate_agents)
        except BaseException as error:
            try:
                # Waits for the end, unless it was cancelled: the next attempt would meet the locks of this connection.
                if isinstance(error, Exception):
                    await driver.call(_close_quietly)
            finally:
                driver.abandon()
            raise
        self.file.record_opened(inode, version, is_different=is_different)
        return driver

    def _translate(self, error: sqlite3.Error | OSError | StoreError) -> StoreError:
        """Returns the store's error for an error that came while the file was opened."""
        if isinstance(error, sqlite3.Error):
            return translate_error(error, self._path)
        return (
            make_unavailable(f"{self._path} cannot be opened", error) if isinstance(error, OSError) else error
        )

    def check(self) -> None:
        """Refuses a write if the first attempt to recover from a fault has failed. Raises: StoreUnavailable."""
        if self.fault is not None and self._is_lasting:
            raise self.fault.copy()

    # -- faults -------------------------------------------------------------------------------------------------------

    @property
    def is_sound(self) -> bool:
        """True if no fault is known, no recovery is under way, and the database is not closing."""
        return self.fault is None and not self.is_closing and not self._recovery_lock.locked()

    def fail(self, fault: StoreUnavailable) -> None:
        """Notes a fault, and begins to recover from it."""
        self.last_error = fault.message
        if self.is_closing or self.fault is not None:
            self._user.refuse_waiting(fault)
            return
        self.fault = fault
        self._on_failure(fault)
        if self._is_lasting:
            self._user.refuse_waiting(fault)
        # Not in the context of the work that found the fault: functions that are called after the recovery may read.
        self._recovery_task = asyncio.get_running_loop().create_task(
            self._recover_with_retries(), name="mnemogate-writer-recovery", context=Context()
        )

    async def _recover_with_retries(self) -> None:
        """Tries to recover, with growing pauses, until an attempt succeeds."""
        pause_s = self._retry_first_s
        if self._is_lasting:
            await asyncio.sleep(pause_s)
        while not await self.recover():
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._retry_max_s)

    async def recover(self) -> bool:
        """Tries at once to write to a failed database again. Returns whether that works."""
        async with self._recovery_lock:
            if self.fault is None:
                return True
            if self.is_closing:
                return False
            try:
                await self._drop_driver()
                is_missing = self.file.find_inode() is None
                self.driver = await self._open_driver(looks_for_damage=isinstance(self.fault, StoreCorrupt))
            except (sqlite3.Error, OSError, StoreError) as error:
                fault = self._translate(error)
                if not isinstance(fault, StoreUnavailable):  # for instance, the file is another program's now
                    fault = StoreFailed(fault.message)
                self.fault = fault
                self.last_error = fault.message
                self._is_lasting = True
                self._user.refuse_waiting(fault)
                return False
            if is_missing:
                self.last_error = f"{self.last_error}. A new, empty database was made in its place"
            self.fault = None
            self._is_lasting = False
        self._user.resume()
        return True

    async def _drop_driver(self) -> None:
        driver, self.driver = self.driver, None
        try:
            await self._user.stop_using()
            if driver is not None:
                await driver.call(self._close_old)
        finally:
            if driver is not None:
                driver.abandon()

    def _close_old(self, connection: sqlite3.Connection) -> None:
        """Closes a connection in its thread.

        If its file is no longer at the path, it may only have been renamed. So its log is emptied before it is deleted.
        """
        if self.file.is_replaced():
            with contextlib.suppress(sqlite3.Error):
                empty_log(connection, wait_ms=1000)
        _close_quietly(connection)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def stop_recovering(self) -> None:
        """Ends the attempts to recover from a fault."""
        if self._recovery_task is not None:
            self._recovery_task.cancel()
            await asyncio.gather(self._recovery_task, return_exceptions=True)

    async def close(self, timeout_s: float, *, empties_log: bool) -> None:
        """Closes the connection.

        empties_log: True to empty the log first, once all work has ended; False to abandon the connection to its
            thread, which may still be at work.
        """
        driver, self.driver = self.driver, None
        if driver is None:
            return
        try:
            if empties_log:
                async with asyncio.timeout(timeout_s):
                    await driver.call(partial(empty_log, wait_ms=0))
                    await driver.call(lambda connection: connection.close())
        except (TimeoutError, sqlite3.Error) as error:
            self.last_error = f"closing: {error!r}"
        finally:
            driver.abandon()


def _close_quietly(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.close()


def _invalidate_agents(connection: sqlite3.Connection) -> None:
    """Makes out of date what turns under way know of the agents in the file that was here before.

    An agent's row id there may belong to another user in this file, now or when the next user is added. So all epochs
    rise, and a write of such a turn is refused as after a forgetting; and the ids of new agents skip as many numbers.
    The rise is random, since the same copy may be restored twice.
    """
    rise = secrets.randbelow(1 << 20) + 1
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE agents SET epoch = epoch + ?", (rise,))
    connection.execute("UPDATE jobs SET epoch = epoch + ? WHERE agent <> 0", (rise,))  # they stay current
    is_known = connection.execute(
        "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'agents'", (rise,)
    ).rowcount
    if not is_known:
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('agents', ?)", (rise,))
    connection.execute("COMMIT")
