"""Stored messages as the agents API lists and changes them.

A message has a number (`seq`) that rises over all conversations of its agent. No number is used twice, so a page can
begin after a message that is gone. Messages are stored in exchanges, which lists return as `ListedExchange`: with
their conversation, run and waiting calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson

from storage.database import Connection, Row
from storage.errors import NotFound, StaleWrite
from storage.listing import ListedExchange, Page
from storage.records import Agent, Conversation, EvictedPart, Exchange, MarkKind
from storage.sql import exchanges
from storage.sql.agents import AGENT_COLUMNS, find_agent_by_id, make_agent_record
from storage.sql.exchange_rows import make_exchange
from storage.sql.group import StoreGroup, as_method, long_reads, reads, writes
from storage.sql.statements import load, load_rows
from storage.sql.vector_chunks import forget_indexed

SQL = load("agents_api/messages.sql")


class OwnedExchange(NamedTuple):
    """An exchange as it is listed, and the memory that has it."""

    # The agent of the memory.
    agent: Agent
    # The exchange.
    listed: ListedExchange


class OwnedConversation(NamedTuple):
    """A conversation, and the memory that has it."""

    # The agent of the memory.
    agent: Agent
    # The client's own id of the conversation; None: the conversation has none.
    key: str | None


class StoredReply(NamedTuple):
    """A reply of a turn."""

    # The public id of the conversation.
    conversation_uid: str
    # The time at which the turn began, in seconds since the epoch.
    begun: float
    # The reply as JSON.
    reply: bytes


async def get_exchange(connection: Connection, agent_row: int, seq: int) -> ListedExchange:
    """Returns the exchange that holds this number. Raises: NotFound."""
    row = await connection.fetch_row(SQL["at"], (agent_row, seq))
    if row is None:
        raise NotFound(f"there is no message {seq}")
    return _make_listed(row)


class Messages(StoreGroup):
    """Stored messages. Each statement finds messages of one agent or project alone."""

    get_exchange = reads(as_method(get_exchange))

    @long_reads
    async def list_page(
        self, connection: Connection, agent_row: int, page: Page[int], *, conversation_row: int | None = None
    ) -> list[ListedExchange]:
        """Returns a page of exchanges, in the order that the page asks for.

        page: its cursors are numbers of messages. Exchanges that hold a cursor are returned as well, since some of
            their messages may lie beyond it.
        conversation_row: the row of the only conversation to list; None: all conversations are listed.
        """
        low, high = page.bounds
        owner = (agent_row,) if conversation_row is None else (agent_row, conversation_row)
        statement = SQL[f"of_{'agent' if conversation_row is None else 'conversation'}_{page.direction}"]
        values = (*owner, max(low, 0), high + 1, page.limit)
        return [_make_listed(row) for row in await connection.fetch_rows(statement, values)]

    @long_reads
    async def list_conversation_exchanges(
        self, connection: Connection, agent_row: int, conversation_row: int, after: int, limit: int
    ) -> list[ListedExchange]:
        """Returns exchanges of a conversation, oldest first, also those that are not active.

        after: the first number of the last exchange on the page before.
        """
        values = (agent_row, conversation_row, after, limit)
        return [_make_listed(row) for row in await connection.fetch_rows(SQL["in_conversation"], values)]

    @reads
    async def find_begun(
        self, connection: Connection, project: str, conversation_uid: str, begun: float
    ) -> OwnedExchange | None:
        """Returns the exchange of a project's conversation that began at a time, and its memory.

        begun: the time, in seconds since the epoch.
        """
        row = await connection.fetch_row(SQL["begun"], (project, conversation_uid, begun))
        return None if row is None else _make_owned_exchange(row)

    @reads
    async def find_conversation(
        self, connection: Connection, project: str, conversation_uid: str
    ) -> OwnedConversation | None:
        """Returns a project's conversation, by its public id."""
        row = await connection.fetch_row(SQL["owner"], (project, conversation_uid))
        if row is None:
            return None
        return OwnedConversation(make_agent_record(row[:AGENT_COLUMNS]), row[AGENT_COLUMNS])

    @long_reads
    async def load_path(
        self, connection: Connection, agent_row: int, exchange_row: int
    ) -> list[ListedExchange]:
        """Returns an exchange and all exchanges before it on its path, oldest first, whatever their state."""
        return [
            _make_listed(row)
            for row in await connection.fetch_rows(SQL["path_to"], (agent_row, exchange_row))
        ]

    @long_reads
    async def list_newest_replies(
        self, connection: Connection, agent_row: int, limit: int
    ) -> list[StoredReply]:
        """Returns the last replies of a memory, newest first, including inactive ones."""
        return [StoredReply(*row) for row in await connection.fetch_rows(SQL["newest"], (agent_row, limit))]

    @long_reads
    async def list_page_of_project(
        self, connection: Connection, project: str, page: Page[int]
    ) -> list[OwnedExchange]:
        """Returns a page of the exchanges of all agents. The cursors of the page are rows."""
        values = (project, *page.bounds, page.limit)
        rows = await connection.fetch_rows(SQL[f"of_project_{page.direction}"], values)
        return [_make_owned_exchange(row) for row in rows]

    @reads
    async def get_exchange_row(self, connection: Connection, project: str, uid: str, seq: int) -> int:
        """Returns the row of the exchange that holds a number. Raises: NotFound if there is no such memory."""
        row: int | None = await connection.fetch_value(SQL["cursor_row"], (project, uid, seq))
        if row is None:
            raise NotFound(f"there is no message {seq} of {uid!r}")
        return row

    @reads
    async def load_exchanges(
        self, connection: Connection, agent_row: int, exchange_rows: Sequence[int]
    ) -> dict[int, ListedExchange]:
        """Returns exchanges by their rows, also inactive exchanges."""
        listed_exchanges = map(
            _make_listed, await load_rows(connection, SQL["of_rows"], exchange_rows, agent_row)
        )
        return {listed.exchange.id: listed for listed in listed_exchanges}

    @reads
    async def get_conversation(self, connection: Connection, agent_row: int, name: str) -> Conversation:
        """Returns a conversation by its key (`default`) or its public id. Raises: NotFound."""
        row = await connection.fetch_row(SQL["conversation_find"], (agent_row, name, name))
        if row is None:
            raise NotFound(f"there is no conversation {name!r}")
        return Conversation(*row)

    @reads
    async def load_past(
        self, connection: Connection, agent_row: int, conversation_row: int
    ) -> dict[int, int]:
        """Returns the conversations that hold the past of a conversation -> the last number of that past.

        Among them are the conversation itself and, for a fork, the conversations that it was forked from.
        """
        rows = await connection.fetch_rows(SQL["past"], (agent_row, conversation_row))
        return {row[0]: row[1] for row in rows}

    @reads
    async def list_window_numbers(
        self, connection: Connection, agent_row: int, conversation_row: int, limit: int
    ) -> list[int]:
        """Returns the numbers of the newest messages in a conversation's window, oldest first, at most `limit`."""
        return _list_numbers(
            await connection.fetch_rows(SQL["tail"], (agent_row, conversation_row, limit)), limit
        )

    @long_reads
    async def list_window_numbers_by_agent(
        self, connection: Connection, agent_rows: Sequence[int], key: str, limit: int
    ) -> dict[int, list[int]]:
        """Returns `list_window_numbers` of each agent's conversation with a key, by agent."""
        rows: dict[int, list[Row]] = {agent_row: [] for agent_row in agent_rows}
        for agent_row, *row in await load_rows(connection, SQL["tails"], agent_rows, key, limit):
            rows[agent_row].append(tuple(row))
        return {agent_row: _list_numbers(numbered, limit) for agent_row, numbered in rows.items()}

    @writes
    async def rewrite(
        self, connection: Connection, agent: Agent, seq: int, edit: Callable[[Exchange], Exchange]
    ) -> ListedExchange:
        """Gives a message another text. The old text leaves the index, and summaries that may hold it are dropped.

        edit: a function that returns the exchange with the new text.

        Raises: NotFound; StaleWrite if something was forgotten since the agent was read; the errors of `edit`.
        """
        await connection.lock(agent.id)
        stored_agent = await find_agent_by_id(connection, agent.id)
        if stored_agent is None or stored_agent.epoch != agent.epoch:
            raise StaleWrite("something of this memory was forgotten meanwhile")
        listed = await get_exchange(connection, agent.id, seq)
        exchange = edit(listed.exchange)
        await exchanges.update_exchange(connection, agent.id, exchange, is_whole=True)
        # The neighbouring messages must not be found by the old words either, so the whole exchange leaves the index.
        # It is indexed again if the index had reached it.
        if exchange.seq <= stored_agent.indexed_seq:
            await forget_indexed(connection, agent.id, range(exchange.seq, exchange.next_seq))
            await exchanges.add_marks(connection, agent.id, MarkKind.STALE, (b"",), exchange.id)
        await connection.run(SQL["summaries_over"], (agent.id, exchange.id))
        # A turn that was planned on the old words is planned again.
        await connection.run(SQL["forks_moved"], (agent.id, exchange.id))
        last_at = exchange.ended or exchange.stopped or exchange.touched
        await exchanges.move_conversation(connection, agent.id, exchange.conversation_row, last_at)
        return await get_exchange(connection, agent.id, seq)


def _list_numbers(rows: Sequence[Row], limit: int) -> list[int]:
    """Returns the numbers of the messages in the window, oldest first. rows: rows of exchanges, newest first."""
    evicted = rows[0][-1] if rows else None
    begin = EvictedPart(*orjson.loads(evicted)).depth if evicted else 0
    numbers = [
        number
        for seq, span, is_answered, depth, _ in reversed(rows)
        if depth >= begin
        for number in range(seq, seq + span - 1 + is_answered)
    ]
    return numbers[-limit:]


def _make_owned_exchange(row: Row) -> OwnedExchange:
    return OwnedExchange(make_agent_record(row[:AGENT_COLUMNS]), _make_listed(row[AGENT_COLUMNS:]))


def _make_listed(row: Row) -> ListedExchange:
    input_, shown_reply, full_reply, conversation, key, is_last, run, waiting, *skeleton = row
    exchange = make_exchange(skeleton, input_, shown_reply, full_reply)
    waiting_calls = orjson.loads(waiting) if waiting and is_last else {}
    return ListedExchange(exchange, conversation, key, run, waiting_calls)
