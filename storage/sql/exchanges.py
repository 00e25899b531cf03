"""Exchanges and conversations: loading what a request needs, writing what it changed.

Functions of a connection, called in a transaction if they write. They know rows and records. Callers decide which
exchange follows which, and which exchanges are active.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
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
    ASKED_ORIGINS,
    Agent,
    AgentNumbers,
    Atom,
    Block,
    Conversation,
    Evicted,
    Exchange,
    MarkKind,
    MemoryEdit,
    SentSection,
    StandingFact,
    State,
    message_key,
)
from storage.sql.blocks import visible_blocks
from storage.sql.statements import load, rows_of

# The bytes of an atom: a kind and 11 of a digest. The digest of a message's media has 11.
ATOM_BYTES = 12
MEDIA_BYTES = 11
# The most exchanges that are read for one request: of a long conversation, the newest.
POOL_LIMIT = 2000

# Notes of fewer bytes are not deflated: they gain too little.
_DEFLATED_BYTES = 200
# The first byte of what zlib writes; JSON begins with a brace.
_ZLIB_BYTE = b"x"
# Level 6 makes notes of scripts/bench size 0.38 times as large in 21 us, level 1 0.40 times in 16 us. Either is read in
# 6 us. A dictionary of the words around quotations gains another tenth, and could not be changed any more.
_LEVEL = 6

# The offsets in a row of `memory_snapshot` of its five numbers, three texts, three contents, time, and columns of
# `{skeleton}`. It begins with its kind.
_NUMBER, _TEXT, _CONTENT, _TIME, _SKELETON = 1, 6, 9, 12, 13
# The most values of the lists that `pool_found` takes. A longer list is cut, and its newest part stays.
_MAX_REPLIES, _MAX_MARKS = 64, 32
# The values of a recall that is not recorded.
NO_RECALL = (None, None)

_STATES = {str(state): state for state in State}
_NO_REDACTIONS: frozenset[int] = frozenset()

SQL = load("exchanges.sql")


# -- bytes of a row


def pack_inputs(inputs: Sequence[Sequence[Atom]]) -> bytes:
    """Packs the atoms of messages: for each message their number, in two bytes, and then the atoms."""
    return b"".join([len(atoms).to_bytes(2, "big") + b"".join(atoms) for atoms in inputs])


def unpack_inputs(data: bytes) -> tuple[tuple[Atom, ...], ...]:
    if len(data) == 2 + ATOM_BYTES and data[1]:  # one message of one atom, as nearly always
        return ((data[2:],),)
    inputs = []
    offset = 0
    while offset < len(data):
        end = offset + 2 + ATOM_BYTES * int.from_bytes(data[offset : offset + 2], "big")
        inputs.append(unpack_atoms(data[offset + 2 : end]))
        offset = end
    return tuple(inputs)


def unpack_atoms(data: bytes) -> tuple[Atom, ...]:
    return tuple([data[i : i + ATOM_BYTES] for i in range(0, len(data), ATOM_BYTES)])


def _pack_media(media: Sequence[bytes]) -> bytes:
    return b"".join([b"\x01" + digest if digest else b"\x00" for digest in media])


def _unpack_media(data: bytes) -> tuple[bytes, ...]:
    if data == b"\x00":  # one message without any, as nearly always
        return (b"",)
    media = []
    offset = 0
    while offset < len(data):
        size = MEDIA_BYTES if data[offset] else 0
        media.append(data[offset + 1 : offset + 1 + size])
        offset += 1 + size
    return tuple(media)


def pack_notes(notes: Mapping[int, str]) -> bytes | None:
    """Packs notes as JSON, deflated if that is shorter, since notes quote people at length."""
    if not notes:
        return None
    data = orjson.dumps(notes, option=orjson.OPT_NON_STR_KEYS)
    return data if len(data) < _DEFLATED_BYTES else min(zlib.compress(data, _LEVEL), data, key=len)


def unpack_notes(data: bytes | None) -> dict[int, str]:
    """Returns notes, each with the text that was packed. Raises: ValueError if they are damaged."""
    if not data:
        return {}
    if data[:1] == _ZLIB_BYTE:
        try:
            data = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError("the notes of an exchange are damaged") from error
    return {int(place): note for place, note in orjson.loads(data).items()}


def make_exchange(
    row: Row, input_: bytes | None = None, shown_reply: bytes | None = None, full_reply: bytes | None = None
) -> Exchange:
    """Makes the record of a row that begins with the columns of `{skeleton}`."""
    (
        id, conversation_row, parent, depth, seq, offset, length, begun, touched, ended, stopped,
        state, superseded, continued, active, edits, merged, size, head, evicted, prior, section,
        path_hash, reply_key, redactions, inputs, media, reply, notes, run, opaque, model, hidden, *_,
    ) = row  # fmt: skip
    # By position: keywords would cost half as much again, and a long conversation has hundreds of rows.
    return Exchange(
        id,
        conversation_row,
        parent,
        depth,
        offset,
        unpack_inputs(inputs),
        _unpack_media(media),
        None if reply is None else unpack_atoms(reply),
        path_hash,
        reply_key,
        begun,
        touched,
        ended,
        size,
        length,
        bool(active),
        seq,
        run,
        prior,
        unpack_notes(notes),
        section,
        bool(edits),
        Evicted(*orjson.loads(evicted)) if evicted else None,
        input_,
        shown_reply,
        full_reply,
        bool(hidden),
        bool(opaque),
        model,
        stopped,
        head,
        frozenset(orjson.loads(redactions)) if redactions else _NO_REDACTIONS,
        _STATES[state],
        bool(superseded),
        bool(continued),
        merged,
    )


def _row_values(exchange: Exchange) -> list[Any]:
    """Returns the values of a row in the order of `{columns}`: booleans as numbers, which sqlite3 need not adapt."""
    return [
        exchange.conversation_row,
        exchange.parent,
        exchange.depth,
        len(exchange.inputs) + 1,
        exchange.offset,
        exchange.length,
        exchange.begun,
        exchange.touched,
        exchange.ended,
        exchange.stopped,
        str(exchange.state),
        +exchange.superseded,
        +exchange.continued,
        +exchange.active,
        +exchange.edits,
        +exchange.has_additions,
        +exchange.opaque,
        exchange.model,
        exchange.merged,
        exchange.size,
        exchange.prefix_length,
        orjson.dumps(list(exchange.evicted)) if exchange.evicted else None,
        exchange.prior,
        exchange.section,
        exchange.path_hash,
        exchange.reply_key,
        message_key(exchange.inputs[-1]) if exchange.inputs else None,
        orjson.dumps(sorted(exchange.redactions)) if exchange.redactions else None,
        pack_inputs(exchange.inputs),
        _pack_media(exchange.media),
        None if exchange.reply is None else b"".join(exchange.reply),
        pack_notes(exchange.notes),
        exchange.input,
        exchange.shown_reply,
        exchange.full_reply,
    ]


# -- reading


async def load_snapshot(
    connection: Connection, agent: Agent, key: str | None, path_hash: bytes | None
) -> MemorySnapshot | None:
    """Returns what a request needs of its memory, read by one statement; None if the agent is not stored any more.

    key: the client's own conversation id.
    path_hash: of the client's list up to its last assistant message.
    """
    scope = agent.scope
    rows = await connection.rows(
        SQL["memory_snapshot"], (agent.id, key, path_hash, scope.project, scope.profile, scope.subject)
    )
    if not rows or rows[0][0] != "agent":
        return None
    snapshot = MemorySnapshot(*rows[0][1:6])
    blocks: list[tuple[int, Block]] = []
    additions: list[Exchange] = []
    for row in rows[1:]:
        match row[0]:
            case "conversation":
                texts = row[_TEXT], row[_TEXT + 1]
                snapshot.conversation = Conversation(row[_NUMBER], *texts, row[_NUMBER + 1])
            case "exchange":
                snapshot.exchange = replace(make_exchange(row[_SKELETON:]), notes=NO_NOTES)
                snapshot.is_continued, snapshot.has_rivals = bool(row[_NUMBER]), bool(row[_NUMBER + 1])
            case "addition":
                additions.append(make_exchange(row[_SKELETON:], *row[_CONTENT : _CONTENT + 3]))
            case "prefix":
                snapshot.matches_prefix = True
            case "tombstone":
                snapshot.has_tombstones = True
            case _:
                add_snapshot_row(snapshot, blocks, row, row[_TIME])
    snapshot.additions = NO_ADDITIONS.extended(*sorted(additions, key=lambda exchange: exchange.depth))
    complete_snapshot(snapshot, blocks)
    return snapshot


def add_snapshot_row(
    snapshot: MemorySnapshot, blocks: list[tuple[int, Block]], row: Row, at: float | None
) -> None:
    """Adds a row of a kind that the statements `memory_snapshot` and `head` (stored_paths.sql) have in common.

    blocks: is added to, for `complete_snapshot`.
    at: the row's time.
    """
    match row[0]:
        case "section":
            snapshot.section = SentSection(row[_NUMBER], row[_TEXT], orjson.loads(row[_CONTENT]))
        case "block":
            id, limit, read_only, version, owner, label, description, value = row[_NUMBER : _TEXT + 3]
            blocks.append((owner, Block(id, label, description, value, limit, bool(read_only), version)))
            snapshot.shares_blocks |= owner == 1
        case "edit":
            call_id, op, label = row[_TEXT : _TEXT + 3]
            assert at is not None  # rows of this kind have a time
            id, exchange_row, seen = row[_NUMBER : _NUMBER + 3]
            edit = MemoryEdit(id, exchange_row, call_id, op, label, row[_CONTENT], at=at, seen=seen)
            snapshot.edits.append(edit)
        case "standing":
            assert at is not None  # rows of this kind have a time
            text, origin = row[_TEXT : _TEXT + 2]
            snapshot.standing.append(StandingFact(row[_NUMBER], text, at, origin in ASKED_ORIGINS))


def complete_snapshot(snapshot: MemorySnapshot, blocks: list[tuple[int, Block]]) -> None:
    """Sorts what a snapshot's rows have added, since no database promises an order for the rows of a union."""
    snapshot.edits.sort(key=lambda edit: edit.id)
    snapshot.standing.sort(key=lambda fact: -fact.seq)
    snapshot.blocks = visible_blocks(blocks)


