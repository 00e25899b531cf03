"""Conversations of the agents API: creates, lists, changes and deletes them.

The definition of a conversation is stored under its public id. A conversation that was deleted retains its row,
under a name that cannot be sent, and is not found any more.
"""

from __future__ import annotations

from typing import Any

from storage.database import Connection, Row
from storage.definition_records import DefinitionKind
from storage.errors import NotFound, RecordChanged, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import ConversationEntry, ConversationFilter, DefinitionDraft, Page, PageEnd
from storage.records import Agent, Conversation
from storage.sql.agents import AGENT_COLUMNS, make_agent_record
from storage.sql.agents_api.definitions import (
    add_definition,
    find_definition,
    make_definition,
    put_definition,
    remove_definition,
)
from storage.sql.agents_api.runs import begin_conversation
from storage.sql.filtered_pages import AFTER_ALL, BEFORE_ALL, fill_page
from storage.sql.forget import begin_forgetting
from storage.sql.group import StoreGroup, as_method, long_reads, reads, writes
from storage.sql.statements import load

SQL = load("agents_api/conversations.sql")

# The number of columns of a conversation, which are before the columns of its agent.
_CONVERSATION_COLUMNS = 7


async def get_conversation(connection: Connection, project: str, uid: str) -> ConversationEntry:
    """Returns the conversation with this public id. Raises: NotFound."""
    row = await connection.fetch_row(SQL["get"], (uid, project))
    if row is None:
        raise NotFound(f"there is no conversation {uid!r}")
    return _make_entry(row)


class Conversations(StoreGroup):
    """Reads and writes conversations. A parameter `project` is the caller's: conversations of others are not found."""

    get = reads(as_method(get_conversation))

    @writes
    async def create(
        self, connection: Connection, agent: Agent, uid: str, body: dict[str, Any], *, at: float
    ) -> ConversationEntry:
        """Creates an empty stored conversation.

        Raises: NotFound if the agent is gone; WriteConflict if the name is taken.
        """
        await connection.lock(agent.id)
        if await begin_conversation(connection, agent.id, None, uid, at) is None:
            raise WriteConflict(f"there is a conversation {uid!r} already")
        project = agent.scope.project
        draft = DefinitionDraft(project, DefinitionKind.CONVERSATION, uid, body, memory_row=agent.id)
        await add_definition(connection, draft, at=at)
        return await get_conversation(connection, project, uid)

    @writes
    async def change(
        self, connection: Connection, entry: ConversationEntry, body: dict[str, Any], *, at: float
    ) -> ConversationEntry:
        """Changes a conversation's definition. Raises: RecordChanged if another writer has changed it; NotFound."""
        agent = entry.agent
        uid = entry.conversation.uid
        project = agent.scope.project
        await connection.lock(agent.id)
        if _find_version(await get_conversation(connection, project, uid)) != _find_version(entry):
            raise RecordChanged(f"the conversation {uid!r} was changed since")
        draft = DefinitionDraft(project, DefinitionKind.CONVERSATION, uid, body, memory_row=agent.id)
        await put_definition(connection, draft, at=at)
        return await get_conversation(connection, project, uid)

    @writes
    async def release(
        self, connection: Connection, agent: Agent, conversation_row: int, *, keeps_memory: bool, at: float
    ) -> int:
        """Deletes the names of a conversation and ends its runs. Returns the forgetting, for `Forgetting.finish`.

        keeps_memory: True leaves facts, passages and values of blocks that came from the conversation.

        Raises: NotFound.
        """
        await connection.lock_sharers(agent.id)
        uid = await connection.fetch_value(SQL["release"], (conversation_row, agent.id))
        if uid is None:
            raise NotFound(f"there is no conversation {conversation_row}")
        await connection.run(SQL["runs_cancel"], (at, conversation_row, agent.id))
        definition = await find_definition(connection, agent.scope.project, DefinitionKind.CONVERSATION, uid)
        if definition is not None:
            await remove_definition(connection, definition.id)
        target = ForgetTarget(conversation_row=conversation_row, keeps_memory=keeps_memory)
        (forgetting_row,) = await begin_forgetting(connection, agent.id, target, at)
        return forgetting_row

    @long_reads
    async def list_page(
        self,
        connection: Connection,
        project: str,
        conversation_filter: ConversationFilter,
        page: Page[str],
    ) -> list[ConversationEntry]:
        """Returns a page of a project's conversations, without the default conversations of agents.

        page: the page, with public ids as cursors.

        Raises: NotFound if there is no conversation with one of these ids.
        """
        low_uid, high_uid = page.ends
        first_end = await _find_page_end(connection, project, conversation_filter, low_uid) or BEFORE_ALL
        last_end = await _find_page_end(connection, project, conversation_filter, high_uid) or AFTER_ALL

        async def read(
            low: PageEnd, high: PageEnd, size: int
        ) -> tuple[list[ConversationEntry], PageEnd | None]:
            rows = await _load_rows(
                connection,
                project,
                conversation_filter,
                low=low,
                high=high,
                limit=size,
                direction=page.direction,
            )
            entries = [_make_entry(row[1:]) for row in rows]
            matching = [entry for entry in entries if _matches(entry, conversation_filter)]
            if len(rows) < size:
                return matching, None
            return matching, (rows[-1][0], entries[-1].conversation.id)

        return await fill_page(page, first_end, last_end, read)


