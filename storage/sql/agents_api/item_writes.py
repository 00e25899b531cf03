"""Writes the outcome of a batch's item: a round, a retry, or its end, with which its turn becomes an exchange."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from msgspec.structs import replace

from storage.batch_records import (
    ENDED_PART,
    READY_PART,
    SOURCES_ROOM,
    ItemEnd,
    ItemRetry,
    ItemRound,
    ItemWrite,
    make_call_origin,
)
from storage.commands import BlockMerge
from storage.database import Connection
from storage.errors import NotFound, StaleWrite, WriteConflict
from storage.records import EditState, MemoryEdit
from storage.row_bytes import count_number_bytes
from storage.run_records import Run, RunState, RunStep, RunTextKind
from storage.sql.agents_api.blocks import write_version_sources
from storage.sql.agents_api.run_texts import add_error_message, add_text
from storage.sql.agents_api.runs import add_step, end_run
from storage.sql.blocks import write_block
from storage.sql.statements import load
from storage.sql.step_writes import open_step, write_edits
from storage.sql.turn_edits import add_edit
from storage.store_rules import Rules

SQL = load("agents_api/item_writes.sql")


async def write_item(connection: Connection, write: ItemWrite, rules: Rules) -> bool:
    """Writes the outcome of an item. Returns False if it was written before. Raises: WriteConflict."""
    if not await _advance_item(connection, write):
        return False
    run = write.item.run
    epoch = None if run is None else await find_epoch_of_open_run(connection, run.agent_row, run.id)
    if run is None or epoch is None:
        # The item was cancelled, or its agent is gone. The tokens that the provider has billed count nevertheless.
        await close_item(connection, write.item.id)
        return True
    if isinstance(write, ItemRetry):
        return True
    if write.epoch is not None and write.epoch != epoch:
        raise WriteConflict("something of the memory of this item was forgotten meanwhile")
    if isinstance(write, ItemRound):
        edits = await _write_round_edits(connection, run, write.edits, write.versions, write.now)
        data = orjson.dumps({**write.data, "edits": edits})
        await add_text(connection, run.agent_row, run.id, RunTextKind.ROUND, seq=write.number, data=data)
        return True
    try:
        await _end_item(connection, write, run, rules)
    except StaleWrite as error:
        raise WriteConflict(error.message) from error
    return True


async def find_epoch_of_open_run(connection: Connection, agent_row: int, run_row: int) -> int | None:
    """Returns the epoch of the memory of an item's run; None: the run has ended or is gone."""
    return await connection.fetch_value(SQL["run_epoch"], (run_row, agent_row))


async def close_item(connection: Connection, item_row: int) -> None:
    """Marks an item as ended."""
    await connection.run(SQL["close"], (item_row,))


async def erase_item_texts(connection: Connection, agent_row: int, run_row: int) -> None:
    """Erases the texts that an item's run needs until its end; the message of its error stays."""
    await connection.run(SQL["empty_texts"], (agent_row, run_row))


async def _advance_item(connection: Connection, write: ItemWrite) -> bool:
    """Moves an item to its next request, or to its end. Returns False if this was done before."""
    number = write.item.request_number
    part = READY_PART
    errors = 0
    expiries = 0
    match write:
        case ItemRetry():
            part = write.part
            errors = write.errors
            expiries = write.expiries
        case ItemEnd():
            part = ENDED_PART
    # If an item ends without a reply, a reply that the provider has made meanwhile still counts, under the same number.
    ends_without_reply = isinstance(write, ItemEnd) and not write.counts.total
    next_number = number if ends_without_reply else number + 1
    values = (write.item.id, number, part, errors, expiries, next_number)
    return await connection.fetch_row(SQL["advance"], values) is not None


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
        arguments = bytes(edit.arguments).decode()
        edits.append([block_row, versions[block_row], edit.call_id, edit.op, edit.label, arguments, edit.at])
    return edits


async def _end_item(connection: Connection, end: ItemEnd, run: Run, rules: Rules) -> None:
    """Ends the run of an item, and writes the item's turn if it has one."""
    agent_row = run.agent_row
    if end.turn is not None:
        step_opened = await open_step(connection, end.turn, rules)
        exchange_row = step_opened.exchange.id
        origin = make_call_origin(run.uid)
        await connection.run(
            SQL["set_origins"],
            (agent_row, exchange_row, _make_padded_sources(exchange_row), len(origin), origin),
        )
        for written_edit in end.edits:
            sources = _make_padded_sources(exchange_row)
            await write_version_sources(
                connection, written_edit.block_row, written_edit.version, exchange_row, sources
            )
            await add_edit(connection, agent_row, _make_merged_edit(written_edit.edit, exchange_row))
        await write_edits(
            connection, agent_row, _bind_to_exchange(end.merged, exchange_row), end.versions, end.now
        )
        step = RunStep(
            exchange_row=exchange_row,
            agent_row=agent_row,
            run_row=run.id,
            number=1,
            begun=end.began_at,
            ended=end.now,
            counts=end.turn_counts,
            stop=end.stop,
            error=end.stop if end.state is RunState.FAILED else None,
        )
        await add_step(connection, step)
        await connection.run(SQL["set_steps"], (end.rounds, run.id, agent_row))
    await end_run(connection, agent_row, run.id, state=end.state, stop=end.stop, at=end.now)
    await erase_item_texts(connection, agent_row, run.id)
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
    return replace(edit, id=0, exchange_row=exchange_row, state=EditState.MERGED, seen=None)


def _make_padded_sources(exchange_row: int) -> bytes:
    """Returns the sources of a value, now that its exchange is known, in as many bytes of the row as those before."""
    return f"[{exchange_row}]".ljust(SOURCES_ROOM - count_number_bytes(exchange_row)).encode()
