"""Turns: reads the memory's snapshot before a turn is answered, and writes the turn in one transaction at its end."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from storage.commands import (
    MAX_RULE_CALLS,
    BlockMerge,
    CandidateExchanges,
    CommittedTurn,
    MemorySnapshot,
    MissingContents,
    Opening,
    PlainTurn,
    Probes,
    RecallRow,
    StoredContent,
    TurnChange,
    TurnWrite,
)
from storage.database import Connection, Database, is_outdated_work
from storage.errors import NotFound, StaleWrite, StatementFailed, WriteConflict
from storage.records import Agent, Block, Conversation, EditState, Exchange, MarkKind, place_exchange
from storage.run_commands import ReadSpan
from storage.sql import exchanges
from storage.sql.agents import Agents, find_agent_by_id, lock_numbers
from storage.sql.blocks import load_blocks, load_shared_blocks, write_block
from storage.sql.epochs import has_risen
from storage.sql.fact_writes import add_saved_facts
from storage.sql.group import StoreGroup, bulk_writes, reads
from storage.sql.memory_cache import MemoryCache
from storage.sql.passages import add_saved_passage
from storage.sql.recalls import note_recall
from storage.sql.sections import add_section
from storage.sql.snapshot_cache import SnapshotCache
from storage.sql.statements import load
from storage.sql.turn_edits import add_edit, drop_edits, expire_edits, load_edits, settle_edits
from storage.store_rules import Rules

SQL = load("turns.sql")

# The bytes that a turn which waits to be written takes besides its content; estimated.
_WRITE_BYTES = 4096
# The seconds that the edits of a superseded turn wait, since it may be continued after all. Not measured: a user who
# goes back to it later than a day finds the blocks without its edits.
_SUPERSEDED_S = 86_400.0


class DueConversation(NamedTuple):
    """A conversation with pending edits of blocks."""

    # The row of the memory.
    agent_row: int
    # The row of the conversation.
    conversation_row: int
    # True if the client has given the conversation an id.
    is_named: bool
    # The time at which the conversation last moved, in seconds since the epoch.
    last_at: float


class Turns(StoreGroup):
    """Reads the memory's snapshot before a turn is answered, and writes the turn at its end."""

    def __init__(
        self, database: Database, agents: Agents, rules: Rules, cache: SnapshotCache, memories: MemoryCache
    ) -> None:
        super().__init__(database)
        self._agents = agents
        self._rules = rules
        self._cache = cache
        self._memories = memories

    async def find_snapshot(
        self, agent: Agent, key: str | None, path_hash: bytes | None
    ) -> MemorySnapshot | None:
        """Returns the snapshot of a request's memory, from the cache or the database.

        key: the client's own conversation id; None: the request has none.
        path_hash: the hash of the client's list up to its last assistant message; None: the list has none.

        Returns None if the agent is not stored any more.

        Raises: StoreError.
        """
        # If this process alone writes, the cache is notified of each change. After a restore it may have another memory
        # under the agent's row, so work that began before reads, and fails.
        is_read = self._database.is_shared or is_outdated_work(self._database)
        snapshot = None if is_read else self._cache.find(agent.id, key, path_hash)
        return snapshot or await self._read_snapshot(agent, key, path_hash)

    @reads
    async def _read_snapshot(
        self, connection: Connection, agent: Agent, key: str | None, path_hash: bytes | None
    ) -> MemorySnapshot | None:
        if self._database.is_shared and self._cache.has_entry(agent.id, key, path_hash):
            # Another process may have changed the memory: its numbers show that.
            self._cache.apply_changes({agent.id: await exchanges.find_cacheable_numbers(connection, agent)})
            snapshot = self._cache.find(agent.id, key, path_hash)
            if snapshot is not None:
                return snapshot
        snapshot = await exchanges.find_snapshot(connection, agent, key, path_hash)
        if snapshot is None:
            self._cache.drop(agent.id)
        else:
            self._cache.put(agent.id, key, path_hash, snapshot)
        return snapshot

    def find_openings(self, agent: Agent, snapshot: MemorySnapshot) -> list[Opening] | None:
        """Returns the cached openings of a memory; None: none are cached for the numbers of its snapshot."""
        return self._cache.find_openings(agent.id, snapshot)

    def cache_openings(self, agent: Agent, snapshot: MemorySnapshot, openings: list[Opening]) -> None:
        """Caches all openings of a memory that a list may repeat or extend, the newest last."""
        self._cache.put_openings(agent.id, snapshot, openings)

    @reads
    async def load_candidates(
        self, connection: Connection, agent: Agent, probes: Probes
    ) -> CandidateExchanges:
        """Loads the exchanges that may matter to a request."""
        return await _load_candidates(connection, agent, probes)

    @reads
    async def load_contents(
        self, connection: Connection, agent: Agent, exchange_rows: Sequence[int]
    ) -> Mapping[int, StoredContent]:
        """Loads the contents that a `MissingContents` names. An exchange that is gone has an empty entry."""
        return await exchanges.load_contents(connection, agent.id, exchange_rows)

    @reads
    async def find_exchange(self, connection: Connection, agent: Agent, exchange_row: int) -> Exchange | None:
        """Returns an exchange with its content."""
        return await exchanges.find_exchange(connection, agent.id, exchange_row)

    @reads
    async def find_conversation_uid(
        self, connection: Connection, agent: Agent, conversation_row: int
    ) -> str | None:
        """Returns the public id of a conversation; None: the conversation is gone."""
        return await exchanges.find_conversation_uid(connection, agent.id, conversation_row)

    @reads
    async def load_shared_blocks(self, connection: Connection, agent: Agent) -> list[Block]:
        """Returns the shared blocks that a new user of the agent's profile will see."""
        return await load_shared_blocks(connection, agent.scope.project, agent.scope.profile)

    def commit(self, write: TurnWrite) -> Future[CommittedTurn]:
        """Writes a turn; the future is done when it is on disk.

        Raises: StaleWrite when something was forgotten meanwhile, StoreUnavailable.
        """
        return self._database.write(
            partial(_commit_turn, write=write, agents=self._agents, rules=self._rules),
            size_bytes=_estimate_write_bytes(write),
            # A turn that was written before is found by its path, and touched.
            is_repeatable=True,
        )

    def cache_committed(self, write: TurnWrite, committed: CommittedTurn) -> None:
        """Adds a committed turn to the caches, so that the next snapshot and query need not read it.

        The caller must not change the exchange after that: it belongs to the cache.
        """
        if committed.added is not None:
            self._memories.add_committed(committed.agent, committed.added)
        self._cache.apply_commit(write, committed)

    @reads
    async def list_due(
        self, connection: Connection, before: float, after: float, limit: int
    ) -> list[DueConversation]:
        """Returns conversations that have not moved for a while, with pending edits that are to be merged or dropped.

        before: the time before which they last moved.
        after: a time in the future. Conversations that last moved after it count, too: the clock was set back since.
        """
        rows = await connection.fetch_rows(SQL["due"], (before, after, limit, before - _SUPERSEDED_S))
        return [
            DueConversation(agent_row, conversation_row, key is not None, last_at)
            for agent_row, conversation_row, key, last_at in rows
        ]

    @reads
    async def find_next_due(self, connection: Connection) -> float | None:
        """Returns the earliest time at which a conversation with pending edits last moved; None: there is none."""
        return await connection.fetch_value(SQL["next_due"])

    @bulk_writes
    async def confirm_edits(
        self,
        connection: Connection,
        agent_row: int,
        conversation_row: int,
        last_at: float,
        now: float,
        decide: Callable[[CandidateExchanges], TurnChange],
    ) -> None:
        """Confirms the memory edits of a conversation, if it did not move since `last_at`.

        now: the present time, in seconds since the epoch.
        decide: a function that returns the change for the conversation's exchanges, which names the exchanges with
            confirmed edits.
        """
        # A `last_at` in the future was written before the clock was set back.
        at = min(last_at, now)
        await connection.lock_sharers(agent_row)
        if await find_agent_by_id(connection, agent_row) is None:
            return  # the memory is being forgotten
        if await connection.fetch_row(SQL["unmerged"], (conversation_row, agent_row)) is not None:
            # The rules that confirm look up no key and no tombstone: they need the conversation alone.
            candidates = CandidateExchanges(
                await exchanges.load_candidates(connection, agent_row, Probes(None), conversation_row), None
            )
            change = await _decide_turn(connection, agent_row, candidates, decide)
            for other in change.others:
                await exchanges.update_exchange(connection, agent_row, other)
            await merge_edits(connection, agent_row, change.merge, self._rules, at)
        await expire_edits(connection, agent_row, conversation_row, now - _SUPERSEDED_S)
        await connection.run(SQL["settled"], (conversation_row, at, last_at, agent_row))


