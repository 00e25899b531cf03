"""Learned facts, and the writing of a reader's results. Other transactions write facts by fact_writes.py.

A fact's row never grows (docs/decisions.md, "Facts are immutable"); a table of its own names the facts that gave way to
others. Two values name a fact: its number (`seq`), which counts together with the agent's messages, so that the search
index can name both; and its row (`id`), by which other tables refer to it. The caller decides what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import orjson
from msgspec.structs import replace

from storage.commands import LearnedFact, SourcedLine
from storage.database import Connection, Row
from storage.errors import NotFound, WriteConflict
from storage.listing import LAST_NUMBER
from storage.reader_commands import LearnedChanges
from storage.records import LEARNER, Agent, Block, Fact, RememberedFact
from storage.sql.block_history import list_line_sources, load_versions
from storage.sql.blocks import load_blocks, write_block
from storage.sql.default_blocks import ensure_blocks
from storage.sql.fact_writes import add_fact, end_fact, find_equal, hash_key, mute_fact
from storage.sql.group import as_method, long_reads, makes_effect, reads, writes
from storage.sql.growth import GrowingGroup
from storage.sql.readers import advance, load_cursor
from storage.sql.statements import load, load_rows

SQL = load("facts.sql")

# The origin of versions of blocks that a reader has written.
_READER_ORIGIN = "learning"
# The most standing facts that are read. Not measured: older standing facts are shown in no prompt.
_MAX_STANDING_FACTS = 100
# The last facts that are looked through for a person's name. Not measured: a name that only an older fact has
# is not known.
_MAX_NAMING_FACTS = 1_000


async def _find_fact(connection: Connection, agent_row: int, seq: int) -> Fact | None:
    """Returns the fact with this number, also if it is no longer true; None: there is no such fact."""
    row = await connection.fetch_row(SQL["at"], (agent_row, seq))
    return None if row is None else _make_fact(row)


class Facts(GrowingGroup):
    """Reads and writes of facts."""

    find = reads(as_method(_find_fact))

    @reads
    async def list_page(
        self,
        connection: Connection,
        agent_row: int,
        *,
        includes_ended: bool = False,
        before: int = LAST_NUMBER,
        limit: int = 100,
    ) -> list[Fact]:
        """Returns a page of facts, newest first.

        includes_ended: True to include facts that are no longer true.
        before: the number of the last fact on the previous page.
        """
        statement = SQL["all" if includes_ended else "current"]
        return [_make_fact(row) for row in await connection.fetch_rows(statement, (agent_row, before, limit))]

    @reads
    async def list_page_as_of(
        self, connection: Connection, agent_row: int, as_of: float, *, before: int, limit: int
    ) -> list[Fact]:
        """Returns a page of the facts that were true at a time, newest first.

        as_of: the time, in seconds since the epoch.
        before: the number of the last fact on the previous page.
        """
        rows = await connection.fetch_rows(SQL["as_of"], (agent_row, before, limit, as_of))
        return [_make_fact(row) for row in rows]

    @reads
    async def list_ended(self, connection: Connection, agent_row: int, limit: int) -> list[Fact]:
        """Returns the newest facts that are no longer true, newest first."""
        return [_make_fact(row) for row in await connection.fetch_rows(SQL["ended"], (agent_row, limit))]

    @reads
    async def list_naming(self, connection: Connection, agent_row: int) -> list[str]:
        """Returns the texts of true facts in which a person may be named, newest first.

        At most 50 of the last `_MAX_NAMING_FACTS` facts are returned.
        """
        rows = await connection.fetch_rows(SQL["naming"], (agent_row, _MAX_NAMING_FACTS))
        return [row[0] for row in rows]

    @reads
    async def list_unmuted(self, connection: Connection, agent_row: int, limit: int) -> list[Fact]:
        """Returns the facts that are true and not muted, newest first."""
        return [_make_fact(row) for row in await connection.fetch_rows(SQL["unmuted"], (agent_row, limit))]

    @reads
    async def list_standing(self, connection: Connection, agent_row: int) -> list[Fact]:
        """Returns the standing facts that are true, newest first, at most `_MAX_STANDING_FACTS`."""
        rows = await connection.fetch_rows(SQL["standing"], (agent_row, _MAX_STANDING_FACTS))
        return [_make_fact(row) for row in rows]

    @reads
    async def load(self, connection: Connection, agent_row: int, seqs: Sequence[int]) -> list[Fact]:
        """Returns the facts with these numbers, true or not, in this order. Missing facts are left out."""
        rows = await load_rows(connection, SQL["get"], seqs, agent_row)
        facts = {fact.seq: fact for fact in map(_make_fact, rows)}
        return [facts[seq] for seq in seqs if seq in facts]

    @long_reads
    async def find_existing(
        self, connection: Connection, facts: Collection[tuple[str, int]]
    ) -> set[tuple[str, int]]:
        """Returns the facts among these that are stored, true or not.

        facts: the uid of the memory and the number of the fact, for each fact.
        """
        sorted_facts = sorted(facts)
        existing: set[tuple[str, int]] = set()
        page_size = min(SQL["existing"].sizes.values())
        for start in range(0, len(sorted_facts), page_size):
            uids, seqs = zip(*sorted_facts[start : start + page_size], strict=True)
            rows = await connection.fetch_rows(SQL["existing"], ([*uids], [*seqs]))
            existing.update((uid, seq) for uid, seq in rows)
        return existing.intersection(sorted_facts)

    @reads
    async def list_replaced(self, connection: Connection, agent_row: int, fact_row: int) -> list[Fact]:
        """Returns the facts that a fact replaced, newest first."""
        return [_make_fact(row) for row in await connection.fetch_rows(SQL["before"], (agent_row, fact_row))]

    @writes
    async def mute(
        self, connection: Connection, agent_row: int, seq: int, at: float, *, is_muted: bool
    ) -> Fact:
        """Mutes or unmutes a fact. A muted fact stays in lists and reaches no model. Raises: NotFound."""
        await connection.lock(agent_row)
        if is_muted:
            await mute_fact(connection, agent_row, seq, at)
        else:
            await connection.run(SQL["unmute"], (agent_row, seq))
        return await _get_fact(connection, agent_row, seq)

    @writes
    async def set_standing(
        self,
        connection: Connection,
        agent_row: int,
        seq: int,
        *,
        is_standing: bool,
        replaced_rows: Sequence[int],
        at: float,
    ) -> Fact:
        """Makes a fact standing, so that the memory section shows it, or ends that.

        replaced_rows: the rows of the facts that it replaces from now on; its own row is ignored.
        at: now, in seconds since the epoch.

        Raises: NotFound; WriteConflict: the fact is muted, or no longer true.
        """
        await connection.lock(agent_row)
        fact = await _get_true_fact(connection, agent_row, seq)
        if fact.muted:
            raise WriteConflict(f"fact {seq} is not mentioned at all")
        await connection.run(SQL["set_standing"], (agent_row, seq, int(is_standing)))
        for replaced_row in replaced_rows:
            if replaced_row != fact.id:
                await end_fact(connection, agent_row, replaced_row, fact.id, at)
        await connection.run(SQL["raise_rev"], (agent_row,))
        return replace(fact, standing=is_standing)

    async def correct(self, agent: Agent, seq: int, text: str, key: str, origin: str, at: float) -> Fact:
        """Replaces a fact by a new fact with the same sources, from now on. Returns the new fact.

        The new fact is muted if the old fact was, so that no model is shown what a person has muted.

        key: the key of the new text, as in `LearnedFact`.

        Raises: NotFound; WriteConflict: the old fact is no longer true.
        """

        async def write(connection: Connection) -> Fact:
            await connection.lock(agent.id)
            old_fact = await _get_true_fact(connection, agent.id, seq)
            fact = LearnedFact(
                text=text,
                about=old_fact.about,
                key=key,
                valid_from=at,
                exchange_row=old_fact.exchange_row,
                sources=old_fact.sources,
                replaces=[old_fact.id],
                standing=old_fact.standing,
                muted=old_fact.muted,
            )
            await add_fact(connection, agent, fact, at, origin, is_stated=True)
            successor = (await _get_fact(connection, agent.id, seq)).successor
            new_fact = None if successor is None else await _find_fact(connection, agent.id, successor)
            if new_fact is None:
                raise WriteConflict(f"fact {seq} already says so")
            return new_fact

        return await self._grow(agent.id, 1, self._database.write(write))

    async def remember(
        self,
        agent: Agent,
        text: str,
        key: str,
        origin: str,
        at: float,
        *,
        standing: bool = False,
        replaced_rows: Sequence[int] = (),
    ) -> RememberedFact:
        """Adds a fact that a person has stated, unless an equal fact is true. Returns the new or the equal fact.

        key: the key of the text, as in `LearnedFact`.
        standing: True if the fact always holds. It then takes the place of an equal fact that is not standing, if that
            fact is not muted.
        replaced_rows: the rows of the facts that the fact replaces.

        Raises: NotFound: the memory is gone.
        """

        async def write(connection: Connection) -> RememberedFact:
            await connection.lock(agent.id)
            equal_row = await find_equal(connection, agent.id, hash_key(agent.secret, key))
            ended_rows = [*replaced_rows]
            if equal_row is not None:
                equal_fact = await read_row(connection, equal_row)
                if equal_fact.muted or equal_fact.standing or not standing:
                    return RememberedFact(equal_fact, is_new=False)
                ended_rows.append(equal_fact.id)
            fact = LearnedFact(
                text,
                about="",
                key=key,
                valid_from=at,
                exchange_row=None,
                sources=(),
                replaces=ended_rows,
                standing=standing,
            )
            fact_row = await add_fact(connection, agent, fact, at, origin, is_stated=True)
            assert fact_row is not None  # a fact that a person has written is always added
            return RememberedFact(await read_row(connection, fact_row), is_new=True)

        async def read_row(connection: Connection, fact_row: int) -> Fact:
            row = await connection.fetch_row(SQL["of_row"], (agent.id, fact_row))
            assert row is not None  # it was just written, or found
            return _make_fact(row)

        return await self._grow(agent.id, 1, self._database.write(write))

    @reads
    async def load_blocks(self, connection: Connection, agent_row: int) -> tuple[Block, ...]:
        """Returns an agent's blocks, for a reader. Shared blocks are read-only, since other users see them, too."""
        return await load_blocks(connection, agent_row, makes_shared_read_only=True)

    @long_reads
    async def load_sourced_lines(
        self, connection: Connection, agent_row: int, shown_versions: Mapping[str, int]
    ) -> list[SourcedLine]:
        """Returns the lines of an agent's own blocks that came from exchanges.

        shown_versions: the number of the newest version to read, by the label of each block to read.
        """
        sourced_lines: list[SourcedLine] = []
        for block in await load_blocks(connection, agent_row, makes_shared_read_only=True):
            if block.read_only or block.label not in shown_versions:
                continue
            last_number = shown_versions[block.label]
            versions = [
                version
                for version in await load_versions(connection, block.id)
                if version.number <= last_number
            ]
            sources = list_line_sources(versions)
            lines = dict.fromkeys(versions[-1].value.split("\n") if versions else ())
            sourced_lines += [
                SourcedLine(line, tuple(sorted(sources[line]))) for line in lines if sources.get(line)
            ]
        return sourced_lines

    @makes_effect
    async def make_learn_effect(
        self,
        connection: Connection,
        agent: Agent,
        cursor: int,
        upto: int,
        now: float,
        decide: Callable[[Sequence[Block]], LearnedChanges],
        reader: int = LEARNER,
    ) -> None:
        """Returns the effect that writes the facts and blocks of a reader, and moves its cursor.

        The effect does nothing if the cursor has moved meanwhile.

        cursor: the number of the last message that the reader had read when its work began.
        upto: the number of the last message that it has read now.
        decide: a function that returns the facts and blocks to write, given the blocks as they are in the transaction.
        reader: the reader to which the cursor belongs.
        """
        await connection.lock_sharers(agent.id)
        if await load_cursor(connection, agent.id, reader) != cursor:
            return
        learned = decide(await load_blocks(connection, agent.id, makes_shared_read_only=True))
        for block, value, sources in learned.writes:
            if not block.id:
                await ensure_blocks(connection, agent.id, [replace(block, value="")], now)
                block = next(
                    current
                    for current in await load_blocks(connection, agent.id)
                    if current.label == block.label
                )
            await write_block(
                connection, block.id, block.version, value, at=now, origin=_READER_ORIGIN, sources=sources
            )
        for fact in learned.facts:
            await add_fact(connection, agent, fact, now)
        await advance(connection, agent.id, reader, upto, now)


