"""Previews of forgettings: what one would take, counted before it is begun: as `storage/sql/erase.py` takes it."""

from __future__ import annotations

from collections.abc import Sequence

from storage.commands import Erased, ForgetTarget, Rules
from storage.database import Connection, Database, Row
from storage.listing import ForgetCounts
from storage.sql.additions import DAY_S
from storage.sql.erase import SQL as FORGET
from storage.sql.erase import exchange_of
from storage.sql.exchanges import unpack_notes
from storage.sql.group import Group, long_reads
from storage.sql.statements import ascii_lower, load, rows_of

SQL = load("forget_preview.sql")

# Exchanges that go, and later ones with notes, which are looked at.
_MOST = 2_000
# Numbers of messages among which notes are looked for. Half a million exchanges without one took 0.7 s.
_MOST_NUMBERS = 50_000
_NOWHERE = -1
# Facts that are named.
_NAMED = 20


class ForgetPreviews(Group):
    """Counts what goes. The numbers are those of now."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    @long_reads
    async def counts(
        self, connection: Connection, agent: int, target: ForgetTarget, messages: int
    ) -> tuple[ForgetCounts, list[tuple[int, str]]]:
        """Returns how much a target takes, and the newest facts that go with messages: (number, text).

        messages: of it, as `Forgetting.extent` says; those of a whole memory are read.
        """
        if target.is_all:
            return await self._of_whole(connection, agent), []
        if target.facts or target.passages:
            return await self._of_named(connection, agent, target), []
        rows = await self._going(connection, agent, target)
        ids = [row[0] for row in rows]
        goes = (
            agent,
            _NOWHERE if target.conversation is None else target.conversation,
            ids[:64] if target.conversation is None else [],
        )
        versions = 0
        for block in await self._blocks(connection, agent):
            versions += await connection.value(SQL["versions"], (*goes, block))
        # By conversation the first depth and number that goes.
        first: dict[int, tuple[int, int]] = {}
        for _, seq, depth, conversation, *_ in rows:
            known = first.get(conversation, (depth, seq))
            first[conversation] = min(known[0], depth), min(known[1], seq)
        summaries = 0
        for conversation, (depth, seq) in first.items():
            summaries += await connection.value(SQL["summaries"], (agent, conversation, depth, seq))
        facts = await connection.rows(SQL["facts"], (*goes, _NAMED))
        counts = ForgetCounts(
            messages,
            facts[0][2] if facts else 0,
            await connection.value(SQL["passages"], goes),
            versions,
            summaries,
            await self._notes(connection, agent, rows, has_blocks=versions > 0),
        )
        return counts, [(seq, text) for seq, text, _ in facts]

    async def _of_whole(self, connection: Connection, agent: int) -> ForgetCounts:
        row = await connection.row(SQL["whole"], (agent,)) or (0,) * 5
        notes = None
        if row[0] <= _MOST:
            found = await connection.rows(SQL["notes"], (agent, 0, _MOST))
            notes = sum(bool(text) for _, packed in found for text in unpack_notes(packed).values())
        return ForgetCounts(row[0], row[1], row[2], row[3], row[4], notes)

    async def _of_named(self, connection: Connection, agent: int, target: ForgetTarget) -> ForgetCounts:
        """Returns how much facts or passages are that are named."""
        rows = await rows_of(connection, FORGET["facts_named"], target.facts, agent)
        versions = 0
        for text, *_ in rows:
            for block in await self._blocks(connection, agent):
                versions += await connection.value(SQL["versions_with"], (block, ascii_lower(text)))
        days = await rows_of(connection, FORGET["days_named"], [*target.facts, *target.passages], agent)
        erased = Erased(frozenset(int(at // DAY_S) for (at,) in days), versions > 0)
        notes = await self._quoting(connection, agent, 0, erased, set())
        return ForgetCounts(0, len(rows), len(target.passages), versions, 0, notes)

    async def _blocks(self, connection: Connection, agent: int) -> list[int]:
        scope = await connection.row(FORGET["scope_of"], (agent,))
        if scope is None:
            return []
        return [row[0] for row in await connection.rows(FORGET["blocks_seen"], (agent, scope[0], scope[1]))]

    async def _going(self, connection: Connection, agent: int, target: ForgetTarget) -> list[Row]:
        """Returns the exchanges that go or lose a message, one more than are looked at of a conversation."""
        if target.conversation is not None:
            return await connection.rows(SQL["exchanges_of"], (agent, target.conversation, _MOST + 1))
        ids = [await exchange_of(connection, agent, seq) for seq in target.messages]
        named = sorted({*target.exchanges, *(id for id in ids if id is not None)})
        return await rows_of(connection, SQL["exchanges_named"], named, agent)

    async def _notes(
        self, connection: Connection, agent: int, rows: Sequence[Row], *, has_blocks: bool
    ) -> int | None:
        if not rows or len(rows) > _MOST:
            return None if rows else 0
        days = {int(at // DAY_S) for *_, begun, ended in rows for at in (begun, ended) if at is not None}
        going = {row[0] for row in rows}
        first = min(row[1] for row in rows)
        return await self._quoting(connection, agent, first, Erased(frozenset(days), has_blocks), going)

    async def _quoting(
        self, connection: Connection, agent: int, since: int, erased: Erased, going: set[int]
    ) -> int | None:
        """Counts the notes that are in what goes, or may quote it; None: too much would have to be read.

        since: a number from which on they are read.
        """
        if await connection.value(SQL["last_number"], (agent,)) - since > _MOST_NUMBERS:
            return None
        found = await connection.rows(SQL["notes"], (agent, since, _MOST + 1))
        if len(found) > _MOST:
            return None
        return sum(
            id in going or self._rules.quotes(text, erased)
            for id, packed in found
            for text in unpack_notes(packed).values()
            if text
        )