async def find_cacheable_numbers(connection: Connection, agent: Agent) -> AgentNumbers | None:
    """Returns an agent's numbers; None where its snapshots are not cached: it is gone, or its profile shares blocks."""
    scope = agent.scope
    row = await connection.row(SQL["numbers_again"], (agent.id, scope.project, scope.profile, scope.subject))
    return None if row is None else AgentNumbers(*row)


async def load_pool(
    connection: Connection,
    agent_row: int,
    probes: Probes,
    conversation_row: int | None,
    since: int | None = None,
) -> list[Exchange]:
    """Returns all exchanges that may matter, parents before their children.

    They are skeletons, except for the last messages, unless the probes ask for contents.

    conversation_row: of the only conversation that matters, if it is known. If the probes name a conversation, no other
        matters, even if it is unknown.
    since: openings from this number on matter, too; None: they do not matter.
    """
    if probes.key is not None or conversation_row is not None:
        rows = []
        if conversation_row is not None:
            depths = (probes.max_exchanges, probes.min_depth, probes.loaded_depth)
            values = (conversation_row, agent_row, POOL_LIMIT, *depths, +probes.with_contents)
            rows = await connection.rows(SQL["pool_conversation"], values)
    else:
        lists = (probes.replies[:_MAX_REPLIES], probes.questions[:MAX_QUESTIONS], probes.marks[:_MAX_MARKS])
        keys = (*lists, probes.max_exchanges, probes.min_depth, since)
        rows = await connection.rows(SQL["pool_found"], (agent_row, probes.since, POOL_LIMIT, *keys))
    pool = [make_exchange(row, *row[-3:]) for row in rows]
    return sorted(pool, key=lambda exchange: (exchange.depth, exchange.id))


