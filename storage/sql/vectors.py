"""How far a memory has been embedded, and what is next.

Who embeds, and what a message of an exchange is, the caller decides. Embedded is what the search index knows: finished
exchanges whether they stand or not, since that may change, passages and facts. It goes on from a number in the agent's
order; where words change, or the embedder, that number goes back, and what has a vector already is passed over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace

from storage.base import Effect, MessagesOf
from storage.commands import Unembedded
from storage.records import Agent, Scope
from storage.search.blob import chunk_of
from storage.sql import exchanges
from storage.sql.recall import load_kept
from storage.sql.vectors_table import VECTORS, add_vectors, known_seqs
from storage.sqlite.reader import Reader, ThreadReader

__all__ = ["Vectors"]

_BATCH = 32  # exchanges read at once
_KEPT = 64  # passages and facts
_OTHERS = 8  # chunks of another model that go with one write, of some 60 kB each
_READ_MS = 5_000.0


class Vectors:
    def __init__(self, reader: Reader, long_reader: ThreadReader) -> None:
        self._reader = reader
        self._long_reader = long_reader

    async def unembedded(self, agent: int, model: str, messages_of: MessagesOf) -> Unembedded | None:
        """The next messages without a vector of this model; None where the agent is gone."""
        return await self._long_reader.run(
            lambda connection: _unembedded(connection, agent, model, messages_of), deadline_ms=_READ_MS
        )

    def beginning(self, agent: int, model: str) -> Effect:
        """From the first message on, with this model."""
        return lambda connection: connection.execute(VECTORS["begin"], (agent, model, 0))

    def adding(self, found: Unembedded, added: Mapping[int, bytes]) -> Effect:
        """added: float32 of one length, by number. Nothing where something has changed since `found` was read; all
        begins anew where the vectors of this model have another length than before."""
        return lambda connection: _add(connection, found, added)

    def has(self, agent: int, model: str) -> bool:
        """Whether anything of it was embedded."""
        row = self._reader.run(lambda c: c.execute(VECTORS["state"], (agent,)).fetchone())
        return row is not None and row[0] == model and row[1] > 0

    def lacks(self, agent: int, model: str) -> bool:
        """Whether something that is indexed was not embedded."""
        row = self._reader.run(lambda c: c.execute(VECTORS["lacks"], (model, agent)).fetchone())
        return row is not None and bool(row[0])

    def behind(self, model: str, limit: int) -> Sequence[int]:
        """People's memories of which not all is embedded."""
        rows = self._reader.run(lambda c: c.execute(VECTORS["behind"], (model, limit)).fetchall())
        return [row[0] for row in rows]


def _unembedded(
    connection: sqlite3.Connection, agent: int, model: str, messages_of: MessagesOf
) -> Unembedded | None:
    row = connection.execute(exchanges.SQL["agent_by_id"], (agent,)).fetchone()
    if row is None:
        return None
    uid, project, profile, subject, secret, epoch, indexed, next_seq, created = row
    of = Agent(agent, uid, Scope(project, profile, subject), secret, epoch, indexed, next_seq, created)
    state = connection.execute(VECTORS["state"], (agent,)).fetchone()
    if state is None or state[0] != model:
        return Unembedded(of, model, 0, 0, 0, is_new=True)
    _, dimension, cursor, stamp = state
    found = Unembedded(of, model, cursor, max(cursor, indexed), stamp)
    rows = connection.execute(exchanges.SQL["told_since"], (agent, cursor + 1, 0, -1, _BATCH)).fetchall()
    fresh = exchanges.with_content(rows)
    if len(rows) == _BATCH:
        found = replace(found, upto=min(found.upto, fresh[-1].seq + len(fresh[-1].inputs)))
    kept = load_kept(connection, "kept_since", (agent, cursor + 1, _KEPT))
    if len(kept) == _KEPT:
        found = replace(found, upto=min(found.upto, kept[-1].seq))
    messages = [m for e in fresh if e.seq <= found.upto for m in messages_of(e, False, None, None)]
    messages += [m for m in kept if m.seq <= found.upto]
    chunks = {chunk_of(m.seq) for m in messages}
    known = known_seqs(connection, agent, model, dimension, chunks)
    return replace(found, messages=[m for m in messages if m.seq not in known])


def _add(connection: sqlite3.Connection, found: Unembedded, added: Mapping[int, bytes]) -> None:
    agent, model = found.agent.id, found.model
    state = connection.execute(VECTORS["state"], (agent,)).fetchone()
    if state is None or (state[0], state[3]) != (model, found.stamp):
        return
    dimension = len(next(iter(added.values()))) // 4 if added else state[1]
    if state[1] not in (0, dimension) and found.cursor:
        connection.execute(VECTORS["begin"], (agent, model, dimension))
        return
    (stamp,) = connection.execute(VECTORS["advance"], (dimension, found.upto, agent)).fetchone()
    damaged = add_vectors(connection, agent, model, stamp, added)
    if damaged is not None:
        connection.execute(VECTORS["look_again"], (damaged - 1, agent))
    connection.execute(VECTORS["drop_others"], (agent, model, chunk_of(found.upto), _OTHERS))
