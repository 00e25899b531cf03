"""Exchanges and conversations in SQLite: loading what a request needs, writing what it changed.

Plain functions over a connection; the reader's or, inside a transaction, the writer's. They know rows and records;
which exchange follows which, and who stands, is decided elsewhere and handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from storage.base import Connection, Row
from storage.commands import Look, Probes, StoredContent
from storage.records import Agent, Atom, Block, BlockOp, Conversation, Evicted, Exchange, Snapshot, State
from storage.sql.statements import load_queries
from storage.sqlite.padding import pad_bytes, pad_sql, room_for, size_of

__all__ = [
    "add_exchange",
    "contents",
    "insert_exchange",
    "load_pool",
    "look",
    "padded_values",
    "prepare",
    "rewrite_exchange",
    "update_exchange",
]

ATOM_BYTES = 12
MEDIA_BYTES = 11
POOL_LIMIT = (
    2000  # exchanges looked at for one request; older ones of a very long conversation are left alone
)

_COLUMNS = (
    "conversation", "parent", "depth", "span", "offset", "length", "begun", "touched", "ended", "stopped",
    "state", "superseded", "carried", "standing", "edits", "adds", "opaque", "model", "merged", "size",
    "head", "evicted", "prior", "snapshot", "path", "reply_key", "input_key", "hush", "inputs", "media",
    "reply", "notes", "input", "said", "full",
)  # fmt: skip
_SKELETON = (
    "id", "conversation", "parent", "depth", "seq", "offset", "length", "begun", "touched", "ended", "stopped",
    "state", "superseded", "carried", "standing", "edits", "merged", "size", "head", "evicted", "prior", "snapshot",
    "path", "reply_key", "hush", "inputs", "media", "reply", "notes", "run", "opaque", "model",
)  # fmt: skip


def prepare(sql: str) -> str:
    """With the lists of columns in their places."""
    texts = {
        "{skeleton}": ", ".join(f"p.{c}" for c in _SKELETON) + ", p.full IS NOT NULL",
        "{pad}": ", ".join(["NULL"] * (len(_SKELETON) + 1)),
        "{columns}": ", ".join((*_COLUMNS, "room", "pad")),
        "{values}": ", ".join("?" * (len(_COLUMNS) + 2)),
        "{id}": str(_SKELETON.index("id") + 1),  # of a compound select only the columns' numbers are known
        "{depth}": str(_SKELETON.index("depth") + 1),
    }
    for key, text in texts.items():
        sql = sql.replace(key, text)
    return sql


SQL: Mapping[str, str] = {name: prepare(sql) for name, sql in load_queries("exchanges.sql").items()}
_FIXED = len(_COLUMNS) - 3
_SET = ", ".join(f"{name} = ?{i + 1}" for i, name in enumerate(_COLUMNS[:-3]))


def _updating(input_: str, said: str, full: str) -> str:
    """An update within the row's room. Parameters: columns, contents, has it hidden rounds, size, id."""
    size = f"?{_FIXED + 5}"
    return (
        f"UPDATE exchanges SET {_SET}, input = {input_}, said = {said}, full = {full}, "
        f"pad = {pad_sql(size, (input_, said, full))} WHERE id = ?{_FIXED + 6}"
    )


_INPUT, _SAID, _FULL, _IS_HIDDEN = (f"?{_FIXED + i}" for i in range(1, 5))
# Content that was not loaded stays; what hid rounds and does no more loses them.
_UPDATE = _updating(
    f"coalesce({_INPUT}, input)",
    f"coalesce({_SAID}, said)",
    f"CASE WHEN {_IS_HIDDEN} THEN coalesce({_FULL}, full) END",
)
_REWRITE = _updating(_INPUT, _SAID, f"CASE WHEN {_IS_HIDDEN} THEN {_FULL} END")


# -- bytes of a row


