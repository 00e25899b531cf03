"""Imports of other applications' exports: each part of a conversation is written with the import's progress.

The caller decides which part of a conversation is new. Exchanges are added as turns add them. The table `imported`
names the import of each added exchange, so that the import can be undone (`erase.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, Literal, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from storage.commands import LearnedFact
from storage.database import Connection, Row
from storage.errors import NotFound, WriteConflict
from storage.import_commands import (
    ImportCandidates,
    ImportChange,
    ImportNote,
    ImportWrite,
    ImportWriting,
    MatchedExchange,
)
from storage.listing import LAST_NUMBER
from storage.operator_records import ImportOrigin, StoredImport
from storage.records import (
    IMPORT,
    LEARNER,
    RULE,
    Agent,
    Exchange,
    MarkKind,
    MemoryVersion,
    Scope,
    make_message_key,
    place_exchange,
)
from storage.sql import exchanges
from storage.sql.agents import find_agent_by_id, find_numbers
from storage.sql.epochs import has_risen
from storage.sql.erasing_work import StoredTarget
from storage.sql.exchange_rows import make_exchange, make_exchanges
from storage.sql.fact_writes import add_fact, is_fact_known
from storage.sql.group import StoreGroup, as_method, bulk_writes, long_reads, reads
from storage.sql.readers import advance, load_cursor
from storage.sql.statements import load, load_rows

SQL = load("imports.sql")

# The exchanges of a part. SQLite's writer takes 1.4 ms for them, which turns wait for; 32 took PostgreSQL 54 ms on a
# busy machine.
EXCHANGES_AT_ONCE: Final = 16


class _FinishedReaders(NamedTuple):
    """The readers that have nothing more to read of a memory."""

    # The cursor of each reader, by the reader's number.
    cursors: Mapping[int, int]
    # The last number of a message that the readers need not read.
    last_seq: int


async def note_progress(connection: Connection, note: ImportNote) -> None:
    """Stores the progress of an import. Raises: NotFound if the import was stopped, so that it may not write."""
    if not await connection.run(SQL["note"], (note.row, note.status, note.at, note.data)):
        raise NotFound("this import was stopped, to be undone or with its memory")


class Imports(StoreGroup):
    """Imports, and the writing of their conversations and facts."""

    note_progress = bulk_writes(as_method(note_progress))

    @reads
    async def find(self, connection: Connection, uid: str, project: str | None = None) -> StoredImport | None:
        """Returns the import with a public id.

        project: the one project to look in; None: all projects.
        """
        row = await connection.fetch_row(SQL["find"], (uid, project))
        return None if row is None else _make_import(row)

    @reads
    async def list_page(
        self, connection: Connection, project: str | None, *, before: int = LAST_NUMBER, limit: int = 100
    ) -> list[StoredImport]:
        """Returns a page of imports, the newest first. before: the row of the last import on the previous page."""
        return [
            _make_import(row) for row in await connection.fetch_rows(SQL["list"], (project, before, limit))
        ]

    @bulk_writes
    async def begin(
        self,
        connection: Connection,
        agent: Agent,
        uid: str,
        format_name: str,
        data: bytes,
        at: float,
        *,
        learns: bool,
    ) -> int:
        """Begins an import, or begins an import with the same uid again. Returns its row.

        format_name: the name of the export's format.
        data: the progress of the import, as JSON.
        at: the present time, in seconds since the epoch.
        learns: True if readers learn from the imported exchanges.

        Raises: NotFound if the memory is gone; WriteConflict if the import is being undone.
        """
        await _lock_memory(connection, agent)
        earlier_row = await connection.fetch_row(SQL["find"], (uid, None))
        if earlier_row is not None and await _is_being_undone(connection, agent.id, earlier_row[0]):
            raise WriteConflict("this import is being undone")
        values = (uid, agent.id, format_name, "running", int(learns), at, data)
        return int(await connection.fetch_value(SQL["begin"], values))

    @bulk_writes
    async def touch(self, connection: Connection, row: int, at: float) -> None:
        """Stores the time at which an import was last under way."""
        await connection.run(SQL["touch"], (row, at))

    @long_reads
    async def plan(self, connection: Connection, write: ImportWrite, written_count: int = 0) -> ImportWriting:
        """Returns a conversation with the changes that it would make, for `write_part` to write.

        written_count: the number of its exchanges that the import has written before it was stopped.
        """
        return await _decide_changes(connection, write.agent, write, written_count)

    @bulk_writes
    async def write_part(
        self, connection: Connection, writing: ImportWriting, make_note: Callable[[ImportWriting], ImportNote]
    ) -> ImportWriting:
        """Writes up to `EXCHANGES_AT_ONCE` exchanges of a conversation, and the progress of the import.

        If turns come between two parts of a conversation, the changes are decided again.

        make_note: a function that returns the progress of the import for the conversation with the written part.

        Raises: NotFound if the memory is gone, or the import was stopped; WriteConflict if the memory is paused.
        """
        agent = await _lock_unpaused(connection, writing.write.agent)
        if await _find_version(connection, agent.id) != writing.version and await _is_outdated(
            connection, agent, writing
        ):
            conversation_row = writing.change.conversation_row if writing.written_count else None
            writing = await _decide_changes(
                connection, agent, writing.write, writing.written_count, conversation_row
            )
        end = _compute_part_end(writing)
        change = await _write_exchanges(connection, agent, writing, end)
        version = await _find_version(connection, agent.id)
        writing = replace(writing, change=change, version=version, written_count=end)
        await note_progress(connection, make_note(writing))
        return writing

    @bulk_writes
    async def write_facts(
        self,
        connection: Connection,
        draft: Agent,
        import_row: int,
        facts: Sequence[LearnedFact],
        now: float,
        make_note: Callable[[int], ImportNote],
    ) -> int:
        """Writes facts. Returns the number of new facts.

        draft: the agent as the import read it.
        import_row: the import's row.
        now: the time of the write, in seconds since the epoch.
        make_note: a function that returns the progress of the import for the number of new facts.

        Raises: as `write_part`.
        """
        agent = await _lock_unpaused(connection, draft)
        count = 0
        for fact in facts:
            if not await is_fact_known(connection, agent, fact.key):
                fact_row = await add_fact(connection, agent, fact, now, IMPORT)
                count += 1
                await connection.run(SQL["add"], ("fact", fact_row, import_row, 0, 0))
        await note_progress(connection, make_note(count))
        return count

    @reads
    async def count_known_facts(self, connection: Connection, agent: Agent, keys: Sequence[str]) -> int:
        """Returns the number of keys with a fact that is true or was forgotten. keys: as in `LearnedFact`."""
        return sum([await is_fact_known(connection, agent, key) for key in keys])

    async def advance_readers(self, agent_row: int, now: float) -> None:
        """Moves readers of a memory past imported exchanges from which nothing is learned."""
        # Turns would wait for a transaction that reads a whole import, so a long read comes before the transaction.
        finished = await self._load_finished_readers(agent_row)
        if finished.cursors:
            await self._advance_readers(agent_row, finished, now)

    @long_reads
    async def _load_finished_readers(self, connection: Connection, agent_row: int) -> _FinishedReaders:
        """Returns the readers that have nothing more to read of a memory."""
        numbers = await find_numbers(connection, agent_row)
        if numbers is None:
            return _FinishedReaders({}, 0)
        cursors = {
            reader: seq
            for reader, seq in (await _load_cursors(connection, agent_row)).items()
            if await connection.fetch_row(SQL["next_unlearned"], (agent_row, seq)) is None
        }
        return _FinishedReaders(cursors, numbers.next_seq - 1)

    @bulk_writes
    async def _advance_readers(
        self, connection: Connection, agent_row: int, finished: _FinishedReaders, now: float
    ) -> None:
        """Moves readers to the end of a memory, unless there is a new exchange for them to read."""
        await connection.lock(agent_row)
        numbers = await find_numbers(connection, agent_row)
        if (
            numbers is None
            or await connection.fetch_row(SQL["next_unlearned"], (agent_row, finished.last_seq)) is not None
        ):
            return
        for reader, seq in (await _load_cursors(connection, agent_row)).items():
            # A cursor that is lower now was set back meanwhile.
            if seq >= finished.cursors.get(reader, LAST_NUMBER):
                await advance(connection, agent_row, reader, numbers.next_seq - 1, now)

    @reads
    async def load_origins(
        self, connection: Connection, agent_row: int, kind: Literal["exchange", "fact"], rows: Sequence[int]
    ) -> dict[int, ImportOrigin]:
        """Returns the imports of imported facts or exchanges, by row. rows: the rows of facts or exchanges."""
        origins = await load_rows(connection, SQL["origins"], rows, agent_row, kind)
        return {row: ImportOrigin(format_name, begun) for row, format_name, begun in origins}


def _make_import(row: Row) -> StoredImport:
    import_row, uid, agent_row, format_name, status, created, touched, data, *scope = row
    return StoredImport(
        id=import_row,
        uid=uid,
        agent_row=agent_row,
        format=format_name,
        status=status,
        created=created,
        touched=touched,
        data=orjson.loads(data),
        scope=Scope(*scope),
    )


async def _load_cursors(connection: Connection, agent_row: int) -> dict[int, int]:
    """Returns the cursor of each reader of a memory."""
    cursors = {LEARNER: await load_cursor(connection, agent_row, LEARNER), RULE: 0}
    return cursors | {row[0]: row[1] for row in await connection.fetch_rows(SQL["readers_of"], (agent_row,))}


async def _is_being_undone(connection: Connection, agent_row: int, import_row: int) -> bool:
    targets = await connection.fetch_rows(SQL["forgotten"], (agent_row,))
    return any(
        msgspec.json.decode(target, type=StoredTarget).import_row == import_row for (target,) in targets
    )


async def _lock_memory(connection: Connection, agent: Agent) -> Agent:
    """Locks a memory, and returns its present record. Raises: NotFound if the memory is gone."""
    await connection.lock(agent.id)
    current_agent = await find_agent_by_id(connection, agent.id)
    if current_agent is None:
        raise NotFound("this memory was forgotten while it was imported into")
    return current_agent


async def _lock_unpaused(connection: Connection, agent: Agent) -> Agent:
    """Locks a memory, as `_lock_memory`. Raises: NotFound if the memory is gone; WriteConflict if it is paused."""
    current_agent = await _lock_memory(connection, agent)
    if current_agent.paused_at is not None:
        raise WriteConflict("this memory was paused while it was imported into")
    return current_agent


async def _find_version(connection: Connection, agent_row: int) -> MemoryVersion | None:
    numbers = await find_numbers(connection, agent_row)
    return None if numbers is None else numbers.version


async def _decide_changes(
    connection: Connection,
    agent: Agent,
    write: ImportWrite,
    written_count: int,
    conversation_row: int | None = None,
) -> ImportWriting:
    """Reads the stored exchanges that matter to a conversation, and decides its changes.

    written_count: the number of its exchanges that are written.
    conversation_row: the row of the conversation that has these exchanges; None: not known, so that it is looked up.
    """
    # The version is read first: if the memory changes while the candidates are read, a later read returns another one.
    version = await _find_version(connection, agent.id)
    if conversation_row is None:
        conversation_row = await _find_conversation(connection, agent, write, written_count)
    change = write.decide(await _load_candidates(connection, agent, write, conversation_row))
    # If fewer exchanges are stored than were written, the rest is written again.
    return ImportWriting(write, change, version, min(written_count, change.stored_count))


async def _is_outdated(connection: Connection, agent: Agent, writing: ImportWriting) -> bool:
    """Returns whether a conversation has to be decided again, since something in its memory has changed.

    If a part of the conversation is written and nothing was forgotten, a turn matters only if it has added what the
    next part adds. Otherwise a long conversation would be read again for each part, while turns wait.
    """
    change = writing.change
    if not writing.written_count or writing.version is None or writing.version.epoch != agent.epoch:
        return True
    # The index of the exchange that is added next.
    next_index = max(writing.written_count, change.stored_count)
    # A turn that has added the same exchange has one of the part's paths. A turn without a reply has another path, so
    # it is looked up by its question.
    path_hashes = writing.write.path_hashes[next_index : _compute_part_end(writing)]
    new_index = next_index - change.stored_count
    questions = [
        make_message_key(exchange.inputs[-1]) for exchange in change.new_exchanges[new_index : new_index + 1]
    ]
    stored_rows = await load_rows(connection, SQL["matched"], path_hashes, agent.id)
    stored_rows += await load_rows(connection, SQL["unanswered"], questions, agent.id)
    return any(make_exchange(row).conversation_row == change.conversation_row for row in stored_rows)


async def _find_conversation(
    connection: Connection, agent: Agent, write: ImportWrite, written_count: int
) -> int | None:
    """Returns the row of the conversation in which this import has written exchanges, or that has the client's id.

    written_count: the number of exchanges that this import has written.

    Returns None if there is no such conversation.
    """
    conversation_row: int | None = None
    if written_count:
        conversation_row = await connection.fetch_value(
            SQL["begun"], (agent.id, write.path_hashes[written_count - 1], write.row)
        )
    if conversation_row is None and write.key is not None:
        keyed = await exchanges.find_keyed_conversation(connection, agent.id, write.key)
        conversation_row = None if keyed is None else keyed.conversation_row
    return conversation_row


async def _load_candidates(
    connection: Connection, agent: Agent, write: ImportWrite, conversation_row: int | None
) -> ImportCandidates:
    rows = await load_rows(connection, SQL["matched"], write.path_hashes, agent.id)
    matches = [MatchedExchange(make_exchange(row), *map(bool, row[-3:])) for row in rows]
    unanswered = make_exchanges(await load_rows(connection, SQL["unanswered"], write.questions, agent.id))
    maybe_forgotten = write.atoms if has_risen(agent.epoch) else ()
    forgotten_hashes = await exchanges.load_forgotten_hashes(connection, agent.id, maybe_forgotten)
    return ImportCandidates(conversation_row, matches, unanswered, forgotten_hashes)


def _compute_part_end(writing: ImportWriting) -> int:
    """Returns the index after the next part's last exchange. Exchanges stored with their words do not count."""
    change = writing.change
    count = len(change.message_counts)
    indices = (
        index
        for index in range(writing.written_count, count)
        if index >= change.stored_count or index in change.refilled_stubs
    )
    return next(islice(indices, EXCHANGES_AT_ONCE - 1, None), count - 1) + 1


