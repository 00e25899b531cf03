"""The content that a forgetting would erase, as the statements of a preview take it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from storage.database import Connection
from storage.forget_commands import BlockVersionKey
from storage.sql.statements import load

SQL = load("forget_preview.sql")

# The most exchanges that are read: erased exchanges, and later exchanges with notes.
MAX_EXCHANGES = 2_000
# The value of `ErasedExchanges.conversation_row` for exchanges alone.
NO_CONVERSATION = -1


class ErasedSpan(NamedTuple):
    """The exchanges that a path loses, up to `MAX_EXCHANGES` and one more: a row of `erased_spans`."""

    # The row of the path's conversation.
    conversation_row: int
    # The depth of the first of these exchanges.
    depth: int
    # The number of the first of these exchanges.
    seq: int
    # The number of these exchanges.
    exchange_count: int
    # The first row of these exchanges.
    first_row: int
    # The last row of these exchanges.
    last_row: int


class ErasedExchanges(NamedTuple):
    """The exchanges that are erased with a target, as the first parameters of statements."""

    # The row of the memory.
    agent_row: int
    # The row of the conversation that is erased; `NO_CONVERSATION`: the exchanges alone.
    conversation_row: int
    # The rows of the exchanges.
    exchange_rows: Sequence[int]


class ErasedContent(NamedTuple):
    """All content that is erased with a target."""

    # The exchanges.
    exchanges: ErasedExchanges
    # The texts of facts that the target names.
    fact_texts: Sequence[str]
    # The numbers of the messages that are erased; empty: whole exchanges are erased.
    seqs: Collection[int]
    # The earlier versions of blocks that the target names.
    block_versions: Sequence[BlockVersionKey]


async def find_erased_spans(connection: Connection, erased: ErasedExchanges) -> Sequence[ErasedSpan]:
    """Returns the exchanges that each path loses, without paths that lose none."""
    rows = await connection.fetch_rows(SQL["erased_spans"], (*erased, MAX_EXCHANGES + 1))
    return [span for span in (ErasedSpan(*row) for row in rows) if span.exchange_count]
