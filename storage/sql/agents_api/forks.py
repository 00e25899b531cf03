"""Forks: conversations that continue from an exchange of another one, and share its past.

A fork begins with an exchange of its own that is empty and off the record, so that what is planned and compacted in the
fork changes nothing above it. The parent of that exchange is the last one of the shared past. It has no path hash, so
no list of a client matches it. The table `forks` has the conversations above each fork.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from storage.database import Connection, Database
from storage.definition_records import DefinitionKind
from storage.errors import CannotFork, NotFound, WriteConflict
from storage.listing import ConversationEntry, DefinitionDraft
from storage.records import Agent, Exchange, ExchangeState, SentSection
from storage.sql import exchanges, stored_paths
from storage.sql.agents_api.conversations import get_conversation
from storage.sql.agents_api.definitions import add_definition
from storage.sql.agents_api.runs import begin_conversation
from storage.sql.exchange_rows import make_exchange
from storage.sql.group import StoreGroup, writes
from storage.sql.sections import add_section, find_section, make_emptied_record
from storage.sql.statements import load
from storage.sql.step_writes import continue_exchanges
from storage.store_rules import Rules

SQL = load("agents_api/forks.sql")

# The columns of the content in `exchange`. The next column says whether a run is active; `{skeleton}` follows.
_CONTENT_COLUMNS = 3


async def note_fork(connection: Connection, agent_row: int, conversation_row: int, parent: int) -> None:
    """Stores which conversations the past of a conversation is in.

    parent: the row of the exchange that the fork's first exchange follows; in the same conversation nothing changes.
    """
    await connection.run(SQL["fork_note"], (agent_row, conversation_row, parent))


class _ForkPoint(NamedTuple):
    """An exchange, and whether a fork can begin after it."""

    # The exchange with its content.
    exchange: Exchange
    # True if a fork can begin after the exchange.
    can_fork: bool


class Forks(StoreGroup):
    """Makes forks."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    @writes
    async def create(
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
        """Creates a conversation that shares the past of another one.

        source: the row of the other conversation.
        upto: the number of the last message that is shared; 0: no message is shared; None: all messages before the
            active run, and before calls that have no results yet.

        Raises: NotFound if the agent, the source or the message is gone; CannotFork if a fork cannot begin after
            that message; WriteConflict if the public id is taken.
        """
        await connection.lock_sharers(agent.id)
        row = await connection.fetch_row(SQL["source"], (agent.id, source))
        if row is None:
            raise NotFound(f"there is no conversation {source}")
        tip, last_row = row
        if upto is None:
            path_end = None if last_row == stored_paths.EMPTY_TIP else last_row
            parent = await self._find_last(connection, agent.id, path_end)
        else:
            parent = await self._get_ending(connection, agent.id, source, upto) if upto else None
        fork_row = await begin_conversation(connection, agent.id, None, uid, at)
        if fork_row is None:
            raise WriteConflict(f"there is a conversation {uid!r} already")
        if parent is not None:
            if tip == stored_paths.CLIENT_TIP:
                # The source is a client conversation. An exchange that is continued cannot be superseded, and its
                # edits are confirmed.
                await continue_exchanges(connection, agent.id, [parent.id], self._rules, at)
                await connection.run(SQL["source_moved"], (source, agent.id))
            await _begin_fork(connection, agent.id, fork_row, parent, at)
        project = agent.scope.project
        draft = DefinitionDraft(project, DefinitionKind.CONVERSATION, uid, body, memory_row=agent.id)
        await add_definition(connection, draft, at=at)
        return await get_conversation(connection, project, uid)

    async def _find_last(
        self, connection: Connection, agent_row: int, last_row: int | None
    ) -> Exchange | None:
        """Returns the last exchange of a path after which a fork can begin; None: there is no such exchange."""
        while last_row is not None:
            point = await self._get_point(connection, agent_row, last_row)
            if point.can_fork:
                return point.exchange
            last_row = point.exchange.parent
        return None

    async def _get_ending(self, connection: Connection, agent_row: int, source: int, upto: int) -> Exchange:
        """Returns the exchange that ends with the message of this number. Raises: NotFound, CannotFork."""
        exchange_row = await connection.fetch_value(SQL["holder"], (agent_row, source, upto))
        if exchange_row is None:
            raise NotFound(f"there is no message {upto} in this conversation")
        exchange, can_fork = await self._get_point(connection, agent_row, exchange_row)
        if not can_fork or upto != exchange.reply_seq - (exchange.shown_reply is None):
            raise CannotFork(
                "a conversation is forked after a reply or the last result of its calls, and not within an active run"
            )
        return exchange

    async def _get_point(self, connection: Connection, agent_row: int, exchange_row: int) -> _ForkPoint:
        """Returns an exchange after which a fork may begin. Raises: NotFound."""
        row = await connection.fetch_row(SQL["exchange"], (agent_row, exchange_row))
        if row is None:
            raise NotFound("this memory is being removed")
        is_active, *skeleton = row[_CONTENT_COLUMNS:]
        exchange = make_exchange(skeleton, *row[:_CONTENT_COLUMNS])
        is_over = exchange.state is ExchangeState.FINISHED or (
            exchange.state is ExchangeState.OFF and not exchange.inputs
        )
        can_fork = is_over and not is_active and not self._rules.has_open_calls(exchange)
        return _ForkPoint(exchange, can_fork)


async def _begin_fork(
    connection: Connection, agent_row: int, fork_row: int, parent: Exchange, at: float
) -> None:
    """Adds the exchange with which a fork begins."""
    section = None
    # The first send renders the memory section again, with the same text if nothing has changed.
    if parent.section is not None:
        parent_section = await find_section(connection, agent_row, parent.section)
        record = make_emptied_record({} if parent_section is None else parent_section.known)
        section = await add_section(connection, agent_row, SentSection(0, "", record))
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
        state=ExchangeState.OFF,
        continued=True,
    )
    await exchanges.add_exchange(connection, agent_row, exchange)
    await note_fork(connection, agent_row, fork_row, parent.id)
