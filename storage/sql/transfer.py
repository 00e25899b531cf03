"""Export and import of a memory: pages of records without database ids, read and written.

An import grows in a memory of its own that no request can reach (`importing:` before its subject) and takes its place
in one transaction, when all of it is there.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from storage.commands import TransferRecord
from storage.database import Connection, Database, Row
from storage.errors import NotFound, WriteConflict
from storage.records import API_PROFILE, IMPORTING, Agent, Counts, DefinitionKind, Exchange, Scope
from storage.sql import exchanges
from storage.sql.agents import Agents, create_agent, find_agent, load_agent
from storage.sql.agents_api.conversations import note_fork
from storage.sql.agents_api.definitions import add_definition
from storage.sql.facts import SQL as FACTS
from storage.sql.facts import hash_key
from storage.sql.forget import Forgetting
from storage.sql.group import Group, bulk_writes, long_reads, reads
from storage.sql.statements import load, rows_of
from storage.sql.transfer_definitions import (
    own_uid,
    put_attached,
    put_definition,
    put_run,
    put_step,
    read_attached,
    settle_in,
)

SQL = load("transfer.sql")

# What the statement `edge` returns, column by column.
_EDGE = ("seq", "conversation", "block", "version", "edit", "definition", "file", "run", "learned")
# Parts that are paged by numbers of the agent's order; others are paged by rows.
_NUMBERED = ("exchange", "passage", "fact", "step", "imported", "imported_fact")
# The size of a page, about; a single exchange may be larger.
PAGE_BYTES = 1 << 20
_FEW = 8
# The fields of a record, part by part, in the order in which rows are read and written.
_FIELDS = {
    "conversation": ("uid", "key", "begun", "last_at", "settled_at", "is_stored"),
    "definition": ("kind", "uid", "name", "created", "updated", "body"),
    "block": ("label", "description", "limit", "read_only", "uid", "details"),
    "version": ("block", "version", "restores", "at", "origin", "exchange", "sources", "value"),
    "file": ("uid", "state", "bytes", "created", "type", "name"),
    "passage": ("seq", "at", "exchange", "sources", "text", "tags", "file", "metadata"),
    "fact": (
        "seq",
        "at",
        "valid_from",
        "exchange",
        "sources",
        "about",
        "text",
        "origin",
        "muted",
        "standing",
    ),
    "ended": ("fact", "at", "successor"),
    "learned": ("seq",),
    "edit": ("exchange", "call", "state", "at", "op", "label", "arguments"),
    "tag": ("tag",),
    "run": ("uid", "conversation", "state", "stop", "depth", "background", "created", "begun", "ended"),
    "step": (
        "exchange",
        "run",
        "number",
        "begun",
        "ended",
        *Counts._fields,
        "stop",
        "feedback",
        "error",
        "waiting",
    ),
    "import": ("uid", "format", "status", "learns", "created", "touched", "data"),
    "imported": ("exchange", "import", "what", "learns"),
    "imported_fact": ("fact", "import"),
}


class _Field(NamedTuple):
    """How a field goes from its row into a record and back, where it is no plain value."""

    # What its JSON is in a row that has none; None: the row has no JSON.
    empty: bytes | str | None = None
    # True or false; a row has a number.
    is_flag: bool = False
    # An import writes it as JSON. To the other fields with JSON it gives another form.
    is_packed: bool = False
    # Older exports do not have it.
    is_optional: bool = False
    # It is not exported: what waits for an answer does so here alone.
    is_local: bool = False


# The fields above that are no plain values in each part that has them.
_SPECIAL: Mapping[str, _Field] = {
    "sources": _Field(b"[]", is_packed=True),
    "arguments": _Field(b"{}", is_packed=True),
    "data": _Field(b"{}", is_packed=True),
    "body": _Field(b"{}"),
    "details": _Field(b"{}", is_optional=True),
    "tags": _Field("[]", is_optional=True),
    "metadata": _Field("{}", is_optional=True),
    "read_only": _Field(is_flag=True),
    "background": _Field(is_flag=True),
    "learns": _Field(is_flag=True),
    "is_stored": _Field(is_flag=True, is_optional=True),
    "muted": _Field(is_flag=True, is_optional=True),
    "standing": _Field(is_flag=True, is_optional=True),
    "uid": _Field(is_optional=True),
    "file": _Field(is_optional=True),
    "origin": _Field(is_optional=True),
    "waiting": _Field(is_local=True),
}
_PLAIN = _Field()


class Transfer(Group):
    """Export and import of a memory, part by part."""

    def __init__(self, database: Database, agents: Agents, forgetting: Forgetting) -> None:
        super().__init__(database)
        self._agents = agents
        self._forgetting = forgetting

    # -- export

    @reads
    async def edge(self, connection: Connection, agent: Agent) -> dict[str, int]:
        """Returns where the memory ends now, for `page`. Raises: NotFound.

        seq: the last number that was given out. learned: how far learning has come.
        """
        row = await connection.row(SQL["edge"], (agent.id,))
        if row is None:
            raise NotFound("this memory is gone")
        return {name: last or 0 for name, last in zip(_EDGE, row, strict=True)}

    @long_reads
    async def page(
        self, connection: Connection, agent: Agent, part: str, after: int, limit: int, edge: Mapping[str, int]
    ) -> list[tuple[int, TransferRecord]]:
        """Returns (what comes after it, record) of one part.

        part: conversation, definition, exchange, block, version, file, passage, fact, ended, learned, edit,
            tag, attached, run, step, import, imported or imported_fact. Nothing lies beyond the
        edge: later turns would refer to what is not exported.
        """
        if part == "attached":
            attached = await read_attached(connection, agent.id, after, limit)
            return [(at, TransferRecord(values)) for at, values in attached]
        found = (
            await _exchanges(connection, agent.id, after, limit)
            if part == "exchange"
            else await _records(connection, agent.id, part, after, limit, edge["seq"])
        )
        # Facts that were learned meanwhile are not exported; the importing gateway learns them again.
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
        await self._database.read(lambda connection: _check_empty(connection, scope))
        hidden = scope._replace(subject=IMPORTING + scope.subject)
        left = await self._forgetting.find(hidden.project, hidden.profile, hidden.subject)
        # An import may not have come to its end.
        for agent in left:
            await self._forgetting.wipe(agent)
        made = replace(draft, id=0, scope=hidden)
        return await self._database.bulk(lambda connection: create_agent(connection, made))

    @reads
    async def under_way(self, connection: Connection, scope: Scope) -> Agent | None:
        """Returns the memory that `begin` made."""
        return await find_agent(connection, scope._replace(subject=IMPORTING + scope.subject))

    @reads
    async def chain(self, connection: Connection, agent: Agent, seq: int) -> list[Exchange]:
        """Returns the path to an exchange of an import, oldest first. Raises: NotFound; WriteConflict, as `write`."""
        rows = await connection.rows(SQL["chain"], (agent.id, seq))
        if not rows:
            await _check_there(connection, agent)
            raise NotFound(f"there is no exchange {seq}")
        return exchanges.exchanges(rows)

    @bulk_writes
    async def write(
        self, connection: Connection, agent: Agent, records: Sequence[tuple[str, TransferRecord]]
    ) -> None:
        """Writes (part, record) in the order in which they were read.

        Raises: NotFound; WriteConflict: another import has taken the place of this one.
        """
        await connection.lock(agent.id)
        await _check_there(connection, agent)
        for part, record in records:
            if part == "exchange":
                await _put_exchange(connection, agent.id, record)
            else:
                await _put(connection, agent, part, record.values)

    async def end(self, agent: Agent, next_seq: int, uid: str | None = None) -> None:
        """Puts the memory in its place. uid: the public name that it had; one that is taken does not count.

        Raises: WriteConflict, where a turn came meanwhile.
        """
        scope = agent.scope._replace(subject=agent.scope.subject.removeprefix(IMPORTING))

        async def settle(connection: Connection) -> int | None:
            await connection.lock(agent.id)
            await _check_there(connection, agent)
            there = await _check_empty(connection, scope)
            if there is not None:
                replaced = (f"replaced:{there}", uuid.uuid4().hex, there)
                await connection.run(SQL["settle_in"], replaced)
            await connection.run(SQL["count_to"], (next_seq, agent.id))
            name = own_uid(agent) or uid
            if name is None or await connection.row(SQL["agent_taken"], (name,)) is not None:
                name = agent.uid
            await connection.run(SQL["settle_in"], (scope.subject, name, agent.id))
            await settle_in(connection, agent)
            return there

        replaced = await self._database.bulk(settle)
        self._agents.uncache(scope)
        if replaced is not None:
            await self._forgetting.wipe(replaced)


async def _check_there(connection: Connection, agent: Agent) -> None:
    """Checks that an import is still under way. Raises: WriteConflict: another one has taken its place."""
    if await load_agent(connection, agent.id) is None:
        subject = agent.scope.subject.removeprefix(IMPORTING)
        raise WriteConflict(f"another import for {subject} has begun meanwhile; this one ends here")


async def _check_empty(connection: Connection, scope: Scope) -> int | None:
    """Returns the memory of a scope, where there is one, and it may be replaced. Raises: WriteConflict."""
    there = await find_agent(connection, scope)
    if there is None:
        return None
    if scope.profile == API_PROFILE or not await connection.value(SQL["is_empty"], (there.id,)):
        raise WriteConflict(
            f"{scope.subject} has a memory here already; forget it first, or import it for another user"
        )
    return there.id


# -- export


async def _records(
    connection: Connection, agent: int, part: str, after: int, limit: int, upto: int
) -> list[tuple[int, TransferRecord]]:
    """Reads a page of a part. upto: a fact that gave way to a later one is still true without that one.

    Each row begins with what comes after it. Of its exchanges are left those that this memory still has.
    """
    arguments = (agent, after, limit, upto) if part == "ended" else (agent, after, limit)
    rows = await connection.rows(SQL[f"{part}_read"], arguments)
    records = [dict(zip(_FIELDS[part], row[1:], strict=True)) for row in rows]
    for values in records:
        for name in _SPECIAL.keys() & values:
            field = _SPECIAL[name]
            if field.empty is not None:
                values[name] = orjson.loads(values[name] or field.empty)
            elif field.is_flag:
                values[name] = bool(values[name])
            elif field.is_local:
                del values[name]
    wanted = {
        id
        for values in records
        for id in (values.get("exchange"), *values.get("sources", ()))
        if id is not None
    }
    seqs = {row[0]: row[1] for row in await rows_of(connection, SQL["seqs_of"], sorted(wanted), agent)}
    for values in records:
        if "exchange" in values:
            values["exchange"] = seqs.get(values["exchange"])
        if "sources" in values:
            values["sources"] = [seqs[id] for id in values["sources"] if id in seqs]
    return [(row[0], TransferRecord(values)) for row, values in zip(rows, records, strict=True)]


async def _exchanges(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, TransferRecord]]:
    found: list[tuple[int, TransferRecord]] = []
    size = 0
    while size <= PAGE_BYTES and len(found) < limit:
        # A few at a time: one exchange may be a megabyte, and all of a result is in memory.
        count = min(_FEW, limit - len(found))
        rows = await connection.rows(SQL["exchanges"], (agent, found[-1][0] if found else after, count))
        for input_, shown_reply, full, uid, parent, prior, *skeleton in rows:
            (e,) = exchanges.exchanges([skeleton])
            e = replace(e, input=input_, shown_reply=shown_reply, full=full)
            found.append((e.seq, TransferRecord({"conversation": uid, "parent": parent, "prior": prior}, e)))
            size += sum(len(part or b"") for part in (input_, shown_reply, full))
        if len(rows) < count:
            break
    return found


# -- import


async def _put(connection: Connection, agent: Agent, part: str, values: Mapping[str, Any]) -> None:
    """Writes a record of any part but exchanges. Raises: NotFound, WriteConflict."""
    if part == "attached":
        await put_attached(connection, agent, values, agent.created)
        return
    fields = await _resolved(connection, agent.id, part, values)
    match part:
        case "definition":
            await put_definition(
                connection, agent, fields, await _conversation_uid(connection, agent.id, fields["uid"])
            )
        case "run":
            conversation = await _row_of(connection, agent.id, "conversation", fields["conversation"])
            await put_run(connection, agent.id, fields, fields["uid"], conversation)
        case "step":
            await put_step(
                connection, agent.id, fields, await _row_of(connection, agent.id, "run", fields["run"])
            )
        case "block":
            await _put_block(connection, agent, fields)
        case "version":
            await _put_version(connection, agent.id, fields)
        case "conversation":
            # Each exchange that is added to a stored conversation is its head from then on.
            await _put_row(
                connection, agent.id, part, {**fields, "is_stored": -1 if fields["is_stored"] else 0}
            )
        case "passage":
            packed = {
                name: orjson.dumps(fields[name]).decode() if fields[name] else None
                for name in ("tags", "metadata")
            }
            file = fields["file"]
            if file is not None:
                file = await _row_of(connection, agent.id, "file", file)
            await _put_row(connection, agent.id, part, {**fields, **packed, "file": file})
        case "fact":
            muted, origin = fields.pop("muted"), fields["origin"] or "learned"
            key = hash_key(agent.secret, values["key"])
            await _put_row(connection, agent.id, part, {**fields, "origin": origin, "key": key})
            if muted:
                await connection.run(FACTS["mute"], (agent.id, fields["seq"], fields["at"]))
        case "import":
            # What goes on does so where it was exported.
            status = "stopped" if fields["status"] == "running" else fields["status"]
            await _put_row(connection, agent.id, part, {**fields, "status": status})
        case "imported" | "imported_fact":
            row = await _row_of(connection, agent.id, "import", fields["import"])
            await _put_row(connection, agent.id, part, {**fields, "import": row})
        case "tag":
            await connection.run(SQL["tag_put"], (agent.id, IMPORTING + agent.scope.project, fields["tag"]))
        case _:
            await _put_row(connection, agent.id, part, fields)


async def _resolved(
    connection: Connection, agent: int, part: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a record's values in the order of `_FIELDS`, with rows of exchanges, and a public name that is free."""
    fields: dict[str, Any] = {}
    for name in _FIELDS[part]:
        field = _SPECIAL.get(name, _PLAIN)
        if not field.is_local:
            fields[name] = values.get(name) if field.is_optional else values[name]
    if "exchange" in fields:
        ids = await _ids(connection, agent, (fields["exchange"], *fields.get("sources", ())))
        fields["exchange"] = ids[fields["exchange"]]
        if "sources" in fields:
            fields["sources"] = [ids[seq] for seq in fields["sources"] if seq is not None]
    if f"{part}_taken" in SQL:
        fields["uid"] = await _free_uid(connection, agent, part, fields["uid"])
    return fields


