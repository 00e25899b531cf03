"""Batches: sends to many agents, answered at the providers' own time. Their items are in batch_items.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import orjson
from msgspec.structs import replace

from storage.batch_records import BATCH_JOB, Batch, BatchState, OpenBatches
from storage.database import Connection, Database, Row
from storage.errors import NotFound
from storage.job_records import NO_AGENT
from storage.listing import Page
from storage.run_records import RunState
from storage.sql.agents_api.batch_items import BatchItems, make_counts
from storage.sql.group import StoreGroup, bulk_writes, makes_effect, reads
from storage.sql.jobs import Jobs
from storage.sql.statements import load, load_column, load_rows

SQL = load("agents_api/batches.sql")


class Batches(StoreGroup):
    """The batches of projects."""

    def __init__(self, database: Database, jobs: Jobs, items: BatchItems) -> None:
        super().__init__(database)
        self._jobs = jobs
        self._items = items
        # The row of the first batch that this process has begun.
        self._first_row = math.inf

    # -- a batch begins

    @bulk_writes
    async def begin(self, connection: Connection, draft: Batch) -> Batch:
        """Stores a batch without items. The id of the draft is ignored."""
        values = (draft.uid, draft.project, draft.state, draft.created, draft.callback)
        batch = replace(draft, id=int(await connection.fetch_value(SQL["insert"], values)))
        self._first_row = min(self._first_row, batch.id)
        return batch

    async def start(self, batch: Batch) -> None:
        """Enqueues the job of a batch once all its items are there."""
        await self._jobs.enqueue(BATCH_JOB, NO_AGENT, batch.uid, orjson.dumps({"batch": batch.id}))

    async def fail_half_accepted(self, before: float, at: float) -> int:
        """Fails the batches of which a process that has died has accepted only a part. Returns how many.

        before: the time before which such a batch began, if processes share the database; otherwise it is ignored.
        """
        batches = await self._list_half_accepted(before)
        for batch in batches:
            await self.fail(batch, at)
        return len(batches)

    @reads
    async def _list_half_accepted(self, connection: Connection, before: float) -> list[Batch]:
        is_shared = self._database.is_shared
        rows = await connection.fetch_rows(SQL["list_half_accepted"], (before if is_shared else math.inf,))
        # After the read, so that each batch that was read has set `_first_row`.
        return [batch for batch in map(_make_batch, rows) if is_shared or batch.id < self._first_row]

    async def fail(self, batch: Batch, at: float) -> None:
        """Fails a batch that is not accepted yet, with its items so far."""
        await self._items.end(batch.id, RunState.FAILED, "error", at)
        await self._database.bulk_write(self.make_finish_effect(batch.id, BatchState.FAILED, at))

    async def _find_job_id(self, batch: Batch) -> int | None:
        """Returns the id of the job that performs a batch; None: the batch has no job."""
        return await self._database.read(
            lambda connection: connection.fetch_value(SQL["find_job"], (batch.uid,))
        )

    # -- reading

    @reads
    async def is_over(self, connection: Connection, batch_row: int) -> bool:
        """Returns whether a batch has ended by now. A batch that is gone has not."""
        row = await connection.fetch_row(SQL["get"], (batch_row,))
        return row is not None and _make_batch(row).is_over

    @reads
    async def get(self, connection: Connection, project: str | None, uid: str) -> Batch:
        """Returns the batch with this public id. Raises: NotFound.

        project: the project of the batch; None: any project.
        """
        row = await connection.fetch_row(SQL["find"], (uid, project))
        if row is None:
            raise NotFound(f"there is no batch {uid!r}")
        return _make_batch(row)

    @reads
    async def list_page(self, connection: Connection, project: str | None, page: Page[int]) -> list[Batch]:
        """Returns a page of batches. The cursors of the page are ids.

        project: the project of the batches; None: all projects.
        """
        rows = await connection.fetch_rows(SQL[f"list_{page.direction}"], (project, *page.bounds, page.limit))
        return [_make_batch(row) for row in rows]

    @reads
    async def count_open(self, connection: Connection) -> OpenBatches:
        """Returns how many batches are in each state, and the counts of items in batches that have not ended."""
        states = dict.fromkeys(BatchState, 0)
        states.update(
            (BatchState(state), count) for state, count in await connection.fetch_rows(SQL["count_states"])
        )
        return OpenBatches(states, make_counts(await connection.fetch_rows(SQL["count_open_items"])))

    @reads
    async def find_agents(self, connection: Connection, project: str, uids: Sequence[str]) -> dict[str, int]:
        """Returns the rows of the project's agents among these uids, by uid."""
        return {row[0]: row[1] for row in await load_rows(connection, SQL["find_agents"], uids, project)}

    @reads
    async def load_journal(self, connection: Connection, job_row: int) -> dict[str, bytes]:
        """Returns the entries of a job's journal by name."""
        return {row[0]: row[1] for row in await connection.fetch_rows(SQL["journal"], (job_row,))}

    @reads
    async def load_known_parts(self, connection: Connection) -> list[bytes]:
        """Returns the journal's entries about providers' batches, of all jobs."""
        return await load_column(connection, SQL["known_parts"])

    # -- a batch moves on

    @makes_effect
    async def make_finish_effect(
        self, connection: Connection, batch_row: int, state: BatchState, at: float
    ) -> None:
        """Returns the effect that ends a batch, unless it has ended."""
        await connection.run(SQL["set_state"], (batch_row, state, at))

    @bulk_writes
    async def mark_running(self, connection: Connection, batch_row: int) -> None:
        """Notes that a batch has begun, unless it has ended."""
        await connection.run(SQL["set_state"], (batch_row, BatchState.RUNNING, None))

    async def cancel(self, batch: Batch, at: float, *, deletes_job: bool = False) -> Batch:
        """Cancels a batch and its items without a reply; the batch's job ends the other items. Returns the batch.

        deletes_job: True if all items are cancelled, and the job is deleted.
        """
        await self._database.bulk_write(self.make_finish_effect(batch.id, BatchState.CANCELLED, at))
        stored_batch = await self.get(None, batch.uid)
        job_id = await self._find_job_id(batch)
        if stored_batch.state is BatchState.CANCELLED:
            only_without_reply = not (job_id is None or deletes_job)
            await self._items.end(
                batch.id, RunState.CANCELLED, "cancelled", at, only_without_reply=only_without_reply
            )
        if job_id is not None:
            # The job may have ended meanwhile.
            with suppress(NotFound):
                await (self._jobs.cancel(job_id) if deletes_job else self._jobs.retry(job_id))
        return stored_batch


def _make_batch(row: Row) -> Batch:
    batch_row, uid, project, state, created, ended, callback = row
    return Batch(
        id=batch_row,
        uid=uid,
        project=project,
        state=BatchState(state),
        created=created,
        ended=ended,
        callback=callback,
    )
