"""Summaries of paths. If a part of a path is forgotten, triggers of the schema erase the path's summaries."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from storage.database import Connection, Row
from storage.errors import StaleWrite, WriteConflict
from storage.records import Agent, Conversation, EvictedPart, Exchange, Summary
from storage.sql import exchanges
from storage.sql.epochs import find_epoch
from storage.sql.exchange_rows import make_exchange, make_exchange_with_content
from storage.sql.group import StoreGroup, long_reads, makes_effect, reads, writes
from storage.sql.statements import load, load_rows

SQL = load("summaries.sql")

# The most summaries that are read of a path. Not measured.
MAX_SUMMARIES = 16


class Summaries(StoreGroup):
    """Summaries of a path up to an exchange."""

    @reads
    async def list_conversation_summaries(
        self, connection: Connection, agent_row: int, conversation_row: int, max_depth: int
    ) -> list[Summary]:
        """Returns the summaries of a conversation on any branch, the summaries of the deepest exchanges first.

        At most `MAX_SUMMARIES` are returned.

        max_depth: the depth of the last exchange of a path; the summaries of deeper ones are of other branches.
        """
        values = (agent_row, conversation_row, max_depth, MAX_SUMMARIES)
        return [_make_summary(row) for row in await connection.fetch_rows(SQL["of_conversation"], values)]

    @reads
    async def find_summary(self, connection: Connection, agent_row: int, exchange_row: int) -> Summary | None:
        """Returns the summary of the path up to an exchange; None: there is none."""
        row = await connection.fetch_row(SQL["of_exchange"], (agent_row, exchange_row))
        return None if row is None else _make_summary(row)

    @reads
    async def find_last_exchange(
        self, connection: Connection, agent_row: int, name: str | None
    ) -> exchanges.ExchangeRows | None:
        """Returns the rows of the last active exchange; None: there is none.

        name: the public id or the client's id of the exchange's conversation; None: any conversation.
        """
        row = await connection.fetch_row(SQL["last_exchange"], (agent_row, name))
        return None if row is None else exchanges.ExchangeRows(*row)

    @reads
    async def find_project(self, connection: Connection, agent_row: int) -> str | None:
        """Returns the project of a memory, which pays for its summaries."""
        return await connection.fetch_value(SQL["project"], (agent_row,))

    @long_reads
    async def load_path(
        self, connection: Connection, agent_row: int, exchange_row: int, limit: int = 2000
    ) -> list[Exchange]:
        """Returns the path to an exchange, oldest first, with content.

        The first exchange is the newest one that has a summary, otherwise the root. So a path with more than `limit`
        exchanges is summarised from its beginning, part by part.

        limit: the most exchanges; newer ones are left out.
        """
        rows = await connection.fetch_rows(SQL["path"], (agent_row, exchange_row, limit))
        return [make_exchange_with_content(row) for row in rows]

    @makes_effect
    async def make_add_effect(
        self,
        connection: Connection,
        agent_row: int,
        exchange: Exchange,
        text: str,
        *,
        tokens: int,
        at: float,
        model: str,
    ) -> None:
        """Returns the effect that adds a summary, unless the exchange has a summary already."""
        await connection.lock(agent_row)
        await _insert_summary(
            connection,
            agent_row,
            Summary(id=0, exchange=exchange, text=text, tokens=tokens, at=at, model=model),
        )

    @writes
    async def put(
        self,
        connection: Connection,
        agent: Agent,
        conversation: Conversation,
        summary: Summary,
        evicted: EvictedPart,
    ) -> None:
        """Adds a summary to a stored conversation, whose window then begins after the last summarised exchange.

        conversation: the conversation as it was read.
        evicted: the part of the path that the summary replaces.

        Raises: StaleWrite if something was forgotten since; WriteConflict if the conversation has gone on.
        """
        await connection.lock(agent.id)
        if await find_epoch(connection, agent.id) != agent.epoch:
            raise StaleWrite("something of this memory was forgotten meanwhile")
        if not await connection.run(
            SQL["bump_rev"],
            (conversation.id, agent.id, conversation.rev, conversation.last_exchange),
        ):
            raise WriteConflict("the conversation has gone on meanwhile")
        await _insert_summary(connection, agent.id, summary)
        last = await exchanges.find_exchange(connection, agent.id, conversation.last_exchange)
        if last is None:
            raise WriteConflict("the conversation has gone on meanwhile")
        await exchanges.update_exchange(connection, agent.id, replace(last, evicted=evicted))

    @reads
    async def list_exchange_summaries(
        self, connection: Connection, agent_row: int, exchange_rows: Sequence[int]
    ) -> list[Summary]:
        """Returns the summaries of the paths up to some exchanges, in no order."""
        return [
            _make_summary(row)
            for row in await load_rows(connection, SQL["of_exchanges"], exchange_rows, agent_row)
        ]


async def _insert_summary(connection: Connection, agent_row: int, summary: Summary) -> None:
    values = (agent_row, summary.exchange.id, summary.at, summary.tokens, summary.model, summary.text)
    await connection.run(SQL["insert"], values)


def _make_summary(row: Row) -> Summary:
    summary_row, text, tokens, at, model, *skeleton = row
    exchange = make_exchange(skeleton)
    return Summary(id=summary_row, exchange=exchange, text=text, tokens=tokens, at=at, model=model)