async def _put_row(connection: Connection, agent: int, part: str, fields: Mapping[str, Any]) -> Row | None:
    """Writes a record, in the order of its fields. Returns what the statement reports of the row."""
    columns = [_column(name, value) for name, value in fields.items()]
    return await connection.row(SQL[f"{part}_put"], (agent, *columns))


def _column(name: str, value: Any) -> Any:
    field = _SPECIAL.get(name, _PLAIN)
    if field.is_packed:
        return orjson.dumps(value)
    return int(value or 0) if field.is_flag else value


async def _put_block(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    details = fields.pop("details")
    await _put_row(connection, agent.id, "block", fields)
    if details:
        project, at = agent.scope.project, agent.created
        await add_definition(connection, project, DefinitionKind.BLOCK, fields["uid"], "", details, at=at)


async def _put_version(connection: Connection, agent: int, fields: Mapping[str, Any]) -> None:
    row = await _put_row(connection, agent, "version", fields)
    if row is None:
        raise NotFound(f"there is no block {fields['block']!r} that lacks version {fields['version']!r}")
    await connection.run(SQL["version_point"], (fields["version"], row[0], row[1], agent))


def _copy_uid(agent: int, uid: str) -> str:
    """Returns the public name that a copy has where the name of the original is taken: the same each time."""
    return blake2b(f"{agent} {uid}".encode(), digest_size=16).hexdigest()


async def _free_uid(connection: Connection, agent: int, part: str, uid: str | None) -> str:
    """Returns a public name, or its copy's where it is taken; a new one where an older export has none."""
    if uid is None:
        return uuid.uuid4().hex
    is_taken = await connection.row(SQL[f"{part}_taken"], (uid,)) is not None
    return _copy_uid(agent, uid) if is_taken else uid


async def _row_of(connection: Connection, agent: int, part: str, uid: str) -> int:
    """Returns the row of a conversation, a run, a file or an import, by the name it had. Raises: NotFound."""
    found = await connection.value(SQL[f"{part}_at"], (agent, uid, _copy_uid(agent, uid)))
    if found is None:
        raise NotFound(f"there is no {part} {uid!r}")
    return int(found)


async def _conversation_uid(connection: Connection, agent: int, uid: str) -> str:
    """Returns the public name that a conversation was given here. Of other definitions `put_definition` knows it."""
    found = await connection.value(SQL["conversation_at"], (agent, uid, uid))
    return uid if found is not None else _copy_uid(agent, uid)


async def _ids(
    connection: Connection, agent: int, seqs: Sequence[int | None]
) -> dict[int | None, int | None]:
    """Returns the row ids of exchanges by their numbers. Raises: NotFound."""
    wanted = sorted({seq for seq in seqs if seq is not None})
    found: dict[int | None, int | None] = {None: None}
    found.update((row[0], row[1]) for row in await rows_of(connection, SQL["exchanges_at"], wanted, agent))
    for seq in wanted:
        if seq not in found:
            raise NotFound(f"there is no exchange {seq}")
    return found


async def _put_exchange(connection: Connection, agent: int, record: TransferRecord) -> None:
    e, values = record.exchange, record.values
    assert e is not None
    conversation = await _row_of(connection, agent, "conversation", values["conversation"])
    ids = await _ids(connection, agent, (values["parent"], values["prior"]))
    e = replace(e, conversation=conversation, parent=ids[values["parent"]], prior=ids[values["prior"]])
    id = await exchanges.put_exchange(connection, agent, e)
    if e.parent is not None:
        await note_fork(connection, agent, conversation, e.parent)
    await exchanges.mark(connection, agent, "head", values.get("prefixes", ()), id)
