"""The notes that a forgetting would erase, since they may quote the erased content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from storage.database import Connection
from storage.forget_commands import ErasedMarks
from storage.sql.additions import DAY_S
from storage.sql.exchange_rows import unpack_notes
from storage.sql.preview_content import MAX_EXCHANGES, ErasedExchanges, ErasedSpan
from storage.sql.statements import load
from storage.store_rules import Rules

SQL = load("forget_preview.sql")

# The most numbers of messages among which notes are looked for. Half a million exchanges without a note took 0.7 s.
_MAX_NUMBERS = 50_000
# The most exchanges that a preview lists because they lose a note.
_LISTED_NOTES = 5


class NoteCount(NamedTuple):
    """The number of notes that are erased."""

    # The number; None: too much would have to be read to count the notes.
    total: int | None = 0
    # The rows of the newest exchanges that stay and lose a note, for `PreviewedCounts.noted_rows`.
    exchange_rows: Sequence[int] = ()


async def count_notes(
    connection: Connection,
    rules: Rules,
    erased: ErasedExchanges,
    spans: Sequence[ErasedSpan],
    *,
    has_blocks: bool,
) -> NoteCount:
    """Counts the notes that would be erased with exchanges. has_blocks: True if blocks change as well."""
    if not spans:
        return NoteCount()
    if sum(span.exchange_count for span in spans) > MAX_EXCHANGES:
        return NoteCount(None)
    first_seq = min(span.seq for span in spans)
    if await _is_far_back(connection, erased.agent_row, first_seq):
        return NoteCount(None)
    rows = await connection.fetch_rows(SQL["erased_times"], (*erased, MAX_EXCHANGES))
    days = {int(at // DAY_S) for _, *times in rows for at in times if at is not None}
    marks = ErasedMarks(frozenset(days), has_blocks)
    erased_rows = {exchange_row for exchange_row, *_ in rows}
    return await _count_notes_since(
        connection, rules, erased.agent_row, first_seq, marks, erased_rows=erased_rows
    )


async def count_quoting_notes(
    connection: Connection,
    rules: Rules,
    agent_row: int,
    marks: ErasedMarks,
    counted_rows: Collection[int] = (),
) -> NoteCount:
    """Counts the notes of a memory that may quote erased content. counted_rows: as in `_count_notes_since`."""
    if await _is_far_back(connection, agent_row, 0):
        return NoteCount(None)
    return await _count_notes_since(connection, rules, agent_row, 0, marks, counted_rows=counted_rows)


async def _count_notes_since(
    connection: Connection,
    rules: Rules,
    agent_row: int,
    first_seq: int,
    marks: ErasedMarks,
    *,
    erased_rows: Collection[int] = (),
    counted_rows: Collection[int] = (),
) -> NoteCount:
    """Counts the notes that are erased, or may quote erased content.

    first_seq: the number of the first message with notes that are read.
    erased_rows: the rows of the exchanges that are erased with their notes.
    counted_rows: the rows of further such exchanges, whose notes are counted elsewhere.
    """
    rows = await connection.fetch_rows(SQL["notes"], (agent_row, first_seq, MAX_EXCHANGES + 1))
    if len(rows) > MAX_EXCHANGES:
        return NoteCount(None)
    noted_rows = [
        exchange_row
        for exchange_row, packed in rows
        if exchange_row not in counted_rows
        for text in unpack_notes(packed).values()
        if text and (exchange_row in erased_rows or rules.may_quote(text, marks))
    ]
    staying_rows = (row for row in reversed(noted_rows) if row not in erased_rows)
    return NoteCount(len(noted_rows), choose_newest_rows(staying_rows))


def choose_newest_rows(newest_first: Iterable[int]) -> Sequence[int]:
    """Returns the first of some rows of exchanges that a preview lists, each once."""
    return tuple(dict.fromkeys(newest_first))[:_LISTED_NOTES]


async def _is_far_back(connection: Connection, agent_row: int, seq: int) -> bool:
    """Returns whether more messages came after a number than are looked through for notes."""
    last_seq = await connection.fetch_value(SQL["last_number"], (agent_row,)) or 0
    return last_seq - seq > _MAX_NUMBERS
