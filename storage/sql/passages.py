"""Archival memories.

They are numbered in their agent's one order, among its messages, so that the search index can name both.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from storage.database import Connection
from storage.records import Message, Passage
from storage.sql.agents import take_seq
from storage.sql.group import Group, reads
from storage.sql.statements import load

SQL = load("statements.sql")


async def insert_passage(
    connection: Connection,
    agent: int,
    text: str,
    *,
    at: float,
    exchange: int | None = None,
    sources: Sequence[int] = (),
) -> Passage:
    """Adds an archival memory. Raises: NotFound when there is no such agent."""
    # Its number is of the same order as those of messages, so that the search index can name both.
    seq = await take_seq(connection, agent)
    values = (agent, seq, at, exchange, orjson.dumps(list(sources)), text)
    id = await connection.value(SQL["passage_insert"], values)
    return Passage(id, seq, text, at, tuple(sources))


async def load_kept(connection: Connection, statement: str, parameters: Sequence[object]) -> list[Message]:
    """Returns passages and facts as messages. A fact counts as said by the user, as whom it is searched for."""
    return [
        Message(
            seq,
            0,
            "user" if source == "fact" else "assistant",
            text,
            at,
            conversation or 0,
            source=source,
            origins=tuple(orjson.loads(origins or b"[]")),
        )
        for seq, text, at, source, origins, conversation in await connection.rows(statement, parameters)
    ]


class Passages(Group):
    """Archival memories, a page at a time."""

    @reads
    async def list(
        self, connection: Connection, agent: int, *, after: int = 0, limit: int = 100
    ) -> tuple[Passage, ...]:
        """Returns a page in order. after: the number last seen."""
        rows = await connection.rows(SQL["passage_list"], (agent, after, limit))
        return tuple(
            Passage(id, seq, text, at, tuple(orjson.loads(sources))) for id, seq, text, at, sources in rows
        )