def pack_inputs(inputs: Sequence[Sequence[Atom]]) -> bytes:
    """Message by message: how many atoms, then these."""
    return b"".join(len(atoms).to_bytes(2, "big") + b"".join(atoms) for atoms in inputs)


def unpack_inputs(data: bytes) -> tuple[tuple[Atom, ...], ...]:
    found, at = [], 0
    while at < len(data):
        end = at + 2 + ATOM_BYTES * int.from_bytes(data[at : at + 2], "big")
        found.append(unpack_atoms(data[at + 2 : end]))
        at = end
    return tuple(found)


def unpack_atoms(data: bytes) -> tuple[Atom, ...]:
    return tuple([data[i : i + ATOM_BYTES] for i in range(0, len(data), ATOM_BYTES)])


def _pack_media(media: Sequence[bytes]) -> bytes:
    return b"".join(b"\x01" + m if m else b"\x00" for m in media)


def _unpack_media(data: bytes) -> tuple[bytes, ...]:
    found, at = [], 0
    while at < len(data):
        size = MEDIA_BYTES if data[at] else 0
        found.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return tuple(found)


def _exchange(
    row: Row, input_: bytes | None = None, said: bytes | None = None, full: bytes | None = None
) -> Exchange:
    """From the skeleton columns."""
    return Exchange(
        id=row[0],
        conversation=row[1],
        parent=row[2],
        depth=row[3],
        seq=row[4],
        offset=row[5],
        length=row[6],
        begun=row[7],
        touched=row[8],
        ended=row[9],
        stopped=row[10],
        state=State(row[11]),
        superseded=bool(row[12]),
        carried=bool(row[13]),
        standing=bool(row[14]),
        edits=bool(row[15]),
        merged=row[16],
        size=row[17],
        head=row[18],
        evicted=Evicted(*orjson.loads(row[19])) if row[19] else None,
        prior=row[20],
        snapshot=row[21],
        path=row[22],
        reply_key=row[23],
        hush=frozenset(orjson.loads(row[24])) if row[24] else frozenset(),
        inputs=unpack_inputs(row[25]),
        media=_unpack_media(row[26]),
        reply=None if row[27] is None else unpack_atoms(row[27]),
        notes={int(k): v for k, v in orjson.loads(row[28]).items()} if row[28] else {},
        run=row[29],
        opaque=bool(row[30]),
        model=row[31],
        hidden=bool(row[32]),
        input=input_,
        said=said,
        full=full,
    )


def _values(e: Exchange) -> list[Any]:
    """In the order of _COLUMNS."""
    return [
        e.conversation,
        e.parent,
        e.depth,
        len(e.inputs) + 1,
        e.offset,
        e.length,
        e.begun,
        e.touched,
        e.ended,
        e.stopped,
        e.state.value,
        e.superseded,
        e.carried,
        e.standing,
        e.edits,
        e.hidden or e.opaque or any(e.notes.values()),
        e.opaque,
        e.model,
        e.merged,
        e.size,
        e.head,
        orjson.dumps(list(e.evicted)) if e.evicted else None,
        e.prior,
        e.snapshot,
        e.path,
        e.reply_key,
        b"".join(e.inputs[-1]) if e.inputs else None,
        orjson.dumps(sorted(e.hush)) if e.hush else None,
        pack_inputs(e.inputs),
        _pack_media(e.media),
        None if e.reply is None else b"".join(e.reply),
        orjson.dumps({str(k): v for k, v in e.notes.items()}) if e.notes else None,
        e.input,
        e.said,
        e.full,
    ]


# -- reading


async def look(connection: Connection, agent: Agent, key: str | None, path: bytes | None) -> Look | None:
    """None where the agent is gone. Raises: sqlite3.Error."""
    scope = agent.scope
    rows = await connection.rows(
        SQL["look"], (agent.id, key, path, scope.project, scope.profile, scope.subject)
    )
    if not rows or rows[0][0] != "agent":
        return None
    found = Look(rows[0][1], rows[0][2], rows[0][3])
    for row in rows[1:]:
        _READ[row[0]](found, row)
    return found


