"""Conversations as the agents API knows them: made, listed, changed, taken away.

The definition of a conversation is stored under its public name. A conversation that was deleted retains its row,
under a name that cannot be sent, and is not found any more.

A fork is a conversation that continues from an exchange of another one, and shares its past. It begins with an exchange
of its own that is empty and off the record, so that what is planned and compacted in the fork changes nothing above it.
The parent of that exchange is the last one of the shared past. It has no path hash, so no list of a client matches it.
The table `forks` has the conversations above each fork.
"""

from __future__ import annotations

import builtins
from typing import Any

from storage.commands import ForgetTarget, Rules
from storage.database import Connection, Database, Row
from storage.errors import NotForkable, NotFound, Overtaken, WriteConflict
from storage.listing import FIRST_PAGE, ConversationEntry, ConversationFilter, DefinitionDraft, Page, PageEnd
from storage.records import Agent, Conversation, DefinitionKind, Exchange, SentSection, State
from storage.sql import exchanges, stored_paths
from storage.sql.agents import AGENT_COLUMNS, make_agent_record
from storage.sql.agents_api.definitions import (
    add_definition,
    find_definition,
    make_definition,
    put_definition,
    remove_definition,
)
from storage.sql.forget import begin_forgetting
from storage.sql.group import Group, as_method, long_reads, reads, writes
from storage.sql.sections import add_section, find_section, known_when_emptied
from storage.sql.statements import load
from storage.sql.turns import merge_edits

SQL = load("agents_api/conversations.sql")

# The columns of a conversation, before those of its agent.
_CONVERSATION_COLUMNS = 7
# The columns of the content in `exchange`. The next one is whether a run is active; those of `{skeleton}` follow.
_CONTENT_COLUMNS = 3
# The fewest rows that are read at once: conversations that do not match are left out of the page.
_MIN_ROWS = 20
# Before and after every conversation in any order.
_BEFORE_ALL: PageEnd = (-1.0, -1)
_AFTER_ALL = FIRST_PAGE


async def find_conversation(connection: Connection, project: str, uid: str) -> ConversationEntry:
    """Returns the conversation with this public name. Raises: NotFound."""
    row = await connection.row(SQL["get"], (uid, project))
    if row is None:
        raise NotFound(f"there is no conversation {uid!r}")
    return _make_entry(row)


async def note_fork(connection: Connection, agent_row: int, conversation_row: int, parent: int) -> None:
    """Stores which conversations the past of a conversation is in.

    parent: the row of the exchange that its first exchange follows; one of the same conversation changes nothing.
    """
    await connection.run(SQL["fork_note"], (agent_row, conversation_row, parent))


