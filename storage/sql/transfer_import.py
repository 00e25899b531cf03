"""Import of a memory: records without database ids are written with ids of their own.

An import grows in a memory of its own that no request can reach (`importing:` before its subject) and takes its place
in one transaction, when all of it is there.

The statements of a part are found by name: `<part>_put` writes a record. If records of the part have a public id
(`uid`), `<part>_taken` returns whether any memory has an id already. If other parts refer to records by that name,
`<part>_at` returns the row of a record.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import orjson
from msgspec.structs import replace

from storage.database import Connection, Database, Row
from storage.definition_records import DefinitionKind
from storage.errors import NotFound, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import DefinitionDraft
from storage.records import API_PROFILE, IMPORTING_PREFIX, Agent, EditState, Exchange, MarkKind, Scope
from storage.run_records import RunState
from storage.sql import exchanges
from storage.sql.agents import Agents, find_agent, find_agent_by_id, find_or_create_agent, pause_agent
from storage.sql.agents_api.definitions import add_definition
from storage.sql.agents_api.forks import note_fork
from storage.sql.exchange_rows import make_exchanges
from storage.sql.fact_writes import hash_key, mute_fact
from storage.sql.forget import Forgetting, begin_forgetting
from storage.sql.group import bulk_writes, reads
from storage.sql.growth import GrowingGroup, Growth
from storage.sql.readers import advance
from storage.sql.statements import load, load_rows
from storage.sql.stored_paths import CLIENT_TIP, EMPTY_TIP
from storage.sql.transfer_definitions import (
    import_attachment,
    import_definition,
    import_step,
    parse_agents_api_subject,
    publish_definitions,
)
from storage.sql.transfer_fields import FIELDS, READERS, REFERENCES, get_kind
from storage.transfer_commands import ImportedRecord, TransferPart, TransferRecord

SQL = load("transfer.sql")

# The states of runs that have ended.
_END_STATES = (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED)


class ImportWriter(GrowingGroup):
    """Writes the records of a memory, part by part: `begin`, then `write` for each page, then `finish`."""

    def __init__(self, database: Database, growth: Growth, agents: Agents, forgetting: Forgetting) -> None:
        super().__init__(database, growth)
        self._agents = agents
        self._forgetting = forgetting

    async def begin(self, draft: Agent) -> Agent:
        """Makes a memory to be filled, which no request reaches. First removes the remains of an earlier import.

        draft: the agent to create, with the scope that it gets at the end of the import.

        Raises: WriteConflict if that scope has a memory already, or another import for it begins.
        """
        scope = draft.scope
        await self._database.read(lambda connection: _find_replaceable(connection, scope))
        hidden_scope = scope._replace(subject=IMPORTING_PREFIX + scope.subject)
        unfinished = await self.find_unfinished(scope)
        if unfinished is not None:
            await self._forgetting.wipe(unfinished.id)
        hidden_draft = replace(draft, id=0, scope=hidden_scope)
        agent = await self._database.bulk_write(
            lambda connection: find_or_create_agent(connection, hidden_draft)
        )
        if agent.uid != hidden_draft.uid:
            raise WriteConflict(f"another import for {scope.subject} has begun at the same time")
        return agent

    @reads
    async def find_unfinished(self, connection: Connection, scope: Scope) -> Agent | None:
        """Returns the memory that `begin` made for a scope."""
        return await find_agent(connection, scope._replace(subject=IMPORTING_PREFIX + scope.subject))

    @reads
    async def load_path_end(self, connection: Connection, agent: Agent, seq: int) -> list[Exchange]:
        """Returns the end of the path to an exchange of an import, oldest first.

        The first exchange is the last one that has a reply, or the root.

        Raises: NotFound; WriteConflict, as `write`.
        """
        rows = await connection.fetch_rows(SQL["load_path_end"], (agent.id, seq))
        if not rows:
            await _check_unfinished(connection, agent)
            raise NotFound(f"there is no exchange {seq}")
        return make_exchanges(rows)

    @bulk_writes
    async def write(self, connection: Connection, agent: Agent, records: Sequence[ImportedRecord]) -> None:
        """Writes records in the order in which they were read.

        The caller has computed the values that an export leaves out: the hashes of an exchange and the `key` of a fact.

        Raises: NotFound; WriteConflict if another import has taken the place of this one.
        """
        await connection.lock(agent.id)
        await _check_unfinished(connection, agent)
        for part, record in records:
            if part == "exchange":
                await _put_exchange(connection, agent.id, record)
            else:
                await _write_record(connection, agent, part, record.values)

    async def finish(
        self, agent: Agent, next_seq: int, uid: str | None = None, created: float | None = None
    ) -> None:
        """Gives the imported memory its scope, in place of an empty memory there.

        If the empty memory was paused, the imported memory is paused as well.

        uid: the memory's former public id, which it gets if the id is free.
        created: the time at which the memory began, in seconds since the epoch; None: the time of this import.

        Raises: WriteConflict if a turn has come meanwhile.
        """
        scope = agent.scope._replace(subject=agent.scope.subject.removeprefix(IMPORTING_PREFIX))

        async def publish(connection: Connection) -> list[int]:
            await connection.lock(agent.id)
            await _check_unfinished(connection, agent)
            empty_agent = await _find_replaceable(connection, scope)
            forgettings: list[int] = []
            if empty_agent is not None:
                # Deleted at once, so that no turn that was planned for that memory is committed.
                target = ForgetTarget(is_all=True)
                forgettings = await begin_forgetting(
                    connection, empty_agent.id, target, self._forgetting.now()
                )
                if empty_agent.paused_at is not None:
                    await pause_agent(connection, agent.id, empty_agent.paused_at)
            await connection.run(SQL["set_next_seq"], (next_seq, agent.id))
            if created is not None:
                await connection.run(SQL["set_created"], (created, agent.id))
            published_uid = await _choose_published_uid(connection, agent, uid)
            await connection.run(SQL["rename"], (scope.subject, published_uid, agent.id))
            await publish_definitions(connection, agent)
            return forgettings

        forgettings = await self._grow(agent.id, next_seq - 1, self._database.bulk_write(publish))
        self._agents.uncache(scope)
        for forgetting in forgettings:
            await self._forgetting.run(forgetting)


async def _choose_published_uid(connection: Connection, agent: Agent, former_uid: str | None) -> str:
    """Returns the public id of an imported memory: the former id if that id is free, otherwise the present id."""
    subject = parse_agents_api_subject(agent)
    preferred_uid = former_uid if subject is None else subject.uid
    if preferred_uid is None or await connection.fetch_row(SQL["agent_taken"], (preferred_uid,)) is not None:
        return agent.uid
    return preferred_uid


async def _check_unfinished(connection: Connection, agent: Agent) -> None:
    """Checks that an import is still under way. Raises: WriteConflict if another import has taken its place."""
    if await find_agent_by_id(connection, agent.id) is None:
        subject = agent.scope.subject.removeprefix(IMPORTING_PREFIX)
        raise WriteConflict(f"another import for {subject} has begun meanwhile; this one ends here")


async def _find_replaceable(connection: Connection, scope: Scope) -> Agent | None:
    """Returns the empty memory that an import may replace; None if the scope has no memory.

    Raises: WriteConflict if the scope has a memory that is not empty.
    """
    agent = await find_agent(connection, scope)
    if agent is None:
        return None
    # A turn may be about to begin the memory, and a caller that forgets or pauses it may be faster.
    await connection.lock(agent.id)
    locked_agent = await find_agent_by_id(connection, agent.id)
    if locked_agent is None:
        return None
    if scope.profile == API_PROFILE or not await connection.fetch_value(SQL["is_empty"], (locked_agent.id,)):
        raise WriteConflict(
            f"{scope.subject} has a memory here already; forget it first, or import it for another user"
        )
    return locked_agent


async def _write_record(
    connection: Connection, agent: Agent, part: TransferPart, values: Mapping[str, Any]
) -> None:
    """Writes a record of any part except an exchange. Raises: NotFound, WriteConflict."""
    if part == "attached":
        await import_attachment(connection, agent, values, agent.created)
        return
    fields = await _resolve_fields(connection, agent.id, part, values)
    if part == "fact":
        # The caller has computed the text of the key, and a row has the hash of the text.
        fields["key"] = hash_key(agent.secret, values["key"])
    if (write := _WRITERS.get(part)) is not None:
        await write(connection, agent, fields)
    else:
        await _put_row(connection, agent.id, part, fields)


async def _resolve_fields(
    connection: Connection, agent_row: int, part: TransferPart, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a record's values in the order of `FIELDS`, with the rows of the named records, and a free public id."""
    fields: dict[str, Any] = {}
    for name in FIELDS[part]:
        kind = get_kind(name)
        if kind.is_exported:
            fields[name] = values.get(name) if kind.is_optional else values[name]
    if "exchange" in fields:
        row_by_seq = await _get_rows_by_seq(
            connection, agent_row, (fields["exchange"], *fields.get("sources", ()))
        )
        fields["exchange"] = row_by_seq[fields["exchange"]]
        if "sources" in fields:
            fields["sources"] = [row_by_seq[seq] for seq in fields["sources"] if seq is not None]
    for name in REFERENCES:
        if fields.get(name) is not None:
            fields[name] = await _get_row(connection, agent_row, name, fields[name])
    if "uid" in fields:
        fields["uid"] = await _choose_uid(connection, agent_row, part, fields["uid"])
    return fields


