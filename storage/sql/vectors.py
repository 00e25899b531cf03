"""The vectors of messages, and the progress of embedding.

All that the search index holds is embedded: passages, facts and finished exchanges, including inactive exchanges, which
may become active. The cursor, in the table `embedded`, is the number of the last embedded message. It moves back when a
text or the embedder changes; messages that still have a vector are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from storage.database import BACKGROUND_READ_MS, Connection, Database
from storage.reader_commands import UnembeddedMessages
from storage.records import Agent, Message
from storage.search.blob import compute_chunk
from storage.sql.agents import find_agent_by_id
from storage.sql.group import StoreGroup, as_method, long_reads, makes_effect, reads
from storage.sql.passages import load_passages_and_facts_since
from storage.sql.shown_exchanges import load_exchanges_since
from storage.sql.statements import load, load_column, load_rows
from storage.sql.terms import get_covered
from storage.sql.vector_chunks import (
    add_vectors,
    begin_embedding,
    find_progress,
    move_cursor_back,
    read_chunk,
)
from storage.store_rules import Rules

SQL = load("vectors.sql")

# The most exchanges, and the most passages with facts, that are read at once.
_MAX_EXCHANGES = 32
_MAX_PASSAGES = 64
# The most chunks of other models that one write deletes. A chunk has some 60 kB.
_MAX_OLD_CHUNKS = 8


async def _lacks_vectors(connection: Connection, agent_row: int, model: str) -> bool:
    """Returns whether something that is indexed of a memory lacks a vector of this model."""
    return bool(await connection.fetch_value(SQL["memory_lacks_vectors"], (model, agent_row)))


class Vectors(StoreGroup):
    """Vectors of memories, and the progress of embedding. Forgotten or changed messages lose their vectors."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    async def find_unembedded(self, agent_row: int, model: str) -> UnembeddedMessages | None:
        """Returns the next messages without a vector of this model; None: the agent is gone."""
        return await self._database.long_read(
            lambda connection: self._find_unembedded(connection, agent_row, model),
            deadline_ms=BACKGROUND_READ_MS,
        )

    async def _find_unembedded(
        self, connection: Connection, agent_row: int, model: str
    ) -> UnembeddedMessages | None:
        agent = await find_agent_by_id(connection, agent_row)
        if agent is None:
            return None
        progress = await find_progress(connection, agent_row)
        if progress is None or progress.model != model:
            return UnembeddedMessages(agent=agent, model=model, cursor=0, upto=0, stamp=0, is_new=True)
        messages, upto = await self._load_page(connection, agent, progress.cursor)
        embedded: set[int] = set()
        for number in {compute_chunk(message.seq) for message in messages}:
            chunk = await read_chunk(connection, agent_row, number, model)
            if chunk is not None and chunk.dimension == progress.dimension:
                embedded.update(chunk.seqs.tolist())
        return UnembeddedMessages(
            agent=agent,
            model=model,
            cursor=progress.cursor,
            upto=upto,
            stamp=progress.stamp,
            messages=[message for message in messages if message.seq not in embedded],
        )

    async def _load_page(
        self, connection: Connection, agent: Agent, cursor: int
    ) -> tuple[list[Message], int]:
        """Returns the indexed messages after the cursor, as many as are read at once, and the number of the last."""
        upto = max(cursor, agent.indexed_seq)
        exchanges = [
            exchange
            for exchange, _, _ in await load_exchanges_since(connection, agent.id, cursor + 1, _MAX_EXCHANGES)
        ]
        if len(exchanges) == _MAX_EXCHANGES:
            upto = min(upto, exchanges[-1].reply_seq)
        passages_and_facts = await load_passages_and_facts_since(
            connection, agent.id, cursor + 1, _MAX_PASSAGES
        )
        if len(passages_and_facts) == _MAX_PASSAGES:
            upto = min(upto, passages_and_facts[-1].seq)
        messages = [
            message
            for exchange in exchanges
            if exchange.seq <= upto
            for message in self._rules.list_messages(exchange, False, None, None)
        ]
        messages += [message for message in passages_and_facts if message.seq <= upto]
        return messages, upto

    @makes_effect
    async def make_begin_effect(self, connection: Connection, agent_row: int, model: str) -> None:
        """Returns the effect that begins to embed a memory with a model, from the memory's first message on."""
        await connection.lock(agent_row)
        await begin_embedding(connection, agent_row, model, 0)

    @makes_effect
    async def make_add_effect(
        self, connection: Connection, unembedded: UnembeddedMessages, added: Mapping[int, bytes]
    ) -> bool:
        """Returns the effect that adds vectors.

        The effect does nothing if something has changed since `unembedded` was read, and begins again if the model's
        vectors have another length than before. It returns whether an indexed message still lacks a vector.

        added: float32 of one length, by the number of the message.
        """
        await connection.lock(unembedded.agent.id)
        await _add_embedded(connection, unembedded, added)
        return await _lacks_vectors(connection, unembedded.agent.id, unembedded.model)

    @reads
    async def has(self, connection: Connection, agent_rows: Sequence[int], model: str) -> bool:
        """Returns whether a model has embedded anything of any of these memories."""
        return bool(await load_rows(connection, SQL["agents_with_vectors"], agent_rows, model))

    lacks = reads(as_method(_lacks_vectors))

    @long_reads
    async def find_agents_to_embed(self, connection: Connection, model: str, limit: int) -> list[int]:
        """Returns memories that span conversations, can be reached, and are not wholly embedded by a model."""
        return await load_column(connection, SQL["agents_unembedded"], (model, limit))


async def _add_embedded(
    connection: Connection, unembedded: UnembeddedMessages, added: Mapping[int, bytes]
) -> None:
    agent_row, model = unembedded.agent.id, unembedded.model
    progress = await find_progress(connection, agent_row)
    if progress is None or (progress.model, progress.stamp) != (model, unembedded.stamp):
        return
    dimension = len(next(iter(added.values()))) // 4 if added else progress.dimension
    if progress.dimension not in (0, dimension) and unembedded.cursor:
        await begin_embedding(connection, agent_row, model, dimension)
        return
    stamp = await connection.fetch_value(SQL["cursor_advance"], (dimension, unembedded.upto, agent_row))
    damaged = await add_vectors(connection, agent_row, model, stamp, added)
    if damaged is not None:
        await move_cursor_back(connection, agent_row, await get_covered(connection, agent_row, damaged) + 1)
    await connection.run(
        SQL["chunks_delete_of_other_models"],
        (agent_row, model, compute_chunk(unembedded.upto), _MAX_OLD_CHUNKS),
    )