class Conversations(Group):
    """Conversations. project: of the caller; nothing of another project is found."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    get = reads(as_method(find_conversation))

    @writes
    async def create(
        self, connection: Connection, agent: Agent, uid: str, body: dict[str, Any], *, at: float
    ) -> ConversationEntry:
        """Creates an empty stored conversation.

        Raises: NotFound if the agent is gone; WriteConflict if the name is taken.
        """
        await connection.lock(agent.id)
        begun = (agent.id, uid, None, at, at)
        if await connection.value(stored_paths.SQL["begin"], begun) is None:
            raise WriteConflict(f"there is a conversation {uid!r} already")
        project = agent.scope.project
        draft = DefinitionDraft(project, DefinitionKind.CONVERSATION, uid, body, memory_row=agent.id)
        await add_definition(connection, draft, at=at)
        return await find_conversation(connection, project, uid)

    @writes
    async def change(
        self, connection: Connection, entry: ConversationEntry, body: dict[str, Any], *, at: float
    ) -> ConversationEntry:
        """Changes a conversation's definition. Raises: Overtaken if another writer did since; NotFound."""
        agent, uid, project = entry.agent, entry.conversation.uid, entry.agent.scope.project
        await connection.lock(agent.id)
        if _version(await find_conversation(connection, project, uid)) != _version(entry):
            raise Overtaken(f"the conversation {uid!r} was changed since")
        draft = DefinitionDraft(project, DefinitionKind.CONVERSATION, uid, body, memory_row=agent.id)
        await put_definition(connection, draft, at=at)
        return await find_conversation(connection, project, uid)

    @writes
    async def release(
        self, connection: Connection, agent: Agent, conversation_row: int, *, keeps_memory: bool, at: float
    ) -> int:
        """Takes the names from a conversation and ends its runs. Returns the forgetting, for `Forgetting.finish`.

        keeps_memory: what was learned, saved and written into blocks stays. Raises: NotFound.
        """
        await connection.lock_sharers(agent.id)
        uid = await connection.value(SQL["release"], (conversation_row, agent.id))
        if uid is None:
            raise NotFound(f"there is no conversation {conversation_row}")
        await connection.run(SQL["runs_cancel"], (at, conversation_row, agent.id))
        definition_row = await find_definition(
            connection, agent.scope.project, DefinitionKind.CONVERSATION, uid
        )
        if definition_row is not None:
            await remove_definition(connection, definition_row.id)
        target = ForgetTarget(conversation_row=conversation_row, keeps_memory=keeps_memory)
        (id,) = await begin_forgetting(connection, agent.id, target, at)
        return id

    @writes
    async def fork(
        self,
        connection: Connection,
        agent: Agent,
        source: int,
        uid: str,
        body: dict[str, Any],
        *,
        at: float,
        upto: int | None = None,
    ) -> ConversationEntry:
        """Makes a conversation that shares the past of another one.

        source: the row of the other one.
        upto: the number of the last message that is shared; 0: none is; None: all before the active run, and
            before calls that have no results yet.

        Raises: NotFound if the agent, the source or the message is gone; NotForkable if a fork cannot begin after
            that message; WriteConflict: the name is taken.
        """
        await connection.lock_sharers(agent.id)
        row = await connection.row(SQL["source"], (agent.id, source))
        if row is None:
            raise NotFound(f"there is no conversation {source}")
        last_exchange, end = row
        if upto is None:
            parent = await self._find_last(connection, agent.id, None if end == -1 else end)
        else:
            parent = await self._find_ending(connection, agent.id, source, upto) if upto else None
        fork_row = await connection.value(stored_paths.SQL["begin"], (agent.id, uid, None, at, at))
        if fork_row is None:
            raise WriteConflict(f"there is a conversation {uid!r} already")
        if parent is not None:
            if not last_exchange:
                # The source is a client conversation. An exchange that is continued cannot be superseded, and its
                # edits are confirmed.
                await connection.run(stored_paths.SQL["continue"], (parent.id, agent.id))
                await merge_edits(connection, agent.id, [parent.id], self._rules, at)
                await connection.run(SQL["source_moved"], (source, agent.id))
            await _begin_fork(connection, agent.id, fork_row, parent, at)
        project = agent.scope.project
        draft = DefinitionDraft(project, DefinitionKind.CONVERSATION, uid, body, memory_row=agent.id)
        await add_definition(connection, draft, at=at)
        return await find_conversation(connection, project, uid)

    async def _find_last(self, connection: Connection, agent_row: int, end: int | None) -> Exchange | None:
        """Returns the last exchange of a path after which a fork can begin; None if there is none."""
        while end is not None:
            exchange, can_fork = await self._load(connection, agent_row, end)
            if can_fork:
                return exchange
            end = exchange.parent
        return None

    async def _find_ending(self, connection: Connection, agent_row: int, source: int, upto: int) -> Exchange:
        """Returns the exchange that ends with the message of this number. Raises: NotFound, NotForkable."""
        id = await connection.value(SQL["holder"], (agent_row, source, upto))
        if id is None:
            raise NotFound(f"there is no message {upto} in this conversation")
        exchange, can_fork = await self._load(connection, agent_row, id)
        if not can_fork or upto != exchange.reply_seq - (exchange.shown_reply is None):
            raise NotForkable(
                "a conversation is forked after a reply or the last result of its calls, and not within an active run"
            )
        return exchange

    async def _load(self, connection: Connection, agent_row: int, id: int) -> tuple[Exchange, bool]:
        """Returns an exchange with its content, and whether a fork can begin after it. Raises: NotFound."""
        row = await connection.row(SQL["exchange"], (agent_row, id))
        if row is None:
            raise NotFound("this memory is being removed")
        content, (is_active, *skeleton) = row[:_CONTENT_COLUMNS], row[_CONTENT_COLUMNS:]
        exchange = exchanges.make_exchange(skeleton, *content)
        is_over = exchange.state is State.FINISHED or (exchange.state is State.OFF and not exchange.inputs)
        return exchange, is_over and not is_active and not self._rules.has_open_calls(exchange)

    @long_reads
    async def list(
        self,
        connection: Connection,
        project: str,
        where: ConversationFilter,
        page: Page[str],
    ) -> builtins.list[ConversationEntry]:
        """Returns a page of a project's conversations, without agents' own ones. page: with uids as cursors.

        Raises: NotFound if there is no conversation with one of these uids.
        """
        low_uid, high_uid = page.ends
        low = await _find_position(connection, project, where, low_uid) or _BEFORE_ALL
        high = await _find_position(connection, project, where, high_uid) or _AFTER_ALL
        found: builtins.list[ConversationEntry] = []
        while len(found) < page.limit:
            size = max(page.limit - len(found), _MIN_ROWS)
            rows = await _load_page(connection, project, where, low, high, size, page.direction)
            entries = [_make_entry(row) for row in rows]
            found += [entry for entry in entries if _matches(entry, where)]
            if len(rows) < size:
                break
            end = await _find_position(connection, project, where, entries[-1].conversation.uid)
            assert end is not None  # a uid was given
            low, high = (low, end) if page.newest_first else (end, high)
        return found[: page.limit]


