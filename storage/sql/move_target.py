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
from storage.sql.block_history import load_versions
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
            values = (key.digest, key.prefix, key.revoked_at, key.old_digest, key.old_expires_at)
            if not await connection.run(SQL["key_revise"], values):
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
        """Marks a memory as moved here.

        state_digest: the digest that the memory has in its source (`compute_state_digest`).
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
            key_here = usage_key._replace(key=keys.get(usage_key.key, 0))
            await connection.run(SQL["usage_put"], (*key_here, *counters))

    @bulk_writes
    async def put_limits(
        self, connection: Connection, limits: Sequence[UsageLimit], keys: Mapping[int, int]
    ) -> None:
        """Adds the limits that are missing here. A limit that has another amount here stays as it is.

        keys: the numbers of gateway keys here, by their numbers in the source.
        """
        stored_bounds = {tuple(row) for row in await connection.fetch_rows(SQL["limit_bounds"])}
        for limit in limits:
            key_here = None if limit.key_id is None else keys.get(limit.key_id)
            bounds = (limit.project, key_here, limit.user, limit.unit, limit.per)
            if bounds not in stored_bounds and (limit.key_id is None or key_here is not None):
                await connection.run(SQL["limit_put"], (*bounds, limit.most, limit.then))

    @bulk_writes
    async def put_definition(self, connection: Connection, definition: MovedDefinition) -> None:
        """Adds a tool, a server or an identity, unless the project has a definition with this uid or name."""
        draft = DefinitionDraft(
            definition.project,
            DefinitionKind(definition.kind),
            definition.uid,
            orjson.loads(definition.body),
            definition.name,
        )
        if await find_definition(connection, draft.project, draft.kind, draft.uid) is None:
            try:
                await add_definition(connection, draft, at=definition.created_at)
            except WriteConflict:
                # The project's own definition with this name stays, as where an agent is imported.
                return

    @bulk_writes
    async def put_block(self, connection: Connection, block: MovedBlock) -> bool:
        """Adds a block, unless a block with its uid is here already.

        A block with this label that the profile shares is replaced if only the settings have written to it,
        and stays otherwise.

        Returns whether the block is as in the source: False if it was changed there after it was moved.
        """
        stored_row = await connection.fetch_value(SQL["block_named"], (block.uid,))
        if stored_row is not None:
            return await _has_versions(connection, stored_row, block.versions)
        label_key = (block.project, block.profile, block.label)
        shared_block = await connection.fetch_row(SQL["block_shared"], label_key) if block.profile else None
        if shared_block is None:
            values = (*label_key, block.description, block.limit, block.read_only, block.uid)
            block_row = await connection.fetch_value(SQL["block_add"], values)
        else:
            block_row, version = shared_block
            if version != 1:
                return True
            await connection.run(SQL["versions_drop"], (block_row,))
            await connection.run(SQL["block_become"], (block.uid, block_row))
        for moved_version in block.versions:
            await _add_version(connection, block_row, moved_version)
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


async def _has_versions(
    connection: Connection, block_row: int, moved_versions: Sequence[MovedVersion]
) -> bool:
    """Returns whether a block here has the versions of its source, each with the same value or forgotten here."""
    values_here = {
        version.number: None if version.origin == FORGOTTEN_ORIGIN else version.value
        for version in await load_versions(connection, block_row)
    }
    return all(
        moved_version.version in values_here
        and values_here[moved_version.version] in (None, moved_version.value)
        for moved_version in moved_versions
    )


async def _add_version(connection: Connection, block_row: int, moved_version: MovedVersion) -> None:
    """Adds a version to a block as its newest. Sources that were not moved are left out."""
    source_rows = [await _find_exchange_at(connection, source) for source in moved_version.sources]
    sources = orjson.dumps([source_row for source_row in source_rows if source_row is not None])
    exchange_row = (
        None
        if moved_version.exchange is None
        else await _find_exchange_at(connection, moved_version.exchange)
    )
    version_row = await insert_version(
        connection,
        block_row,
        moved_version.version,
        moved_version.value,
        at=moved_version.at,
        origin=moved_version.origin,
        exchange_row=exchange_row,
        sources=sources,
        restores=moved_version.restores,
    )
    await connection.run(SQL["block_point"], (moved_version.version, version_row, block_row))


async def _find_exchange_at(connection: Connection, address: ExchangeAddress) -> int | None:
    """Returns the row of an exchange in this store; None: the exchange was not moved."""
    agent_row = await connection.fetch_value(SQL["memory_at"], address.scope)
    if agent_row is None:
        return None
    exchange_row = await connection.fetch_value(SQL["exchange_at"], (agent_row, address.seq))
    return None if exchange_row is None else int(exchange_row)