def _estimate_write_bytes(write: TurnWrite) -> int:
    """Returns the estimated bytes that a waiting write holds. Images count only if it has its exchange."""
    plan = write.plain or write.change
    if plan is None or plan.exchange is None:
        return _WRITE_BYTES + 2 * write.chars
    return _WRITE_BYTES + 2 * plan.exchange.content_bytes


async def _load_candidates(
    connection: Connection,
    agent: Agent,
    probes: Probes,
    plain_conversation_row: int | None = None,
    since: int | None = None,
) -> CandidateExchanges:
    """Loads the exchanges that may matter.

    plain_conversation_row: the row of the conversation that a plain turn continues; it is loaded if the key has none.
    since: the agent's next number when the turn was planned. Openings from this number on matter, too: a conversation
        that began after this turn may extend it.
    """
    keyed_conversation = None
    if probes.key is not None:
        keyed_conversation = await exchanges.find_keyed_conversation(connection, agent.id, probes.key)
    conversation_row, last_at = (None, 0.0) if keyed_conversation is None else keyed_conversation
    loaded_row = conversation_row or plain_conversation_row
    loaded_exchanges = await exchanges.load_candidates(connection, agent.id, probes, loaded_row, since)
    maybe_forgotten = probes.maybe_forgotten if has_risen(agent.epoch) else ()
    forgotten_hashes = await exchanges.load_forgotten_hashes(connection, agent.id, maybe_forgotten)
    return CandidateExchanges(loaded_exchanges, conversation_row, last_at, forgotten_hashes=forgotten_hashes)


