"""Batches: sends to many agents, each a run with a turn that is written when it ends.

The state of an item is a row of numbers; its words lie in `run_texts` until its turn is an exchange. Items are written
by pages. Each page is a transaction that first checks that the batch's job still runs here.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from contextlib import suppress

import orjson
from msgspec.structs import replace

from storage.batch_records import (
    BATCH_JOB,
    ENDED_PART,
    READY_PART,
    SOURCES_ROOM,
    AssignedItem,
    Batch,
    BatchCounts,
    BatchItem,
    BatchState,
    ItemDraft,
    ItemEnd,
    ItemRetry,
    ItemRound,
    ItemWrite,
    OpenBatches,
    item_state,
    make_call_origin,
)
from storage.commands import BlockMerge, Rules
from storage.database import Connection, Database, Row
from storage.errors import NotFound, Stale, WriteConflict
from storage.listing import Page
from storage.records import DEFAULT_CONVERSATION, EditState, MemoryEdit, Run, RunState, RunStep, RunTextKind
from storage.sql.agents_api.blocks import SQL as BLOCKS
from storage.sql.agents_api.run_texts import add_error_message, add_text
from storage.sql.agents_api.runs import (
    add_step,
    begin_conversation,
    begin_run,
    end_run,
    find_or_create_run,
    make_run,
)
from storage.sql.blocks import write_block
from storage.sql.group import StoreGroup, bulk_writes, makes_effect, reads
from storage.sql.jobs import NO_AGENT, Jobs
from storage.sql.statements import load, load_rows
from storage.sql.stored_paths import open_step, write_edits
from storage.sql.turn_edits import add_edit
from storage.sql.usage import add_batch

SQL = load("agents_api/batches.sql")
GONE = "the memory of this item is gone"

# The number of an item's request, the only one.
_REQUEST_SEQ = 0
# Items that one transaction ends.
_PAGE = 100


class Batches(StoreGroup):
    """Batches and their items. A project is that of the batch."""

    def __init__(self, database: Database, rules: Rules, jobs: Jobs) -> None:
        super().__init__(database)
        self._rules = rules
        self._jobs = jobs

    # -- a batch begins

    @bulk_writes
    async def begin(self, connection: Connection, draft: Batch) -> Batch:
        """Stores a batch without items (its id does not count)."""
        values = (draft.uid, draft.project, draft.state, draft.created, draft.callback)
        id = int(await connection.value(SQL["insert"], values))
        return Batch(id, draft.uid, draft.project, draft.state, draft.created, None, draft.callback)

    @bulk_writes
    async def add(self, connection: Connection, batch_row: int, drafts: Sequence[ItemDraft]) -> None:
        """Adds items. Raises: NotFound if a conversation is gone."""
        await connection.lock(*(draft.run.agent_row for draft in drafts))
        for draft in drafts:
            run = replace(draft.run, batch=batch_row)
            if not run.conversation_row:
                conversation_row = await begin_conversation(
                    connection, run.agent_row, DEFAULT_CONVERSATION, draft.uid, run.created
                )
                if conversation_row is None:
                    raise NotFound(GONE)
                run = replace(run, conversation_row=conversation_row)
            stored = await find_or_create_run(connection, run)
            await add_text(
                connection, stored.agent_row, stored.id, RunTextKind.REQUEST, _REQUEST_SEQ, draft.request
            )
            await connection.run(SQL["item_insert"], (stored.id, batch_row))

    async def start(self, batch: Batch) -> None:
        """Enqueues the job of a batch once all its items are there."""
        await self._jobs.enqueue(BATCH_JOB, NO_AGENT, batch.uid, orjson.dumps({"batch": batch.id}))

    async def fail_half_accepted(self, before: float, at: float) -> int:
        """Fails the batches of which an earlier process has accepted only a part. Returns how many."""
        count = 0
        for batch in await self.list(None, Page(limit=10_000)):
            if batch.is_over or batch.created >= before or await self._find_job(batch) is not None:
                continue
            await self.fail(batch, at)
            count += 1
        return count

    async def fail(self, batch: Batch, at: float) -> None:
        """Fails a batch that is not accepted yet, with its items so far."""
        while await self.end_page(batch.id, RunState.FAILED, "error", at):
            pass
        await self._database.bulk(self.finish_effect(batch.id, BatchState.FAILED, at))

    async def _find_job(self, batch: Batch) -> int | None:
        return await self._database.read(lambda connection: connection.value(SQL["job"], (batch.uid,)))

    # -- reading

    @reads
    async def is_over(self, connection: Connection, id: int) -> bool:
        """Returns whether the batch with this row has ended by now."""
        row = await connection.row(SQL["get"], (id,))
        return row is not None and _make_batch(row).is_over

    @reads
    async def get(self, connection: Connection, project: str | None, uid: str) -> Batch:
        """Returns the batch with this public id, of a project or (None) of any. Raises: NotFound."""
        row = await connection.row(SQL["find"], (uid, project))
        if row is None:
            raise NotFound(f"there is no batch {uid!r}")
        return _make_batch(row)

    @reads
    async def list(self, connection: Connection, project: str | None, page: Page[int]) -> list[Batch]:
        """Returns a page of the batches of a project or (None) of all. The cursors of the page are ids."""
        rows = await connection.rows(SQL[f"list_{page.direction}"], (project, *page.bounds, page.limit))
        return [_make_batch(row) for row in rows]

    @reads
    async def count_items(self, connection: Connection, batch_row: int) -> BatchCounts:
        """Counts a batch's items by what became of them."""
        return _make_counts(await connection.rows(SQL["counts"], (batch_row,)))

    @reads
    async def count_open(self, connection: Connection) -> OpenBatches:
        """Returns how many batches are in each state, and the counts of items in batches that have not ended."""
        states = dict.fromkeys(BatchState, 0)
        states.update((BatchState(state), n) for state, n in await connection.rows(SQL["of_states"]))
        return OpenBatches(states, _make_counts(await connection.rows(SQL["open_counts"])))

    @reads
    async def list_items(
        self,
        connection: Connection,
        batch_row: int,
        *,
        after: int = 0,
        limit: int = 50,
        part: int | None = None,
    ) -> builtins.list[BatchItem]:
        """Returns a page of items in the order in which they were given. part: only those in it."""
        if part is None:
            rows = await connection.rows(SQL["of_batch"], (batch_row, after, limit))
        else:
            rows = await connection.rows(SQL["of_part"], (batch_row, part, after, limit))
        return [_make_item(row) for row in rows]

    @reads
    async def find_item(self, connection: Connection, batch_row: int, run_uid: str) -> BatchItem | None:
        """Returns the item of a batch by its run's public id; None where it is gone."""
        row = await connection.row(SQL["by_uid"], (batch_row, run_uid))
        return None if row is None else _make_item(row)

    @reads
    async def find_item_by_row(self, connection: Connection, batch_row: int, row: int) -> BatchItem | None:
        """Returns the item of a batch by its row."""
        item_row = await connection.row(SQL["by_row"], (batch_row, row))
        return None if item_row is None else _make_item(item_row)

    @reads
    async def find_item_of_agent(
        self, connection: Connection, batch_row: int, agent_uid: str
    ) -> BatchItem | None:
        """Returns the item of a batch that is this agent's; None where there is none."""
        row = await connection.row(SQL["of_agent"], (batch_row, agent_uid))
        return None if row is None else _make_item(row)

    @reads
    async def count_in_part(self, connection: Connection, batch_row: int, part: int) -> int:
        """Counts the items that are in a part."""
        return int(await connection.value(SQL["in_part"], (batch_row, part)))

    @reads
    async def find_current(self, connection: Connection, batch_row: int, part: int) -> set[int]:
        """Returns the ids of the items in a part with requests that may be sent as they were composed.

        The other items have ended, or something of their memory was forgotten since.
        """
        return {row[0] for row in await connection.rows(SQL["current"], (batch_row, part))}

    @reads
    async def is_open(self, connection: Connection, batch_row: int) -> bool:
        """Returns whether an item has not ended."""
        return await connection.value(SQL["left"], (batch_row,)) is not None

    @reads
    async def list_open_items(
        self, connection: Connection, batch_row: int, limit: int
    ) -> builtins.list[BatchItem]:
        """Returns some items that have not ended."""
        return [_make_item(row) for row in await connection.rows(SQL["of_batch_open"], (batch_row, limit))]

    @reads
    async def load_texts(
        self, connection: Connection, agent_row: int, run_row: int, kind: RunTextKind
    ) -> dict[int, bytes]:
        """Returns the texts of a kind that an item's run holds, by their numbers, in order."""
        return {row[0]: row[1] for row in await connection.rows(SQL["texts"], (agent_row, run_row, kind))}

    @reads
    async def load_error_messages(
        self, connection: Connection, batch_row: int, first: int, last: int
    ) -> dict[int, str]:
        """Returns why items failed, by their ids, for ids above `first` up to `last`."""
        rows = await connection.rows(SQL["error_messages"], (batch_row, first, last))
        return {row[0]: bytes(row[1]).decode() for row in rows if row[1]}

    @reads
    async def find_exchange(self, connection: Connection, run: Run) -> int | None:
        """Returns the row of the exchange that an item's run became; None: it has become none yet."""
        return await connection.value(SQL["exchange_of"], (run.id, run.agent_row))

    @reads
    async def find_agents(self, connection: Connection, project: str, uids: Sequence[str]) -> dict[str, int]:
        """Returns the rows of the project's agents among these uids, by uid."""
        return {row[0]: row[1] for row in await load_rows(connection, SQL["agents_named"], uids, project)}

    @reads
    async def load_journal(self, connection: Connection, job_row: int) -> dict[str, bytes]:
        """Returns what a job has written down, by name."""
        return {row[0]: row[1] for row in await connection.rows(SQL["journal"], (job_row,))}

    @reads
    async def load_known_parts(self, connection: Connection) -> builtins.list[bytes]:
        """Returns what is written down of providers' batches, of all jobs."""
        return [row[0] for row in await connection.rows(SQL["known_parts"])]

    # -- items go on

    @makes_effect
    async def assign_effect(
        self, connection: Connection, part: int, items: Sequence[AssignedItem], at: float
    ) -> None:
        """Returns the effect that puts items into a part, and closes those that have ended."""
        await connection.lock(*(item.agent_row for item in items))
        for item in items:
            if (await connection.value(SQL["is_open"], (item.run_row, item.agent_row))) is None:
                await connection.run(SQL["close"], (item.run_row,))
                continue
            await begin_run(connection, item.agent_row, item.run_row, at)
            await connection.run(SQL["give"], (item.run_row, part, item.last_exchange, item.epoch))
            await connection.run(
                SQL["text_append"], (item.agent_row, item.run_row, RunTextKind.ASKED, item.asked)
            )

    @makes_effect
    async def write_effect(
        self, connection: Connection, project: str, day: int, writes: Sequence[ItemWrite]
    ) -> None:
        """Returns the effect that writes the outcomes of items.

        The effect skips an item that has ended meanwhile, and an outcome that is written already; its tokens count
        once. It raises WriteConflict if a block, a conversation or a memory was changed since it was read.
        """
        runs = [write.item.run for write in writes]
        await connection.lock_sharers(*{run.agent_row for run in runs if run is not None})
        tokens = output = 0
        for write in writes:
            if await _write_item(connection, write, self._rules) and not isinstance(write, ItemRetry):
                tokens, output = tokens + write.tokens, output + write.output
        if tokens:
            await add_batch(connection, project, day, tokens, output)

    @bulk_writes
    async def add_text(
        self, connection: Connection, agent_row: int, run_row: int, kind: RunTextKind, seq: int, data: bytes
    ) -> bool:
        """Adds a text of an item. Returns False if the item has a text with this kind and seq, or does not go on.

        An item does not go on if it or its batch has ended, or something of its memory was forgotten.
        """
        await connection.lock(agent_row)
        return await connection.row(SQL["text_insert"], (agent_row, run_row, seq, kind, data)) is not None

    # -- a batch ends

    @makes_effect
    async def finish_effect(
        self, connection: Connection, batch_row: int, state: BatchState, at: float
    ) -> None:
        """Returns the effect that ends a batch, unless it has ended."""
        await connection.run(SQL["set_state"], (batch_row, state, at))

    async def mark_running(self, batch_row: int) -> None:
        """Notes that a batch has begun."""
        await self._database.bulk(
            lambda connection: connection.run(SQL["set_state"], (batch_row, BatchState.RUNNING, None))
        )

    async def cancel(self, batch: Batch, at: float, *, with_job: bool = False) -> Batch:
        """Cancels a batch and its items without a reply; the batch's job ends the other items. Returns the batch.

        with_job: cancel all items, and delete the job.
        """
        await self._database.bulk(
            lambda connection: connection.run(SQL["set_state"], (batch.id, BatchState.CANCELLED, at))
        )
        present = await self.get(None, batch.uid)
        job = await self._find_job(batch)
        if present.state is BatchState.CANCELLED:
            statement = "of_batch_open" if job is None or with_job else "of_batch_unheard"
            while await self.end_page(batch.id, RunState.CANCELLED, "cancelled", at, statement):
                pass
        if job is not None:
            # The job may have ended meanwhile.
            with suppress(NotFound):
                if with_job:
                    await self._jobs.cancel(job)
                else:
                    await self._jobs.retry(job)
        return present

    @bulk_writes
    async def end_page(
        self,
        connection: Connection,
        batch_row: int,
        state: RunState,
        stop: str,
        at: float,
        statement: str = "of_batch_open",
    ) -> int:
        """Ends some of a batch's items that have not ended. Returns how many were found; 0: none is left.

        statement: the statement that finds them.
        """

        async def find() -> builtins.list[BatchItem]:
            return [_make_item(row) for row in await connection.rows(SQL[statement], (batch_row, _PAGE))]

        items = await find()
        agent_rows = {item.run.agent_row for item in items if item.run is not None}
        await connection.lock(*agent_rows)
        # Read again under the locks: another writer may have stored a reply meanwhile.
        for item in await find():
            if item.run is not None:
                if item.run.agent_row not in agent_rows:
                    continue
                await end_run(connection, item.run.agent_row, item.run.id, state, stop, at)
                await connection.run(SQL["texts_empty"], (item.run.agent_row, item.run.id))
            await connection.run(SQL["close"], (item.id,))
        return len(items)


