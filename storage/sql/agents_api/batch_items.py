"""The items of batches: each is a run with a turn that is written when the item ends.

The state of an item is a row of numbers; its texts lie in `run_texts` until its turn is an exchange. A batch goes to
its providers in parts: a part is the items whose requests are submitted together, and has a number in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from storage.batch_records import (
    AssignedItem,
    BatchCounts,
    BatchItem,
    ItemDraft,
    ItemRetry,
    ItemWrite,
    compute_item_state,
)
from storage.database import Connection, Database, Row, Statement
from storage.errors import NotFound
from storage.records import DEFAULT_CONVERSATION
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.agents_api.item_writes import (
    close_item,
    erase_item_texts,
    find_epoch_of_open_run,
    write_item,
)
from storage.sql.agents_api.run_texts import add_text
from storage.sql.agents_api.runs import (
    begin_run,
    end_run,
    find_or_create_conversation,
    find_or_create_run,
    make_run,
)
from storage.sql.group import StoreGroup, bulk_writes, makes_effect, reads
from storage.sql.statements import load, load_column
from storage.sql.usage import add_batch
from storage.store_rules import Rules

SQL = load("agents_api/batch_items.sql")

# The `seq` of the only text of an item's run that is a request.
_REQUEST_SEQ = 0
# The most items that one transaction ends.
_PAGE_ITEMS = 100


class BatchItems(StoreGroup):
    """Adds items to batches, reads them, and writes their results."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    @bulk_writes
    async def add(self, connection: Connection, batch_row: int, drafts: Sequence[ItemDraft]) -> None:
        """Adds items, each under the lock of its agent. Raises: NotFound if a conversation is gone."""
        await connection.lock(*(draft.run.agent_row for draft in drafts))
        for draft in drafts:
            run = replace(draft.run, batch=batch_row)
            if not run.conversation_row:
                conversation_row = await find_or_create_conversation(
                    connection, run.agent_row, DEFAULT_CONVERSATION, draft.uid, run.created
                )
                if conversation_row is None:
                    raise NotFound("the memory of this item is gone")
                run = replace(run, conversation_row=conversation_row)
            stored = await find_or_create_run(connection, run)
            await add_text(
                connection,
                stored.agent_row,
                stored.id,
                RunTextKind.REQUEST,
                seq=_REQUEST_SEQ,
                data=draft.request,
            )
            await connection.run(SQL["insert"], (stored.id, batch_row))

    # -- reading

    @reads
    async def count(self, connection: Connection, batch_row: int) -> BatchCounts:
        """Counts a batch's items by their states."""
        return make_counts(await connection.fetch_rows(SQL["count"], (batch_row,)))

    @reads
    async def list_page(
        self,
        connection: Connection,
        batch_row: int,
        *,
        after: int = 0,
        limit: int = 50,
        part: int | None = None,
    ) -> list[BatchItem]:
        """Returns a page of items in the order in which they were given.

        after: the id of the last item of the page before.
        part: the number of the part to list; None: all items of the batch.
        """
        if part is None:
            rows = await connection.fetch_rows(SQL["list"], (batch_row, after, limit))
        else:
            rows = await connection.fetch_rows(SQL["list_in_part"], (batch_row, part, after, limit))
        return [_make_item(row) for row in rows]

    @reads
    async def find(self, connection: Connection, batch_row: int, run_uid: str) -> BatchItem | None:
        """Returns the item of a batch by its run's public id."""
        return await _find_item(connection, SQL["find"], batch_row, run_uid)

    @reads
    async def find_by_row(self, connection: Connection, batch_row: int, row: int) -> BatchItem | None:
        """Returns the item of a batch by its row."""
        return await _find_item(connection, SQL["find_by_row"], batch_row, row)

    @reads
    async def find_of_agent(self, connection: Connection, batch_row: int, agent_uid: str) -> BatchItem | None:
        """Returns the item of a batch that is this agent's."""
        return await _find_item(connection, SQL["find_of_agent"], batch_row, agent_uid)

    @reads
    async def count_in_part(self, connection: Connection, batch_row: int, part: int) -> int:
        """Returns the number of items in a part, or of those that are ready (READY_PART) or have ended (ENDED_PART)."""
        return int(await connection.fetch_value(SQL["count_in_part"], (batch_row, part)))

    @reads
    async def load_sendable(self, connection: Connection, batch_row: int, part: int) -> set[int]:
        """Returns the ids of the items in a part with requests that may be sent as they were composed.

        The other items have ended, or something of their memory was forgotten since.
        """
        return set(await load_column(connection, SQL["list_sendable"], (batch_row, part)))

    @reads
    async def has_open(self, connection: Connection, batch_row: int) -> bool:
        """Returns whether an item of a batch has not ended."""
        return await connection.fetch_value(SQL["open_exists"], (batch_row,)) is not None

    @reads
    async def list_open(self, connection: Connection, batch_row: int, limit: int) -> list[BatchItem]:
        """Returns some items that have not ended."""
        return await _list_items(connection, SQL["list_open"], batch_row, limit)

    @reads
    async def load_texts(
        self, connection: Connection, agent_row: int, run_row: int, kind: RunTextKind
    ) -> dict[int, bytes]:
        """Returns the texts of an item's run that are of a kind, by `seq`, in ascending order."""
        rows = await connection.fetch_rows(SQL["load_texts"], (agent_row, run_row, kind))
        return {row[0]: row[1] for row in rows}

    @reads
    async def load_error_messages(
        self, connection: Connection, batch_row: int, first: int, last: int
    ) -> dict[int, str]:
        """Returns why items failed, by their ids.

        first, last: bounds of the ids, which are greater than `first` and at most `last`.
        """
        rows = await connection.fetch_rows(SQL["load_error_messages"], (batch_row, first, last))
        return {row[0]: bytes(row[1]).decode() for row in rows if row[1]}

    @reads
    async def find_exchange(self, connection: Connection, run: Run) -> int | None:
        """Returns the row of the exchange that an item's run became; None: the run has become no exchange yet."""
        return await connection.fetch_value(SQL["find_exchange"], (run.id, run.agent_row))

    # -- items go on

    @makes_effect
    async def make_assign_effect(
        self, connection: Connection, part: int, items: Sequence[AssignedItem], at: float
    ) -> None:
        """Returns the effect that puts items into a part, and closes items that have ended."""
        await connection.lock(*(item.agent_row for item in items))
        for item in items:
            if await find_epoch_of_open_run(connection, item.agent_row, item.run_row) is None:
                await close_item(connection, item.run_row)
                continue
            await begin_run(connection, item.agent_row, item.run_row, at)
            await connection.run(SQL["assign"], (item.run_row, part, item.last_exchange, item.epoch))
            await connection.run(
                SQL["append_text"],
                (item.agent_row, item.run_row, RunTextKind.REQUEST_STATE, item.request_state),
            )

    @makes_effect
    async def make_write_effect(
        self, connection: Connection, project: str, day: int, writes: Sequence[ItemWrite]
    ) -> None:
        """Returns the effect that writes the outcomes of items.

        The effect skips an item that has ended meanwhile, and an outcome that is written already; its tokens count
        once. It raises WriteConflict if a block, a conversation or a memory was changed since it was read.
        """
        runs = [write.item.run for write in writes]
        await connection.lock_sharers(*{run.agent_row for run in runs if run is not None})
        total_tokens = 0
        output_tokens = 0
        for write in writes:
            if await write_item(connection, write, self._rules) and not isinstance(write, ItemRetry):
                total_tokens += write.counts.total
                output_tokens += write.counts.completion
        if total_tokens:
            await add_batch(connection, project, day, total_tokens, output_tokens)

    @bulk_writes
    async def add_text_of_open_item(
        self, connection: Connection, agent_row: int, run_row: int, kind: RunTextKind, seq: int, data: bytes
    ) -> bool:
        """Adds a text to an item's run. Returns False if the run has a text with this kind and seq.

        Returns False, too, if the item or its batch has ended, or something of the item's memory was forgotten since
        its request was composed.
        """
        await connection.lock(agent_row)
        return (
            await connection.fetch_row(SQL["insert_text"], (agent_row, run_row, seq, kind, data)) is not None
        )

    # -- items end

    async def end(
        self, batch_row: int, state: RunState, stop: str, at: float, *, only_without_reply: bool = False
    ) -> None:
        """Ends the items of a batch that have not ended, by pages.

        stop: the stop reason of their runs.
        only_without_reply: True if items with a reply are left to the batch's job; False: they end, too.
        """
        statement = SQL["list_open_without_reply" if only_without_reply else "list_open"]
        while await self._end_page(batch_row, state, stop, at, statement):
            pass

    @bulk_writes
    async def _end_page(
        self,
        connection: Connection,
        batch_row: int,
        state: RunState,
        stop: str,
        at: float,
        find_items: Statement,
    ) -> bool:
        """Ends some items. Returns False if none was found."""
        items = await _list_items(connection, find_items, batch_row, _PAGE_ITEMS)
        agent_rows = {item.run.agent_row for item in items if item.run is not None}
        await connection.lock(*agent_rows)
        # Read again under the locks: another writer may have stored a reply meanwhile.
        for item in await _list_items(connection, find_items, batch_row, _PAGE_ITEMS):
            if item.run is not None:
                if item.run.agent_row not in agent_rows:
                    continue
                await end_run(connection, item.run.agent_row, item.run.id, state=state, stop=stop, at=at)
                await erase_item_texts(connection, item.run.agent_row, item.run.id)
            await close_item(connection, item.id)
        return bool(items)