async def _decide_turn(
    connection: Connection,
    agent_row: int,
    candidates: CandidateExchanges,
    decide: Callable[[CandidateExchanges], TurnChange],
) -> TurnChange:
    """Returns the decision of the rules. After each `MissingContents` the rules are called again with the contents."""
    for _ in range(MAX_RULE_CALLS):
        try:
            return decide(candidates)
        except MissingContents as missing:
            contents = await exchanges.load_contents(connection, agent_row, missing.ids)
            candidates = replace(candidates, contents={**candidates.contents, **contents})
    raise StatementFailed(f"the rules of conversations asked {MAX_RULE_CALLS} times for more contents")


async def _commit_turn(
    connection: Connection, write: TurnWrite, agents: Agents, rules: Rules
) -> CommittedTurn:
    """Writes a turn: as it was planned, or as the rules decide now if its conversation has moved since."""
    agent = write.agent
    is_new = not agent.is_stored
    if is_new:
        agent = await agents.store_draft(connection, agent, write.defaults, write.shared, write.now)
    elif write.change is not None and write.change.merge:
        await connection.lock_sharers(agent.id)
    section_row = None if write.section is None else write.section.id
    if write.section is not None and not section_row:
        section_row = await add_section(connection, agent.id, write.section)
    recall = None if write.recall is None else write.recall()
    if write.plain is not None and not is_new:
        committed = await _commit_plain(connection, agent, write, write.plain, section_row, recall)
        if committed is not None:
            return committed
    resolved = await _resolve_change(connection, agent, write, is_new=is_new)
    exchange, is_added, begun = await _write_change(
        connection, agent.id, write, resolved, section_row, recall
    )
    await merge_edits(connection, agent.id, resolved.change.merge, rules, write.now)
    return CommittedTurn(
        agent,
        exchange.id,
        exchange.conversation_row,
        is_plain=False,
        section=section_row,
        seq=exchange.seq if is_added else 0,
        next_seq=exchange.next_seq if is_added else 0,
        added=exchange if is_added else None,
        begun=begun,
    )


