"""Writes counters to the table of usage in parts, so that each is counted once.

After a failed write a part may be in the table or not. It is written again under the same number before any other part,
so that it is not counted twice if only the answer to its commit was lost.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from gateway.run.usage.unwritten_counters import UnwrittenCounters
from storage.sql.usage import Usage
from storage.usage_records import FORGOTTEN_USER, ROWS_AT_ONCE, UsageKey, UsagePart, sum_rows


class PartWriter:
    """Writes the unwritten counters of the process, part by part, and holds writes back while others read."""

    def __init__(
        self,
        usage: Usage,
        counters: UnwrittenCounters,
        now: Callable[[], float],
        note_write: Callable[[], None],
    ) -> None:
        """Makes the writer; `write` writes.

        now: returns the seconds since the epoch.
        note_write: is called before a part is added to the table.
        """
        self._usage = usage
        self._counters = counters
        self._now = now
        self._note_write = note_write
        # The part with a failed write; None: all parts so far are in the table.
        self._unconfirmed_part: UsagePart | None = None
        # The name of this process, under which its parts are numbered.
        self._process_name = uuid.uuid4().hex
        # The numbers of the next parts.
        self._part_numbers = itertools.count(1)
        # Held while a part is written.
        self._lock = asyncio.Lock()
        # The number of reads that hold writes back.
        self._pause_count = 0
        # Is set while no read holds writes back.
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        # The users (project, name) that were forgotten while their counters were being written.
        self._forgotten_users: set[tuple[str, str]] = set()

    @property
    def has_counts(self) -> bool:
        """True if there is something to write."""
        return bool(self._counters) or self._unconfirmed_part is not None

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        """Holds writes back within the block, so that no counter is both in memory and in the table.

        Raises: StoreError: a part may be in the table or not, and cannot be written again.
        """
        async with self._lock:  # a write that is under way, or waits, goes first
            await self._write_unconfirmed()
            self._pause_count += 1
            self._unpaused.clear()
        try:
            yield
        finally:
            self._pause_count -= 1
            if not self._pause_count:
                self._unpaused.set()

    async def write(self) -> None:
        """Writes the counters up to now. Raises: StoreError: unwritten counters stay for the next write."""
        keys = self._counters.list_keys()
        for start in range(0, max(1, len(keys)), ROWS_AT_ONCE):  # without keys the unconfirmed part alone
            await self._write_part(keys[start : start + ROWS_AT_ONCE])
        while self._forgotten_users:
            user = next(iter(self._forgotten_users))
            await self._usage.anonymize_user(*user)
            self._forgotten_users.discard(user)

    async def _write_part(self, keys: Sequence[UsageKey]) -> None:
        """Writes the unconfirmed part, if there is one, and the counters of some keys. Raises: StoreError.

        A caller of `pause` waits for no more than one part.
        """
        async with self._lock:
            await self._unpaused.wait()
            await self._write_unconfirmed()
            if rows := [(key, self._counters.pop(key)) for key in keys if key in self._counters]:
                await self._add(UsagePart(self._process_name, next(self._part_numbers), self._now(), rows))

    async def _write_unconfirmed(self) -> None:
        if self._unconfirmed_part is not None:
            await self._add(self._unconfirmed_part)

    async def _add(self, part: UsagePart) -> None:
        """Adds a part to the table. After an error or a cancellation it is the unconfirmed part."""
        self._unconfirmed_part = None
        self._note_write()
        try:
            await self._usage.add(part)
        except BaseException:  # after a cancellation the write goes on, and may fail
            self._unconfirmed_part = self._without_forgotten(part)
            raise

    def forget(self, project: str, user: str) -> None:
        """Removes a user's name from the counts that are not in the table, and from those that may not be in it."""
        self._counters.forget(project, user)
        if self._lock.locked() or self._unconfirmed_part is not None:
            self._forgotten_users.add((project, user))
        if self._unconfirmed_part is not None:
            self._unconfirmed_part = self._without_forgotten(self._unconfirmed_part)

    def _without_forgotten(self, part: UsagePart) -> UsagePart:
        """Returns a part without the names of users that were forgotten while it was being written."""
        users = self._forgotten_users
        rows = (
            (key._replace(user=FORGOTTEN_USER) if (key.project, key.user) in users else key, counters)
            for key, counters in part.rows
        )
        return replace(part, rows=sum_rows(rows))