async def _put_row(
    connection: Connection, agent_row: int, part: TransferPart, fields: Mapping[str, Any]
) -> Row | None:
    """Writes a record, in the order of its fields. Returns the values that the statement reports of the row."""
    columns = [get_kind(name).to_column(value) for name, value in fields.items()]
    return await connection.fetch_row(SQL[f"{part}_put"], (agent_row, *columns))


async def _put_definition(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a definition; the definition of a conversation gets the conversation's new public id."""
    if fields["kind"] == DefinitionKind.CONVERSATION:
        fields["uid"] = await _choose_conversation_uid(connection, agent.id, fields["uid"])
    await import_definition(connection, agent, fields)


async def _put_conversation(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a conversation without exchanges.

    Each exchange that is written later becomes the tip of a stored conversation.
    """
    tip = EMPTY_TIP if fields["is_stored"] else CLIENT_TIP
    await _put_row(connection, agent.id, "conversation", {**fields, "is_stored": tip})


async def _put_block(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a block, and its details as a definition."""
    details = fields.pop("details")
    await _put_row(connection, agent.id, "block", fields)
    if details:
        draft = DefinitionDraft(agent.scope.project, DefinitionKind.BLOCK, fields["uid"], details)
        await add_definition(connection, draft, at=agent.created)


async def _put_version(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a version of a block, to which the block then points. Raises: NotFound."""
    written_version = await _put_row(connection, agent.id, "version", fields)
    if written_version is None:
        raise NotFound(f"there is no block {fields['block']!r} that lacks version {fields['version']!r}")
    await connection.run(
        SQL["version_point"], (fields["version"], written_version[0], written_version[1], agent.id)
    )


async def _put_passage(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a passage, with its tags and metadata as JSON."""
    texts = {
        name: orjson.dumps(fields[name]).decode() if fields[name] else None for name in ("tags", "metadata")
    }
    await _put_row(connection, agent.id, "passage", {**fields, **texts})


async def _put_fact(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a fact, and mutes it if it was muted."""
    is_muted = fields.pop("muted")
    await _put_row(connection, agent.id, "fact", {**fields, "origin": fields["origin"] or "learned"})
    if is_muted:
        await mute_fact(connection, agent.id, fields["seq"], fields["at"])


async def _put_position(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes the number of the last exchange that a reader has read."""
    reader = READERS[fields["reader"] or "learner"]
    await advance(connection, agent.id, reader, fields["seq"], 0.0)


async def _put_edit(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a memory edit, and marks its exchange if the edit is pending."""
    await _put_row(connection, agent.id, "edit", fields)
    if fields["state"] == EditState.PENDING:
        await connection.run(SQL["edit_waits"], (fields["exchange"], agent.id))


async def _put_tag(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a tag of the agent."""
    await connection.run(SQL["tag_put"], (agent.id, IMPORTING_PREFIX + agent.scope.project, fields["tag"]))


async def _put_import(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes the record of an import of another application's data.

    An import that was running is stopped here, since it goes on at the gateway that has made the export.
    """
    status = "stopped" if fields["status"] == "running" else fields["status"]
    await _put_row(connection, agent.id, "import", {**fields, "status": status})


async def _put_run(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    """Writes a run. A run that was open in the export has failed here, at the time at which it began."""
    if fields["state"] not in _END_STATES:
        ended = fields["begun"] or fields["created"]
        fields |= {"state": RunState.FAILED, "stop": "error", "ended": ended}
    await _put_row(connection, agent.id, "run", fields)


# The writers of parts that take more than the statement of their row.
_WRITERS: Mapping[TransferPart, Callable[[Connection, Agent, dict[str, Any]], Awaitable[None]]] = {
    "block": _put_block,
    "conversation": _put_conversation,
    "definition": _put_definition,
    "edit": _put_edit,
    "fact": _put_fact,
    "import": _put_import,
    "learned": _put_position,
    "passage": _put_passage,
    "run": _put_run,
    "step": import_step,
    "tag": _put_tag,
    "version": _put_version,
}


def _compute_copy_uid(agent_row: int, uid: str) -> str:
    """Returns the public id of a copy of a record whose own id is taken: for equal arguments the same id."""
    return blake2b(f"{agent_row} {uid}".encode(), digest_size=16).hexdigest()


async def _choose_uid(connection: Connection, agent_row: int, part: TransferPart, uid: str | None) -> str:
    """Returns the public id of an imported record: its former id, or the id of a copy if the former id is taken.

    uid: the id in the export; None: the export is an older one without ids, so that the record gets a new id.
    """
    if uid is None:
        return uuid.uuid4().hex
    is_taken = await connection.fetch_row(SQL[f"{part}_taken"], (uid,)) is not None
    return _compute_copy_uid(agent_row, uid) if is_taken else uid


async def _get_row(connection: Connection, agent_row: int, part: TransferPart, uid: str) -> int:
    """Returns the row of a record of the part. uid: the id in the export. Raises: NotFound.

    part: `conversation`, `run`, `file` or `import`.
    """
    row = await connection.fetch_value(SQL[f"{part}_at"], (agent_row, uid, _compute_copy_uid(agent_row, uid)))
    if row is None:
        raise NotFound(f"there is no {part} {uid!r}")
    return int(row)


async def _choose_conversation_uid(connection: Connection, agent_row: int, uid: str) -> str:
    """Returns the public id that a conversation was given here. uid: the conversation's id in the export."""
    row = await connection.fetch_value(SQL["conversation_at"], (agent_row, uid, uid))
    return uid if row is not None else _compute_copy_uid(agent_row, uid)


async def _get_rows_by_seq(
    connection: Connection, agent_row: int, seqs: Sequence[int | None]
) -> dict[int | None, int | None]:
    """Returns the rows of exchanges by their numbers. Raises: NotFound."""
    numbers = sorted({seq for seq in seqs if seq is not None})
    row_by_seq: dict[int | None, int | None] = {None: None}
    row_by_seq.update(
        (row[0], row[1]) for row in await load_rows(connection, SQL["exchanges_at"], numbers, agent_row)
    )
    for seq in numbers:
        if seq not in row_by_seq:
            raise NotFound(f"there is no exchange {seq}")
    return row_by_seq


async def _put_exchange(connection: Connection, agent_row: int, record: TransferRecord) -> None:
    """Writes an exchange with its marks, in its conversation and after its parent. Raises: NotFound."""
    exchange, values = record.exchange, record.values
    # The caller passes records of exchanges alone.
    assert exchange is not None
    conversation_row = await _get_row(connection, agent_row, "conversation", values["conversation"])
    row_by_seq = await _get_rows_by_seq(connection, agent_row, (values["parent"], values["prior"]))
    exchange = replace(
        exchange,
        conversation_row=conversation_row,
        parent=row_by_seq[values["parent"]],
        prior=row_by_seq[values["prior"]],
    )
    exchange_row = await exchanges.add_numbered_exchange(connection, agent_row, exchange)
    if exchange.parent is not None:
        await note_fork(connection, agent_row, conversation_row, exchange.parent)
    await exchanges.add_marks(
        connection, agent_row, MarkKind.PREFIX, values.get("prefixes", ()), exchange_row
    )
