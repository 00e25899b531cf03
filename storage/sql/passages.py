"""Passages: texts in an agent's archival memory.

Passages and messages of an agent are numbered in one order, so that the search index can name both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from storage.database import Connection, Row
from storage.listing import Page, PassageDraft, PassageFilter
from storage.records import MemoryEdit, Message, Passage
from storage.sql.agents import take_seq
from storage.sql.filtered_pages import fill_page
from storage.sql.group import as_method, long_reads, reads
from storage.sql.growth import GrowingGroup
from storage.sql.statements import load, load_rows, lower_ascii

SQL = load("passages.sql")


async def insert_passage(
    connection: Connection,
    agent_row: int,
    text: str,
    *,
    at: float,
    exchange_row: int | None = None,
    sources: Sequence[int] = (),
    file: int | None = None,
    tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> Passage:
    """Adds a passage.

    at: the time of the passage, in seconds since the epoch.
    exchange_row: the exchange in which the passage was saved; None: it was saved in no exchange.
    sources: the rows of all exchanges that the passage may quote.
    file: the row of the file of which the passage is a part; None: it is a part of no file.

    Raises: NotFound if there is no such agent.
    """
    seq = await take_seq(connection, agent_row)
    tags_json = orjson.dumps(list(tags)).decode() if tags else None
    metadata_json = orjson.dumps(metadata).decode() if metadata else None
    sources_json = orjson.dumps(list(sources))
    values = (agent_row, seq, at, exchange_row, sources_json, file, tags_json, metadata_json, text)
    passage_row = await connection.fetch_value(SQL["passage_insert"], values)
    return Passage(
        passage_row,
        seq,
        text,
        at,
        sources=tuple(sources),
        file=file,
        tags=tuple(tags),
        metadata=dict(metadata or {}),
    )


async def add_saved_passage(
    connection: Connection, agent_row: int, text: str, edit: MemoryEdit, sources: Sequence[int] | None = None
) -> None:
    """Adds the passage that a model has saved by a tool.

    edit: the edit of that call, which has the passage's tags.
    sources: the exchanges that the passage came from; None: the exchange of the edit.
    """
    tags = orjson.loads(edit.arguments).get("tags") or ()
    exchange_row = edit.exchange_row if sources is None else None
    source_rows = (edit.exchange_row,) if sources is None else sources
    await insert_passage(
        connection, agent_row, text, at=edit.at, exchange_row=exchange_row, sources=source_rows, tags=tags
    )


async def load_passages_and_facts_since(
    connection: Connection, agent_row: int, first_seq: int, limit: int
) -> list[Message]:
    """Returns the first passages and facts from a number on, as messages."""
    values = (agent_row, first_seq, limit)
    rows = await connection.fetch_rows(SQL["passages_and_facts_since"], values)
    return make_passage_and_fact_messages(rows)


async def load_passages_and_facts_at(
    connection: Connection, agent_row: int, seqs: Sequence[int]
) -> list[Message]:
    """Returns the passages, and the facts that are still true, with these numbers, as messages."""
    rows = await connection.fetch_rows(SQL["passages_and_facts_at"], (agent_row, seqs))
    return make_passage_and_fact_messages(rows)


def make_passage_and_fact_messages(rows: Iterable[Row]) -> list[Message]:
    """Returns messages with the texts of passages and facts. A fact counts as a message of the user.

    rows: the rows of `passages_and_facts_at`.
    """
    return [
        Message(
            seq=seq,
            exchange_row=0,
            role="assistant" if kind == "passage" else "user",
            text=text,
            at=at,
            conversation_row=conversation_row or 0,
            kind=kind,
            sources=tuple(orjson.loads(sources or b"[]")),
        )
        for seq, text, at, kind, sources, conversation_row in rows
    ]


async def load_passages(connection: Connection, agent_row: int, seqs: Sequence[int]) -> dict[int, Passage]:
    """Returns the passages with these numbers that exist, by number."""
    rows = await load_rows(connection, SQL["passage_get"], seqs, agent_row)
    return {row[1]: _make_passage(row) for row in rows}


class Passages(GrowingGroup):
    """Passages of agents. Each statement finds passages of one agent alone."""

    async def add(self, agent_row: int, drafts: Sequence[PassageDraft]) -> list[Passage]:
        """Adds passages, all or none. Raises: NotFound if there is no such agent."""

        async def write(connection: Connection) -> list[Passage]:
            return [
                await insert_passage(
                    connection, agent_row, draft.text, at=draft.at, tags=draft.tags, metadata=draft.metadata
                )
                for draft in drafts
            ]

        return await self._grow(agent_row, len(drafts), self._database.bulk_write(write))

    @long_reads
    async def list_page(
        self, connection: Connection, agent_row: int, page: Page[int], passage_filter: PassageFilter
    ) -> list[Passage]:
        """Returns a page of passages. Its cursors are numbers of passages, which may be gone."""

        async def read(low: int, high: int, size: int) -> tuple[Iterable[Passage], int | None]:
            values = (
                agent_row,
                low,
                high,
                lower_ascii(passage_filter.text),
                passage_filter.since,
                passage_filter.until,
                size,
            )
            rows = await connection.fetch_rows(SQL[f"passage_{page.direction}"], values)
            matching = [passage for passage in map(_make_passage, rows) if passage_filter.matches(passage)]
            return matching, rows[-1][1] if len(rows) == size else None

        return await fill_page(page, *page.bounds, read)

    load = reads(as_method(load_passages))

    @reads
    async def count(self, connection: Connection, agent_row: int) -> int:
        """Returns the number of an agent's passages."""
        return int(await connection.fetch_value(SQL["passage_count"], (agent_row,)))

    @reads
    async def list_texts(
        self, connection: Connection, agent_row: int, *, after: int = 0, limit: int = 100
    ) -> tuple[Passage, ...]:
        """Returns a page of passages, in order, without their files, tags and metadata.

        after: the number of the last passage on the previous page.
        """
        rows = await connection.fetch_rows(SQL["passage_list"], (agent_row, after, limit))
        return tuple(
            Passage(passage_row, seq, text, at, tuple(orjson.loads(sources)))
            for passage_row, seq, text, at, sources in rows
        )


def _make_passage(row: Row) -> Passage:
    passage_row, seq, text, at, sources, file, tags, metadata = row
    return Passage(
        passage_row,
        seq,
        text,
        at,
        sources=tuple(orjson.loads(sources)),
        file=file,
        tags=tuple(orjson.loads(tags or "[]")),
        metadata=orjson.loads(metadata or "{}"),
    )
