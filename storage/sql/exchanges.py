"""Exchanges and conversations: reads the snapshots and pools of requests, and writes their changes.

Functions of a connection, called in a transaction if they write. Callers decide which exchange follows which, and
which exchanges are active. `exchange_rows.py` has the columns of their rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from storage.commands import (
    MAX_QUESTIONS,
    NO_ADDITIONS,
    NO_NOTES,
    MemorySnapshot,
    Probes,
    RecallRow,
    StoredContent,
)
from storage.database import Connection, Row
from storage.records import (
    MANUAL_ORIGINS,
    Agent,
    AgentNumbers,
    Block,
    Conversation,
    Exchange,
    MarkKind,
    MemoryEdit,
    SentSection,
    StandingFact,
)
from storage.sql.blocks import OwnedBlock, list_visible_blocks
from storage.sql.exchange_rows import (
    make_exchange,
    make_exchange_with_content,
    make_row_values,
    update_values,
)
from storage.sql.statements import load, load_rows, run_for_list

# The most exchanges that are read for one request: of a long conversation, the newest.
POOL_LIMIT = 2000

# The columns of a row of `memory_snapshot` with the three contents of an exchange, the time, and `{skeleton}`.
_CONTENTS = slice(9, 12)
_TIME = 12
_SKELETON = slice(13, None)
# The most values of the lists that `pool_found` takes. A longer list is cut, and its newest part stays.
_MAX_REPLIES = 64
_MAX_MARKS = 32
# The values of a recall that is not recorded.
NO_RECALL = (None, None)

SQL = load("exchanges.sql")


# -- reading


class SnapshotRow(NamedTuple):
    """A row of a statement that reads several kinds of rows at once. The kind decides what the other values are."""

    # The kind of the row, such as "block" or "edit".
    kind: str
    # Five values, mostly rows, versions and flags.
    numbers: Sequence[Any]
    # Three texts, each of which may be missing.
    texts: Sequence[Any]
    # Of a section, the parts of which it was rendered, as JSON; of an edit, its arguments. Other kinds have none.
    content: Any
    # The time of the row; None: rows of this kind have none.
    at: float | None

    @classmethod
    def make(cls, columns: Row, at: float | None) -> SnapshotRow:
        """Makes a row of the columns that `memory_snapshot` and `head` (stored_paths.sql) have in common.

        at: the time, which has another column in each of them.
        """
        return cls(columns[0], columns[1:6], columns[6:9], columns[9], at)


async def find_snapshot(
    connection: Connection, agent: Agent, key: str | None, path_hash: bytes | None
) -> MemorySnapshot | None:
    """Returns the snapshot of a request's memory, read by one statement; None: the agent is not stored any more.

    key: the client's own conversation id.
    path_hash: the hash of the client's list up to its last assistant message; None: the list has none.
    """
    scope = agent.scope
    rows = await connection.fetch_rows(
        SQL["memory_snapshot"], (agent.id, key, path_hash, scope.project, scope.profile, scope.subject)
    )
    if not rows or rows[0][0] != "agent":
        return None
    snapshot = MemorySnapshot(*rows[0][1:6])
    blocks: list[OwnedBlock] = []
    additions: list[Exchange] = []
    for columns in rows[1:]:
        row = SnapshotRow.make(columns, columns[_TIME])
        match row.kind:
            case "conversation":
                conversation_row, rev, *_ = row.numbers
                uid, conversation_key, _ = row.texts
                snapshot.conversation = Conversation(conversation_row, uid, conversation_key, rev)
            case "exchange":
                is_continued, has_rivals, *_ = row.numbers
                snapshot.exchange = replace(make_exchange(columns[_SKELETON]), notes=NO_NOTES)
                snapshot.is_continued = bool(is_continued)
                snapshot.has_rivals = bool(has_rivals)
            case "addition":
                additions.append(make_exchange(columns[_SKELETON], *columns[_CONTENTS]))
            case "prefix":
                snapshot.matches_prefix = True
            case "tombstone":
                snapshot.has_tombstones = True
            case _:
                add_snapshot_row(snapshot, blocks, row)
    snapshot.additions = NO_ADDITIONS.extended(*sorted(additions, key=lambda exchange: exchange.depth))
    complete_snapshot(snapshot, blocks)
    return snapshot


def add_snapshot_row(snapshot: MemorySnapshot, blocks: list[OwnedBlock], row: SnapshotRow) -> None:
    """Adds a row of a kind that the statements `memory_snapshot` and `head` (stored_paths.sql) have in common.

    blocks: the blocks so far, for `complete_snapshot`; a block is added.
    """
    match row.kind:
        case "section":
            snapshot.section = SentSection(row.numbers[0], row.texts[0], orjson.loads(row.content))
        case "block":
            block_row, limit, read_only, version, owner = row.numbers
            label, description, value = row.texts
            block = Block(
                block_row, label, description, value, limit=limit, read_only=bool(read_only), version=version
            )
            blocks.append(OwnedBlock(owner, block))
            snapshot.shares_blocks |= owner == 1
        case "edit":
            edit_row, exchange_row, seen, *_ = row.numbers
            call_id, op, label = row.texts
            assert row.at is not None  # rows of this kind have a time
            edit = MemoryEdit(edit_row, exchange_row, call_id, op, label, row.content, at=row.at, seen=seen)
            snapshot.edits.append(edit)
        case "standing":
            text, origin, _ = row.texts
            assert row.at is not None  # rows of this kind have a time
            snapshot.standing.append(StandingFact(row.numbers[0], text, row.at, origin in MANUAL_ORIGINS))


def complete_snapshot(snapshot: MemorySnapshot, blocks: list[OwnedBlock]) -> None:
    """Sorts the entries of a snapshot, since no database promises an order for the rows of a union."""
    snapshot.edits.sort(key=lambda edit: edit.id)
    snapshot.standing.sort(key=lambda fact: -fact.seq)
    snapshot.blocks = list_visible_blocks(blocks)


async def find_cacheable_numbers(connection: Connection, agent: Agent) -> AgentNumbers | None:
    """Returns an agent's numbers; None: its snapshots are not cached, as it is gone or its profile shares blocks."""
    scope = agent.scope
    row = await connection.fetch_row(
        SQL["cacheable_numbers"], (agent.id, scope.project, scope.profile, scope.subject)
    )
    return None if row is None else AgentNumbers(*row)


