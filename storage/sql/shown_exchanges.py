"""Reads exchanges as searches, the search index and vectors need them: with the fields that decide what is shown."""

from __future__ import annotations

from collections.abc import Sequence

from storage.database import Connection
from storage.sql.exchange_rows import ShownExchange, make_shown_exchanges
from storage.sql.statements import load

SQL = load("shown_exchanges.sql")


async def load_exchanges_of_messages(
    connection: Connection, agent_row: int, seqs: Sequence[int]
) -> list[ShownExchange]:
    """Returns the active finished exchanges that have the messages with these numbers.

    `previous_seq` of each is None.
    """
    return make_shown_exchanges(await connection.fetch_rows(SQL["shown_at"], (agent_row, seqs)))


async def load_exchanges_since(
    connection: Connection, agent_row: int, first_seq: int, limit: int
) -> list[ShownExchange]:
    """Returns the first finished exchanges from the number `first_seq` on, active or not, at most `limit`."""
    return make_shown_exchanges(
        await connection.fetch_rows(SQL["shown_since"], (agent_row, first_seq, limit))
    )


async def load_recent_exchanges(connection: Connection, agent_row: int, limit: int) -> list[ShownExchange]:
    """Returns the last active finished exchanges, oldest first, at most `limit`."""
    return make_shown_exchanges(
        reversed(await connection.fetch_rows(SQL["shown_recent"], (agent_row, limit)))
    )


async def load_unindexed_exchanges(
    connection: Connection, agent_row: int, unindexed_seq: int, first_seq: int, limit: int
) -> list[ShownExchange]:
    """Returns the exchanges that have changed since they were indexed, and then exchanges that are not indexed.

    unindexed_seq: the first number that is not indexed; the changed exchanges have smaller numbers.
    first_seq: the number from which on the others are read, also open ones.
    limit: the most of the others.
    """
    values = (agent_row, unindexed_seq, first_seq, limit)
    return make_shown_exchanges(await connection.fetch_rows(SQL["shown_unindexed"], values))


async def load_stale_exchanges(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int]
) -> list[ShownExchange]:
    """Returns the exchanges among these rows that have changed since they were indexed."""
    return make_shown_exchanges(await connection.fetch_rows(SQL["shown_stale"], (agent_row, exchange_rows)))