def _read_conversation(found: Look, row: Row) -> None:
    found.conversation = Conversation(row[1], row[2], row[3], row[4], row[5])


def _read_exchange(found: Look, row: Row) -> None:
    found.exchange = _exchange(row[9:])
    found.is_continued, found.has_rivals = bool(row[1]), bool(row[2])


def _read_addition(found: Look, row: Row) -> None:
    found.additions.append(_exchange(row[9:], row[1], row[2], row[3]))


def _read_head(found: Look, row: Row) -> None:
    found.is_head = True


def _read_tomb(found: Look, row: Row) -> None:
    found.has_tombs = True


def _read_snapshot(found: Look, row: Row) -> None:
    found.snapshot = Snapshot(row[1], row[2], orjson.loads(row[3]))


def _read_block(found: Look, row: Row) -> None:
    if row[8] and any(block.label == row[2] for block in found.blocks):
        return  # one the profile shares; the user's own of that label came before it, and counts
    found.blocks.append(Block(row[1], row[2], row[3], row[4], row[5], bool(row[6]), row[7]))


def _read_op(found: Look, row: Row) -> None:
    found.ops.append(BlockOp(row[1], row[2], row[3], row[4], row[5], row[6], at=row[7]))


_READ = {
    "conversation": _read_conversation,
    "exchange": _read_exchange,
    "addition": _read_addition,
    "head": _read_head,
    "tomb": _read_tomb,
    "snapshot": _read_snapshot,
    "block": _read_block,
    "op": _read_op,
}


# Fixed numbers of placeholders, so that the statement is prepared once: longer lists are cut, their newest part kept.
_REPLIES, _INPUTS, _MARKS = 64, 16, 32
_MOST_CONTENTS = 64
_TOMBS = SQL["tombs"].replace("{n}", ", ".join("?" * _MARKS))
_CONTENTS = SQL["contents"].replace("{n}", ", ".join("?" * _MOST_CONTENTS))


def _fill(values: Sequence[bytes], size: int) -> list[bytes | None]:
    cut = list(values[:size])
    return [*cut, *([None] * (size - len(cut)))]


_POOL_FOUND = SQL["pool_found"].replace("{replies}", ", ".join(f"?{4 + i}" for i in range(_REPLIES)))
_POOL_FOUND = _POOL_FOUND.replace("{inputs}", ", ".join(f"?{4 + _REPLIES + i}" for i in range(_INPUTS)))
_POOL_FOUND = _POOL_FOUND.replace(
    "{marks}", ", ".join(f"?{4 + _REPLIES + _INPUTS + i}" for i in range(_MARKS))
)
_AFTER = 4 + _REPLIES + _INPUTS + _MARKS
_POOL_FOUND = _POOL_FOUND.replace("{reach}", f"?{_AFTER}").replace("{low}", f"?{_AFTER + 1}")


async def load_pool(
    connection: Connection, agent: int, probes: Probes, conversation: int | None
) -> list[Exchange]:
    """Skeletons of all exchanges that may matter, parents before their children. Raises: sqlite3.Error.

    conversation: the only one that matters, if it is known; if the probes name one, nothing else does.
    """
    if probes.key is not None or conversation is not None:
        rows = []
        if conversation is not None:
            values = (conversation, agent, POOL_LIMIT, probes.recent, probes.low)
            rows = await connection.rows(SQL["pool_conversation"], values)
    else:
        rows = await connection.rows(
            _POOL_FOUND,
            [
                agent,
                probes.since,
                POOL_LIMIT,
                *_fill(probes.replies, _REPLIES),
                *_fill(probes.inputs, _INPUTS),
                *_fill(probes.marks, _MARKS),
                probes.recent,
                probes.low,
            ],
        )
    return [_exchange(row) for row in reversed(rows)]