async def load_candidates(
    connection: Connection,
    agent_row: int,
    probes: Probes,
    conversation_row: int | None,
    since: int | None = None,
) -> list[Exchange]:
    """Returns all exchanges that may matter to a request, parents before their children.

    They are skeletons, except for the last messages, unless the probes ask for contents.

    conversation_row: the row of the only conversation that matters; None: it is not known. If the probes name a
        conversation, no other one matters, also where the row is not known.
    since: the number from which on first exchanges of conversations matter, too; None: no further ones matter.
    """
    if probes.key is not None or conversation_row is not None:
        rows = []
        if conversation_row is not None:
            depths = (probes.max_exchanges, probes.min_depth, probes.loaded_depth)
            values = (conversation_row, agent_row, POOL_LIMIT, *depths, +probes.loads_contents)
            rows = await connection.fetch_rows(SQL["pool_conversation"], values)
    else:
        lists = (probes.replies[:_MAX_REPLIES], probes.questions[:MAX_QUESTIONS], probes.marks[:_MAX_MARKS])
        keys = (*lists, probes.max_exchanges, probes.min_depth, since)
        rows = await connection.fetch_rows(SQL["pool_found"], (agent_row, probes.since, POOL_LIMIT, *keys))
    candidates = [make_exchange_with_content(row) for row in rows]
    return sorted(candidates, key=lambda exchange: (exchange.depth, exchange.id))


async def find_exchange(connection: Connection, agent_row: int, exchange_row: int) -> Exchange | None:
    """Returns an exchange with all its content; None: the agent has no exchange in this row."""
    row = await connection.fetch_row(SQL["exchange_get"], (exchange_row, agent_row))
    return None if row is None else make_exchange_with_content(row)


class KeyedConversation(NamedTuple):
    """A conversation that was found by the client's id."""

    # The row of the conversation.
    conversation_row: int
    # When the conversation last moved, in seconds since the epoch.
    last_at: float


async def find_keyed_conversation(
    connection: Connection, agent_row: int, key: str
) -> KeyedConversation | None:
    """Returns the conversation with this id of the client's; None: there is none."""
    row = await connection.fetch_row(SQL["conversation_of"], (agent_row, key))
    return None if row is None else KeyedConversation(*row)


async def find_conversation_uid(connection: Connection, agent_row: int, conversation_row: int) -> str | None:
    """Returns the public id of a conversation; None: the conversation is gone."""
    return await connection.fetch_value(SQL["conversation_uid"], (conversation_row, agent_row))


class ExchangeRows(NamedTuple):
    """The rows of an exchange and of its conversation."""

    exchange_row: int
    conversation_row: int


async def find_exchange_of_message(connection: Connection, agent_row: int, seq: int) -> ExchangeRows | None:
    """Returns the rows of the exchange that has a message, by the message's number; None: there is no such message."""
    row = await connection.fetch_row(SQL["exchange_of_message"], (agent_row, seq))
    return None if row is None else ExchangeRows(*row)


async def find_exchange_row(connection: Connection, agent_row: int, seq: int) -> int | None:
    """Returns the row of the exchange that has a message, by the message's number."""
    rows = await find_exchange_of_message(connection, agent_row, seq)
    return None if rows is None else rows.exchange_row