async def _find_item(connection: Connection, statement: Statement, *values: object) -> BatchItem | None:
    row = await connection.fetch_row(statement, values)
    return None if row is None else _make_item(row)


async def _list_items(
    connection: Connection, statement: Statement, batch_row: int, limit: int
) -> list[BatchItem]:
    return [_make_item(row) for row in await connection.fetch_rows(statement, (batch_row, limit))]


def make_counts(rows: Sequence[Row]) -> BatchCounts:
    """Returns the counts of items. rows: a state of runs, a stop reason, and the number of items with both."""
    counts = dict.fromkeys(("waiting", "running", "completed", "failed", "expired", "cancelled"), 0)
    for state, stop, count in rows:
        counts[compute_item_state(state, stop)] += count
    return BatchCounts(**counts)


def _make_item(row: Row) -> BatchItem:
    """Returns the record of a row of `{item}`."""
    (
        item_row, part, request_number, errors, expiries, last_exchange, epoch,
        agent_uid, project, conversation_key, conversation_uid, *run_columns,
    ) = row  # fmt: skip
    run_row = run_columns[0]
    item_run = make_run(run_columns) if run_row is not None and agent_uid is not None else None
    is_default = conversation_key == DEFAULT_CONVERSATION
    return BatchItem(
        id=item_row,
        run=item_run,
        agent_uid=agent_uid or "",
        project=project or "",
        part=part,
        request_number=request_number,
        errors=errors,
        expiries=expiries,
        last_exchange=last_exchange,
        epoch=epoch,
        conversation_name=DEFAULT_CONVERSATION if is_default else conversation_uid or "",
    )
