"""Moving a whole store into another: the list of its memories, and everything that no memory's export contains.

The latter are gateway keys, limits, usage, definitions of tools, servers and identities, blocks that no memory owns,
and the links of memories. Whatever the target has already stays as it is, so a move that was killed can be run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson
from msgspec import Struct

from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.errors import WriteConflict
from storage.listing import DefinitionDraft
from storage.records import Agent, MarkKind, Scope
from storage.sql.agents import find_agent, find_agent_by_id, find_numbers, make_agent_record
from storage.sql.agents_api import sleepers
from storage.sql.agents_api.attached import attach
from storage.sql.agents_api.definitions import add_definition, find_definition
from storage.sql.blocks import FORGOTTEN_ORIGIN
from storage.sql.blocks import SQL as BLOCKS
from storage.sql.exchanges import add_marks
from storage.sql.group import StoreGroup, as_method, bulk_writes, long_reads, reads
from storage.sql.rebuild import BlockVersion, load_versions
from storage.sql.statements import load
from storage.sql.transfer_definitions import find_or_make_attached, read_attached
from storage.usage_records import ROWS_AT_ONCE, UsageKey, UsageLimit, UsageRow

SQL = load("moving.sql")

# The rows that one statement reads. Not measured: all pages are read in any case.
_PAGE_ROWS = 64
# More rows than a memory can have attached.
_NO_LIMIT = 1 << 31


class MovedKey(NamedTuple):
    """A gateway key without its row, which differs between stores. The order is that of the statement `keys`."""

    project: str
    name: str
    # The SHA-256 of the key's secret.
    digest: bytes
    # The first characters of the secret, which lists show.
    prefix: str
    created: float
    revoked: float | None
    memory: str | None
    opens: str | None
    used: float | None
    expires: float | None
    # Patterns of models, as JSON; None: it may ask for every model.
    models: str | None
    user: str | None
    # The SHA-256 of the secret before the last rotation, which is taken until `old_until`; None: it was not rotated.
    old_digest: bytes | None
    old_until: float | None
    installed: bool


class MovedDefinition(NamedTuple):
    """A tool, a server or an identity, in the order of the statement `definitions`."""

    # The row of the definition in the source.
    id: int
    project: str
    kind: str
    uid: str
    name: str
    created: float
    # The body of the definition, as JSON.
    body: bytes


class ExchangeAddress(Struct, frozen=True):
    """Identifies an exchange in every store, where its row differs."""

    # The scope of its memory.
    scope: Scope
    # The exchange's number in that memory.
    seq: int


class MovedVersion(Struct, frozen=True):
    """A value that a block had, with the exchanges that it came from, as far as they exist."""

    version: int
    # The version that this one restored; None: it restored none.
    restores: int | None
    at: float
    origin: str
    exchange: ExchangeAddress | None
    sources: Sequence[ExchangeAddress]
    value: str


class MovedBlock(Struct, frozen=True):
    """A block that no memory owns."""

    # The row of the block in the source.
    id: int
    project: str
    # The profile of the users that share it, or "".
    profile: str
    label: str
    description: str
    limit: int
    read_only: bool
    uid: str
    # The body of its definition; empty: it has none.
    details: dict[str, Any]
    # The values that it had, oldest first.
    versions: Sequence[MovedVersion]


class MovedReader(NamedTuple):
    """A sleeptime agent that reads a memory."""

    scope: Scope
    # The number of the last message that it has read.
    seq: int
    # When it read that message.
    at: float


class MovedLinks(Struct, frozen=True):
    """The links of a memory."""

    # What it has attached, in order.
    attached: Sequence[dict[str, Any]]
    # The sleeptime agents that read the memory.
    readers: Sequence[MovedReader]


async def load_key_numbers(connection: Connection) -> dict[bytes, int]:
    """Returns the numbers of all gateway keys by the digests of their secrets, and of those before a rotation."""
    return {bytes(digest): id for id, digest in await connection.rows(SQL["key_numbers"])}


class UnfinishedWork(NamedTuple):
    """The numbers of batches and of runs that have not ended."""

    batches: int
    runs: int


class MoveSource(StoreGroup):
    """The store that is moved. It is only read."""

    @reads
    async def count_unfinished(self, connection: Connection) -> UnfinishedWork:
        """Returns how many batches and how many runs have not ended."""
        row = await connection.row(SQL["unfinished"])
        assert row is not None  # counts have one row
        return UnfinishedWork(row[0], row[1])

    @reads
    async def count(self, connection: Connection) -> int:
        """Returns how many memories there are."""
        return int(await connection.value(SQL["memories_count"]))

    @reads
    async def list_agents(self, connection: Connection, after: int) -> list[Agent]:
        """Returns a page of the memories, the oldest first."""
        rows = await connection.rows(SQL["memories"], (after, _PAGE_ROWS))
        return [make_agent_record(row) for row in rows]

    @reads
    async def compute_state_digest(self, connection: Connection, agent_row: int) -> bytes | None:
        """Returns a digest that differs after each change of a memory and in each store, or None if it is gone."""
        memory, numbers = (
            await find_agent_by_id(connection, agent_row),
            await find_numbers(connection, agent_row),
        )
        if memory is None or numbers is None:
            return None
        # A plain tuple, as the digests of earlier moves were made of one.
        parts = (tuple(numbers.version), numbers.stamp, memory.paused_at)
        return blake2b(repr(parts).encode(), key=memory.secret, digest_size=16).digest()

    @reads
    async def list_keys(self, connection: Connection) -> list[MovedKey]:
        """Returns all gateway keys."""
        return [MovedKey(*row) for row in await connection.rows(SQL["keys"])]

    load_key_numbers = reads(as_method(load_key_numbers))

    @long_reads
    async def list_usage(self, connection: Connection, after: UsageKey) -> list[UsageRow]:
        """Returns a page of usage."""
        rows = await connection.rows(SQL["usage"], (*after, ROWS_AT_ONCE))
        key_width = len(after)
        return [(UsageKey(*row[:key_width]), tuple(row[key_width:])) for row in rows]

    @long_reads
    async def list_definitions(self, connection: Connection, after: int) -> list[MovedDefinition]:
        """Returns a page of tools, servers and identities. after: the `id` with which the page before ends."""
        return [
            MovedDefinition(*row) for row in await connection.rows(SQL["definitions"], (after, _PAGE_ROWS))
        ]

    @long_reads
    async def list_blocks(self, connection: Connection, after: int) -> list[MovedBlock]:
        """Returns a page of the blocks that no memory owns. after: the `id` with which the page before ends."""
        blocks = []
        for row in await connection.rows(SQL["blocks"], (after, _PAGE_ROWS)):
            id, project, profile, label, description, limit, read_only, uid, body = row
            block = MovedBlock(
                id,
                project,
                profile,
                label,
                description,
                limit,
                read_only,
                uid,
                details=orjson.loads(body or b"{}"),
                versions=[
                    await _make_moved_version(connection, version)
                    for version in await load_versions(connection, id)
                ],
            )
            blocks.append(block)
        return blocks

    @long_reads
    async def load_links(self, connection: Connection, agent_row: int) -> MovedLinks:
        """Returns the links of a memory."""
        attached = [fields for _, fields in await read_attached(connection, agent_row, 0, _NO_LIMIT)]
        rows = await connection.rows(SQL["readers"], (agent_row,))
        return MovedLinks(attached, [MovedReader(Scope(*row[:3]), row[3], row[4]) for row in rows])


class MoveTarget(StoreGroup):
    """The store into which another one is moved."""

    load_key_numbers = reads(as_method(load_key_numbers))

    @bulk_writes
    async def put_keys(self, connection: Connection, keys: Sequence[MovedKey]) -> None:
        """Adds the keys that are missing here. A key that was revoked or rotated in either store stays so."""
        for key in keys:
            revised = (key.digest, key.prefix, key.revoked, key.old_digest, key.old_until)
            if not await connection.run(SQL["key_revise"], revised):
                await connection.run(SQL["key_put"], key)

    @reads
    async def find_moved_digest(self, connection: Connection, agent_row: int) -> bytes | None:
        """Returns the digest that a memory had in its source when it was moved here; None if it was not moved."""
        digest = await connection.value(SQL["mark_of"], (agent_row, MarkKind.MOVED))
        return None if digest is None else bytes(digest)

    @reads
    async def list_agents_from(self, connection: Connection, source: bytes, after: int) -> list[Agent]:
        """Returns a page of the memories that were moved here from a database, the oldest first. source: its id."""
        rows = await connection.rows(SQL["memories_from"], (MarkKind.MOVED_FROM, source, after, _PAGE_ROWS))
        return [make_agent_record(row) for row in rows]

    @bulk_writes
    async def mark_moved(
        self, connection: Connection, agent_row: int, state_digest: bytes, source: bytes
    ) -> None:
        """Notes that a memory was moved here.

        state_digest: the memory's in its source.
        source: the id of the source's database.
        """
        await add_marks(connection, agent_row, MarkKind.MOVED, (state_digest,), 0)
        await add_marks(connection, agent_row, MarkKind.MOVED_FROM, (source,), 0)

    @bulk_writes
    async def put_usage(
        self, connection: Connection, rows: Sequence[UsageRow], keys: Mapping[int, int]
    ) -> None:
        """Adds the counters that are missing here. keys: the numbers of gateway keys here, by those in the source."""
        for usage_key, counters in rows:
            placed = usage_key._replace(key=keys.get(usage_key.key, 0))
            await connection.run(SQL["usage_put"], (*placed, *counters))

    @bulk_writes
    async def put_limits(
        self, connection: Connection, limits: Sequence[UsageLimit], keys: Mapping[int, int]
    ) -> None:
        """Adds the limits that are missing here. Where one has another amount here, that stays.

        keys: the numbers of gateway keys here, by those in the source.
        """
        present = {tuple(row) for row in await connection.rows(SQL["limit_bounds"])}
        for limit in limits:
            key = None if limit.key_id is None else keys.get(limit.key_id)
            bounds = (limit.project, key, limit.user, limit.unit, limit.per)
            if bounds not in present and (limit.key_id is None or key is not None):
                await connection.run(SQL["limit_put"], (*bounds, limit.most, limit.then))

    @bulk_writes
    async def put_definition(self, connection: Connection, moved: MovedDefinition) -> None:
        """Adds a tool, a server or an identity, unless the project has a definition with this uid or name."""
        draft = DefinitionDraft(
            moved.project, DefinitionKind(moved.kind), moved.uid, orjson.loads(moved.body), moved.name
        )
        if await find_definition(connection, draft.project, draft.kind, draft.uid) is None:
            try:
                await add_definition(connection, draft, at=moved.created)
            except WriteConflict:
                # The project's own of this name stays, as where an agent is imported.
                return

    @bulk_writes
    async def put_block(self, connection: Connection, block: MovedBlock) -> bool:
        """Adds a block, unless a block with its uid is here already.

        A block with this label that the profile shares is replaced if only the settings have written to it,
        and stays otherwise.

        Returns whether the block is as in the source: False if it was changed there after it was moved.
        """
        present_id = await connection.value(SQL["block_named"], (block.uid,))
        if present_id is not None:
            moved = {
                version.number: None if version.origin == FORGOTTEN_ORIGIN else version.value
                for version in await load_versions(connection, present_id)
            }
            return all(
                version.version in moved and moved[version.version] in (None, version.value)
                for version in block.versions
            )
        shared = (block.project, block.profile, block.label)
        present = await connection.row(SQL["block_shared"], shared) if block.profile else None
        if present is None:
            values = (*shared, block.description, block.limit, block.read_only, block.uid)
            id = await connection.value(SQL["block_add"], values)
        else:
            id, version = present
            if version != 1:
                return True
            await connection.run(SQL["versions_drop"], (id,))
            await connection.run(SQL["block_become"], (block.uid, id))
        for moved_version in block.versions:
            await _add_version(connection, id, moved_version)
        if block.details:
            draft = DefinitionDraft(block.project, DefinitionKind.BLOCK, block.uid, block.details)
            await add_definition(connection, draft, at=float(block.versions[0].at))
        return True

    @bulk_writes
    async def put_links(
        self, connection: Connection, scope: Scope, created: float, links: MovedLinks
    ) -> None:
        """Attaches what a memory had attached, and has the same sleeptime agents read it."""
        agent = await find_agent(connection, scope)
        if agent is None:
            return
        for fields in links.attached:
            target = await find_or_make_attached(connection, scope.project, fields, created)
            if target is not None:
                await attach(connection, agent.id, fields["kind"], target)
        for reader in links.readers:
            sleeper_row = await connection.value(SQL["memory_at"], reader.scope)
            if sleeper_row is not None:
                await connection.run(
                    sleepers.SQL["read_from"], (agent.id, sleeper_row, reader.seq, reader.at)
                )


async def _make_moved_version(connection: Connection, version: BlockVersion) -> MovedVersion:
    """Returns a version as it is moved."""
    sources = [await _find_address(connection, id) for id in orjson.loads(version.sources)]
    addresses = [address for address in sources if address is not None]
    address = None if version.exchange_row is None else await _find_address(connection, version.exchange_row)
    return MovedVersion(
        version.number, version.restores, version.at, version.origin, address, addresses, version.value
    )


async def _add_version(connection: Connection, block_row: int, added: MovedVersion) -> None:
    """Adds a version to a block as its newest. Exchanges that were not moved are left out of it."""
    origins = [await _find_exchange_at(connection, source) for source in added.sources]
    sources = orjson.dumps([exchange for exchange in origins if exchange is not None])
    exchange = None if added.exchange is None else await _find_exchange_at(connection, added.exchange)
    values = (
        block_row,
        added.version,
        added.restores,
        added.at,
        added.origin,
        exchange,
        sources,
        added.value,
    )
    row = await connection.value(BLOCKS["block_history_insert"], values)
    await connection.run(SQL["block_point"], (added.version, row, block_row))


async def _find_address(connection: Connection, exchange_row: int) -> ExchangeAddress | None:
    """Returns the address of the exchange of a row; None if it is gone."""
    row = await connection.row(SQL["exchange_address"], (exchange_row,))
    return None if row is None else ExchangeAddress(Scope(*row[:3]), row[3])


async def _find_exchange_at(connection: Connection, address: ExchangeAddress) -> int | None:
    """Returns the row of an exchange in this store; None if it was not moved."""
    agent_row = await connection.value(SQL["memory_at"], address.scope)
    exchange = (
        None if agent_row is None else await connection.value(SQL["exchange_at"], (agent_row, address.seq))
    )
    return None if exchange is None else int(exchange)
