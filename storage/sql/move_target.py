"""Writes into the store to which another store is moved (move_source.py).

Whatever this store has already stays as it is, so a move that was killed can be run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.errors import WriteConflict
from storage.listing import DefinitionDraft
from storage.records import Agent, MarkKind, Scope
from storage.sql.agents import find_agent, make_agent_record
from storage.sql.agents_api.attached import attach
from storage.sql.agents_api.definitions import add_definition, find_definition
from storage.sql.agents_api.sleeptime_agents import begin_reading
from storage.sql.blocks import FORGOTTEN_ORIGIN, insert_version
from storage.sql.exchanges import add_marks
from storage.sql.group import StoreGroup, bulk_writes, reads
from storage.sql.move_source import PAGE_ROWS
from storage.sql.moved_records import (
    ExchangeAddress,
    MovedBlock,
    MovedDefinition,
    MovedKey,
    MovedLinks,
    MovedVersion,
)
from storage.sql.rebuild import load_versions
from storage.sql.statements import load
from storage.sql.transfer_definitions import find_or_create_attached
from storage.usage_records import UsageLimit, UsageRow

SQL = load("moving.sql")


class MoveTarget(StoreGroup):
    """The store into which another store is moved."""

    @bulk_writes
    async def put_keys(self, connection: Connection, keys: Sequence[MovedKey]) -> None:
        """Adds the keys that are missing here. A key that was revoked or rotated in either store stays so."""
        for key in keys:
            revised = (key.digest, key.prefix, key.revoked_at, key.old_digest, key.old_expires_at)
            if not await connection.run(SQL["key_revise"], revised):
                await connection.run(SQL["key_put"], key)

    @reads
    async def find_moved_digest(self, connection: Connection, agent_row: int) -> bytes | None:
        """Returns the digest that a memory had in its source when it was moved here; None: it was not moved."""
        digest = await connection.fetch_value(SQL["mark_of"], (agent_row, MarkKind.MOVED))
        return None if digest is None else bytes(digest)

    @reads
    async def list_agents_from(self, connection: Connection, source: bytes, after: int) -> list[Agent]:
        """Returns a page of the memories that were moved here, the oldest first. source: the id of their database."""
        rows = await connection.fetch_rows(
            SQL["memories_from"], (MarkKind.MOVED_FROM, source, after, PAGE_ROWS)
        )
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
        """Adds the counters that are missing here. keys: number of a gateway key in the source -> its number here."""
        for usage_key, counters in rows:
            placed = usage_key._replace(key=keys.get(usage_key.key, 0))
            await connection.run(SQL["usage_put"], (*placed, *counters))

    @bulk_writes
    async def put_limits(
        self, connection: Connection, limits: Sequence[UsageLimit], keys: Mapping[int, int]
    ) -> None:
        """Adds the limits that are missing here. Where one has another amount here, that stays.

        keys: number of a gateway key in the source -> its number here.
        """
        present = {tuple(row) for row in await connection.fetch_rows(SQL["limit_bounds"])}
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
                await add_definition(connection, draft, at=moved.created_at)
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
        present_id = await connection.fetch_value(SQL["block_named"], (block.uid,))
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
        present = await connection.fetch_row(SQL["block_shared"], shared) if block.profile else None
        if present is None:
            values = (*shared, block.description, block.limit, block.read_only, block.uid)
            id = await connection.fetch_value(SQL["block_add"], values)
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
        """Attaches the objects that a memory had attached, and has the same sleeptime agents read it."""
        agent = await find_agent(connection, scope)
        if agent is None:
            return
        for fields in links.attached:
            target = await find_or_create_attached(connection, scope.project, fields, created)
            if target is not None:
                await attach(connection, agent.id, fields["kind"], target)
        for reader in links.readers:
            reader_row = await connection.fetch_value(SQL["memory_at"], reader.scope)
            if reader_row is not None:
                await begin_reading(connection, agent.id, reader_row, reader.seq, reader.at)


async def _add_version(connection: Connection, block_row: int, added: MovedVersion) -> None:
    """Adds a version to a block as its newest. Exchanges that were not moved are left out of it."""
    origins = [await _find_exchange_at(connection, source) for source in added.sources]
    sources = orjson.dumps([exchange for exchange in origins if exchange is not None])
    exchange = None if added.exchange is None else await _find_exchange_at(connection, added.exchange)
    row = await insert_version(
        connection, block_row, added.version, added.value, at=added.at, origin=added.origin,
        exchange_row=exchange, sources=sources, restores=added.restores,
    )  # fmt: skip
    await connection.run(SQL["block_point"], (added.version, row, block_row))


async def _find_exchange_at(connection: Connection, address: ExchangeAddress) -> int | None:
    """Returns the row of an exchange in this store; None: the exchange was not moved."""
    agent_row = await connection.fetch_value(SQL["memory_at"], address.scope)
    exchange = (
        None
        if agent_row is None
        else await connection.fetch_value(SQL["exchange_at"], (agent_row, address.seq))
    )
    return None if exchange is None else int(exchange)
