"""Maintenance of a PostgreSQL database: ANALYZE for tables that have grown, VACUUM after something was forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import asyncpg

from storage.errors import StoreError
from storage.postgres.connection import PostgresTarget, RawConnection, connect
from storage.postgres.sqlstates import ASYNCPG_ERRORS, translate_error
from storage.task_set import TaskSet

_log = logging.getLogger("mnemogate")

# The statements below are PostgreSQL's alone, so they are not in the store's .sql files.

# The numbers of writes of this process after which tables that have grown are analyzed. A fresh database has no
# statistics, and plans as if its tables stayed empty: a turn costs seven times as much until autovacuum has come by.
_ANALYZE_AFTER_WRITES = (50, 500, 5_000, 50_000)
# Returns the tables, up to a size at which ANALYZE is cheap, that have ten times the rows of their statistics.
_GROWN_TABLES_QUERY = """SELECT s.relname FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE s.schemaname = current_schema() AND s.n_live_tup <= 100000
  AND s.n_mod_since_analyze > 9 * greatest(c.reltuples, 5)"""

# The tables with texts of users, or with data that was derived from these.
_ERASED_TABLES = (
    "exchanges", "sections", "blocks", "block_history", "block_ops", "passages", "summaries", "facts", "steps",
    "definition_texts", "run_texts", "files", "segments", "terms", "vectors",
)  # fmt: skip

# Returns whether VACUUM would have to leave rows that were deleted before a transaction. It leaves them for a snapshot
# of this database, or one that a standby or a slot holds; and for a transaction that writes, in any database, which
# holds back the snapshots taken next to it. It does not leave them for another VACUUM.
_HELD_BACK_QUERY = """SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE age(backend_xid) > age($1::text::xid))
OR EXISTS (SELECT 1 FROM pg_stat_activity WHERE age(backend_xmin) > age($1::text::xid)
    AND coalesce(datname, current_database()) = current_database()
    AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum))
OR EXISTS (SELECT 1 FROM pg_prepared_xacts WHERE age(transaction) > age($1::text::xid))
OR EXISTS (SELECT 1 FROM pg_replication_slots WHERE age(xmin) > age($1::text::xid))"""
# The pause between two runs of this query: the first one, which doubles, and the longest. Not measured: most
# transactions end within milliseconds, and for a long one the query runs once a second.
_FIRST_PAUSE_S = 0.01
_MAX_PAUSE_S = 1.0
# The least delay before a VACUUM that was given up is tried again.
_MIN_DELAY_S = 0.01
# The beginning of the names of the server's functions that warn of a table which a role may not vacuum (in vacuum.c,
# since PostgreSQL 12). Their SQLSTATE is that of all warnings, and their text is in the server's language.
_REFUSING_FUNCTIONS = "vacuum_is_"


class PostgresMaintenance:
    """The maintenance that one process does."""

    def __init__(self, target: PostgresTarget, pause_s: float, timeout_s: float) -> None:
        """Makes the maintenance.

        target: the database.
        pause_s: the seconds between the beginnings of two VACUUMs.
        timeout_s: the seconds after which a VACUUM is given up.
        """
        self._target = target
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._write_count = 0
        self._vacuum_began_at = -pause_s
        # True if the last VACUUM has left out tables, because they have other owners.
        self._is_refused = False
        self._is_sweep_planned = False
        self._tasks = TaskSet()

    def note_write(self) -> None:
        """Counts a write. After some numbers of writes, analyzes the tables that have grown."""
        self._write_count += 1
        if self._write_count in _ANALYZE_AFTER_WRITES:
            self._tasks.start(_refresh_statistics(self._target))

    async def sweep(self, wait_s: float) -> bool:
        """Removes old versions of rows by VACUUM, once no transaction sees them any more.

        Returns False if another attempt is planned, or the server does not do it for this role.

        wait_s: the seconds to wait for the transactions that see old versions.
        """
        try:
            is_done = self._compute_wait_s() <= 0 and await self._vacuum(wait_s)
        except StoreError as error:
            # No statement returns old versions, so a forgetting need not wait for other users of a table.
            is_done = False
            _log.warning(
                "What was forgotten stays in old versions of rows for now; removing these is tried again: %s",
                error.message,
            )
        if not is_done and not self._is_sweep_planned and not self._is_refused:
            self._is_sweep_planned = True
            self._tasks.start(self._sweep_later())
        return is_done

    def _compute_wait_s(self) -> float:
        """Returns how many seconds the next VACUUM has to wait."""
        return self._vacuum_began_at + self._pause_s - self._loop.time()

    async def _vacuum(self, wait_s: float) -> bool:
        """Runs VACUUM once no transaction sees the old versions any more; before, it would leave them.

        Returns False if a transaction still sees them after `wait_s`, or VACUUM has left out tables.
        """
        ends_at = self._loop.time() + wait_s
        self._vacuum_began_at = self._loop.time()
        raw = await connect(self._target)
        try:
            if not await self._wait_for_readers(raw, ends_at):
                return False
            refusals: list[str] = []

            def note(_: object, message: asyncpg.PostgresLogMessage) -> None:
                if (message.server_source_function or "").startswith(_REFUSING_FUNCTIONS):
                    refusals.append(str(message))
                elif isinstance(message, asyncpg.PostgresWarning):
                    _log.warning("VACUUM of %s: %s", self._target.name, message)

            raw.add_log_listener(note)
            await raw.execute(f"VACUUM {', '.join(_ERASED_TABLES)}", timeout=self._timeout_s)
            await asyncio.sleep(0)  # a listener is called after the answer
            self._is_refused = bool(refusals)
            if refusals:
                _log.warning(
                    "What was forgotten stays in old versions of rows of %s until autovacuum comes, since VACUUM "
                    "leaves tables out. Make the role their owner, or grant it MAINTAIN: %s",
                    self._target.name, refusals[0],
                )  # fmt: skip
            return not refusals
        except ASYNCPG_ERRORS as error:
            raise translate_error(error, self._target.name) from error
        finally:
            raw.terminate()

    async def _wait_for_readers(self, raw: RawConnection, ends_at: float) -> bool:
        """Waits until no transaction sees the present old versions. Returns False at `ends_at`, by the loop's clock."""
        newest_xid = await raw.fetchval("SELECT pg_current_xact_id()::xid::text")
        pause_s = _FIRST_PAUSE_S
        while await raw.fetchval(_HELD_BACK_QUERY, newest_xid):
            remaining_s = ends_at - self._loop.time()
            if remaining_s <= 0:
                return False
            await asyncio.sleep(min(pause_s, remaining_s))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        return True

    async def _sweep_later(self) -> None:
        await asyncio.sleep(max(self._compute_wait_s(), _MIN_DELAY_S))
        self._is_sweep_planned = False
        await self.sweep(self._timeout_s)

    async def close(self) -> None:
        """Ends the work under way; VACUUM and ANALYZE leave nothing half done."""
        await self._tasks.aclose()


async def _refresh_statistics(target: PostgresTarget) -> None:
    """Analyzes the tables that have grown. An error is ignored: the next call analyzes them."""
    with contextlib.suppress(StoreError, *ASYNCPG_ERRORS):
        raw = await connect(target)
        try:
            grown_tables = [row[0] for row in await raw.fetch(_GROWN_TABLES_QUERY)]
            if grown_tables:
                await raw.execute(f"ANALYZE {', '.join(grown_tables)}")
        finally:
            raw.terminate()
