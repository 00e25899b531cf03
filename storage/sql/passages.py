"""Archival memories.

They are numbered in their agent's one order, among its messages, so that the search index can name both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import orjson

from storage.errors import NotFound
from storage.records import Message, Passage
from storage.sql.agents import take_seq
from storage.sql.statements import load_queries
from storage.sqlite.reader import Reader
from storage.sqlite.writer import Writer

__all__ = ["Passages", "insert_passage", "list_passages", "load_kept"]

_Q = load_queries()


def insert_passage(
    connection: sqlite3.Connection,
    agent: int,
    text: str,
    *,
    at: float,
    exchange: int | None = None,
    sources: Sequence[int] = (),
) -> Passage:
    """Raises: NotFound when there is no such agent."""
    seq = take_seq(connection, agent)
    if seq is None:
        raise NotFound(f"there is no agent {agent}")
    values = (agent, seq, at, exchange, orjson.dumps(list(sources)), text)
    (id,) = connection.execute(_Q["passage_insert"], values).fetchone()
    return Passage(id, seq, text, at, tuple(sources))


def list_passages(
    connection: sqlite3.Connection, agent: int, *, after: int = 0, limit: int = 100
) -> tuple[Passage, ...]:
    """A page in order, after the number last seen."""
    rows = connection.execute(_Q["passage_list"], (agent, after, limit)).fetchall()
    return tuple(
        Passage(id, seq, text, at, tuple(orjson.loads(sources))) for id, seq, text, at, sources in rows
    )


def load_kept(connection: sqlite3.Connection, statement: str, parameters: Sequence[object]) -> list[Message]:
    """Passages and facts. A fact counts as said by the user: it is looked for as what users say is."""
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
        for seq, text, at, source, origins, conversation in connection.execute(
            statement, parameters
        ).fetchall()
    ]


class Passages:
    """Passages for those who have no transaction of their own."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def list(self, agent: int, *, after: int = 0, limit: int = 100) -> tuple[Passage, ...]:
        return self._reader.run(lambda connection: list_passages(connection, agent, after=after, limit=limit))

    async def insert(self, agent: int, text: str, *, at: float, sources: Sequence[int] = ()) -> Passage:
        """Raises: NotFound."""
        return await self._writer.submit(
            lambda connection: insert_passage(connection, agent, text, at=at, sources=sources),
            bytes=len(text) * 4,
        )