async def _write_item(connection: Connection, write: ItemWrite, rules: Rules) -> bool:
    """Writes the outcome of an item. Returns False if it was written before. Raises: WriteConflict."""
    if not await _advance_item(connection, write):
        return False
    item, run = write.item, write.item.run
    epoch = None if run is None else await connection.value(SQL["is_open"], (run.id, run.agent_row))
    if run is None or epoch is None:
        # The item was cancelled, or its agent is gone. The tokens that the provider has billed count nevertheless.
        await connection.run(SQL["close"], (item.id,))
        return True
    if isinstance(write, ItemRetry):
        return True
    if write.epoch is not None and write.epoch != epoch:
        raise WriteConflict(GONE)  # something was forgotten meanwhile
    if isinstance(write, ItemRound):
        edits = await _write_round_edits(connection, run, write.edits, write.versions, write.now)
        data = orjson.dumps({**write.data, "edits": edits})
        await add_text(connection, run.agent_row, run.id, RunTextKind.ROUND, write.number, data)
        return True
    try:
        await _end_item(connection, write, run, rules)
    except Stale as error:
        raise WriteConflict(error.message) from error
    return True


async def _advance_item(connection: Connection, write: ItemWrite) -> bool:
    """Moves an item to its next request, or to its end. Returns False if this was done before."""
    number = write.item.request_number
    part, errors, expiries = READY_PART, 0, 0
    match write:
        case ItemRetry():
            part, errors, expiries = write.part, write.errors, write.expiries
        case ItemEnd():
            part = ENDED_PART
    # If an item ends without a reply, a reply that the provider has made meanwhile still counts, under the same number.
    ends_without_reply = isinstance(write, ItemEnd) and not write.tokens
    next_number = number if ends_without_reply else number + 1
    values = (write.item.id, number, part, errors, expiries, next_number)
    return await connection.row(SQL["advance"], values) is not None


