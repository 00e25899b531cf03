"""Agents: the owners of memories.

Every turn needs its agent's secret, so agents that were used lately are cached.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from msgspec.structs import replace

from storage.database import Connection, Database, Row
from storage.errors import NotFound, StaleWrite, WriteConflict
from storage.records import Agent, AgentNumbers, Block, Scope
from storage.sql.default_blocks import ensure_blocks, ensure_shared_blocks
from storage.sql.epochs import make_first_epoch
from storage.sql.statements import load

SQL = load("agents.sql")
KeyT = TypeVar("KeyT")

# The most cached agents. Each takes about 700 bytes, so all take 3 MB; a miss costs one read by key.
_CACHED_AGENTS = 4096
# The number of columns of the piece `agent`.
AGENT_COLUMNS = 11


def make_agent_record(row: Row) -> Agent:
    """Returns the record of a row of the piece `agent`."""
    agent_row, uid, project, profile, subject, *rest = row
    return Agent(agent_row, uid, Scope(project, profile, subject), *rest)


async def find_agent(connection: Connection, scope: Scope) -> Agent | None:
    """Returns the agent of a scope, with its present numbers; None: the agent is not stored."""
    row = await connection.fetch_row(SQL["agent_find"], scope)
    return None if row is None else make_agent_record(row)


async def find_agent_by_id(connection: Connection, agent_row: int) -> Agent | None:
    """Returns an agent with its present numbers; None: the agent is gone."""
    row = await connection.fetch_row(SQL["agent_by_id"], (agent_row,))
    return None if row is None else make_agent_record(row)


async def find_numbers(connection: Connection, agent_row: int) -> AgentNumbers | None:
    """Returns an agent's numbers; None: the agent is gone."""
    row = await connection.fetch_row(SQL["agent_numbers"], (agent_row,))
    return None if row is None else AgentNumbers(*row)


async def find_numbers_by_uid(connection: Connection, agent: Agent) -> AgentNumbers | None:
    """Returns an agent's present numbers; None: the agent is gone.

    After a restore from a backup the row may belong to another agent, so the uid is compared as well.
    """
    row = await connection.fetch_row(SQL["numbers_by_uid"], (agent.id, agent.uid))
    return None if row is None else AgentNumbers(*row)


async def lock_numbers(connection: Connection, agent_row: int) -> AgentNumbers | None:
    """Returns an agent's numbers, which only this transaction can raise until it ends; None: the agent is gone."""
    row = await connection.fetch_row(SQL["lock_numbers"], (agent_row,))
    return None if row is None else AgentNumbers(*row)


async def pause_agent(connection: Connection, agent_row: int, since: float | None) -> bool:
    """Pauses an agent's memory, or resumes it.

    since: the time of the pause, in seconds since the epoch; None: the memory is resumed.

    Returns False if nothing changes: the memory is paused, or not paused, already, or the agent is gone.
    """
    return await connection.run(SQL["pause"], (agent_row, since)) > 0


async def find_or_create_agent(connection: Connection, draft: Agent) -> Agent:
    """Returns the stored agent of a scope, or else stores the draft. The two have different secrets.

    Raises: WriteConflict: the public id is taken.
    """
    scope = draft.scope
    row = await connection.fetch_row(
        SQL["agent_insert"], (draft.uid, *scope, draft.secret, draft.epoch, draft.created)
    )
    if row is not None:
        return replace(draft, id=row[0])
    existing = await find_agent(connection, scope)
    if existing is None:
        # Only a uid can have collided, and uids are random.
        raise WriteConflict(f"agent uid {draft.uid} is taken")
    return existing


async def find_or_create_with_blocks(
    connection: Connection,
    draft: Agent,
    own_blocks: Iterable[Block],
    shared_blocks: Iterable[Block],
    at: float,
) -> Agent:
    """Returns the stored agent of a scope, or else stores the draft with its blocks."""
    agent = await find_or_create_agent(connection, draft)
    if agent.secret == draft.secret:
        await ensure_blocks(connection, agent.id, own_blocks, at)
        await ensure_shared_blocks(connection, agent.scope.project, agent.scope.profile, shared_blocks, at)
    return agent


async def take_seq(connection: Connection, agent_row: int) -> int:
    """Takes the next number of an agent's order, and returns it. Raises: NotFound."""
    seq = await connection.fetch_value(SQL["agent_take_seq"], (agent_row,))
    if seq is None:
        raise NotFound(f"there is no agent {agent_row}")
    return int(seq)


async def set_indexed(connection: Connection, agent_row: int, seq: int) -> None:
    """Notes the last number that the agent's search index has."""
    await connection.run(SQL["agent_indexed"], (seq, agent_row))


