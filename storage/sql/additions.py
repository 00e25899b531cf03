"""Erases additions of the gateway to turns that may quote forgotten content: notes, hidden rounds, results of calls.

This module knows when and where content was erased; the store's `Rules` decide whether a text quotes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from storage.database import Connection
from storage.forget_commands import ErasedMarks
from storage.records import Exchange
from storage.sql import exchanges
from storage.sql.exchange_rows import is_step
from storage.sql.statements import load, load_rows
from storage.store_rules import Rules

SQL = load("additions.sql")

# The seconds of a day.
DAY_S = 86_400


class _ErasedExchange(NamedTuple):
    """An exchange of which something was erased: a row of `touched`."""

    # The row of the exchange.
    id: int
    # The number of its first message.
    seq: int
    # The row of its conversation.
    conversation_row: int
    # The time at which the request came, in seconds since the epoch.
    begun: float
    # The time at which the exchange ended, in seconds since the epoch; None: it is not finished.
    ended: float | None


class ErasedPart(Struct, frozen=True):
    """The part of a memory that is being forgotten, as the table `marks` has it."""

    # The marks of the erased content.
    erased: ErasedMarks
    # The lowest message number (`seq`) of the erased exchanges; 0: only passages, facts or blocks were erased, which
    # any exchange of the memory may have known.
    first_seq: int
    # The time at which the earliest of the erased exchanges began, in seconds since the epoch.
    begun_at: float
    # The lowest erased number in each conversation. In a fork the number may belong to the past that the fork shares.
    lowest_by_conversation: Mapping[int, int]
    # True if the exchanges are of other agents, which know this memory only from shared blocks.
    is_foreign: bool = False

    def may_be_recalled_in(self, exchange: Exchange) -> bool:
        """Returns whether the erased part may have been recalled in an exchange: not if the exchange is older."""
        return (not self.is_foreign and exchange.seq >= self.first_seq) or max(
            exchange.touched, exchange.ended or 0.0, exchange.stopped or 0.0
        ) >= self.begun_at

    def may_be_used_by(self, exchange: Exchange, rules: Rules) -> bool:
        """Returns whether the hidden rounds of an exchange may repeat the erased part, literally or not.

        Rounds after the erased part in its conversation may repeat it in other words, and so may all rounds if a block
        lost something. These rounds are erased without being read.
        """
        if exchange.full_reply is None or is_step(exchange):
            return False
        is_after = exchange.seq > self.lowest_by_conversation.get(exchange.conversation_row, exchange.seq)
        is_unread = is_after or self.erased.has_blocks
        return is_unread or rules.may_quote(exchange.full_reply.decode(errors="replace"), self.erased)


@dataclass(slots=True)
class ErasedPartReading:
    """The `ErasedPart` of one run of a forgetting, which the first page of the run reads."""

    # The part; None: it was not read yet, or has nothing that can be quoted.
    part: ErasedPart | None = None

    async def find_part(self, connection: Connection, agent_row: int) -> ErasedPart | None:
        """Returns the part as it was first read; None: it has nothing that can be quoted."""
        if self.part is None:
            self.part = await find_erased_part(connection, agent_row)
        return self.part


async def erase_additions(
    connection: Connection, agent_row: int, rules: Rules, reading: ErasedPartReading, after: int, limit: int
) -> int | None:
    """Erases the notes, hidden rounds and results that may quote erased content, in a page of exchanges.

    reading: the `ErasedPart` of this forgetting; the first page fills it in.
    after: the row of the exchange at which the previous page ended.
    limit: the largest number of exchanges on a page.

    Returns the exchange at which this page ended; None: this was the last page.
    """
    part = await reading.find_part(connection, agent_row)
    if part is None:
        return None
    first_row = 0
    if part.first_seq:
        # A turn with a lower number may still have been under way (for less than a day) and have recalled the part.
        values = (agent_row, part.first_seq, part.begun_at - DAY_S)
        first_row = await connection.fetch_value(SQL["begun_before"], values) or 0
    rows = await connection.fetch_rows(SQL["additions"], (agent_row, first_row, after, limit))
    for exchange_row, step_row in rows:
        await _erase_quotes(connection, agent_row, exchange_row, step_row, part, rules)
    return rows[-1][0] if len(rows) == limit else None


async def erase_foreign_additions(
    connection: Connection, agent_row: int, rules: Rules, reading: ErasedPartReading, after: int, limit: int
) -> int | None:
    """Erases additions that showed a block with erased content to other agents, in a page of exchanges.

    agent_row: the row of the memory that is being forgotten. The other parameters and the result are as in
        `erase_additions`.
    """
    part = await reading.find_part(connection, agent_row)
    if part is None or not part.erased.has_blocks:
        return None
    foreign_part = replace(part, erased=ErasedMarks(frozenset(), has_blocks=True), is_foreign=True)
    rows = await connection.fetch_rows(SQL["foreign_additions"], (agent_row, after, limit))
    for exchange_row, other_row, step_row in rows:
        await _erase_quotes(connection, other_row, exchange_row, step_row, foreign_part, rules)
    return rows[-1][0] if len(rows) == limit else None


async def _erase_quotes(
    connection: Connection,
    agent_row: int,
    exchange_row: int,
    step_row: int | None,
    part: ErasedPart,
    rules: Rules,
) -> None:
    """Erases additions that may quote the erased part, in an exchange.

    step_row: the step of a run with the calls that the exchange answers; None: it answers no call.
    """
    exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
    if exchange is None or not part.may_be_recalled_in(exchange):
        return
    calling_step = (
        None if step_row is None else await exchanges.find_exchange(connection, agent_row, step_row)
    )
    reduced = _remove_quotes(exchange, calling_step, part, rules)
    if (reduced.notes, reduced.full_reply, reduced.input) != (
        exchange.notes,
        exchange.full_reply,
        exchange.input,
    ):
        await exchanges.update_exchange(connection, agent_row, reduced, is_whole=True)


async def find_erased_part(connection: Connection, agent_row: int) -> ErasedPart | None:
    """Returns the part of a memory that is being forgotten; None: the part has nothing that can be quoted."""
    erased_exchanges = [
        _ErasedExchange(*row) for row in await connection.fetch_rows(SQL["touched"], (agent_row,))
    ]
    # A mark of the kind `day` has the number of a day in its column `exchange`.
    days = {int(day) for (day,) in await connection.fetch_rows(SQL["gone_days"], (agent_row,))}
    has_blocks = bool(await connection.fetch_value(SQL["has_rewritten_block"], (agent_row,)))
    # The lowest erased number in each conversation.
    lowest_seqs: dict[int, int] = {}
    for exchange in erased_exchanges:
        first_seq = lowest_seqs.get(exchange.conversation_row, exchange.seq)
        lowest_seqs[exchange.conversation_row] = min(exchange.seq, first_seq)
        days.update(int(at // DAY_S) for at in (exchange.begun, exchange.ended) if at is not None)
    if not days and not has_blocks:
        return None
    # A fork follows exchanges that were erased in the past that it shares.
    lowest_by_conversation = dict(lowest_seqs)
    forks = await load_rows(connection, SQL["forks_after"], sorted(lowest_seqs), agent_row)
    for origin_row, fork_row, last_shared_seq in forks:
        first_seq = lowest_seqs[origin_row]
        if first_seq <= last_shared_seq:
            lowest_by_conversation[fork_row] = min(first_seq, lowest_by_conversation.get(fork_row, first_seq))
    return ErasedPart(
        ErasedMarks(frozenset(days), has_blocks),
        first_seq=min(lowest_seqs.values(), default=0),
        begun_at=min((exchange.begun for exchange in erased_exchanges), default=0.0),
        lowest_by_conversation=lowest_by_conversation,
    )


def _remove_quotes(
    exchange: Exchange, calling_step: Exchange | None, part: ErasedPart, rules: Rules
) -> Exchange:
    """Returns an exchange without the additions that may quote the erased part.

    calling_step: the step of a run with the calls that the exchange answers; None: it answers no call.
    """
    notes = {
        index: "" if note and rules.may_quote(note, part.erased) else note
        for index, note in exchange.notes.items()
    }
    full_reply = None if part.may_be_used_by(exchange, rules) else exchange.full_reply
    reduced = replace(exchange, notes=notes, full_reply=full_reply, has_full_reply=full_reply is not None)
    return reduced if calling_step is None else rules.drop_quotations(reduced, calling_step, part.erased)
