"""Moving a whole store into another: the memories that there are, and what no memory's export has.

That is gateway keys, tools and servers that were defined, blocks that no memory owns, and who has what attached. Each
is put where it is not there yet, so that a move that was killed is begun again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from storage.database import Connection, Row
from storage.errors import WriteConflict
from storage.records import Agent, DefinitionKind, Scope
from storage.sql.agents import find_agent, make_agent_record
from storage.sql.agents_api.attached import attach
from storage.sql.agents_api.definitions import add_definition, find_definition
from storage.sql.group import Group, bulk_writes, long_reads, reads
from storage.sql.statements import load
from storage.sql.transfer_definitions import find_target, read_attached
from storage.usage_records import ROWS_AT_ONCE, UsageKey

SQL = load("moving.sql")

_PAGE = 64
_MANY = 1 << 31  # more than anybody has attached


class MovedBlock(Struct, frozen=True):
    """A block that no memory owns."""

    project: str
    # The profile of the users that share it, or "".
    profile: str
    # Label, description, limit, read_only.
    values: tuple[Any, ...]
    uid: str
    details: dict[str, Any]
    # (version, restores, at, origin, exchange, sources, value), oldest first, with exchanges as `_Place`.
    versions: Sequence[tuple[Any, ...]]


class MovedLinks(Struct, frozen=True):
    """The links of a memory: what it has attached, in order, and who reads it, as (scope, number, time)."""

    attached: Sequence[dict[str, Any]]
    readers: Sequence[tuple[Scope, int, float]]


class Moving(Group):
    """One store's part in a move: as the source it is read, as the target it is written."""

    # -- the source

    @reads
    async def unfinished(self, connection: Connection) -> tuple[int, int]:
        """Returns how many batches and runs go on."""
        row = await connection.row(SQL["unfinished"])
        assert row is not None
        return row[0], row[1]

    @reads
    async def count(self, connection: Connection) -> int:
        """Returns how many memories there are."""
        return int(await connection.value(SQL["memories_count"]))

    @reads
    async def memories(self, connection: Connection, after: int) -> list[Agent]:
        """Returns a page of the memories, the oldest first."""
        rows = await connection.rows(SQL["memories"], (after, _PAGE))
        return [make_agent_record(row) for row in rows]

    @reads
    async def keys(self, connection: Connection) -> list[Row]:
        """Returns all gateway keys, for `put_keys`."""
        return await connection.rows(SQL["keys"])

    @reads
    async def key_numbers(self, connection: Connection) -> dict[bytes, int]:
        """Returns the numbers of all gateway keys by their digests."""
        return {bytes(digest): id for id, digest in await connection.rows(SQL["key_numbers"])}

    @long_reads
    async def usage(self, connection: Connection, after: UsageKey) -> list[Row]:
        """Returns a page of usage: counters, each behind its key."""
        return await connection.rows(SQL["usage"], (*after, ROWS_AT_ONCE))

    @reads
    async def limits(self, connection: Connection) -> list[tuple[Any, ...]]:
        """Returns all limits, for `put_limits`."""
        return [tuple(row) for row in await connection.rows(SQL["limits"])]

    @long_reads
    async def definitions(self, connection: Connection, after: int) -> list[Row]:
        """Returns a page of tools and servers, each with its row first, for `put_definition`."""
        return await connection.rows(SQL["definitions"], (after, _PAGE))

    @long_reads
    async def blocks(self, connection: Connection, after: int) -> list[tuple[int, MovedBlock]]:
        """Returns a page of the blocks that no memory owns, each with its row."""
        found = []
        for id, project, profile, *values, uid, body in await connection.rows(SQL["blocks"], (after, _PAGE)):
            versions = [
                (*plain, await _place(connection, exchange), await _places(connection, sources), value)
                for *plain, exchange, sources, value in await connection.rows(SQL["versions"], (id,))
            ]
            details = orjson.loads(body or b"{}")
            found.append((id, MovedBlock(project, profile, tuple(values), uid, details, versions)))
        return found

    @long_reads
    async def links(self, connection: Connection, agent: int) -> MovedLinks:
        """Returns what a memory has attached, and who reads it."""
        attached = [fields for _, fields in await read_attached(connection, agent, 0, _MANY)]
        rows = await connection.rows(SQL["readers"], (agent,))
        return MovedLinks(attached, [(Scope(*row[:3]), row[3], row[4]) for row in rows])

    # -- the target

    @bulk_writes
    async def put_keys(self, connection: Connection, keys: Sequence[Row]) -> None:
        """Adds the keys that are not there."""
        for key in keys:
            await connection.run(SQL["key_put"], tuple(key))

    @bulk_writes
    async def put_usage(self, connection: Connection, rows: Sequence[Row], keys: Mapping[int, int]) -> None:
        """Adds counters of which none are there. keys: the numbers of gateway keys here, by those in the source."""
        for day, project, user, key, *rest in rows:
            await connection.run(SQL["usage_put"], (day, project, user, keys.get(key, 0), *rest))

    @bulk_writes
    async def put_limits(
        self, connection: Connection, limits: Sequence[tuple[Any, ...]], keys: Mapping[int, int]
    ) -> None:
        """Adds the limits that are not there: another amount of the same is the one that counts. keys: as above."""
        there = {tuple(row)[:5] for row in await connection.rows(SQL["limits"])}
        for project, key, *rest in limits:
            values = (project, None if key is None else keys.get(key), *rest)
            if values[:5] not in there and (key is None or key in keys):
                await connection.run(SQL["limit_put"], values)

    @bulk_writes
    async def put_definition(self, connection: Connection, row: Row) -> None:
        """Adds a tool, a server or an identity, unless the project has one of its public name, or of its name."""
        _, project, kind, uid, name, created, body = row
        if await find_definition(connection, project, DefinitionKind(kind), uid) is None:
            try:
                await add_definition(
                    connection, project, DefinitionKind(kind), uid, name, orjson.loads(body), at=created
                )
            except WriteConflict:
                # The one that is there is the one that counts, as where an agent is imported.
                return

    @bulk_writes
    async def put_block(self, connection: Connection, block: MovedBlock) -> None:
        """Adds a block. One of the settings that was never written becomes it; any other that is there counts."""
        if await connection.row(SQL["block_named"], (block.uid,)) is not None:
            return
        where = (block.project, block.profile, block.values[0])
        there = await connection.row(SQL["block_shared"], where) if block.profile else None
        if there is None:
            values = (block.project, block.profile, *block.values, block.uid)
            id = await connection.value(SQL["block_add"], values)
        elif there[1] == 1:
            id = there[0]
            await connection.run(SQL["versions_drop"], (id,))
            await connection.run(SQL["block_become"], (block.uid, id))
        else:
            return
        for version, *plain, place, places, value in block.versions:
            sources = [await _row_at(connection, each) for each in places]
            kept = orjson.dumps([row for row in sources if row is not None])
            exchange = None if place is None else await _row_at(connection, place)
            row = await connection.value(SQL["version_add"], (id, version, *plain, exchange, kept, value))
            await connection.run(SQL["block_point"], (version, row, id))
        if block.details:
            kind, at = DefinitionKind.BLOCK, float(block.versions[0][2])
            await add_definition(connection, block.project, kind, block.uid, "", block.details, at=at)

    @bulk_writes
    async def put_links(
        self, connection: Connection, scope: Scope, created: float, links: MovedLinks
    ) -> None:
        """Attaches what was attached to a memory, and has those read it who did."""
        agent = await find_agent(connection, scope)
        if agent is None:
            return
        for fields in links.attached:
            target = await find_target(connection, scope.project, fields, created)
            if target is not None:
                await attach(connection, agent.id, fields["kind"], target)
        for reader, seq, at in links.readers:
            found = await connection.value(SQL["memory_at"], (reader.project, reader.profile, reader.subject))
            if found is not None:
                await connection.run(SQL["reader_put"], (agent.id, found, seq, at))


# An exchange as any store knows it: project, profile and subject of its memory, and its number there.
_Place = tuple[str, str, str, int]


async def _place(connection: Connection, exchange: int | None) -> _Place | None:
    """Returns the agent of an exchange, and its number there; None where it is gone."""
    if exchange is None:
        return None
    row = await connection.row(SQL["exchange_place"], (exchange,))
    return None if row is None else (row[0], row[1], row[2], row[3])


async def _places(connection: Connection, sources: bytes) -> list[_Place]:
    """Returns the places of those exchanges that are there. sources: JSON, their rows."""
    found = [await _place(connection, id) for id in orjson.loads(sources)]
    return [place for place in found if place is not None]


async def _row_at(connection: Connection, place: _Place) -> int | None:
    """Returns the row that an exchange has in this store; None where it has not come along."""
    agent = await connection.value(SQL["memory_at"], place[:3])
    found = None if agent is None else await connection.value(SQL["exchange_at"], (agent, place[3]))
    return None if found is None else int(found)
