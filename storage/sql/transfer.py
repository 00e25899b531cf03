"""Export and import of a memory: pages of records without database ids, read and written.

An import grows in a memory of its own that no request can reach (`importing:` before its subject) and takes its place
in one transaction, when all of it is there.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from storage.commands import ExportedRecord, ForgetTarget, ImportedRecord, TransferRecord
from storage.database import Connection, Database, Row
from storage.errors import NotFound, WriteConflict
from storage.listing import DefinitionDraft
from storage.records import (
    API_PROFILE,
    IMPORTING_PREFIX,
    LEARNER,
    RULE,
    Agent,
    DefinitionKind,
    EditState,
    Exchange,
    MarkKind,
    Scope,
    TokenCounts,
)
from storage.sql import exchanges
from storage.sql.agents import Agents, find_agent, find_agent_by_id, find_or_create_agent, pause_agent
from storage.sql.agents_api.definitions import add_definition
from storage.sql.agents_api.forks import note_fork
from storage.sql.exchange_rows import make_exchange, make_exchanges
from storage.sql.facts import SQL as FACTS
from storage.sql.facts import hash_key
from storage.sql.forget import Forgetting, begin_forgetting
from storage.sql.group import bulk_writes, long_reads, reads
from storage.sql.growth import GrowingGroup, Growth
from storage.sql.readers import advance
from storage.sql.statements import load, load_rows
from storage.sql.stored_paths import CLIENT_TIP, EMPTY_TIP
from storage.sql.transfer_definitions import (
    parse_api_subject,
    publish_definitions,
    put_attached,
    put_definition,
    put_run,
    put_step,
    read_attached,
)

# The statements of a part are found by name: `<part>_read` reads a page, `<part>_put` writes a record. If records of
# the part have a public id (`uid`), `<part>_taken` returns whether any memory has an id already. If other parts
# refer to records by that name, `<part>_at` returns the row of a record.
SQL = load("transfer.sql")

# The columns of the statement `export_end`.
_EXPORT_END = (
    "seq",
    "conversation",
    "block",
    "version",
    "edit",
    "definition",
    "file",
    "run",
    "learner",
    "rule",
)
# The readers with exported cursors, by their names in the export.
_READERS = {"learner": LEARNER, "rule": RULE}
# Parts with `seq`, the number in the agent's order, as the cursor of their pages. Others have the row id.
_PAGED_BY_SEQ = ("exchange", "passage", "fact", "step", "imported", "imported_fact")
# The size of a page, about; a single exchange may be larger.
PAGE_BYTES = 1 << 20
# Exchanges that are read at once: one may be a megabyte, and all rows of a result are in memory. Not measured: fewer
# cost more statements for a page of small ones.
_ROWS_AT_ONCE = 8
# The fields of a record, part by part, in the order in which rows are read and written. The caller adds `key` to the
# record of a fact before `write`.
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
    "learned": ("seq", "reader"),
    "edit": ("exchange", "call", "state", "at", "op", "label", "arguments", "seen"),
    "tag": ("tag",),
    "run": ("uid", "conversation", "state", "stop", "depth", "background", "created", "begun", "ended"),
    "step": (
        "exchange",
        "run",
        "number",
        "begun",
        "ended",
        *TokenCounts._fields,
        "stop",
        "feedback",
        "error",
        "waiting",
    ),
    "import": ("uid", "format", "status", "learns", "created", "touched", "data"),
    "imported": ("exchange", "import", "what", "learns"),
    "imported_fact": ("fact", "import"),
}
# The fields that name another record by its public id. Each has the name of the other record's part.
_REFERENCES = ("conversation", "run", "file", "import")


class _FieldKind(NamedTuple):
    """How a field is converted between its row and a record."""

    # The JSON where the column has none; None: the field is no JSON.
    json_default: bytes | str | None = None
    # True or false; the row has 1 or 0.
    is_flag: bool = False
    # An import writes its JSON as it is. The writers of the parts write other fields with JSON.
    is_dumped: bool = False
    # Older exports do not have it.
    is_optional: bool = False
    # False for what only this gateway needs, such as waiting calls, which are answered here alone.
    is_exported: bool = True

    def from_column(self, column: Any) -> Any:
        """Returns the value that a record has for a column of its row."""
        if self.json_default is not None:
            return orjson.loads(column or self.json_default)
        return bool(column) if self.is_flag else column

    def to_column(self, value: Any) -> Any:
        """Returns the column that a row has for a value of its record."""
        if self.is_dumped:
            return orjson.dumps(value)
        return int(value or 0) if self.is_flag else value


# The fields that need a conversion. A field's name has the same kind in every part.
_FIELD_KINDS: Mapping[str, _FieldKind] = {
    "sources": _FieldKind(b"[]", is_dumped=True),
    "arguments": _FieldKind(b"{}", is_dumped=True),
    "data": _FieldKind(b"{}", is_dumped=True),
    "body": _FieldKind(b"{}"),
    "details": _FieldKind(b"{}", is_optional=True),
    "tags": _FieldKind("[]", is_optional=True),
    "metadata": _FieldKind("{}", is_optional=True),
    "read_only": _FieldKind(is_flag=True),
    "background": _FieldKind(is_flag=True),
    "learns": _FieldKind(is_flag=True),
    "is_stored": _FieldKind(is_flag=True, is_optional=True),
    "muted": _FieldKind(is_flag=True, is_optional=True),
    "standing": _FieldKind(is_flag=True, is_optional=True),
    "uid": _FieldKind(is_optional=True),
    "file": _FieldKind(is_optional=True),
    "origin": _FieldKind(is_optional=True),
    "reader": _FieldKind(is_optional=True),
    "seen": _FieldKind(is_optional=True),
    "waiting": _FieldKind(is_exported=False),
}
_PLAIN = _FieldKind()


class Transfer(GrowingGroup):
    """Export and import of a memory, part by part.

    `begin_import` and `finish_import` use the database directly, as each needs several transactions.
    """

    def __init__(self, database: Database, growth: Growth, agents: Agents, forgetting: Forgetting) -> None:
        super().__init__(database, growth)
        self._agents = agents
        self._forgetting = forgetting

    # -- export

    @reads
    async def export_end(self, connection: Connection, agent: Agent) -> dict[str, int]:
        """Returns the end of an export that begins now, for `page`: part -> its last row. Raises: NotFound.

        The part `seq` has the last number that was given out; `learner` and `rule` have how far learning with and
        without a model has come.
        """
        row = await connection.row(SQL["export_end"], (agent.id,))
        if row is None:
            raise NotFound("this memory is gone")
        return {name: last or 0 for name, last in zip(_EXPORT_END, row, strict=True)}

    @long_reads
    async def page(
        self,
        connection: Connection,
        agent: Agent,
        part: str,
        cursor: int,
        limit: int,
        export_end: Mapping[str, int],
    ) -> list[ExportedRecord]:
        """Returns a page of the records of one part.

        Records after `export_end` are left out: later turns would refer to what is not exported.

        part: conversation, definition, exchange, block, version, file, passage, fact, ended, learned, edit,
            tag, attached, run, step, import, imported or imported_fact.
        cursor: the cursor returned with the last record of the previous page, or 0.
        """
        if part == "attached":
            attached = await read_attached(connection, agent.id, cursor, limit)
            return [ExportedRecord(number, TransferRecord(values)) for number, values in attached]
        if part == "learned":
            # Learning goes on from its position when the export began: the importing gateway learns later facts again.
            positions = [(reader, export_end.get(reader)) for reader in _READERS]
            return [
                ExportedRecord(number, TransferRecord({"seq": seq, "reader": reader}))
                for number, (reader, seq) in enumerate(positions, 1)
                if seq and number > cursor
            ]
        if part == "exchange":
            records = await _load_exchange_page(connection, agent.id, cursor, limit)
        else:
            records = await _record_page(connection, agent.id, part, cursor, limit, export_end)
        last_cursor = export_end.get("seq" if part in _PAGED_BY_SEQ else part)
        return [each for each in records if last_cursor is None or each.cursor <= last_cursor]

    # -- import

    async def begin_import(self, draft: Agent) -> Agent:
        """Makes a memory to be filled, which no request reaches. What an earlier import has left there is removed.

        draft: the agent to create, with the scope that it gets at the end of the import.

        Raises: WriteConflict if that scope has a memory already, or another import for it begins.
        """
        scope = draft.scope
        await self._database.read(lambda connection: _find_replaceable(connection, scope))
        hidden = scope._replace(subject=IMPORTING_PREFIX + scope.subject)
        unfinished = await self.find_unfinished(scope)
        if unfinished is not None:
            await self._forgetting.wipe(unfinished.id)
        hidden_draft = replace(draft, id=0, scope=hidden)
        agent = await self._database.bulk(lambda connection: find_or_create_agent(connection, hidden_draft))
        if agent.uid != hidden_draft.uid:
            raise WriteConflict(f"another import for {scope.subject} has begun at the same time")
        return agent

    @reads
    async def find_unfinished(self, connection: Connection, scope: Scope) -> Agent | None:
        """Returns the memory that `begin_import` made for a scope."""
        return await find_agent(connection, scope._replace(subject=IMPORTING_PREFIX + scope.subject))

    @reads
    async def load_path_end(self, connection: Connection, agent: Agent, seq: int) -> list[Exchange]:
        """Returns the end of the path to an exchange of an import, oldest first.

        It begins with the last exchange that has a reply, or at the root.

        Raises: NotFound; WriteConflict, as `write`.
        """
        rows = await connection.rows(SQL["load_path_end"], (agent.id, seq))
        if not rows:
            await _check_unfinished(connection, agent)
            raise NotFound(f"there is no exchange {seq}")
        return make_exchanges(rows)

    @bulk_writes
    async def write(self, connection: Connection, agent: Agent, records: Sequence[ImportedRecord]) -> None:
        """Writes records in the order in which they were read.

        What an export leaves out has been computed before: the hashes of an exchange and the `key` of a fact.

        Raises: NotFound; WriteConflict if another import has taken the place of this one.
        """
        await connection.lock(agent.id)
        await _check_unfinished(connection, agent)
        for part, record in records:
            if part == "exchange":
                await _put_exchange(connection, agent.id, record)
            else:
                await _write_record(connection, agent, part, record.values)

    async def finish_import(
        self, agent: Agent, next_seq: int, uid: str | None = None, created: float | None = None
    ) -> None:
        """Gives the imported memory its scope, in place of an empty memory there. It is paused if that memory was.

        uid: its former public id, which it gets if that is free.
        created: when the memory began, in seconds since the epoch; None: with this import.

        Raises: WriteConflict if a turn has come meanwhile.
        """
        scope = agent.scope._replace(subject=agent.scope.subject.removeprefix(IMPORTING_PREFIX))

        async def publish(connection: Connection) -> list[int]:
            await connection.lock(agent.id)
            await _check_unfinished(connection, agent)
            replaced = await _find_replaceable(connection, scope)
            forgettings: list[int] = []
            if replaced is not None:
                # Deleted at once, so that no turn that was planned for that memory is committed.
                target = ForgetTarget(is_all=True)
                forgettings = await begin_forgetting(connection, replaced.id, target, self._forgetting.now())
                if replaced.paused is not None:
                    await pause_agent(connection, agent.id, replaced.paused)
            await connection.run(SQL["set_next_seq"], (next_seq, agent.id))
            if created is not None:
                await connection.run(SQL["set_created"], (created, agent.id))
            published_uid = await _choose_published_uid(connection, agent, uid)
            await connection.run(SQL["rename"], (scope.subject, published_uid, agent.id))
            await publish_definitions(connection, agent)
            return forgettings

        forgettings = await self._grow(agent.id, next_seq - 1, self._database.bulk(publish))
        self._agents.uncache(scope)
        for forgetting in forgettings:
            await self._forgetting.run(forgetting)


async def _choose_published_uid(connection: Connection, agent: Agent, former_uid: str | None) -> str:
    """Returns the public id of an imported memory: its former one if that is free, else the one that it has now."""
    subject = parse_api_subject(agent)
    wanted_uid = former_uid if subject is None else subject.uid
    if wanted_uid is None or await connection.row(SQL["agent_taken"], (wanted_uid,)) is not None:
        return agent.uid
    return wanted_uid


async def _check_unfinished(connection: Connection, agent: Agent) -> None:
    """Checks that an import is still under way. Raises: WriteConflict if another import has taken its place."""
    if await find_agent_by_id(connection, agent.id) is None:
        subject = agent.scope.subject.removeprefix(IMPORTING_PREFIX)
        raise WriteConflict(f"another import for {subject} has begun meanwhile; this one ends here")


async def _find_replaceable(connection: Connection, scope: Scope) -> Agent | None:
    """Returns the empty memory that an import may replace; None if the scope has no memory.

    Raises: WriteConflict if its memory is not empty.
    """
    agent = await find_agent(connection, scope)
    if agent is None:
        return None
    # A turn may be about to begin the memory, and a caller that forgets or pauses it may be faster.
    await connection.lock(agent.id)
    locked_agent = await find_agent_by_id(connection, agent.id)
    if locked_agent is None:
        return None
    if scope.profile == API_PROFILE or not await connection.value(SQL["is_empty"], (locked_agent.id,)):
        raise WriteConflict(
            f"{scope.subject} has a memory here already; forget it first, or import it for another user"
        )
    return locked_agent


# -- export


async def _record_page(
    connection: Connection, agent_row: int, part: str, cursor: int, limit: int, export_end: Mapping[str, int]
) -> list[ExportedRecord]:
    """Reads a page of any part but exchanges.

    The first column of a row is the cursor of the next record. References to exchanges that are gone are left out.

    export_end: the records at which the export ends. A fact that was superseded later is exported as valid, an edit
        that was merged later as pending.
    """
    ends = {"ended": ("seq",), "edit": ("seq", "version")}.get(part, ())
    arguments = (agent_row, cursor, limit, *(export_end[name] for name in ends))
    rows = await connection.rows(SQL[f"{part}_read"], arguments)
    records = [_make_values(part, columns) for _, *columns in rows]
    await _number_exchanges(connection, agent_row, records)
    return [ExportedRecord(row[0], TransferRecord(values)) for row, values in zip(rows, records, strict=True)]


def _make_values(part: str, columns: Sequence[Any]) -> dict[str, Any]:
    """Returns the values of a record. columns: those of its row, in the order of `_FIELDS`."""
    values = {}
    for name, column in zip(_FIELDS[part], columns, strict=True):
        kind = _FIELD_KINDS.get(name, _PLAIN)
        if kind.is_exported:
            values[name] = kind.from_column(column)
    return values


async def _number_exchanges(
    connection: Connection, agent_row: int, records: Sequence[dict[str, Any]]
) -> None:
    """Puts the numbers of exchanges in place of their rows. Exchanges that are gone are left out."""
    exchange_rows = {
        exchange_row
        for values in records
        for exchange_row in (values.get("exchange"), *values.get("sources", ()))
        if exchange_row is not None
    }
    seqs = {
        row[0]: row[1]
        for row in await load_rows(connection, SQL["seqs_of"], sorted(exchange_rows), agent_row)
    }
    for values in records:
        if "exchange" in values:
            values["exchange"] = seqs.get(values["exchange"])
        if "sources" in values:
            values["sources"] = [
                seqs[exchange_row] for exchange_row in values["sources"] if exchange_row in seqs
            ]


async def _load_exchange_page(
    connection: Connection, agent_row: int, cursor: int, limit: int
) -> list[ExportedRecord]:
    page: list[ExportedRecord] = []
    size = 0
    while size <= PAGE_BYTES and len(page) < limit:
        count = min(_ROWS_AT_ONCE, limit - len(page))
        last_seq = page[-1].cursor if page else cursor
        rows = await connection.rows(SQL["exchanges"], (agent_row, last_seq, count))
        for input_, shown_reply, full_reply, uid, parent, prior, *skeleton in rows:
            exchange = make_exchange(skeleton, input_, shown_reply, full_reply)
            values = {"conversation": uid, "parent": parent, "prior": prior}
            page.append(ExportedRecord(exchange.seq, TransferRecord(values, exchange)))
            size += exchange.content_bytes
        if len(rows) < count:
            break
    return page


# -- import


async def _write_record(connection: Connection, agent: Agent, part: str, values: Mapping[str, Any]) -> None:
    """Writes a record of any part but exchanges. Raises: NotFound, WriteConflict."""
    if part == "attached":
        await put_attached(connection, agent, values, agent.created)
        return
    fields = await _resolve_fields(connection, agent.id, part, values)
    if part == "fact":
        fields["key"] = hash_key(agent.secret, values["key"])  # no export has it
    if (write := _WRITERS.get(part)) is not None:
        await write(connection, agent, fields)
    else:
        await _put_row(connection, agent.id, part, fields)


async def _resolve_fields(
    connection: Connection, agent_row: int, part: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a record's values in the order of `_FIELDS`, with the rows of what they name, and a free public id."""
    fields: dict[str, Any] = {}
    for name in _FIELDS[part]:
        kind = _FIELD_KINDS.get(name, _PLAIN)
        if kind.is_exported:
            fields[name] = values.get(name) if kind.is_optional else values[name]
    if "exchange" in fields:
        row_by_seq = await _get_rows_by_seq(
            connection, agent_row, (fields["exchange"], *fields.get("sources", ()))
        )
        fields["exchange"] = row_by_seq[fields["exchange"]]
        if "sources" in fields:
            fields["sources"] = [row_by_seq[seq] for seq in fields["sources"] if seq is not None]
    for name in _REFERENCES:
        if fields.get(name) is not None:
            fields[name] = await _get_row(connection, agent_row, name, fields[name])
    if "uid" in fields:
        fields["uid"] = await _free_uid(connection, agent_row, part, fields["uid"])
    return fields