class Agents:
    """Finds agents by scope, and creates new ones. Caches the agents used last, and drafts."""

    def __init__(
        self, database: Database, now: Callable[[], float], *, cache_size: int = _CACHED_AGENTS
    ) -> None:
        """Makes the group. cache_size: the most agents that the cache has, and the most drafts."""
        self._database = database
        self._now = now
        self._cache_size = cache_size
        self._cache: OrderedDict[Scope, Agent] = OrderedDict()
        self._drafts: OrderedDict[Scope, Agent] = OrderedDict()
        # Drafts that were stored since, by uid: turns under way may still be planned on them.
        self._stored_drafts: OrderedDict[str, Agent] = OrderedDict()
        # The locks that are held while an agent of a scope is created; each goes with the last task that waits for it.
        self._creation_locks: WeakValueDictionary[Scope, asyncio.Lock] = WeakValueDictionary()

    def find_cached(self, scope: Scope) -> Agent | None:
        """Returns the scope's agent if the cache has it.

        Its `next_seq` and `indexed_seq` may be out of date. So may its `epoch`, if another process has forgotten
        something or paused the memory. A turn notices the change when it reads its snapshot, or at its write.
        """
        agent = self._cache.get(scope)
        if agent is not None:
            self._cache.move_to_end(scope)
        return agent

    async def find(self, scope: Scope) -> Agent | None:
        """Returns the scope's agent: from the cache, as `find_cached` does, or from the database."""
        agent = self.find_cached(scope)
        if agent is not None:
            return agent
        agent = await self._database.read(lambda connection: find_agent(connection, scope))
        if agent is not None:
            self.cache(agent)
        return agent

    async def find_current(self, scope: Scope) -> Agent | None:
        """Returns the scope's agent as the database has it now, for callers that out-of-date numbers could mislead."""
        agent = await self._database.read(lambda connection: find_agent(connection, scope))
        cached = self._cache.get(scope)
        if cached is not None and (agent is None or agent.id != cached.id):
            self.uncache(scope)
        return agent

    async def find_by_uid(self, uid: str) -> Agent | None:
        """Returns the agent with a public id, with its present numbers; None: there is no such agent."""

        async def read(connection: Connection) -> Agent | None:
            agent_row = await connection.fetch_value(SQL["agent_row_by_uid"], (uid,))
            return None if agent_row is None else await find_agent_by_id(connection, agent_row)

        return await self._database.read(read)

    async def find_by_id(self, agent_row: int) -> Agent | None:
        """Returns an agent with its present numbers; None: the agent is gone."""
        return await self._database.read(lambda connection: find_agent_by_id(connection, agent_row))

    async def exists(self, agent_row: int) -> bool:
        """Returns whether the agent of a row is stored, and was not forgotten."""
        return await self.find_by_id(agent_row) is not None

    def make_draft(self, scope: Scope) -> Agent:
        """Returns an agent that is not stored, with a name and a secret of its own."""
        # A standby that lags may lack the row when it becomes the primary, and give its id to another memory. A turn
        # that was planned on the lost row has another epoch than that memory.
        epoch = make_first_epoch() if self._database.is_shared else 0
        return Agent(0, uuid.uuid4().hex, scope, secrets.token_bytes(16), epoch, created=self._now())

    def get_draft(self, scope: Scope) -> Agent:
        """Returns an agent that is not stored yet (id 0): all requests of the scope get the same draft."""
        # Concurrent requests get the same draft, so that they agree on hashes.
        draft = self._drafts.get(scope)
        if draft is None:
            draft = self.make_draft(scope)
            self._put_entry(self._drafts, scope, draft)
        return draft

    async def find_or_draft(self, scope: Scope, *, must_exist: bool = False) -> Agent:
        """Returns the scope's agent, or a draft of the agent that begins with its first turn.

        must_exist: True if the agent is one of the agents API, so that no turn may begin it.

        Raises: NotFound if it must exist and does not.
        """
        agent = await self.find(scope)
        if agent is None and must_exist:
            raise NotFound("this agent is gone")
        return agent or self.get_draft(scope)

    async def find_or_create(
        self, scope: Scope, own_blocks: Sequence[Block], shared_blocks: Sequence[Block], at: float
    ) -> Agent:
        """Returns the scope's agent. If there is none yet, it is stored now, with these blocks.

        Processes that share a database create agents in this way, since two drafts would have two secrets.
        """
        # While an agent is being created, requests go on in the order in which they came: the first creates the agent,
        # and the others find it.
        if scope not in self._creation_locks and (cached := self.find_cached(scope)) is not None:
            return cached
        async with self._creation_locks.setdefault(scope, asyncio.Lock()):
            agent = await self.find(scope)
            if agent is None:
                draft = self.get_draft(scope)
                agent = await self._database.write(
                    lambda connection: find_or_create_with_blocks(
                        connection, draft, own_blocks, shared_blocks, at
                    )
                )
                self.cache(agent)
            return agent

    async def store_draft(
        self,
        connection: Connection,
        draft: Agent,
        own_blocks: Iterable[Block],
        shared_blocks: Iterable[Block],
        at: float,
    ) -> Agent:
        """Stores the draft on which a turn was planned, with its blocks, if no other turn has. Returns it as stored.

        Raises: StaleWrite if the agent that the draft had become was forgotten, or the scope has another agent by now:
            the turn's hashes are keyed with the draft's secret.
        """
        if draft.uid in self._stored_drafts and await find_agent(connection, draft.scope) is None:
            raise StaleWrite("something was forgotten while this turn was under way")
        agent = await find_or_create_with_blocks(connection, draft, own_blocks, shared_blocks, at)
        if agent.secret != draft.secret:
            raise StaleWrite(f"another memory of {agent.scope.subject!r} was begun or imported meanwhile")
        return agent

    def cache(self, agent: Agent) -> None:
        """Caches an agent that was just stored, or has a new epoch."""
        draft = self._drafts.pop(agent.scope, None)
        if draft is not None:
            self._put_entry(self._stored_drafts, draft.uid, draft)
        self._put_entry(self._cache, agent.scope, agent)

    def uncache(self, scope: Scope) -> None:
        """Drops the scope's agent from the cache, so that it is read again. Drafts of requests under way stay."""
        self._cache.pop(scope, None)

    def clear(self) -> None:
        """Drops all agents from the cache. Drafts stay: parallel requests would get drafts with other secrets."""
        self._cache.clear()

    def _put_entry(self, entries: OrderedDict[KeyT, Agent], key: KeyT, agent: Agent) -> None:
        entries[key] = agent
        entries.move_to_end(key)
        if len(entries) > self._cache_size:
            entries.popitem(last=False)