async def _write_exchanges(
    connection: Connection, agent: Agent, writing: ImportWriting, end: int
) -> ImportChange:
    """Writes a part of a conversation: its exchanges that are not written yet, up to the index `end`.

    Returns the change with the values that the next part needs.
    """
    write, change = writing.write, writing.change
    for index, exchange in change.refilled_stubs.items():
        if writing.written_count <= index < end:
            await _refill_stub(connection, agent, write, exchange)
    next_index = max(writing.written_count, change.stored_count)
    if next_index >= end:
        return change
    for exchange in change.superseded:
        await exchanges.update_exchange(connection, agent.id, exchange)
    conversation_row = change.conversation_row
    if conversation_row is None:
        conversation_row = (
            await exchanges.add_conversation(connection, agent.id, write.uid, write.key, write.at)
        ).id
    previous = change.previous
    if previous is not None:
        await exchanges.mark_continued(connection, agent.id, [previous.id])
    for exchange in change.new_exchanges[next_index - change.stored_count : end - change.stored_count]:
        exchange = _place_after(replace(exchange, conversation_row=conversation_row), previous)
        added = await exchanges.add_exchange(connection, agent.id, exchange)
        exchange = place_exchange(exchange, added.id, added.seq)
        await _note_exchange(connection, write, exchange.id, conversation_row)
        if exchange.parent is None:
            await exchanges.add_marks(connection, agent.id, MarkKind.PREFIX, write.prefixes, exchange.id)
        previous = exchange
    return replace(change, previous=previous, conversation_row=conversation_row, superseded=())