async def _put_row(
    connection: Connection, agent_row: int, part: str, fields: Mapping[str, Any]
) -> Row | None:
    """Writes a record, in the order of its fields. Returns what the statement reports of the row."""
    columns = [_FIELD_KINDS.get(name, _PLAIN).to_column(value) for name, value in fields.items()]
    return await connection.row(SQL[f"{part}_put"], (agent_row, *columns))


async def _put_definition(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    if fields["kind"] == DefinitionKind.CONVERSATION:
        fields["uid"] = await _choose_conversation_uid(connection, agent.id, fields["uid"])
    await put_definition(connection, agent, fields)


async def _put_conversation(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    # Each added exchange becomes the tip of a stored conversation.
    tip = EMPTY_TIP if fields["is_stored"] else CLIENT_TIP
    await _put_row(connection, agent.id, "conversation", {**fields, "is_stored": tip})


async def _put_block(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    details = fields.pop("details")
    await _put_row(connection, agent.id, "block", fields)
    if details:
        draft = DefinitionDraft(agent.scope.project, DefinitionKind.BLOCK, fields["uid"], details)
        await add_definition(connection, draft, at=agent.created)


async def _put_version(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    written_version = await _put_row(connection, agent.id, "version", fields)
    if written_version is None:
        raise NotFound(f"there is no block {fields['block']!r} that lacks version {fields['version']!r}")
    await connection.run(
        SQL["version_point"], (fields["version"], written_version[0], written_version[1], agent.id)
    )


async def _put_passage(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    texts = {
        name: orjson.dumps(fields[name]).decode() if fields[name] else None for name in ("tags", "metadata")
    }
    await _put_row(connection, agent.id, "passage", {**fields, **texts})


async def _put_fact(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    is_muted = fields.pop("muted")
    await _put_row(connection, agent.id, "fact", {**fields, "origin": fields["origin"] or "learned"})
    if is_muted:
        await connection.run(FACTS["mute"], (agent.id, fields["seq"], fields["at"]))


async def _put_position(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    reader = _READERS[fields["reader"] or "learner"]
    await advance(connection, agent.id, reader, fields["seq"], 0.0)


async def _put_edit(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    await _put_row(connection, agent.id, "edit", fields)
    if fields["state"] == EditState.PENDING:
        await connection.run(SQL["edit_waits"], (fields["exchange"], agent.id))


async def _put_tag(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    await connection.run(SQL["tag_put"], (agent.id, IMPORTING_PREFIX + agent.scope.project, fields["tag"]))


async def _put_import(connection: Connection, agent: Agent, fields: dict[str, Any]) -> None:
    # An import that was running goes on at the gateway of the export alone.
    status = "stopped" if fields["status"] == "running" else fields["status"]
    await _put_row(connection, agent.id, "import", {**fields, "status": status})


# The writers of parts that take more than the statement of their row.
_WRITERS: Mapping[str, Callable[[Connection, Agent, dict[str, Any]], Awaitable[None]]] = {
    "block": _put_block,
    "conversation": _put_conversation,
    "definition": _put_definition,
    "edit": _put_edit,
    "fact": _put_fact,
    "import": _put_import,
    "learned": _put_position,
    "passage": _put_passage,
    "run": put_run,
    "step": put_step,
    "tag": _put_tag,
    "version": _put_version,
}


def _copy_uid(agent_row: int, uid: str) -> str:
    """Returns the public id of a copy, if that of the original is taken. It is the same each time."""
    return blake2b(f"{agent_row} {uid}".encode(), digest_size=16).hexdigest()


async def _free_uid(connection: Connection, agent_row: int, part: str, uid: str | None) -> str:
    """Returns a record's public id here: its own, or that of a copy if it is taken; a new one if `uid` is None.

    uid: its id in the export; older exports have none.
    """
    if uid is None:
        return uuid.uuid4().hex
    is_taken = await connection.row(SQL[f"{part}_taken"], (uid,)) is not None
    return _copy_uid(agent_row, uid) if is_taken else uid


async def _get_row(connection: Connection, agent_row: int, part: str, uid: str) -> int:
    """Returns the row of a conversation, a run, a file or an import. uid: its id in the export. Raises: NotFound."""
    row = await connection.value(SQL[f"{part}_at"], (agent_row, uid, _copy_uid(agent_row, uid)))
    if row is None:
        raise NotFound(f"there is no {part} {uid!r}")
    return int(row)


async def _choose_conversation_uid(connection: Connection, agent_row: int, uid: str) -> str:
    """Returns the public id that a conversation was given here. uid: its id in the export."""
    row = await connection.value(SQL["conversation_at"], (agent_row, uid, uid))
    return uid if row is not None else _copy_uid(agent_row, uid)


async def _get_rows_by_seq(
    connection: Connection, agent_row: int, seqs: Sequence[int | None]
) -> dict[int | None, int | None]:
    """Returns the row ids of exchanges by their numbers. Raises: NotFound."""
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
    exchange, values = record.exchange, record.values
    assert exchange is not None  # it is a record of an exchange
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
