"""Carrying a memory away, and in: pages of records without database ids, read and written.

An import grows in a memory of its own that no request can reach (`importing:` before its subject) and takes its place
in one transaction, when all of it is there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson

from storage.commands import Ancestor, TransferRecord
from storage.errors import NotFound, WriteConflict
from storage.records import Agent, Scope
from storage.sql import exchanges
from storage.sql.agents import Agents, create_agent, find_agent
from storage.sql.exchanges import padded_values, unpack_atoms, unpack_inputs
from storage.sql.facts import hash_key
from storage.sql.forget import Forgetting
from storage.sql.statements import load_queries
from storage.sqlite.reader import Reader, ThreadReader
from storage.sqlite.writer import Writer

__all__ = ["IMPORTING", "Transfer"]

_Q = {name: exchanges.prepare(sql) for name, sql in load_queries("transfer.sql").items()}

IMPORTING = "importing:"
_EDGE = ("seq", "conversation", "block", "version", "edit", "learned")
_NUMBERED = ("exchange", "passage", "fact")
PAGE_BYTES = 1 << 20  # about; one exchange may be larger


class Transfer:
    def __init__(
        self,
        reader: Reader,
        long_reader: ThreadReader,
        writer: Writer,
        agents: Agents,
        forgetting: Forgetting,
    ) -> None:
        self._reader = reader
        self._long_reader = long_reader
        self._writer = writer
        self._agents = agents
        self._forgetting = forgetting

    # -- away

    def edge(self, agent: Agent) -> dict[str, int]:
        """Where it ends now, for `page`: `seq` is the last number that was given out, `learned` how far learning
        has come. Raises: NotFound."""
        row = self._reader.run(lambda c: c.execute(_Q["edge"], (agent.id,)).fetchone())
        if row is None:
            raise NotFound("this memory is gone")
        return {name: last or 0 for name, last in zip(_EDGE, row, strict=True)}

    async def page(
        self, agent: Agent, part: str, after: int, limit: int, edge: Mapping[str, int]
    ) -> list[tuple[int, TransferRecord]]:
        """(what comes after it, record) of one part: conversation, exchange, block, version, passage, fact, ended,
        learned or edit. Nothing beyond the edge: what is said meanwhile would refer to what was not told."""
        read = partial(_ended, upto=edge["seq"]) if part == "ended" else _PAGES[part]
        found = await self._long_reader.run(lambda connection: read(connection, agent.id, after, limit))
        if part == "learned":  # what was learned meanwhile is not told, and is learned again
            return [(at, TransferRecord({"seq": edge["learned"]})) for at, _ in found if edge["learned"]]
        last = edge.get("seq" if part in _NUMBERED else part)
        return found if last is None else [each for each in found if each[0] <= last]

    # -- in

    async def begin(self, draft: Agent) -> Agent:
        """A memory to be filled. draft: for the scope where it shall be in the end.

        Raises: WriteConflict, where one is.
        """
        scope = draft.scope

        def check(connection: sqlite3.Connection) -> None:
            _check_empty(connection, scope)

        self._reader.run(check)
        hidden = replace(scope, subject=IMPORTING + scope.subject)
        left = self._forgetting.find(hidden.project, hidden.profile, hidden.subject)
        for agent in left:  # of an import that did not come to its end
            await self._forgetting.wipe(agent)
        made = replace(draft, id=0, scope=hidden)
        return await self._writer.submit_bulk(lambda connection: create_agent(connection, made))

    def under_way(self, scope: Scope) -> Agent | None:
        """The one that `begin` made."""
        hidden = replace(scope, subject=IMPORTING + scope.subject)
        return self._reader.run(lambda connection: find_agent(connection, hidden))

    def chain(self, agent: Agent, seq: int) -> list[Ancestor]:
        """The path to an exchange of it, oldest first. Raises: NotFound."""
        rows = self._reader.run(lambda c: c.execute(_Q["chain"], (agent.id, seq)).fetchall())
        if not rows:
            raise NotFound(f"there is no exchange {seq}")
        return [
            Ancestor(seq, depth, offset, length, unpack_inputs(i), None if r is None else unpack_atoms(r))
            for seq, depth, offset, length, i, r in rows
        ]

    async def write(self, agent: Agent, records: Sequence[tuple[str, TransferRecord]]) -> None:
        """(part, record) in the order in which they were read. Raises: WriteConflict, NotFound."""

        def put(connection: sqlite3.Connection) -> None:
            _check_begun(connection, agent)
            for part, record in records:
                _PUT[part](connection, agent.id, record)

        await self._writer.submit_bulk(put)

    async def end(self, agent: Agent, next_seq: int) -> None:
        """It takes its place. Raises: WriteConflict, where something was said there meanwhile."""
        scope = replace(agent.scope, subject=agent.scope.subject.removeprefix(IMPORTING))

        def settle(connection: sqlite3.Connection) -> int | None:
            _check_begun(connection, agent)
            there = _check_empty(connection, scope)
            if there is not None:
                connection.execute(_Q["settle_in"], (f"replaced:{there}", there))
            connection.execute(_Q["count_to"], (next_seq, agent.id))
            connection.execute(_Q["settle_in"], (scope.subject, agent.id))
            return there

        replaced = await self._writer.submit_bulk(settle)
        self._agents.forget(scope)
        if replaced is not None:
            await self._forgetting.wipe(replaced)


def _check_begun(connection: sqlite3.Connection, agent: Agent) -> None:
    if connection.execute(exchanges.SQL["agent_by_id"], (agent.id,)).fetchone() is None:
        subject = agent.scope.subject.removeprefix(IMPORTING)
        raise WriteConflict(f"another import for {subject} has begun meanwhile; this one ends here")


def _check_empty(connection: sqlite3.Connection, scope: Scope) -> int | None:
    there = find_agent(connection, scope)
    if there is None:
        return None
    if not connection.execute(_Q["is_empty"], (there.id,)).fetchone()[0]:
        raise WriteConflict(
            f"{scope.subject} has a memory here already; forget it first, or import it for somebody else"
        )
    return there.id


# -- away


def _conversations(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = connection.execute(_Q["conversations"], (agent, after, limit)).fetchall()
    names = ("uid", "key", "begun", "last_at", "settled_at")
    return [(row[0], TransferRecord(dict(zip(names, row[1:], strict=True)))) for row in rows]


def _exchanges(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found: list[tuple[int, TransferRecord]] = []
    size = 0
    cursor = connection.execute(_Q["exchanges"], (agent, after, limit))
    for input_, said, full, uid, parent, prior, *skeleton in cursor:
        (e,) = exchanges.exchanges([skeleton])
        e = replace(e, input=input_, said=said, full=full)
        found.append((e.seq, TransferRecord({"conversation": uid, "parent": parent, "prior": prior}, e)))
        size += sum(len(part or b"") for part in (input_, said, full))
        if size > PAGE_BYTES:
            break
    cursor.close()
    return found


def _seqs(connection: sqlite3.Connection, agent: int, ids: Sequence[int]) -> list[int]:
    """Numbers of exchanges; of those that are gone, or not this agent's, nothing."""
    rows = (connection.execute(_Q["seq_of"], (id, agent)).fetchone() for id in ids)
    return [row[0] for row in rows if row is not None]


