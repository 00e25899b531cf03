"""Recall: searching the packed index of one agent and what it does not know yet, and keeping it up.

Cost and order depend on this agent's rows alone. What the messages of an exchange are, and who may know them,
the rules decide (`Rules.messages_of`); superseded and forgotten turns are left out here, by the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from storage.commands import Rules
from storage.database import Connection, Database
from storage.errors import TooSlow
from storage.listing import PassageFilter
from storage.records import Agent, Message, Passage, Vector
from storage.search import blob, rank
from storage.sql import exchanges, vectors
from storage.sql.agents import load_agent, set_indexed
from storage.sql.group import Group, bulk_writes, reads
from storage.sql.passages import load_kept, load_passages
from storage.sql.terms import get_terms, load_terms, replace_terms
from storage.sql.vectors import VectorCache, find_near, forget_indexed

# From about this many messages on, ranking takes longer than a hop to the reader's thread (measured: 0.1 ms for 100
# messages, 1.6 ms for 10,000).
_LONG = 20_000
_LONG_UNREAD = 2_000  # where vectors have to be read first: of so many that takes 2 ms
_TAIL = 64  # exchanges not indexed yet that a query reads at most
_PASSAGES = 5000  # hits among which a search for passages looks for them
_BATCH = 64  # exchanges indexed in one write
_KEPT_BATCH = 1000  # passages and facts not indexed yet that a search reads at most
_KEPT_STEP = 64  # of them one step indexes: a part of a file has 2,000 characters, which take 0.4 ms


class Recall(Group):
    """The search of a memory, and the upkeep of its index."""

    def __init__(self, database: Database, cache: VectorCache, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules
        self._cache = cache

    async def search(
        self,
        agent: Agent,
        query: str,
        *,
        size: int,
        indexed: int,
        skip: range = range(0),
        limit: int = 40,
        room: int = 0,
        only_strong: bool = False,
        deadline_ms: float = 150.0,
        vector: Vector | None = None,
    ) -> list[Message]:
        """Returns messages, passages and facts of this agent that answer the query, best first.

        size: how many numbers the agent has given out. indexed: the last one that the index knows.
        skip: numbers that the request shows already. room: tokens that are to be filled; of short messages that takes
        more than `limit`. vector: the query's, compared with those of the same model.

        Raises: TooSlow, Unavailable.
        """

        async def read(connection: Connection) -> list[Message]:
            near = None if vector is None else await find_near(connection, self._cache, agent.id, vector)
            # The index does not know the newest exchanges yet: they are read, and ranked beside what it finds.
            blobs = [data for _, data in await load_terms(connection, agent.id)]
            known: dict[int, Message] = {}
            rows = await connection.rows(
                exchanges.SQL["spoken_unread"], (agent.id, indexed + 1, skip.start, skip.stop - 1, _TAIL)
            )
            for e, is_shared, previous in exchanges.spoken(rows):
                if e.standing:
                    for m in self._rules.messages_of(e, is_shared, previous, None):
                        known[m.seq] = m
            for m in await load_kept(connection, exchanges.SQL["kept_since"], (agent.id, indexed + 1, _TAIL)):
                known[m.seq] = m
            tail = [_document(m) for m in known.values()]
            hits = rank.rank(
                blobs,
                query,
                agent.secret,
                tail=tail,
                skip=skip,
                limit=min(limit, rank.MOST_HITS),
                room=room,
                only_strong=only_strong,
                near=near,
            )  # fmt: skip
            wanted = [seq for seq in hits if seq not in known]
            known.update(await _fetch(connection, agent.id, wanted, self._rules))
            return [known[seq] for seq in hits if seq in known]

        is_unread = vector is not None and self._cache.get(agent.id, vector.model) is None
        if size > (_LONG_UNREAD if is_unread else _LONG):
            try:
                async with asyncio.timeout(deadline_ms / 1000):  # the thread may be busy with something long
                    return await self._database.long_read(read, deadline_ms=deadline_ms)
            except TimeoutError:
                raise TooSlow(f"the search did not end within {deadline_ms:.0f} ms") from None
        return await self._database.read(read, deadline_ms=deadline_ms)

    async def passages(
        self,
        agent: Agent,
        query: str,
        wanted: PassageFilter,
        *,
        limit: int,
        deadline_ms: float = 1000.0,
        vector: Vector | None = None,
    ) -> list[Passage]:
        """Returns passages that answer the query, best first. agent: with its present numbers.

        Raises: TooSlow, Unavailable.
        """

        async def read_all(connection: Connection) -> list[Passage]:
            near = None if vector is None else await find_near(connection, self._cache, agent.id, vector)
            blobs = [data for _, data in await load_terms(connection, agent.id)]
            values = (agent.id, agent.indexed_seq + 1, _KEPT_BATCH)
            fresh = await load_kept(connection, exchanges.SQL["kept_since"], values)
            tail = [_document(m) for m in fresh]
            # All of the memory is ranked, since the weights of words are the memory's; messages are passed over.
            hits = rank.rank(blobs, query, agent.secret, tail=tail, limit=_PASSAGES, near=near)
            found: list[Passage] = []
            for start in range(0, len(hits), rank.MOST_HITS):
                some = hits[start : start + rank.MOST_HITS]
                read = await load_passages(connection, agent.id, some)
                found += [read[seq] for seq in some if seq in read and wanted.takes(read[seq])]
                if len(found) >= limit:
                    break
            return found[:limit]

        return await self._database.long_read(read_all, deadline_ms=deadline_ms)

    @reads
    async def recent(self, connection: Connection, agent: Agent, limit: int) -> list[Message]:
        """Returns the standing messages of the last exchanges, oldest first."""
        rows = await connection.rows(exchanges.SQL["recent"], (agent.id, limit))
        found = exchanges.spoken(reversed(rows))
        return [m for e, is_shared, _ in found for m in self._rules.messages_of(e, is_shared, None, None)]

    @reads
    async def behind(self, connection: Connection, at_least: int, limit: int) -> list[int]:
        """Returns agents whose index lacks that many messages."""
        return [id for (id,) in await connection.rows(exchanges.SQL["behind"], (at_least, limit))]

    @bulk_writes
    async def index(self, connection: Connection, agent: int) -> bool:
        """Brings the search index a step further. The future holds True while there is more."""
        of = await load_agent(connection, agent)
        if of is None:
            return False
        indexed = of.indexed_seq
        stale = [e for (e,) in await connection.rows(exchanges.SQL["stale"], (agent, _BATCH))]
        rows = await connection.rows(exchanges.SQL["spoken_since"], (agent, indexed + 1, _BATCH))
        fresh = exchanges.spoken(rows)
        is_all = len(rows) < _BATCH
        end = of.next_seq - 1 if is_all else max(e.seq + len(e.inputs) for e, _, _ in fresh)
        again = exchanges.spoken(await connection.rows(exchanges.SQL["spoken_stale"], (agent, stale)))
        # Messages that the index has not reached yet are among the fresh ones.
        again = [each for each in again if each[0].seq <= indexed]
        for e, _, _ in again:
            await forget_indexed(connection, agent, range(e.seq, e.seq + len(e.inputs) + 1))
            await connection.run(vectors.SQL["look_again"], (e.seq - 1, agent))
        kept = await load_kept(connection, exchanges.SQL["kept_since"], (agent, indexed + 1, _KEPT_STEP))
        if len(kept) == _KEPT_STEP and kept[-1].seq < end:
            end, is_all = kept[-1].seq, False  # the rest comes with the next step
        documents = [
            _document(m)
            for e, _, previous in (*again, *fresh)
            if e.standing and e.state == "finished" and e.seq <= end
            for m in self._rules.messages_of(e, False, previous, None)
        ]
        documents += [_document(m) for m in kept if m.seq <= end]
        for chunk, data in blob.encode(documents, of.secret).items():
            await replace_terms(
                connection, agent, chunk, blob.merge(await get_terms(connection, agent, chunk), data)
            )
        for exchange in stale:
            await connection.run(exchanges.SQL["stale_done"], (agent, exchange))
        if end > indexed:
            await set_indexed(connection, agent, end)
        return not is_all or len(stale) == _BATCH


async def _fetch(connection: Connection, agent: int, seqs: Sequence[int], rules: Rules) -> dict[int, Message]:
    if not seqs:
        return {}
    wanted = frozenset(seqs)
    rows = await connection.rows(exchanges.SQL["spoken_at"], (agent, seqs))
    found = {
        m.seq: m
        for e, is_shared, _ in exchanges.spoken(rows)
        for m in rules.messages_of(e, is_shared, None, wanted)
    }
    if any(seq not in found for seq in seqs):
        kept = await load_kept(connection, exchanges.SQL["kept_at"], (agent, seqs))
        found.update({m.seq: m for m in kept})
    return found


def _document(m: Message) -> blob.Document:
    return blob.Document(m.seq, m.role, m.text, m.at, m.speaker, m.previous)