async def find_exchange(connection: Connection, agent_row: int, id: int) -> Exchange | None:
    """Returns an exchange with all its content."""
    row = await connection.row(SQL["exchange_get"], (id, agent_row))
    return None if row is None else make_exchange(row[2:], row[0], row[1], row[-1])


class ExchangeRows(NamedTuple):
    """The rows of an exchange and of its conversation."""

    exchange_row: int
    conversation_row: int


async def find_exchange_of_message(connection: Connection, agent_row: int, seq: int) -> ExchangeRows | None:
    """Returns the rows of the exchange that has a message, by the message's number; None: there is no such message."""
    row = await connection.row(SQL["exchange_of_message"], (agent_row, seq))
    return None if row is None else ExchangeRows(*row)


async def load_forgotten_hashes(
    connection: Connection, agent_row: int, hashes: Sequence[bytes]
) -> frozenset[bytes]:
    """Returns the hashes among these that belong to forgotten messages."""
    return frozenset(row[0] for row in await rows_of(connection, SQL["forgotten_hashes"], hashes, agent_row))


async def load_contents(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int]
) -> dict[int, StoredContent]:
    """Returns the contents of an agent's exchanges, by row. An exchange that is gone has an empty entry."""
    contents = dict.fromkeys(exchange_rows, StoredContent())
    if len(exchange_rows) == 1:
        rows = await connection.rows(SQL["content"], (exchange_rows[0], agent_row))
    else:
        rows = await rows_of(connection, SQL["contents"], exchange_rows, agent_row)
    contents.update((row[0], StoredContent(*row[1:])) for row in rows)
    return contents


# -- writing