async def _refill_stub(connection: Connection, agent: Agent, write: ImportWrite, exchange: Exchange) -> None:
    """Gives an exchange of an undone import its content again."""
    await exchanges.update_exchange(connection, agent.id, exchange, is_whole=True)
    await connection.run(SQL["unstub"], (exchange.id,))
    await _note_exchange(connection, write, exchange.id, exchange.conversation_row)
    if exchange.seq <= agent.indexed_seq:
        await exchanges.add_marks(connection, agent.id, MarkKind.STALE, (b"",), exchange.id)


def _place_after(exchange: Exchange, previous: Exchange | None) -> Exchange:
    """Returns a copy of an exchange with the place after another exchange; None: at the beginning of a path."""
    length = len(exchange.inputs) + 1
    if previous is None:
        return replace(exchange, parent=None, depth=0, length=length)
    return replace(
        exchange,
        parent=previous.id,
        depth=previous.depth + 1,
        length=previous.length + length,
        seq=previous.next_seq,
        gapless_from=previous.gapless_from,
        prior=previous.id if previous.has_additions else previous.prior,
    )


async def _note_exchange(
    connection: Connection, write: ImportWrite, exchange_row: int, conversation_row: int
) -> None:
    """Stores that an exchange is from this import, so that the import can be undone."""
    await connection.run(
        SQL["add"], ("exchange", exchange_row, write.row, conversation_row, int(write.learns))
    )
