"""Forks: conversations that continue from an exchange of another one, and share its past.

A fork begins with an exchange of its own that is empty and off the record, so that what is planned and compacted in the
fork changes nothing above it. Its parent is the last exchange of the shared past. It has no path hash, so no list of a
client matches it. The table `forks` has the conversations above each fork.
"""

from __future__ import annotations

from typing import Any

from storage.commands import Rules
from storage.database import Connection, Database
from storage.errors import NotForkable, NotFound, WriteConflict
from storage.listing import ConversationEntry
from storage.records import Agent, DefinitionKind, Exchange, SentSection, State
from storage.sql import exchanges, stored_paths
from storage.sql.agents_api.conversations import find_conversation
from storage.sql.agents_api.definitions import add_definition
from storage.sql.blocks import emptied_section
from storage.sql.group import Group, writes
from storage.sql.statements import load
from storage.sql.turns import merge_edits

SQL = load("agents_api/forks.sql")

# The columns of `exchange` in front of those of `{skeleton}`.
_SKELETON = 4


async def note_fork(connection: Connection, agent: int, conversation: int, parent: int) -> None:
    """Stores which conversations the past of a conversation is in.

    parent: the row of the exchange that its first exchange follows; one of the same conversation changes nothing.
    """
    await connection.run(SQL["put"], (agent, conversation, parent))


class Forks(Group):
    """Forks of conversations."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

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

        Raises: NotFound: the agent, the source or the message is gone; NotForkable: a fork cannot begin after
            that message; WriteConflict: the name is taken.
        """
        await connection.lock_sharers(agent.id)
        row = await connection.row(SQL["source"], (agent.id, source))
        if row is None:
            raise NotFound(f"there is no conversation {source}")
        tip, end = row
        if upto is None:
            parent = await self._last_before(connection, agent.id, None if end == -1 else end)
        else:
            parent = await self._ending_with(connection, agent.id, source, upto) if upto else None
        fork = await connection.value(stored_paths.SQL["begin"], (agent.id, uid, None, at, at))
        if fork is None:
            raise WriteConflict(f"there is a conversation {uid!r} already")
        if parent is not None:
            if not tip:
                # An exchange that is carried cannot be superseded, and its edits are confirmed.
                await connection.run(stored_paths.SQL["continue"], (parent.id, agent.id))
                await merge_edits(connection, agent.id, [parent.id], self._rules, at)
                await connection.run(SQL["moved"], (source, agent.id))
            await _begin(connection, agent.id, fork, parent, at)
        project = agent.scope.project
        await add_definition(
            connection, project, DefinitionKind.CONVERSATION, uid, "", body, at=at, memory=agent.id
        )
        return await find_conversation(connection, project, uid)

    async def _last_before(self, connection: Connection, agent: int, end: int | None) -> Exchange | None:
        """Returns the last exchange of a path after which a fork can begin; None: there is none."""
        while end is not None:
            e, may_end = await self._load(connection, agent, end)
            if may_end:
                return e
            end = e.parent
        return None

    async def _ending_with(self, connection: Connection, agent: int, source: int, upto: int) -> Exchange:
        """Returns the exchange that ends with the message of this number. Raises: NotFound, NotForkable."""
        id = await connection.value(SQL["holder"], (agent, source, upto))
        if id is None:
            raise NotFound(f"there is no message {upto} in this conversation")
        e, may_end = await self._load(connection, agent, id)
        if not may_end or upto != e.seq + len(e.inputs) - (e.shown_reply is None):
            raise NotForkable(
                "a conversation is forked after a reply or the last result of its calls, and not within an active run"
            )
        return e

    async def _load(self, connection: Connection, agent: int, id: int) -> tuple[Exchange, bool]:
        """Returns an exchange with its content, and whether a fork can begin after it. Raises: NotFound."""
        row = await connection.row(SQL["exchange"], (agent, id))
        if row is None:
            raise NotFound("this memory is being removed")
        e = exchanges.make_exchange(row[_SKELETON:], *row[: _SKELETON - 1])
        is_active = bool(row[_SKELETON - 1])
        is_over = e.state is State.FINISHED or (e.state is State.OFF and not e.inputs)
        return e, is_over and not is_active and not self._rules.leaves_calls(e)


async def _begin(connection: Connection, agent: int, fork: int, parent: Exchange, at: float) -> None:
    """Adds the exchange with which a fork begins."""
    section = None
    # The first send renders the memory section again, with the same text if nothing has changed.
    if parent.section is not None:
        shown = await exchanges.load_section(connection, agent, parent.section)
        known = emptied_section({} if shown is None else shown.known)
        section = await exchanges.add_section(connection, agent, SentSection(0, "", known))
    e = Exchange(
        0,
        fork,
        parent.id,
        parent.depth + 1,
        parent.offset + sum(map(len, parent.inputs)) + len(parent.reply or ()),
        inputs=(),
        media=(),
        reply=None,
        path=b"",
        reply_key=None,
        begun=at,
        touched=at,
        ended=at,
        length=parent.length + 1,
        prior=parent.id if parent.adds else parent.prior,
        section=section,
        evicted=parent.evicted,
        model=parent.model,
        state=State.OFF,
        continued=True,
    )
    await exchanges.insert_exchange(connection, agent, e)
    await note_fork(connection, agent, fork, parent.id)