async def conversation_of(connection: Connection, agent: int, key: str) -> int | None:
    row = await connection.row(SQL["conversation_of"], (agent, key))
    return None if row is None else int(row[0])


async def find_tombs(connection: Connection, agent: int, hashes: Sequence[bytes]) -> frozenset[bytes]:
    """Those of these messages that are off the record or forgotten."""
    found: set[bytes] = set()
    for start in range(0, len(hashes), _MARKS):
        part = _fill(hashes[start : start + _MARKS], _MARKS)
        found.update(row[0] for row in await connection.rows(_TOMBS, [agent, *part]))
    return frozenset(found)


async def contents(connection: Connection, agent: int, exchanges: Sequence[int]) -> dict[int, StoredContent]:
    """The contents of exchanges of this agent, of each that is asked for: empty ones where it is gone."""
    found = dict.fromkeys(exchanges, StoredContent())
    if len(exchanges) == 1:
        rows = await connection.rows(SQL["content"], (exchanges[0], agent))
        found.update((row[0], StoredContent(*row[1:])) for row in rows)
        return found
    for start in range(0, len(exchanges), _MOST_CONTENTS):
        part = exchanges[start : start + _MOST_CONTENTS]
        padded = [*part, *([None] * (_MOST_CONTENTS - len(part)))]
        rows = await connection.rows(_CONTENTS, [agent, *padded])
        found.update((row[0], StoredContent(*row[1:])) for row in rows)
    return found


# -- writing


async def add_exchange(
    connection: Connection, agent: int, epoch: int, rev: int, e: Exchange
) -> tuple[int, int] | None:
    """(id, seq) of the new row; None where the conversation moved or something was forgotten since it was planned."""
    row = await connection.row(
        SQL["exchange_add"], [*padded_values(e), e.seq, e.run, agent, epoch, e.conversation, rev]
    )
    return None if row is None else (row[0], row[1])


async def insert_exchange(connection: Connection, agent: int, e: Exchange) -> tuple[int, int]:
    """(id, seq) of the new row."""
    row = await connection.row(SQL["exchange_insert"], [*padded_values(e), e.seq, e.run, agent])
    assert row is not None  # it is inserted, or an error is raised
    return row[0], row[1]


async def update_exchange(connection: Connection, e: Exchange) -> None:
    """Content that was not loaded stays."""
    await _update(connection, _UPDATE, e)


async def rewrite_exchange(connection: Connection, e: Exchange) -> None:
    """It has the content it is given here, and no other."""
    await _update(connection, _REWRITE, e)


async def _update(connection: Connection, statement: str, e: Exchange) -> None:
    values = _values(e)
    await connection.run(statement, [*values, e.hidden, size_of(values[:_FIXED]), e.id])


def padded_values(e: Exchange) -> list[Any]:
    """Of a new row: its columns, its room and its padding."""
    values = _values(e)
    size = size_of(values)
    room = room_for(size)
    return [*values, room, bytes(pad_bytes(size, room)) if size < room else None]


async def carry(connection: Connection, agent: int, exchange: int) -> None:
    await connection.run(SQL["exchange_carry"], (exchange, agent))


async def add_conversation(connection: Connection, agent: int, uid: str, key: str | None, now: float) -> int:
    return int(await connection.value(SQL["conversation_insert"], (agent, uid, key, now, now)))


async def mark(connection: Connection, agent: int, kind: str, hashes: Iterable[bytes], exchange: int) -> None:
    """kind: head | tomb."""
    for each in hashes:
        await connection.run(SQL["mark"], (agent, kind, each, exchange))


def exchanges(rows: Iterable[Sequence[Any]]) -> list[Exchange]:
    """From rows of skeleton columns."""
    return [_exchange(row) for row in rows]


def with_content(rows: Iterable[Sequence[Any]]) -> list[Exchange]:
    """From rows of (input, said, skeleton columns)."""
    return [_exchange(row[2:], row[0], row[1]) for row in rows]
