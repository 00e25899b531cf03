"""The operator's lists: the memories, the conversations they have, and how large each is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf
from typing import Any, NamedTuple

from storage.database import Connection
from storage.listing import PageEnd
from storage.operator_records import ListedConversation, ListedMemory, NamedScope, RetainedContent
from storage.records import Scope
from storage.sql.exchange_rows import ShownExchange, make_shown_exchanges
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.statements import load, load_rows

SQL = load("overview.sql")


class ListedConversations(NamedTuple):
    """A page of conversations, the newest first."""

    # The conversations.
    conversations: list[ListedConversation]
    # `before` of the next page; None: this is the last page.
    next: PageEnd | None


class Overview(StoreGroup):
    """Pages of memories and of conversations. They may take long: each counts messages."""

    @long_reads
    async def list_memories(
        self, connection: Connection, project: str | None, *, after: int = 0, limit: int = 64
    ) -> list[ListedMemory]:
        """Returns memories of people and of conversations without a user, the oldest first.

        project: the project of the memories; None: all projects.
        after: the row of the last memory on the page before; 0: the first page.
        """
        rows = await connection.fetch_rows(SQL["memories"], (project, after, limit))
        sizes = await load_rows(connection, SQL["memory_sizes"], [row[0] for row in rows])
        by_agent = {agent_row: values for agent_row, *values in sizes}
        return [
            ListedMemory(
                id=agent_row,
                uid=uid,
                scope=Scope(*scope),
                created=created,
                blocks=blocks,
                facts=facts,
                passages=passages,
                retained=_make_retained(by_agent.get(agent_row)),
            )
            for agent_row, uid, *scope, created, blocks, facts, passages in rows
        ]

    @long_reads
    async def count_messages(self, connection: Connection, agent_row: int) -> int:
        """Returns how many messages a memory has."""
        return int(await connection.fetch_value(SQL["count_messages"], (agent_row,)))

    @long_reads
    async def measure(self, connection: Connection, agent_row: int) -> RetainedContent:
        """Returns how much of a memory's content is retained, counted as in the lists."""
        rows = await load_rows(connection, SQL["memory_sizes"], [agent_row])
        return _make_retained(rows[0][1:] if rows else None)

    @reads
    async def load_scopes(self, connection: Connection, uids: Collection[str]) -> dict[str, NamedScope]:
        """Returns the scopes of memories by their uids. Memories that do not exist are left out."""
        rows = await load_rows(connection, SQL["scopes"], sorted(uids))
        return {uid: NamedScope(Scope(*scope), agent_name) for uid, *scope, agent_name in rows}

    @long_reads
    async def list_newest_exchanges(
        self, connection: Connection, agent_row: int, limit: int
    ) -> list[ShownExchange]:
        """Returns the newest exchanges of which anything is left, oldest first."""
        return make_shown_exchanges(
            reversed(await connection.fetch_rows(SQL["newest_exchanges"], (agent_row, limit)))
        )

    @long_reads
    async def list_conversations(
        self,
        connection: Connection,
        project: str,
        profile: str | None,
        subject: str,
        *,
        before: PageEnd = (inf, 0),
        limit: int = 64,
    ) -> ListedConversations:
        """Returns a page of the conversations that have content.

        profile: the profile of the conversations; None: all profiles.

        A conversation without content is left out, so a page that others follow may be shorter than `limit`.
        """
        rows = await connection.fetch_rows(SQL["conversations"], (project, profile, subject, *before, limit))
        sizes = await load_rows(connection, SQL["conversation_sizes"], [row[0] for row in rows])
        by_conversation = {conversation_row: values for conversation_row, *values in sizes}
        conversations = [
            ListedConversation(uid, key, Scope(*scope), _make_retained(by_conversation[conversation_row]))
            for conversation_row, uid, key, *scope, _ in rows
            if conversation_row in by_conversation
        ]
        end = (rows[-1][-1], rows[-1][0]) if len(rows) == limit else None
        return ListedConversations(conversations, end)


def _make_retained(values: Sequence[Any] | None) -> RetainedContent:
    """Makes the value of a row of sizes without its id. None: nothing is retained.

    A row of a memory begins with the number of its conversations.
    """
    if values is None:
        return RetainedContent()
    *conversations, last_at, messages, size_bytes, turns, cancelled = values
    return RetainedContent(last_at, messages, size_bytes, turns, cancelled, *conversations)