async def load_forgotten_hashes(
    connection: Connection, agent_row: int, hashes: Sequence[bytes]
) -> frozenset[bytes]:
    """Returns the hashes among these that belong to forgotten messages."""
    return frozenset(
        row[0] for row in await load_rows(connection, SQL["forgotten_hashes"], hashes, agent_row)
    )


async def load_contents(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int]
) -> dict[int, StoredContent]:
    """Returns the contents of an agent's exchanges, by row. An exchange that is gone has an empty entry."""
    contents = dict.fromkeys(exchange_rows, StoredContent())
    if len(exchange_rows) == 1:
        rows = await connection.fetch_rows(SQL["content"], (exchange_rows[0], agent_row))
    else:
        rows = await load_rows(connection, SQL["contents"], exchange_rows, agent_row)
    contents.update((row[0], StoredContent(*row[1:])) for row in rows)
    return contents


# -- writing


class AddedExchange(NamedTuple):
    """The row of an exchange that was added."""

    # The row of the exchange.
    id: int
    # The number of its first message.
    seq: int
    # 1 if a list that was made elsewhere began with its path, else 0.
    matches_prefix: int


async def add_planned_exchange(
    connection: Connection,
    agent_row: int,
    epoch: int,
    rev: int,
    exchange: Exchange,
    *,
    continues_parent: bool = False,
    is_only_statement: bool = False,
    recall: RecallRow | None = None,
) -> AddedExchange | None:
    """Adds a turn as it was planned. Returns None if the conversation has moved since, or something was forgotten.

    epoch, rev: the agent's epoch and the conversation's `rev` when the turn was planned.
    continues_parent: True if the row of the exchange's parent is marked as continued.
    is_only_statement: True if nothing else is written in the transaction.
    recall: the record of the turn's recall, stored with the turn; None: the turn has none.
    """
    values = (
        *make_row_values(exchange),
        exchange.seq,
        exchange.gapless_from,
        agent_row,
        epoch,
        exchange.conversation_row,
        rev,
        *(recall or NO_RECALL),
    )
    statement = SQL["exchange_add_planned_continuing" if continues_parent else "exchange_add_planned"]
    row = await connection.insert(statement, values, is_only_statement=is_only_statement)
    return None if row is None else AddedExchange(*row)


async def add_exchange(
    connection: Connection, agent_row: int, exchange: Exchange, recall: RecallRow | None = None
) -> AddedExchange:
    """Adds an exchange that was decided in this transaction. recall: the record of its recall; None: none."""
    row = await connection.fetch_row(
        SQL["exchange_add"],
        (*make_row_values(exchange), exchange.seq, exchange.gapless_from, agent_row, *(recall or NO_RECALL)),
    )
    assert row is not None  # the row is inserted, or an error is raised
    return AddedExchange(*row)


async def add_numbered_exchange(connection: Connection, agent_row: int, exchange: Exchange) -> int:
    """Adds an exchange of an import under its own number (`seq`). Returns the id of the new row."""
    return int(
        await connection.fetch_value(
            SQL["exchange_add_numbered"],
            (*make_row_values(exchange), exchange.gapless_from, agent_row, exchange.seq),
        )
    )


async def update_exchange(
    connection: Connection, agent_row: int, exchange: Exchange, *, is_whole: bool = False
) -> None:
    """Writes an exchange that has changed. Content that was not loaded stays, unless `is_whole`."""
    await connection.run(
        SQL["exchange_update"], (*update_values(exchange, is_whole=is_whole), exchange.id, agent_row)
    )


async def add_conversation(
    connection: Connection, agent_row: int, uid: str, key: str | None, now: float
) -> Conversation:
    """Begins a conversation. If the public id is taken, the conversation gets another one."""
    row = await connection.fetch_value(SQL["conversation_insert"], (agent_row, uid, key, now, now))
    if row is None:
        uid = uuid.uuid4().hex
        row = await connection.fetch_value(SQL["conversation_insert"], (agent_row, uid, key, now, now))
    return Conversation(int(row), uid, key)


async def mark_continued(connection: Connection, agent_row: int, exchange_rows: Sequence[int]) -> None:
    """Marks exchanges that a later request continued, and that have not changed otherwise."""
    await run_for_list(connection, SQL["exchanges_continued"], exchange_rows, agent_row)


async def move_conversation(connection: Connection, agent_row: int, conversation_row: int, at: float) -> None:
    """Notes that a conversation has moved at a time although no exchange was added to it."""
    await connection.run(SQL["conversation_moved"], (at, conversation_row, agent_row))


async def add_marks(
    connection: Connection, agent_row: int, kind: MarkKind, hashes: Iterable[bytes], exchange_row: int
) -> None:
    """Marks an exchange by hashes under which it is found."""
    for message_hash in hashes:
        await connection.run(SQL["mark"], (agent_row, kind, message_hash, exchange_row))