async def _commit_plain(
    connection: Connection,
    agent: Agent,
    write: TurnWrite,
    plain: PlainTurn,
    section_row: int | None,
    recall: RecallRow | None,
) -> CommittedTurn | None:
    """Writes a plain turn by one statement, which adds a row only where the plan still holds.

    Returns None if the agent's epoch or the conversation's `rev` has risen since the turn was planned.
    """
    exchange = plain.exchange
    if section_row != exchange.section:
        exchange = replace(exchange, section=section_row)
    is_only_statement = not write.edits and (write.section is None or write.section.is_stored)
    added = await exchanges.add_planned_exchange(
        connection, agent.id, agent.epoch, plain.conversation_rev, exchange,
        continues_parent=exchange.continues_parent, is_only_statement=is_only_statement, recall=recall,
    )  # fmt: skip
    if added is None:
        return None
    for edit in write.edits:
        await add_edit(connection, agent.id, replace(edit, exchange_row=added.id))
    return CommittedTurn(
        agent,
        added.id,
        exchange.conversation_row,
        is_plain=True,
        section=section_row,
        seq=added.seq,
        next_seq=added.seq + len(exchange.inputs) + 1,
        matches_prefix=bool(added.matches_prefix),
    )


class _ResolvedChange(NamedTuple):
    """A change that a turn makes in the tree as it is now."""

    # The change.
    change: TurnChange
    # The last number that the search index has.
    indexed_seq: int


async def _resolve_change(
    connection: Connection, agent: Agent, write: TurnWrite, *, is_new: bool
) -> _ResolvedChange:
    """Returns the changes of a turn that could not be written as a plain turn.

    agent: the agent as it is stored.
    is_new: True if the agent was first stored in this transaction.

    Raises: StaleWrite.
    """
    indexed_seq = 0
    if not is_new or write.change is not None:
        numbers = await lock_numbers(connection, agent.id)
        if numbers is None or numbers.epoch != agent.epoch:
            raise StaleWrite("something was forgotten while this turn was under way")
        indexed_seq = numbers.indexed_seq
        # The blocks of a memory that begins have raised its `rev`.
        planned_numbers = (write.planned_next_seq, write.planned_agent_rev)
        is_as_planned = (numbers.next_seq, numbers.rev) == planned_numbers or (
            is_new and numbers.next_seq == 1
        )
        if is_as_planned and write.change is not None:
            return _ResolvedChange(write.change, indexed_seq)
    # Another turn was faster: the rules decide on the tree as it is in this transaction.
    candidates = await _load_candidates(
        connection,
        agent,
        write.probes(),
        plain_conversation_row=write.plain.exchange.conversation_row if write.plain else None,
        since=write.planned_next_seq,
    )
    return _ResolvedChange(await _decide_turn(connection, agent.id, candidates, write.decide), indexed_seq)


class _StoredExchange(NamedTuple):
    """The exchange of a turn as it is stored now."""

    # The exchange, with its row and its number.
    exchange: Exchange
    # True if the turn has added the exchange; False: the turn has updated it.
    is_added: bool
    # The conversation that began with the turn, as in `CommittedTurn.begun`.
    begun: Conversation | None


async def _write_change(
    connection: Connection,
    agent_row: int,
    write: TurnWrite,
    resolved: _ResolvedChange,
    section_row: int | None,
    recall: RecallRow | None,
) -> _StoredExchange:
    """Writes the changes of a turn in the tree: its exchange, other exchanges, edits and marks."""
    change = resolved.change
    stored = await _store_exchange(connection, agent_row, write, change, section_row, recall)
    exchange = stored.exchange
    for other in change.others:
        await exchanges.update_exchange(connection, agent_row, other)
    await exchanges.mark_continued(connection, agent_row, change.continued)
    # An exchange that is added has moved its conversation already.
    if not stored.is_added or change.others or change.continued:
        await exchanges.move_conversation(connection, agent_row, exchange.conversation_row, write.now)
    # A turn off the record has no edits. Edits that were merged before the turn was asked again stay.
    if exchange.edits and (not exchange.merged or exchange.id in change.merge):
        for edit in write.edits:
            await add_edit(connection, agent_row, replace(edit, exchange_row=exchange.id))
    await _add_marks(connection, agent_row, resolved, exchange)
    return stored


