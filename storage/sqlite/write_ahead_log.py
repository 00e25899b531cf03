"""The write-ahead log: measures it, and decides when it is written back, one write-back at a time.

Most of a grown log is copied while the writer goes on (storage.sqlite.checkpoint explains why that is safe). The rest is
copied in the writer's thread, between two writes. The log then restarts in the same file, since writing over a file
takes half the time of growing it. An idle writer empties the log as soon as no reader uses it. A write-back within a
commit would slow down the slowest commits.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from msgspec import Struct

from storage.errors import StoreError
from storage.sqlite.checkpoint import WriteBack, copy_log, empty_log
from storage.sqlite.driver import Driver

# A task of the writer's thread on the log. Returns whether all of the log was written back.
LogWork = Callable[[sqlite3.Connection], bool]


class LogLimits(Struct, frozen=True):
    """The bounds of the log. The defaults are not measured, except where a figure is given."""

    # Size of the log at which it is written back without waiting for readers. (Write-backs of 4 MB within a commit gave
    # commits of 3 to 7 ms at p99.) A log of twice the size is emptied.
    checkpoint_bytes: int = 16 << 20
    # Size of the log at which writes wait for readers, until all of it is written back.
    pause_bytes: int = 64 << 20
    # The longest time that writes wait for readers.
    pause_ms: int = 1000


class WriteAheadLog:
    """The log of the writer's file. All its methods but `measure` belong to the event loop's thread.

    copier: the thread that copies a grown log.
    post: hands work to the writer's thread, which does it after the writes it already has, and then calls
        `end_write_back`. Returns False if the writer has no working connection.
    """

    def __init__(
        self, path: str, limits: LogLimits, copier: WriteBack, post: Callable[[LogWork], bool]
    ) -> None:
        self._path = f"{path}-wal"
        self._limits = limits
        self._copier = copier
        self._post = post
        # The bytes of the log's file.
        self.size = 0
        # A larger log has to be written back.
        self._full_bytes = limits.checkpoint_bytes
        # Set unless the log is being written back, or about to be.
        self.is_free = asyncio.Event()
        self.is_free.set()
        self.copying: asyncio.Task[None] | None = None

    def measure(self) -> int:
        """Returns the size of the log's file, from any thread."""
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0

    def shrink(self) -> None:
        """Begins to write back a grown log. Called after a commit."""
        if self.size <= self._full_bytes or not self.is_free.is_set():
            return
        if self.size >= self._limits.pause_bytes:
            self.write_back()
        else:
            self.is_free.clear()
            self.copying = asyncio.get_running_loop().create_task(
                self._copy_and_write_back(), name="mnemogate-writeback"
            )

    def write_back(self, *, is_at_rest: bool = False) -> None:
        """Has the writer's thread write back the rest of the log. is_at_rest: True if nothing is written now."""
        work = copy_log
        if is_at_rest or self.size >= 2 * self._limits.checkpoint_bytes:
            waits = self.size >= self._limits.pause_bytes and not is_at_rest
            work = partial(empty_log, wait_ms=self._limits.pause_ms if waits else 0)
        self.is_free.clear()
        if not self._post(work):
            self.is_free.set()

    def end_write_back(self, size: int, *, is_whole: bool) -> None:
        """Notes the size of the log after a write-back. is_whole: True if all of the log was written."""
        self._note_size(size, is_whole=is_whole)
        self.is_free.set()

    def expect_new_file(self) -> None:
        """Forgets how far the log has grown: the file was opened again."""
        self._full_bytes = self._limits.checkpoint_bytes

    async def empty(self, driver: Driver, wait_ms: int) -> bool:
        """Writes the log back and empties it, once it is free. Returns whether it is empty. Raises: sqlite3.Error."""
        self.is_free.clear()
        emptying = driver.call(partial(empty_log, wait_ms=wait_ms))
        emptying.add_done_callback(lambda _: self.is_free.set())
        # If the caller is cancelled, the thread goes on, and nothing else may write the log back meanwhile.
        is_empty = await asyncio.shield(emptying)
        self._note_size(self.measure(), is_whole=is_empty)
        return is_empty

    async def stop_copying(self) -> None:
        """Waits for a copy under way, and closes its connection."""
        if self.copying is not None:
            await asyncio.wait([self.copying])
        await self._copier.close()

    def abandon_copying(self) -> None:
        """Leaves a copy under way to its thread, which then closes the connection."""
        if self.copying is not None:
            self.copying.cancel()
        self._copier.abandon()

    async def _copy_and_write_back(self) -> None:
        """Copies the present log, and has the writer's thread write back the pages that have come meanwhile."""
        try:
            # An error that lasts reaches the writer next, and the writer reports it.
            with suppress(sqlite3.Error, StoreError):
                await self._copier.copy()
        finally:
            self.copying = None
            self.write_back()

    def _note_size(self, size: int, *, is_whole: bool) -> None:
        """Notes the size after a write-back. A log that was written back whole restarts in its file."""
        self.size = size
        checkpoint_bytes = self._limits.checkpoint_bytes
        self._full_bytes = max(size, checkpoint_bytes) if is_whole else size + checkpoint_bytes