async def _load_rows(
    connection: Connection,
    project: str,
    conversation_filter: ConversationFilter,
    *,
    low: PageEnd,
    high: PageEnd,
    limit: int,
    direction: str,
) -> list[Row]:
    """Returns the rows of conversations between two positions of an order, each after its time in that order.

    Rows that do not match the filter's text and marks are returned as well.

    direction: the end of the statement's name, as `Page.direction`.
    """
    agent_row = conversation_filter.agent_row
    if conversation_filter.order != "created":
        agent_rows = (BEFORE_ALL[1], AFTER_ALL[1]) if agent_row is None else (agent_row, agent_row)
        values = (project, conversation_filter.order, limit, *low, *high, *agent_rows)
        return await connection.fetch_rows(SQL[f"by_time_{direction}"], values)
    if agent_row is None:
        return await connection.fetch_rows(SQL[f"of_project_{direction}"], (project, low[1], high[1], limit))
    return await connection.fetch_rows(
        SQL[f"of_agent_{direction}"], (project, low[1], high[1], limit, agent_row)
    )


async def _find_page_end(
    connection: Connection, project: str, conversation_filter: ConversationFilter, uid: str | None
) -> PageEnd | None:
    """Returns the position of a conversation in the order of a filter. Raises: NotFound.

    uid: the conversation's public id; None: no conversation, which has no position.
    """
    if uid is None:
        return None
    row = await connection.fetch_row(SQL["cursor"], (uid, conversation_filter.order, project))
    if row is None:
        raise NotFound(f"there is no conversation {uid!r}")
    return row[0], row[1]


def _matches(entry: ConversationEntry, conversation_filter: ConversationFilter) -> bool:
    body = {} if entry.definition is None else entry.definition.body
    if (
        conversation_filter.is_archived is not None
        and (body.get("archived") is not None) != conversation_filter.is_archived
    ):
        return False
    if body.get("hidden"):
        return False
    return (
        conversation_filter.text is None
        or conversation_filter.text.lower() in (body.get("summary") or "").lower()
    )


def _find_version(entry: ConversationEntry) -> int | None:
    return None if entry.definition is None else entry.definition.version


def _make_entry(row: Row) -> ConversationEntry:
    end = _CONVERSATION_COLUMNS + AGENT_COLUMNS
    *conversation, begun, last_at = row[:_CONVERSATION_COLUMNS]
    agent = make_agent_record(row[_CONVERSATION_COLUMNS:end])
    definition = None if row[end] is None else make_definition(row[end:])
    return ConversationEntry(Conversation(*conversation), agent, begun, last_at, definition)