async def _store_exchange(
    connection: Connection,
    agent_row: int,
    write: TurnWrite,
    change: TurnChange,
    section_row: int | None,
    recall: RecallRow | None,
) -> _StoredExchange:
    """Adds the exchange of a turn, with its conversation if that begins, or updates it. Returns it as it is stored."""
    exchange = change.exchange
    assert exchange is not None  # the change of a turn has its exchange; only a change by idle time has none
    # New exchanges and conversations have ids below 1.
    is_added = not exchange.is_stored
    joins_root = is_added and exchange.conversation_row > 0 and exchange.parent is None
    if joins_root and write.key is None and write.has_given_uid:
        # An opening that ended meanwhile may have a conversation that this turn would join, with another id.
        uid = await exchanges.find_conversation_uid(connection, agent_row, exchange.conversation_row)
        exchange = exchange if uid == write.uid else replace(exchange, conversation_row=0)
    begun: Conversation | None = None
    if is_added and exchange.conversation_row <= 0:
        begun = await exchanges.add_conversation(connection, agent_row, write.uid, write.key, write.now)
    # A copy, since the transaction may run twice.
    exchange = replace(
        exchange,
        section=section_row,
        conversation_row=exchange.conversation_row if begun is None else begun.id,
    )
    if is_added:
        exchange_row, seq, matches_prefix = await exchanges.add_exchange(
            connection, agent_row, exchange, recall
        )
        exchange = place_exchange(exchange, exchange_row, seq)
        if matches_prefix or not change.is_alone:
            begun = None
    else:
        await exchanges.update_exchange(connection, agent_row, exchange)
        await drop_edits(connection, agent_row, exchange.id)
        if recall is not None:
            await note_recall(connection, agent_row, exchange.id, write.now, recall)
    return _StoredExchange(exchange, is_added, begun)


async def _add_marks(
    connection: Connection, agent_row: int, resolved: _ResolvedChange, exchange: Exchange
) -> None:
    """Marks exchanges to be recognised by a hash, or to be indexed again. exchange: the turn's stored exchange."""
    change = resolved.change
    await exchanges.add_marks(connection, agent_row, MarkKind.PREFIX, change.prefixes, exchange.id)
    await exchanges.add_marks(connection, agent_row, MarkKind.TOMBSTONE, change.tombstone_hashes, exchange.id)
    for changed_exchange in (exchange, *change.others):
        # The index reads later exchanges once it reaches them, as they are then.
        if changed_exchange.id in change.stale and changed_exchange.seq <= resolved.indexed_seq:
            await exchanges.add_marks(connection, agent_row, MarkKind.STALE, (b"",), changed_exchange.id)


async def merge_edits(
    connection: Connection, agent_row: int, confirmed_rows: Sequence[int], rules: Rules, now: float
) -> None:
    """Merges the pending edits of confirmed exchanges: they change blocks, and add passages and facts."""
    edits = [
        edit
        for exchange_row in confirmed_rows
        for edit in await load_edits(connection, agent_row, exchange_row)
        if edit.state is EditState.PENDING
    ]
    if not edits:
        return
    await connection.lock_profile_blocks(agent_row)
    blocks = await load_blocks(connection, agent_row)
    merge = rules.make_block_merge(blocks, edits)
    await write_merge(connection, agent_row, merge, {block.id: block.version for block in blocks}, now)
    dropped_rows = {edit.id for edit in merge.dropped}
    await settle_edits(
        connection, agent_row, [edit.id for edit in edits if edit.id not in dropped_rows], EditState.MERGED
    )
    await settle_edits(connection, agent_row, dropped_rows, EditState.DROPPED)


async def write_merge(
    connection: Connection,
    agent_row: int,
    merge: BlockMerge,
    first_versions: Mapping[int, int],
    now: float,
    reading: ReadSpan | None = None,
) -> None:
    """Writes the results of edits: blocks, each over the version that the edit was made on, passages and facts.

    first_versions: the versions from which first edits were computed, by the rows of the blocks.
    reading: the part of a memory that the run reads. The run's passages and facts are stored in that memory.

    Raises: WriteConflict.
    """
    versions = dict(first_versions)
    for block_row, value, edit in merge.writes:
        try:
            await write_block(
                connection, block_row, versions[block_row], value, at=now, origin=f"tool:{edit.call_id}",
                exchange_row=edit.exchange_row, sources=(edit.exchange_row,) if reading is None else reading.exchanges,
            )  # fmt: skip
        except NotFound as error:
            raise WriteConflict(error.message) from error
        versions[block_row] += 1
    owner_row = agent_row
    facts = merge.facts
    if reading is not None:
        owner_row = reading.memory_row
        sources = tuple(reading.exchanges)
        facts = [replace(fact, exchange_row=None, sources=sources) for fact in facts]
    for text, edit in merge.passages:
        await add_saved_passage(
            connection, owner_row, text, edit, None if reading is None else reading.exchanges
        )
    await add_saved_facts(connection, owner_row, facts, now)