async def _get_fact(connection: Connection, agent_row: int, seq: int) -> Fact:
    """Returns the fact with this number, true or not. Raises: NotFound."""
    fact = await _find_fact(connection, agent_row, seq)
    if fact is None:
        raise NotFound(f"there is no fact {seq}")
    return fact


async def _get_true_fact(connection: Connection, agent_row: int, seq: int) -> Fact:
    """Returns the fact with this number. Raises: NotFound; WriteConflict: the fact is no longer true."""
    fact = await _get_fact(connection, agent_row, seq)
    if fact.ended_at is not None:
        raise WriteConflict(f"fact {seq} is no longer true: fact {fact.successor} took its place")
    return fact


def _make_fact(row: Row) -> Fact:
    """Returns the record of a row of the piece `fact`."""
    (
        fact_row, seq, text, about, at, valid_from, exchange_row, sources, ended_at, successor, origin,
        muted, standing, taken_back,
    ) = row  # fmt: skip
    return Fact(
        id=fact_row,
        seq=seq,
        text=text,
        about=about,
        at=at,
        valid_from=valid_from,
        exchange_row=exchange_row,
        sources=tuple(orjson.loads(sources)),
        ended_at=ended_at,
        successor=successor,
        origin=origin,
        muted=bool(muted),
        standing=bool(standing),
        taken_back=bool(taken_back),
    )