class AddedExchange(NamedTuple):
    """The row of an exchange that was added."""

    id: int
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

    epoch, rev: of the agent and of the conversation, when the turn was planned.
    continues_parent: its parent's row is marked as continued.
    is_only_statement: nothing else is written in the transaction.
    recall: is stored with the turn.
    """
    values = (
        *_row_values(exchange),
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
    """Adds an exchange that was decided in this transaction. recall: is stored with it."""
    row = await connection.row(
        SQL["exchange_add"],
        (*_row_values(exchange), exchange.seq, exchange.gapless_from, agent_row, *(recall or NO_RECALL)),
    )
    assert row is not None  # it is inserted, or an error is raised
    return AddedExchange(*row)


async def add_numbered_exchange(connection: Connection, agent_row: int, exchange: Exchange) -> int:
    """Adds an exchange of an import under its own number (`seq`). Returns the id of the new row."""
    return int(
        await connection.value(
            SQL["exchange_add_numbered"],
            (*_row_values(exchange), exchange.gapless_from, agent_row, exchange.seq),
        )
    )


async def update_exchange(
    connection: Connection, agent_row: int, exchange: Exchange, *, is_whole: bool = False
) -> None:
    """Writes an exchange that has changed. Content that was not loaded stays, unless `is_whole`."""
    await connection.run(
        SQL["exchange_update"], (*update_values(exchange, is_whole=is_whole), exchange.id, agent_row)
    )


def update_values(exchange: Exchange, *, is_whole: bool = False) -> list[Any]:
    """Returns the values of an update, up to the exchange's id."""
    return [*_row_values(exchange), int(exchange.has_full_reply), int(not is_whole)]


async def add_conversation(
    connection: Connection, agent_row: int, uid: str, key: str | None, now: float
) -> Conversation:
    """Begins a conversation. If the public name is taken, another one is drawn."""
    id = await connection.value(SQL["conversation_insert"], (agent_row, uid, key, now, now))
    if id is None:
        uid = uuid.uuid4().hex
        id = await connection.value(SQL["conversation_insert"], (agent_row, uid, key, now, now))
    return Conversation(int(id), uid, key)


async def add_marks(
    connection: Connection, agent_row: int, kind: MarkKind, hashes: Iterable[bytes], exchange_row: int
) -> None:
    """Marks an exchange by hashes under which it is found."""
    for message_hash in hashes:
        await connection.run(SQL["mark"], (agent_row, kind, message_hash, exchange_row))


# -- rows to records


def is_step(exchange: Exchange) -> bool:
    """Returns whether an exchange is a step of a run: its reply goes upstream as it is, without hidden rounds.

    Its calls stay with it: their results are messages of their own, which no provider takes without them.
    """
    return exchange.full_reply is not None and bool(orjson.loads(exchange.full_reply).get("step"))


def make_exchanges(rows: Iterable[Sequence[Any]]) -> list[Exchange]:
    """Makes exchanges of rows of `{skeleton}`."""
    return [make_exchange(row) for row in rows]


def make_exchanges_with_content(rows: Iterable[Sequence[Any]]) -> list[Exchange]:
    """Makes exchanges of rows of (input, shown reply, `{skeleton}`)."""
    return [make_exchange(row[2:], row[0], row[1]) for row in rows]


class ShownExchange(NamedTuple):
    """An exchange as searches and lists of its shown messages need it."""

    # With the fields that decide which of its messages are shown, and without its place on a path.
    exchange: Exchange

    # Another conversation opened with the same prefix.
    prefix_is_shared: bool
    # The number of the message before it; None: there is none.
    previous_seq: int | None


def make_shown_exchanges(rows: Iterable[Sequence[Any]]) -> list[ShownExchange]:
    """Makes exchanges of rows of `{shown}`."""
    return [_make_shown_exchange(row) for row in rows]


def _make_shown_exchange(row: Sequence[Any]) -> ShownExchange:
    (
        input_, shown_reply, prefix_is_shared, previous_seq, id, conversation, seq, begun, touched, ended, stopped,
        state, active, continued, prefix_length, redactions, inputs, reply, *_,
    ) = row  # fmt: skip
    exchange = Exchange(
        id,
        conversation,
        parent=None,
        depth=0,
        offset=0,
        inputs=unpack_inputs(inputs),
        media=(),
        reply=None if reply is None else unpack_atoms(reply),
        path_hash=b"",
        reply_key=None,
        begun=begun,
        touched=touched,
        ended=ended,
        stopped=stopped,
        seq=seq,
        state=_STATES[state],
        active=bool(active),
        continued=bool(continued),
        prefix_length=prefix_length,
        redactions=frozenset(orjson.loads(redactions)) if redactions else _NO_REDACTIONS,
        input=input_,
        shown_reply=shown_reply,
    )
    return ShownExchange(exchange, bool(prefix_is_shared), previous_seq)
