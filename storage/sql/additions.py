"""Erasing what the gateway added to turns and may quote what was forgotten: notes, hidden rounds, results of calls.

It knows when and where something is gone; whether a text quotes it, the store's `Rules` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace

from storage.commands import Erased, Rules
from storage.database import Connection
from storage.records import Exchange
from storage.sql import exchanges
from storage.sql.statements import load, rows_of

SQL = load("forget.sql")

DAY_S = 86_400


class Gone(Struct, frozen=True):
    """The part of a memory that is being forgotten, as the table `marks` has it."""

    erased: Erased
    # The lowest message number (`seq`) of the erased exchanges; 0: there is none.
    first_seq: int
    # When the earliest of them began, in seconds since the epoch.
    begun_at: float
    # By conversation the lowest erased number in it; of a fork also one in the past that it shares.
    lowest_by_conversation: Mapping[int, int]

    def was_known_to(self, exchange: Exchange) -> bool:
        """Returns whether the erased part may have been recalled in an exchange: not if it had ended before."""
        return (
            exchange.seq >= self.first_seq
            or max(exchange.touched, exchange.ended or 0.0, exchange.stopped or 0.0) >= self.begun_at
        )

    def may_be_used_by(self, exchange: Exchange, rules: Rules) -> bool:
        """Returns whether the hidden rounds of an exchange may repeat the erased part, literally or not.

        Rounds that follow it in its conversation may repeat it in other words, and so may all where a block lost
        something: these are erased without being read.
        """
        if exchange.full is None or exchanges.is_step(exchange):
            return False
        is_after = exchange.seq > self.lowest_by_conversation.get(exchange.conversation, exchange.seq)
        is_unread = is_after or self.erased.blocks
        return is_unread or rules.may_quote(exchange.full.decode(errors="replace"), self.erased)


@dataclass(slots=True)
class GoneReading:
    """Holds what is gone for one run of a forgetting. The first page reads it, unless it was read before."""

    gone: Gone | None = None


async def erase_additions(
    connection: Connection, agent: int, rules: Rules, reading: GoneReading, after: int, limit: int
) -> int | None:
    """Erases the notes, hidden rounds and results that may quote what is gone, in a page of exchanges.

    reading: of the pages before.
    after: the exchange at which the page before ended.
    limit: exchanges of a page.

    Returns the exchange at which this page ended; None: it was the last.
    """
    gone = reading.gone = reading.gone or await load_gone(connection, agent)
    if gone is None:
        return None
    start = 0
    if gone.first_seq:
        # A turn with a lower number may still have been under way (for less than a day) and have recalled it.
        start = (
            await connection.value(SQL["begun_before"], (agent, gone.first_seq, gone.begun_at - DAY_S)) or 0
        )
    rows = await connection.rows(SQL["additions"], (agent, start, after, limit))
    for id, step in rows:
        exchange = await exchanges.load_exchange(connection, agent, id)
        if exchange is None or not gone.was_known_to(exchange):
            continue
        calling_step = None if step is None else await exchanges.load_exchange(connection, agent, step)
        left = _without_quotes(exchange, calling_step, gone, rules)
        if (left.notes, left.full, left.input) != (exchange.notes, exchange.full, exchange.input):
            await exchanges.update_exchange(connection, agent, left, is_whole=True)
    return rows[-1][0] if len(rows) == limit else None


async def load_gone(connection: Connection, agent: int) -> Gone | None:
    """Returns what is gone; None: nothing that can be quoted."""
    touched = await connection.rows(SQL["touched"], (agent,))
    days = {int(day) for (day,) in await connection.rows(SQL["gone_days"], (agent,))}
    has_blocks = bool(await connection.value(SQL["is_blocks"], (agent,)))
    lowest: dict[int, int] = {}
    for _, seq, conversation, begun, ended in touched:
        lowest[conversation] = min(seq, lowest.get(conversation, seq))
        days.update(int(at // DAY_S) for at in (begun, ended) if at is not None)
    if not days and not has_blocks:
        return None
    gone, first_seq = dict(lowest), min(lowest.values(), default=0)
    for origin, fork, last in await rows_of(connection, SQL["forks_after"], sorted(lowest), agent):
        if gone[origin] <= last:
            lowest[fork] = min(gone[origin], lowest.get(fork, gone[origin]))
    begun_at = min((begun for _, _, _, begun, _ in touched), default=0.0)
    return Gone(Erased(frozenset(days), has_blocks), first_seq, begun_at, lowest)


def _without_quotes(exchange: Exchange, calling_step: Exchange | None, gone: Gone, rules: Rules) -> Exchange:
    """Returns an exchange without what may quote the erased part.

    calling_step: the step of a run with the calls that it answers; None: it answers none.
    """
    notes = {
        place: "" if note and rules.may_quote(note, gone.erased) else note
        for place, note in exchange.notes.items()
    }
    full = None if gone.may_be_used_by(exchange, rules) else exchange.full
    left = replace(exchange, notes=notes, full=full, has_full=full is not None)
    return left if calling_step is None else rules.without_quotations(left, calling_step, gone.erased)
