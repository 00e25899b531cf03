"""The write-ahead log: measures it, and decides when it is checkpointed, one checkpoint at a time.

Most of a grown log is copied while the writer goes on (storage.sqlite.checkpoint explains why that is safe). The rest
is copied in the writer's thread, between two writes. The log then restarts in the same file, since writing over a file
takes half the time of growing it. An idle writer empties the log as soon as no reader uses it. A checkpoint within a
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
from storage.sqlite.checkpoint import Checkpointer, checkpoint, empty_log
from storage.sqlite.driver import Driver

# A checkpoint in the writer's thread. Returns whether all of the log was copied.
LogWork = Callable[[sqlite3.Connection], bool]


class LogLimits(Struct, frozen=True):
    """The bounds of the log. The defaults are not measured, except where a figure is given."""

    # The size of the log at which it is checkpointed without waiting for readers. (Checkpoints of 4 MB within a commit
    # gave commits of 3 to 7 ms at p99.) A log of twice the size is emptied.
    checkpoint_bytes: int = 16 << 20
    # The size of the log at which writes wait for readers, until all of it is copied.
    pause_bytes: int = 64 << 20
    # The longest time that writes wait for readers.
    pause_ms: int = 1000


class WriteAheadLog:
    """The log of the writer's file. All its methods but `measure` belong to the event loop's thread."""

    def __init__(
        self, path: str, limits: LogLimits, checkpointer: Checkpointer, post: Callable[[LogWork], bool]
    ) -> None:
        """Makes the log of a file.

        path: the file of the database.
        limits: the sizes at which the log is checkpointed.
        checkpointer: the thread that checkpoints a grown log while the writer goes on.
        post: the function that hands work to the writer's thread, which performs it after the writes that it already
            has, and then calls `end_work`. It returns False if the writer has no working connection.
        """
        self._path = f"{path}-wal"
        self._limits = limits
        self._checkpointer = checkpointer
        self._post = post
        # The bytes of the log's file.
        self.size_bytes = 0
        # The size of the file above which the log has to be checkpointed.
        self._full_bytes = limits.checkpoint_bytes
        # Set unless a checkpoint runs, or is about to.
        self.is_free = asyncio.Event()
        self.is_free.set()
        # The task of a checkpoint while the writer goes on; None: none runs.
        self.parallel_checkpoint: asyncio.Task[None] | None = None

    def measure(self) -> int:
        """Returns the size of the log's file, from any thread."""
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0

    def checkpoint_if_grown(self) -> None:
        """Begins a checkpoint if the log has grown. Called after a commit."""
        if self.size_bytes <= self._full_bytes or not self.is_free.is_set():
            return
        if self.size_bytes >= self._limits.pause_bytes:
            self.post_checkpoint()
        else:
            self.is_free.clear()
            self.parallel_checkpoint = asyncio.get_running_loop().create_task(
                self._checkpoint_in_parallel(), name="mnemogate-checkpoint"
            )

    def post_checkpoint(self, *, is_at_rest: bool = False) -> None:
        """Has the writer's thread checkpoint the rest of the log. is_at_rest: True if the writer is idle."""
        log_work = checkpoint
        if is_at_rest or self.size_bytes >= 2 * self._limits.checkpoint_bytes:
            waits_for_readers = self.size_bytes >= self._limits.pause_bytes and not is_at_rest
            log_work = partial(empty_log, wait_ms=self._limits.pause_ms if waits_for_readers else 0)
        self.is_free.clear()
        if not self._post(log_work):
            self.is_free.set()

    def end_work(self, size_bytes: int, *, is_all_copied: bool) -> None:
        """Records the end of a checkpoint in the writer's thread.

        size_bytes: the bytes of the log's file.
        is_all_copied: True if all of the log was copied into the database file.
        """
        self._record_size(size_bytes, is_all_copied=is_all_copied)
        self.is_free.set()

    def expect_new_file(self) -> None:
        """Forgets how far the log has grown: the file was opened again."""
        self._full_bytes = self._limits.checkpoint_bytes

    async def empty(self, driver: Driver, wait_ms: int) -> bool:
        """Checkpoints the log and empties it. Returns whether it is empty. Raises: sqlite3.Error.

        The caller must have waited for `is_free`.

        wait_ms: the longest time to wait for readers.
        """
        self.is_free.clear()
        future = driver.call(partial(empty_log, wait_ms=wait_ms))
        future.add_done_callback(lambda _: self.is_free.set())
        # If the caller is cancelled, the thread goes on, and no other checkpoint may run meanwhile.
        is_empty = await asyncio.shield(future)
        self._record_size(self.measure(), is_all_copied=is_empty)
        return is_empty

    async def close_checkpointer(self) -> None:
        """Waits for a parallel checkpoint that runs, and closes its connection."""
        if self.parallel_checkpoint is not None:
            await asyncio.wait([self.parallel_checkpoint])
        await self._checkpointer.close()

    def abandon_checkpointer(self) -> None:
        """Leaves a parallel checkpoint that runs to its thread, which then closes the connection."""
        if self.parallel_checkpoint is not None:
            self.parallel_checkpoint.cancel()
        self._checkpointer.abandon()

    async def _checkpoint_in_parallel(self) -> None:
        """Checkpoints the present log, and has the writer's thread checkpoint the pages that have come meanwhile."""
        try:
            # An error that lasts reaches the writer next, and the writer reports it.
            with suppress(sqlite3.Error, StoreError):
                await self._checkpointer.run()
        finally:
            self.parallel_checkpoint = None
            self.post_checkpoint()

    def _record_size(self, size_bytes: int, *, is_all_copied: bool) -> None:
        """Records the size of the log's file after a checkpoint."""
        self.size_bytes = size_bytes
        checkpoint_bytes = self._limits.checkpoint_bytes
        # If all of the log was copied, the next write restarts it at the beginning of its file.
        self._full_bytes = (
            max(size_bytes, checkpoint_bytes) if is_all_copied else size_bytes + checkpoint_bytes
        )