def _seq(connection: sqlite3.Connection, agent: int, id: int | None) -> int | None:
    return None if id is None else next(iter(_seqs(connection, agent, [id])), None)


def _blocks(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = connection.execute(_Q["blocks"], (agent,)).fetchall()
    names = ("label", "description", "limit", "read_only")
    values = [(row[0], dict(zip(names, row[1:], strict=True))) for row in rows]
    return [
        (id, TransferRecord({**each, "read_only": bool(each["read_only"])}))
        for id, each in values
        if id > after
    ]


def _versions(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found = []
    for id, label, version, restores, at, origin, exchange, sources, value in connection.execute(
        _Q["versions"], (agent, after, limit)
    ).fetchall():
        record = {
            "block": label, "version": version, "restores": restores, "at": at, "origin": origin,
            "exchange": _seq(connection, agent, exchange),
            "sources": _seqs(connection, agent, orjson.loads(sources)), "value": value,
        }  # fmt: skip
        found.append((id, TransferRecord(record)))
    return found


def _passages(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found = []
    for seq, at, exchange, sources, text in connection.execute(
        _Q["passages"], (agent, after, limit)
    ).fetchall():
        record = {
            "seq": seq, "at": at, "exchange": _seq(connection, agent, exchange),
            "sources": _seqs(connection, agent, orjson.loads(sources)), "text": text,
        }  # fmt: skip
        found.append((seq, TransferRecord(record)))
    return found


def _facts(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found = []
    for seq, at, valid_from, exchange, sources, about, text in connection.execute(
        _Q["facts"], (agent, after, limit)
    ).fetchall():
        record = {
            "seq": seq, "at": at, "valid_from": valid_from, "exchange": _seq(connection, agent, exchange),
            "sources": _seqs(connection, agent, orjson.loads(sources)), "about": about, "text": text,
        }  # fmt: skip
        found.append((seq, TransferRecord(record)))
    return found


def _ended(
    connection: sqlite3.Connection, agent: int, after: int, limit: int, *, upto: int
) -> list[tuple[int, TransferRecord]]:
    """upto: what a later fact took the place of is still true, for who is not told of that one."""
    rows = connection.execute(_Q["ended"], (agent, after, upto, limit)).fetchall()
    return [(id, TransferRecord({"fact": seq, "at": at, "successor": by})) for id, seq, at, by in rows]


def _learned(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    if after:  # there is but one, which moves on with what is said
        return []
    rows = connection.execute(_Q["learned"], (agent, after, limit)).fetchall()
    return [(seq, TransferRecord({"seq": seq})) for (seq,) in rows]


def _edits(
    connection: sqlite3.Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found = []
    for id, exchange, call, state, at, op, label, arguments in connection.execute(
        _Q["ops"], (agent, after, limit)
    ).fetchall():
        record = {
            "exchange": _seq(connection, agent, exchange), "call": call, "state": state, "at": at, "op": op,
            "label": label, "arguments": orjson.loads(arguments),
        }  # fmt: skip
        found.append((id, TransferRecord(record)))
    return found


# -- in


def _put_conversation(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    is_taken = connection.execute(_Q["uid_taken"], (v["uid"],)).fetchone() is not None
    uid = _another(agent, v["uid"]) if is_taken else v["uid"]
    connection.execute(
        _Q["conversation_add"], (agent, uid, v["key"], v["begun"], v["last_at"], v["settled_at"])
    )


def _another(agent: int, uid: str) -> str:
    """The name of a conversation that is copied within a database."""
    return blake2b(f"{agent} {uid}".encode(), digest_size=16).hexdigest()


def _id(connection: sqlite3.Connection, agent: int, seq: int | None) -> int | None:
    if seq is None:
        return None
    row = connection.execute(_Q["exchange_at"], (agent, seq)).fetchone()
    if row is None:
        raise NotFound(f"there is no exchange {seq}")
    return int(row[0])


def _ids(connection: sqlite3.Connection, agent: int, seqs: Sequence[int]) -> bytes:
    return orjson.dumps([_id(connection, agent, seq) for seq in seqs])


def _put_exchange(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    e, v = record.exchange, record.values
    assert e is not None
    uids = (v["conversation"], _another(agent, v["conversation"]))
    rows = (connection.execute(_Q["conversation_at"], (agent, uid)).fetchone() for uid in uids)
    row = next((row for row in rows if row is not None), None)
    if row is None:
        raise NotFound(f"there is no conversation {v['conversation']!r}")
    parent, prior = (_id(connection, agent, v[name]) for name in ("parent", "prior"))
    e = replace(e, conversation=row[0], parent=parent, prior=prior)
    (id,) = connection.execute(_Q["exchange_put"], [*padded_values(e), e.run, agent, e.seq]).fetchone()
    exchanges.mark(connection, agent, "head", v.get("heads", ()), id)


def _put_block(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    connection.execute(
        _Q["block_add"], (agent, v["label"], v["description"], v["limit"], int(v["read_only"]))
    )


def _put_version(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    exchange, sources = _id(connection, agent, v["exchange"]), _ids(connection, agent, v["sources"])
    values = (
        agent,
        v["block"],
        v["version"],
        v["restores"],
        v["at"],
        v["origin"],
        exchange,
        sources,
        v["value"],
    )
    row = connection.execute(_Q["version_add"], values).fetchone()
    if row is None:
        raise NotFound(f"there is no block {v['block']!r}")
    connection.execute(_Q["version_point"], (v["version"], row[0], row[1]))


def _put_passage(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    exchange, sources = _id(connection, agent, v["exchange"]), _ids(connection, agent, v["sources"])
    connection.execute(_Q["passage_put"], (agent, v["seq"], v["at"], exchange, sources, v["text"]))


def _put_fact(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    secret = connection.execute(exchanges.SQL["agent_by_id"], (agent,)).fetchone()[4]
    exchange, sources = _id(connection, agent, v["exchange"]), _ids(connection, agent, v["sources"])
    key = hash_key(secret, v["key"])
    values = (agent, v["seq"], v["at"], v["valid_from"], key, exchange, sources, v["about"], v["text"])
    connection.execute(_Q["fact_put"], values)


def _put_ended(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    connection.execute(_Q["ended_put"], (agent, v["fact"], v["successor"], v["at"]))


def _put_learned(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    connection.execute(_Q["learned_put"], (agent, record.values["seq"]))


def _put_edit(connection: sqlite3.Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    exchange, arguments = _id(connection, agent, v["exchange"]), orjson.dumps(v["arguments"])
    values: Sequence[Any] = (agent, exchange, v["call"], v["state"], v["at"], v["op"], v["label"], arguments)
    connection.execute(_Q["op_put"], values)


_PAGES = {
    "conversation": _conversations,
    "exchange": _exchanges,
    "block": _blocks,
    "version": _versions,
    "passage": _passages,
    "fact": _facts,
    "learned": _learned,
    "edit": _edits,
}
_PUT = {
    "conversation": _put_conversation,
    "exchange": _put_exchange,
    "block": _put_block,
    "version": _put_version,
    "passage": _put_passage,
    "fact": _put_fact,
    "ended": _put_ended,
    "learned": _put_learned,
    "edit": _put_edit,
}
