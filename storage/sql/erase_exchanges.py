"""The first phase of a forgetting: erases the content of exchanges in place, or of single messages of them.

An exchange stays as a tombstone, which matches by hashes and has no content. The exchanges that it replaced go with it,
since no list has them: a transcript that grew, a cancelled request, an answer that was repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import orjson
from msgspec.structs import replace

from storage.database import Connection
from storage.records import (
    REPLY,
    RESULT_ATOM,
    TEXT_ATOM,
    USER_ATOM,
    Exchange,
    ExchangeState,
    MarkKind,
    make_message_key,
    make_tombstone,
)
from storage.sql import exchanges
from storage.sql.agents import find_agent_by_id
from storage.sql.erasing_work import PAGE_ROWS, ErasingWork, StoredTarget
from storage.sql.exchange_rows import is_step
from storage.sql.job_rows import raise_epoch
from storage.sql.replaced_exchanges import find_occurrences, find_replaced
from storage.sql.sections import empty_sections
from storage.sql.statements import load, load_column
from storage.sql.vector_chunks import forget_indexed

SQL = load("erase_exchanges.sql")


async def erase_exchanges(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of the target's exchanges. An `ErasingPhase`.

    position: the number of named messages and exchanges that are erased; of an import, the row of the last exchange.
    """
    agent_row = work.agent_row
    target = work.target
    # The whole memory may have been forgotten meanwhile.
    if await find_agent_by_id(connection, agent_row) is None:
        return None
    # Messages and exchanges that are named one by one come first, so that `position` counts them. The exchanges of a
    # conversation, and old exchanges, are looked up for each page: the statements no longer find erased rows.
    named_seqs = target.message_seqs[position : position + PAGE_ROWS]
    if named_seqs:
        await _erase_messages(connection, work, named_seqs)
        return position + len(named_seqs)
    start = position - len(target.message_seqs)
    named_rows = target.exchange_rows[start : start + PAGE_ROWS]
    if named_rows:
        for exchange_row in named_rows:
            await _erase_replaced(connection, work, exchange_row)
        await _erase_each(connection, agent_row, named_rows)
        return position + len(named_rows)
    if target.import_row is not None:
        return await _erase_imported(connection, work, position)
    exchange_rows = await _find_exchanges(connection, agent_row, target)
    if not exchange_rows:
        return None
    await _erase_each(
        connection, agent_row, exchange_rows, mark=MarkKind.RESET if target.keeps_memory else MarkKind.ERASED
    )
    return position


async def _find_exchanges(connection: Connection, agent_row: int, target: StoredTarget) -> list[int]:
    """Returns a page of the exchanges of the target's conversation, else of the exchanges that are too old."""
    exchange_rows: list[int] = []
    if target.conversation_row is not None:
        exchange_rows = await load_column(
            connection, SQL["exchanges_of"], (agent_row, target.conversation_row, PAGE_ROWS)
        )
    if target.before is not None and not exchange_rows:
        exchange_rows = await load_column(
            connection, SQL["exchanges_before"], (agent_row, target.before, PAGE_ROWS)
        )
    return exchange_rows