async def _write_round_edits(
    connection: Connection, run: Run, merged: BlockMerge, first_versions: Mapping[int, int], now: float
) -> list[object]:
    """Writes the edits of a round, each on the version of the block that its result was computed from.

    Returns the edits in the form that is stored until the item's turn is an exchange.

    Raises: WriteConflict.
    """
    versions = dict(first_versions)
    edits: list[object] = []
    for block_row, value, edit in merged.writes:
        try:
            await write_block(
                connection, block_row, versions[block_row], value, at=now,
                origin=make_call_origin(run.uid, edit.call_id), room=SOURCES_ROOM,
            )  # fmt: skip
        except NotFound as error:
            raise WriteConflict(error.message) from error
        versions[block_row] += 1
        edits.append(
            [
                block_row,
                versions[block_row],
                edit.call_id,
                edit.op,
                edit.label,
                bytes(edit.arguments).decode(),
                edit.at,
            ]
        )
    return edits


async def _end_item(connection: Connection, end: ItemEnd, run: Run, rules: Rules) -> None:
    """Ends the run of an item, and writes the item's turn if it has one."""
    agent_row = run.agent_row
    if end.turn is not None:
        opened = await open_step(connection, end.turn, rules)
        exchange_row = opened.exchange.id
        origin = make_call_origin(run.uid)
        await connection.run(
            SQL["origins"], (agent_row, exchange_row, _make_padded_sources(exchange_row), len(origin), origin)
        )
        for block, version, edit in end.edits:
            await connection.run(
                BLOCKS["version_sources"],
                (block, version, exchange_row, _make_padded_sources(exchange_row)),
            )
            await add_edit(connection, agent_row, _make_merged_edit(edit, exchange_row))
        await write_edits(
            connection, agent_row, _bind_to_exchange(end.merged, exchange_row), end.versions, end.now
        )
        assert end.step is not None  # an item with a turn has its step
        item_step = end.step
        step = RunStep(
            exchange_row, agent_row, run.id, 1, item_step.begun, item_step.ended, item_step.counts, end.stop, None,
            end.stop if end.state is RunState.FAILED else None,
        )  # fmt: skip
        await add_step(connection, step)
        await connection.run(SQL["steps_of"], (end.rounds, run.id, agent_row))
    await end_run(connection, agent_row, run.id, end.state, end.stop, end.now)
    await connection.run(SQL["texts_empty"], (agent_row, run.id))
    await add_error_message(connection, agent_row, run.id, end.error_message)


