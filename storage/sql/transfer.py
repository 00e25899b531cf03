"""Export and import of a memory: pages of records without database ids, read and written.

An import grows in a memory of its own that no request can reach (`importing:` before its subject) and takes its place
in one transaction, when all of it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson

from storage.commands import Ancestor, TransferRecord
from storage.database import Connection, Database
from storage.errors import NotFound, WriteConflict
from storage.records import Agent, Scope
from storage.sql import exchanges
from storage.sql.agents import Agents, create_agent, find_agent, load_agent
from storage.sql.exchanges import unpack_atoms, unpack_inputs
from storage.sql.facts import hash_key
from storage.sql.forget import Forgetting
from storage.sql.statements import load, parts

SQL = load("transfer.sql")

IMPORTING = "importing:"
_EDGE = ("seq", "conversation", "block", "version", "edit", "learned")
# Exchanges that one statement is asked for.
_LIST = 64
_NUMBERED = ("exchange", "passage", "fact")
# Of a page, about; one exchange may be larger.
PAGE_BYTES = 1 << 20
_FEW = 8


class Transfer:
    def __init__(
        self,
        database: Database,
        agents: Agents,
        forgetting: Forgetting,
    ) -> None:
        self._database = database
        self._agents = agents
        self._forgetting = forgetting

    # -- export

    async def edge(self, agent: Agent) -> dict[str, int]:
        """Returns where the memory ends now, for `page`. Raises: NotFound.

        seq: the last number that was given out. learned: how far learning has come.
        """
        row = await self._database.read(lambda c: c.row(SQL["edge"], (agent.id,)))
        if row is None:
            raise NotFound("this memory is gone")
        return {name: last or 0 for name, last in zip(_EDGE, row, strict=True)}

    async def page(
        self, agent: Agent, part: str, after: int, limit: int, edge: Mapping[str, int]
    ) -> list[tuple[int, TransferRecord]]:
        """Returns (what comes after it, record) of one part.

        part: conversation, exchange, block, version, passage, fact, ended, learned or edit. Nothing lies beyond the
        edge: what is said meanwhile would refer to what is not exported.
        """
        read = partial(_ended, upto=edge["seq"]) if part == "ended" else _PAGES[part]
        found = await self._database.long_read(lambda connection: read(connection, agent.id, after, limit))
        # What was learned meanwhile is not exported, and is learned again.
        if part == "learned":
            return [(at, TransferRecord({"seq": edge["learned"]})) for at, _ in found if edge["learned"]]
        last = edge.get("seq" if part in _NUMBERED else part)
        return found if last is None else [each for each in found if each[0] <= last]

    # -- import

    async def begin(self, draft: Agent) -> Agent:
        """Makes a memory to be filled, which no request reaches. draft: for the scope where it shall be in the end.

        Raises: WriteConflict, where one is already.
        """
        scope = draft.scope

        async def check(connection: Connection) -> None:
            await _check_empty(connection, scope)

        await self._database.read(check)
        hidden = replace(scope, subject=IMPORTING + scope.subject)
        left = await self._forgetting.find(hidden.project, hidden.profile, hidden.subject)
        # An import may not have come to its end.
        for agent in left:
            await self._forgetting.wipe(agent)
        made = replace(draft, id=0, scope=hidden)
        return await self._database.bulk(lambda connection: create_agent(connection, made))

    async def under_way(self, scope: Scope) -> Agent | None:
        """Returns the memory that `begin` made."""
        hidden = replace(scope, subject=IMPORTING + scope.subject)
        return await self._database.read(lambda connection: find_agent(connection, hidden))

    async def chain(self, agent: Agent, seq: int) -> list[Ancestor]:
        """Returns the path to an exchange of it, oldest first. Raises: NotFound."""
        rows = await self._database.read(lambda c: c.rows(SQL["chain"], (agent.id, seq)))
        if not rows:
            raise NotFound(f"there is no exchange {seq}")
        return [
            Ancestor(seq, depth, offset, length, unpack_inputs(i), None if r is None else unpack_atoms(r))
            for seq, depth, offset, length, i, r in rows
        ]

    async def write(self, agent: Agent, records: Sequence[tuple[str, TransferRecord]]) -> None:
        """Writes (part, record) in the order in which they were read. Raises: WriteConflict, NotFound."""

        async def put(connection: Connection) -> None:
            await _check_begun(connection, agent)
            for part, record in records:
                await _PUT[part](connection, agent.id, record)

        await self._database.bulk(put)

    async def end(self, agent: Agent, next_seq: int) -> None:
        """Puts the memory in its place. Raises: WriteConflict, where something was said there meanwhile."""
        scope = replace(agent.scope, subject=agent.scope.subject.removeprefix(IMPORTING))

        async def settle(connection: Connection) -> int | None:
            await _check_begun(connection, agent)
            there = await _check_empty(connection, scope)
            if there is not None:
                await connection.run(SQL["settle_in"], (f"replaced:{there}", there))
            await connection.run(SQL["count_to"], (next_seq, agent.id))
            await connection.run(SQL["settle_in"], (scope.subject, agent.id))
            return there

        replaced = await self._database.bulk(settle)
        self._agents.forget(scope)
        if replaced is not None:
            await self._forgetting.wipe(replaced)


async def _check_begun(connection: Connection, agent: Agent) -> None:
    """Raises: WriteConflict where another import has taken the place of this one."""
    if await load_agent(connection, agent.id) is None:
        subject = agent.scope.subject.removeprefix(IMPORTING)
        raise WriteConflict(f"another import for {subject} has begun meanwhile; this one ends here")


async def _check_empty(connection: Connection, scope: Scope) -> int | None:
    """Returns the memory of a scope, where there is one, and it may be replaced. Raises: WriteConflict."""
    there = await find_agent(connection, scope)
    if there is None:
        return None
    if not await connection.value(SQL["is_empty"], (there.id,)):
        raise WriteConflict(
            f"{scope.subject} has a memory here already; forget it first, or import it for somebody else"
        )
    return there.id


# -- export


async def _conversations(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = await connection.rows(SQL["conversations"], (agent, after, limit))
    names = ("uid", "key", "begun", "last_at", "settled_at")
    return [(row[0], TransferRecord(dict(zip(names, row[1:], strict=True)))) for row in rows]


async def _exchanges(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found: list[tuple[int, TransferRecord]] = []
    size = 0
    while size <= PAGE_BYTES and len(found) < limit:
        # A few at a time: one exchange may be a megabyte, and all of a result is in memory.
        count = min(_FEW, limit - len(found))
        rows = await connection.rows(SQL["exchanges"], (agent, found[-1][0] if found else after, count))
        for input_, said, full, uid, parent, prior, *skeleton in rows:
            (e,) = exchanges.exchanges([skeleton])
            e = replace(e, input=input_, said=said, full=full)
            found.append((e.seq, TransferRecord({"conversation": uid, "parent": parent, "prior": prior}, e)))
            size += sum(len(part or b"") for part in (input_, said, full))
        if len(rows) < count:
            break
    return found


async def _seqs(connection: Connection, agent: int, rows: Sequence[Sequence[Any]]) -> dict[int | None, int]:
    """Returns the numbers of the exchanges that records came from, by row id.

    Those that are gone, or another agent's, are missing. rows: (exchange, JSON list of exchanges) of each record.
    """
    wanted = {id for exchange, sources in rows for id in (exchange, *orjson.loads(sources)) if id is not None}
    found: dict[int | None, int] = {}
    for part in parts(sorted(wanted), _LIST):
        found.update((row[0], row[1]) for row in await connection.rows(SQL["seqs_of"], (agent, part)))
    return found


def _sources(seqs: Mapping[int | None, int], sources: bytes) -> list[int]:
    """Returns the numbers of the exchanges that are left of a list."""
    return [seqs[id] for id in orjson.loads(sources) if id in seqs]


async def _blocks(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = await connection.rows(SQL["blocks"], (agent,))
    names = ("label", "description", "limit", "read_only")
    values = [(row[0], dict(zip(names, row[1:], strict=True))) for row in rows]
    return [
        (id, TransferRecord({**each, "read_only": bool(each["read_only"])}))
        for id, each in values
        if id > after
    ]


async def _versions(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = await connection.rows(SQL["versions"], (agent, after, limit))
    seqs = await _seqs(connection, agent, [row[6:8] for row in rows])
    return [
        (id, TransferRecord({
            "block": label, "version": version, "restores": restores, "at": at, "origin": origin,
            "exchange": seqs.get(exchange), "sources": _sources(seqs, sources), "value": value,
        }))
        for id, label, version, restores, at, origin, exchange, sources, value in rows
    ]  # fmt: skip


async def _passages(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = await connection.rows(SQL["passages"], (agent, after, limit))
    seqs = await _seqs(connection, agent, [row[2:4] for row in rows])
    return [
        (seq, TransferRecord({
            "seq": seq, "at": at, "exchange": seqs.get(exchange), "sources": _sources(seqs, sources), "text": text,
        }))
        for seq, at, exchange, sources, text in rows
    ]  # fmt: skip


async def _facts(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = await connection.rows(SQL["facts"], (agent, after, limit))
    seqs = await _seqs(connection, agent, [row[3:5] for row in rows])
    return [
        (seq, TransferRecord({
            "seq": seq, "at": at, "valid_from": valid_from, "exchange": seqs.get(exchange),
            "sources": _sources(seqs, sources), "about": about, "text": text,
        }))
        for seq, at, valid_from, exchange, sources, about, text in rows
    ]  # fmt: skip


async def _ended(
    connection: Connection, agent: int, after: int, limit: int, *, upto: int
) -> list[tuple[int, TransferRecord]]:
    """Reads facts that have ended. upto: one that gave way to a later fact is still true without that one."""
    rows = await connection.rows(SQL["ended"], (agent, after, upto, limit))
    return [(id, TransferRecord({"fact": seq, "at": at, "successor": by})) for id, seq, at, by in rows]


async def _learned(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    # There is but one, which moves on with what is said.
    if after:
        return []
    rows = await connection.rows(SQL["learned"], (agent, after, limit))
    return [(seq, TransferRecord({"seq": seq})) for (seq,) in rows]


async def _edits(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    rows = await connection.rows(SQL["ops"], (agent, after, limit))
    seqs = await _seqs(connection, agent, [(row[1], b"[]") for row in rows])
    return [
        (id, TransferRecord({
            "exchange": seqs.get(exchange), "call": call, "state": state, "at": at, "op": op, "label": label,
            "arguments": orjson.loads(arguments),
        }))
        for id, exchange, call, state, at, op, label, arguments in rows
    ]  # fmt: skip


# -- import


async def _put_conversation(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    is_taken = await connection.row(SQL["uid_taken"], (v["uid"],)) is not None
    uid = _another(agent, v["uid"]) if is_taken else v["uid"]
    await connection.run(
        SQL["conversation_add"], (agent, uid, v["key"], v["begun"], v["last_at"], v["settled_at"])
    )


def _another(agent: int, uid: str) -> str:
    """Returns the name of a conversation that is copied within a database."""
    return blake2b(f"{agent} {uid}".encode(), digest_size=16).hexdigest()


async def _ids(
    connection: Connection, agent: int, seqs: Sequence[int | None]
) -> dict[int | None, int | None]:
    """Returns the row ids of exchanges by their numbers. Raises: NotFound."""
    wanted = sorted({seq for seq in seqs if seq is not None})
    found: dict[int | None, int | None] = {None: None}
    for part in parts(wanted, _LIST):
        found.update((row[0], row[1]) for row in await connection.rows(SQL["exchanges_at"], (agent, part)))
    for seq in wanted:
        if seq not in found:
            raise NotFound(f"there is no exchange {seq}")
    return found


async def _found_sources(
    connection: Connection, agent: int, values: Mapping[str, Any]
) -> tuple[int | None, bytes]:
    """Returns exchange and sources of a record as its row has them. Raises: NotFound."""
    ids = await _ids(connection, agent, (values["exchange"], *values["sources"]))
    return ids[values["exchange"]], orjson.dumps([ids[seq] for seq in values["sources"]])


async def _put_exchange(connection: Connection, agent: int, record: TransferRecord) -> None:
    e, v = record.exchange, record.values
    assert e is not None
    uids = (v["conversation"], _another(agent, v["conversation"]))
    rows = [await connection.row(SQL["conversation_at"], (agent, uid)) for uid in uids]
    row = next((row for row in rows if row is not None), None)
    if row is None:
        raise NotFound(f"there is no conversation {v['conversation']!r}")
    ids = await _ids(connection, agent, (v["parent"], v["prior"]))
    e = replace(e, conversation=row[0], parent=ids[v["parent"]], prior=ids[v["prior"]])
    id = await exchanges.put_exchange(connection, agent, e)
    await exchanges.mark(connection, agent, "head", v.get("heads", ()), id)


async def _put_block(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    await connection.run(
        SQL["block_add"], (agent, v["label"], v["description"], v["limit"], int(v["read_only"]))
    )


async def _put_version(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    exchange, sources = await _found_sources(connection, agent, v)
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
    row = await connection.row(SQL["version_add"], values)
    if row is None:
        raise NotFound(f"there is no block {v['block']!r}")
    await connection.run(SQL["version_point"], (v["version"], row[0], row[1], agent))


async def _put_passage(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    exchange, sources = await _found_sources(connection, agent, v)
    await connection.run(SQL["passage_put"], (agent, v["seq"], v["at"], exchange, sources, v["text"]))


async def _put_fact(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    of = await load_agent(connection, agent)
    assert of is not None  # the agent was looked for at the begin of this transaction
    exchange, sources = await _found_sources(connection, agent, v)
    key = hash_key(of.secret, v["key"])
    values = (agent, v["seq"], v["at"], v["valid_from"], key, exchange, sources, v["about"], v["text"])
    await connection.run(SQL["fact_put"], values)


async def _put_ended(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    await connection.run(SQL["ended_put"], (agent, v["fact"], v["successor"], v["at"]))


async def _put_learned(connection: Connection, agent: int, record: TransferRecord) -> None:
    await connection.run(SQL["learned_put"], (agent, record.values["seq"]))


async def _put_edit(connection: Connection, agent: int, record: TransferRecord) -> None:
    v = record.values
    ids, arguments = await _ids(connection, agent, (v["exchange"],)), orjson.dumps(v["arguments"])
    values: Sequence[Any] = (
        agent,
        ids[v["exchange"]],
        v["call"],
        v["state"],
        v["at"],
        v["op"],
        v["label"],
        arguments,
    )
    await connection.run(SQL["op_put"], values)


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
