"""Reads exchanges with the messages that are shown of them, for searches, the index and vectors."""

from __future__ import annotations

from collections.abc import Sequence

from storage.database import Connection
from storage.sql.exchange_rows import ShownExchange, make_shown_exchanges
from storage.sql.statements import load

SQL = load("shown_exchanges.sql")


async def load_shown_at(connection: Connection, agent_row: int, seqs: Sequence[int]) -> list[ShownExchange]:
    """Returns the active finished exchanges that have the messages with these numbers, without `previous_seq`."""
    return make_shown_exchanges(await connection.fetch_rows(SQL["shown_at"], (agent_row, seqs)))


async def load_shown_since(
    connection: Connection, agent_row: int, first_seq: int, limit: int
) -> list[ShownExchange]:
    """Returns the first finished exchanges from a number on."""
    return make_shown_exchanges(
        await connection.fetch_rows(SQL["shown_since"], (agent_row, first_seq, limit))
    )


async def load_shown_recent(connection: Connection, agent_row: int, limit: int) -> list[ShownExchange]:
    """Returns the last active finished exchanges, oldest first."""
    return make_shown_exchanges(
        reversed(await connection.fetch_rows(SQL["shown_recent"], (agent_row, limit)))
    )


async def load_shown_unread(
    connection: Connection, agent_row: int, unindexed_seq: int, first_seq: int, limit: int
) -> list[ShownExchange]:
    """Returns exchanges that the index does not know, or not as they are now.

    unindexed_seq: the first number that is not indexed. Exchanges before it that have changed since come first.
    first_seq: the first exchanges from this number on follow, also open ones.
    limit: the most of these.
    """
    values = (agent_row, unindexed_seq, first_seq, limit)
    return make_shown_exchanges(await connection.fetch_rows(SQL["shown_unread"], values))


async def load_shown_stale(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int]
) -> list[ShownExchange]:
    """Returns those exchanges of these rows that have changed since they were indexed."""
    return make_shown_exchanges(await connection.fetch_rows(SQL["shown_stale"], (agent_row, exchange_rows)))