def _bind_to_exchange(merged: BlockMerge, exchange_row: int) -> BlockMerge:
    """Returns the edits of an item as edits of the exchange that its turn has become."""
    return BlockMerge(
        [write._replace(edit=_make_merged_edit(write.edit, exchange_row)) for write in merged.writes],
        [passage._replace(edit=_make_merged_edit(passage.edit, exchange_row)) for passage in merged.passages],
        [replace(fact, exchange_row=exchange_row, sources=(exchange_row,)) for fact in merged.facts],
    )


def _make_merged_edit(edit: MemoryEdit, exchange_row: int) -> MemoryEdit:
    """Returns an edit of an exchange that is in its block already."""
    return MemoryEdit(
        0, exchange_row, edit.call_id, edit.op, edit.label, edit.arguments, EditState.MERGED, edit.at
    )


def _make_padded_sources(exchange_row: int) -> bytes:
    """Returns the sources of a value, now that its exchange is known, in as many bytes of the row as those before."""
    return f"[{exchange_row}]".ljust(SOURCES_ROOM - _count_row_bytes(exchange_row)).encode()


def _count_row_bytes(number: int) -> int:
    """Returns the bytes that a number has in a row of SQLite (sqlite.org/fileformat2.html, section 2.1)."""
    return next(size for size in (1, 2, 3, 4, 6, 8) if number < 1 << (8 * size - 1))


def _make_counts(rows: Sequence[Row]) -> BatchCounts:
    counts = dict.fromkeys(("waiting", "running", "completed", "failed", "expired", "cancelled"), 0)
    for state, stop, count in rows:
        counts[item_state(state, stop)] += count
    return BatchCounts(**counts)


def _make_batch(row: Row) -> Batch:
    id, uid, project, state, created, ended, callback = row
    return Batch(id, uid, project, BatchState(state), created, ended, callback)


def _make_item(row: Row) -> BatchItem:
    id, part, request_number, errors, expiries, last_exchange, epoch, agent_row, project, key, uid, *run = row
    item_run = make_run(run) if run[0] is not None and agent_row is not None else None
    return BatchItem(
        id,
        item_run,
        agent_row or "",
        project or "",
        part,
        request_number,
        errors,
        expiries,
        last_exchange,
        epoch,
        DEFAULT_CONVERSATION if key == DEFAULT_CONVERSATION else uid or "",
    )
