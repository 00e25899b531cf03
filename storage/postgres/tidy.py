"""Looking after a PostgreSQL database: statistics for a fresh one, and its own old copies of what was forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from storage.errors import StoreError
from storage.postgres.connection import FAULTS, PostgresPlace, RawConnection, connect, translate

# After so many writes of this process the statistics are looked at. A fresh database has none, and plans as if its
# tables stayed empty: a turn costs seven times as much until autovacuum has come by.
_LOOKS = (50, 500, 5_000, 50_000)
_GROWN = """SELECT s.relname FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE s.schemaname = current_schema() AND s.n_live_tup <= 100000
  AND s.n_mod_since_analyze > 9 * greatest(c.reltuples, 5)"""

# The tables in which words of people lie.
_ERASED = (
    "exchanges", "snapshots", "blocks", "block_history", "block_ops", "passages", "summaries", "facts", "steps",
    "definition_texts", "run_texts", "files", "terms", "vectors",
)  # fmt: skip

# Whether somebody still sees the tables as they were before a transaction.
_HELD = """SELECT EXISTS (SELECT 1 FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND age(backend_xmin) > age($1::text::xid))"""


class Tidying:
    """The upkeep of one process. pause_s: between two VACUUMs; timeout_s: for one."""

    def __init__(self, place: PostgresPlace, pause_s: float, timeout_s: float) -> None:
        self._place = place
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._writes = 0
        self._swept_at = -pause_s
        self._later: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def wrote(self) -> None:
        """Takes note of a write."""
        self._writes += 1
        if self._writes in _LOOKS:
            self._start(self._on_own(_analyze))

    async def sweep(self) -> bool:
        """Takes old versions of rows out of the tables; False: somebody may see them still, or it is done later."""
        left = self._swept_at + self._pause_s - self._loop.time()
        if left > 0:
            if self._later is None:
                self._later = self._start(self._sweep_in(left))
            return False
        self._swept_at = self._loop.time()
        raw = await connect(self._place)
        try:
            limit = await raw.fetchval("SELECT pg_current_xact_id()::xid::text")
            await raw.execute(f"VACUUM {', '.join(_ERASED)}", timeout=self._timeout_s)
            return not await raw.fetchval(_HELD, limit)
        except FAULTS as error:
            raise translate(error, self._place.name) from error
        finally:
            raw.terminate()

    async def _sweep_in(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._later = None
        with contextlib.suppress(StoreError):
            await self.sweep()

    async def _on_own(self, work: Callable[[RawConnection], Awaitable[object]]) -> None:
        with contextlib.suppress(StoreError, *FAULTS):
            raw = await connect(self._place)
            try:
                await work(raw)
            finally:
                raw.terminate()

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _analyze(raw: RawConnection) -> None:
    grown = [row[0] for row in await raw.fetch(_GROWN)]
    if grown:
        await raw.execute(f"ANALYZE {', '.join(grown)}")