async def _load_page(
    connection: Connection,
    project: str,
    where: ConversationFilter,
    low: PageEnd,
    high: PageEnd,
    limit: int,
    direction: str,
) -> list[Row]:
    """Returns the rows of conversations between two positions of an order, those that do not match among them.

    direction: as of `Page`.
    """
    agent_row = where.agent_row
    if where.order != "created":
        agent_rows = (_BEFORE_ALL[1], _AFTER_ALL[1]) if agent_row is None else (agent_row, agent_row)
        values = (project, where.order, limit, *low, *high, *agent_rows)
        return await connection.rows(SQL[f"by_time_{direction}"], values)
    if agent_row is None:
        return await connection.rows(SQL[f"of_project_{direction}"], (project, low[1], high[1], limit))
    return await connection.rows(SQL[f"of_agent_{direction}"], (project, low[1], high[1], limit, agent_row))


async def _find_position(
    connection: Connection, project: str, where: ConversationFilter, uid: str | None
) -> PageEnd | None:
    """Returns where a conversation stands in an order. Raises: NotFound."""
    if uid is None:
        return None
    row = await connection.row(SQL["place"], (uid, where.order, project))
    if row is None:
        raise NotFound(f"there is no conversation {uid!r}")
    return row[0], row[1]


def _matches(entry: ConversationEntry, where: ConversationFilter) -> bool:
    body = {} if entry.definition is None else entry.definition.body
    if where.archived is not None and (body.get("archived") is not None) != where.archived:
        return False
    if body.get("hidden"):
        return False
    return where.text is None or where.text.lower() in (body.get("summary") or "").lower()


def _version(entry: ConversationEntry) -> int | None:
    return None if entry.definition is None else entry.definition.version


def _make_entry(row: Row) -> ConversationEntry:
    end = _CONVERSATION_COLUMNS + AGENT_COLUMNS
    *conversation, begun, last_at = row[:_CONVERSATION_COLUMNS]
    agent = make_agent_record(row[_CONVERSATION_COLUMNS:end])
    definition = None if row[end] is None else make_definition(row[end:])
    return ConversationEntry(Conversation(*conversation), agent, begun, last_at, definition)


async def _begin_fork(
    connection: Connection, agent_row: int, fork_row: int, parent: Exchange, at: float
) -> None:
    """Adds the exchange with which a fork begins."""
    section = None
    # The first send renders the memory section again, with the same text if nothing has changed.
    if parent.section is not None:
        parent_section = await find_section(connection, agent_row, parent.section)
        known = known_when_emptied({} if parent_section is None else parent_section.known)
        section = await add_section(connection, agent_row, SentSection(0, "", known))
    exchange = Exchange(
        id=0,
        conversation_row=fork_row,
        parent=parent.id,
        depth=parent.depth + 1,
        offset=parent.offset + sum(map(len, parent.inputs)) + len(parent.reply or ()),
        inputs=(),
        media=(),
        reply=None,
        path_hash=b"",
        reply_key=None,
        begun=at,
        touched=at,
        ended=at,
        length=parent.length + 1,
        prior=parent.id if parent.has_additions else parent.prior,
        section=section,
        evicted=parent.evicted,
        model=parent.model,
        state=State.OFF,
        continued=True,
    )
    await exchanges.add_exchange(connection, agent_row, exchange)
    await note_fork(connection, agent_row, fork_row, parent.id)