async def _erase_imported(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of an import's exchanges. They get no tombstones, since the file may be imported again."""
    exchange_rows = await load_column(
        connection, SQL["imported_exchanges"], (work.target.import_row, position, PAGE_ROWS)
    )
    await _erase_each(connection, work.agent_row, exchange_rows, leaves_tombstones=False)
    return exchange_rows[-1] if len(exchange_rows) == PAGE_ROWS else None


async def _erase_each(
    connection: Connection,
    agent_row: int,
    exchange_rows: Iterable[int],
    *,
    leaves_tombstones: bool = True,
    mark: MarkKind = MarkKind.ERASED,
) -> None:
    """Erases whole exchanges. The other parameters are as in `_erase_exchange`."""
    seqs: list[int] = []
    for exchange_row in exchange_rows:
        exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
        if exchange is not None and not exchange.is_forgotten:
            seqs += await _erase_exchange(
                connection, agent_row, exchange, leaves_tombstones=leaves_tombstones, mark=mark
            )
    # For all of them at once: neighbours share a chunk of the index, and each call rewrites it.
    await forget_indexed(connection, agent_row, seqs)
    await raise_epoch(connection, agent_row)


async def _erase_exchange(
    connection: Connection,
    agent_row: int,
    exchange: Exchange,
    *,
    leaves_tombstones: bool = True,
    mark: MarkKind = MarkKind.ERASED,
) -> list[int]:
    """Erases a whole exchange, except for its row. Returns the numbers of its messages, which are still indexed.

    leaves_tombstones: True if the exchange's messages are to be recognised when they are sent again.
    mark: the kind of its mark, ERASED or RESET.
    """
    indices = [*range(len(exchange.inputs)), REPLY]
    seqs = await _erase_traces(
        connection, agent_row, exchange, indices, leaves_tombstones=leaves_tombstones, mark=mark
    )
    tombstone = replace(make_tombstone(exchange), merged="", model="", redactions=frozenset())
    await exchanges.update_exchange(connection, agent_row, tombstone, is_whole=True)
    return seqs


async def _erase_messages(connection: Connection, work: ErasingWork, seqs: Iterable[int]) -> None:
    """Erases messages by their numbers, and the messages that they replaced."""
    agent_row = work.agent_row
    for seq in seqs:
        for exchange_row, occurrence_seq in await find_occurrences(connection, agent_row, seq):
            await _erase_replaced(connection, work, exchange_row, occurrence_seq)
            await _erase_message(connection, agent_row, exchange_row, occurrence_seq)
    await raise_epoch(connection, agent_row)


async def _erase_message(connection: Connection, agent_row: int, exchange_row: int, seq: int) -> None:
    """Erases one message of an exchange, which becomes a redaction; with the last message, the whole exchange."""
    exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
    if exchange is None or exchange.state in (ExchangeState.FORGOTTEN, ExchangeState.OFF):
        return
    index = seq - exchange.seq if seq < exchange.reply_seq else REPLY
    if not _has_message_besides(exchange, index):
        await forget_indexed(connection, agent_row, await _erase_exchange(connection, agent_row, exchange))
        return
    await forget_indexed(connection, agent_row, await _erase_traces(connection, agent_row, exchange, [index]))
    await exchanges.update_exchange(connection, agent_row, _make_redacted(exchange, index), is_whole=True)


def _has_message_besides(exchange: Exchange, index: int) -> bool:
    """Returns whether an exchange still has a message besides one. Results of tools do not count.

    index: the index of the message among the inputs, or REPLY.
    """
    redactions = exchange.redactions | {index}
    return (exchange.shown_reply is not None and REPLY not in redactions) or any(
        input_index not in redactions and atoms and atoms[0][:1] != RESULT_ATOM
        for input_index, atoms in enumerate(exchange.inputs)
    )


def _make_redacted(exchange: Exchange, index: int) -> Exchange:
    """Returns an exchange without the content of one message. index: as in `_has_message_besides`."""
    messages = orjson.loads(exchange.input or b"[]")
    if index != REPLY and index < len(messages):
        messages[index] = {"role": messages[index].get("role"), "content": ""}
    # Notes, hidden rounds and the memory section of this turn may quote the message, so they go whatever they say.
    full_reply = exchange.full_reply if index != REPLY and is_step(exchange) else None
    return replace(
        exchange,
        redactions=exchange.redactions | {index},
        edits=False,
        section=None,
        opaque=False if index == REPLY else exchange.opaque,
        notes=dict.fromkeys(exchange.notes, ""),
        input=orjson.dumps(messages),
        shown_reply=None if index == REPLY else exchange.shown_reply,
        full_reply=full_reply,
        has_full_reply=full_reply is not None,
    )


async def _erase_replaced(
    connection: Connection, work: ErasingWork, exchange_row: int, seq: int | None = None
) -> None:
    """Erases the exchanges that an exchange replaced, or their replies. seq: as in `find_replaced`."""
    replaced_exchanges = await find_replaced(
        connection, work.rules, work.agent_row, exchange_row, seq, keeps_finished=work.target.keeps_replaced
    )
    for exchange, is_whole in replaced_exchanges:
        if not is_whole:
            await _erase_message(connection, work.agent_row, exchange.id, exchange.reply_seq)
    whole_rows = [exchange.id for exchange, is_whole in replaced_exchanges if is_whole]
    if whole_rows:
        await _erase_each(connection, work.agent_row, whole_rows)


async def _erase_traces(
    connection: Connection,
    agent_row: int,
    exchange: Exchange,
    indices: Collection[int],
    *,
    leaves_tombstones: bool = True,
    mark: MarkKind = MarkKind.ERASED,
) -> list[int]:
    """Erases the data derived from these messages: the calls of the reply that wait, and the edits of the turn.

    indices: the indices of the messages among the inputs; REPLY stands for the reply.
    mark: the kind of the exchange's mark, ERASED or RESET.

    Returns the numbers of these messages, which the caller takes out of the index.
    """
    seqs, tombstone_hashes = [], []
    for index in indices:
        if index == REPLY:
            atoms, seq = exchange.reply or (), exchange.reply_seq
        else:
            atoms = exchange.inputs[index]
            seq = exchange.seq + index
        seqs.append(seq)
        if leaves_tombstones and atoms and atoms[0][:1] in (USER_ATOM, TEXT_ATOM):
            tombstone_hashes.append(make_message_key(atoms))
    await exchanges.add_marks(connection, agent_row, MarkKind.TOMBSTONE, tombstone_hashes, exchange.id)
    await exchanges.add_marks(connection, agent_row, mark, (b"",), exchange.id)
    if REPLY in indices:
        await connection.run(SQL["waiting_erase"], (exchange.id, agent_row))
    if await connection.run(SQL["edits_erase"], (agent_row, exchange.id, b"{}")):
        await empty_sections_with_edits(connection, agent_row)
    return seqs


async def empty_sections_with_edits(connection: Connection, agent_row: int) -> None:
    """Empties the memory sections that may show erased edits.

    A turn's edits are shown at once in the sections of its own path, before they are merged.
    """
    await exchanges.add_marks(connection, agent_row, MarkKind.BLOCKS, (b"",), 0)
    await empty_sections(connection, agent_row)
