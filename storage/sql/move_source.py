"""Reads a store that is moved into another: the list of its memories, and the records that no memory's export contains.

These records are gateway keys, usage, definitions of tools, servers and identities, blocks that no memory owns, and the
links of memories.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import orjson

from storage.database import Connection
from storage.records import Agent, Scope
from storage.sql.agents import find_agent_by_id, find_numbers, make_agent_record
from storage.sql.block_history import BlockVersion, load_versions
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.moved_records import (
    ExchangeAddress,
    MovedBlock,
    MovedDefinition,
    MovedKey,
    MovedLinks,
    MovedReader,
    MovedVersion,
)
from storage.sql.statements import load
from storage.sql.transfer_definitions import read_attachments
from storage.usage_records import ROWS_AT_ONCE, UsageKey, UsageRow

SQL = load("moving.sql")

# The rows that one statement reads. Not measured: all pages are read in any case.
PAGE_ROWS = 64
# More rows than a memory can have attached.
_NO_LIMIT = 1 << 31


class UnfinishedWork(NamedTuple):
    """The numbers of batches and of runs that have not ended."""

    # The number of batches.
    batches: int
    # The number of runs.
    runs: int


class MoveSource(StoreGroup):
    """The store that is moved. It is only read."""

    @reads
    async def count_unfinished(self, connection: Connection) -> UnfinishedWork:
        """Counts the batches and the runs that have not ended."""
        row = await connection.fetch_row(SQL["unfinished"])
        assert row is not None  # counts have one row
        return UnfinishedWork(row[0], row[1])

    @reads
    async def count(self, connection: Connection) -> int:
        """Counts the memories."""
        return int(await connection.fetch_value(SQL["memories_count"]))

    @reads
    async def list_agents(self, connection: Connection, after: int) -> list[Agent]:
        """Returns a page of the memories, the oldest first. after: the row of the last memory on the previous page."""
        rows = await connection.fetch_rows(SQL["memories"], (after, PAGE_ROWS))
        return [make_agent_record(row) for row in rows]

    @reads
    async def compute_state_digest(self, connection: Connection, agent_row: int) -> bytes | None:
        """Returns a digest that differs after each change of a memory and in each store; None: the memory is gone."""
        memory = await find_agent_by_id(connection, agent_row)
        numbers = await find_numbers(connection, agent_row)
        if memory is None or numbers is None:
            return None
        # A plain tuple, as the digests of earlier moves were made of one.
        parts = (tuple(numbers.version), numbers.stamp, memory.paused_at)
        return blake2b(repr(parts).encode(), key=memory.secret, digest_size=16).digest()

    @reads
    async def list_keys(self, connection: Connection) -> list[MovedKey]:
        """Returns all gateway keys."""
        return [MovedKey(*row) for row in await connection.fetch_rows(SQL["keys"])]

    @long_reads
    async def list_usage(self, connection: Connection, after: UsageKey) -> list[UsageRow]:
        """Returns a page of usage. after: the key of the last row on the previous page."""
        rows = await connection.fetch_rows(SQL["usage"], (*after, ROWS_AT_ONCE))
        key_width = len(after)
        return [(UsageKey(*row[:key_width]), tuple(row[key_width:])) for row in rows]

    @long_reads
    async def list_definitions(self, connection: Connection, after: int) -> list[MovedDefinition]:
        """Returns a page of tools, servers and identities. after: the `id` of the last one on the previous page."""
        return [
            MovedDefinition(*row)
            for row in await connection.fetch_rows(SQL["definitions"], (after, PAGE_ROWS))
        ]

    @long_reads
    async def list_blocks(self, connection: Connection, after: int) -> list[MovedBlock]:
        """Returns a page of the blocks that no memory owns. after: the `id` of the last one on the previous page."""
        blocks = []
        for row in await connection.fetch_rows(SQL["blocks"], (after, PAGE_ROWS)):
            block_row, project, profile, label, description, limit, read_only, uid, body = row
            block = MovedBlock(
                id=block_row,
                project=project,
                profile=profile,
                label=label,
                description=description,
                limit=limit,
                read_only=read_only,
                uid=uid,
                details=orjson.loads(body or b"{}"),
                versions=[
                    await _make_moved_version(connection, version)
                    for version in await load_versions(connection, block_row)
                ],
            )
            blocks.append(block)
        return blocks

    @long_reads
    async def load_links(self, connection: Connection, agent_row: int) -> MovedLinks:
        """Returns the links of a memory."""
        attached = [fields for _, fields in await read_attachments(connection, agent_row, 0, _NO_LIMIT)]
        rows = await connection.fetch_rows(SQL["readers"], (agent_row,))
        return MovedLinks(attached, [MovedReader(Scope(*row[:3]), row[3], row[4]) for row in rows])


async def _make_moved_version(connection: Connection, version: BlockVersion) -> MovedVersion:
    """Returns a version as it is moved."""
    source_rows = orjson.loads(version.sources)
    addresses = [await _find_address(connection, source_row) for source_row in source_rows]
    exchange = None if version.exchange_row is None else await _find_address(connection, version.exchange_row)
    return MovedVersion(
        version=version.number,
        restores=version.restores,
        at=version.at,
        origin=version.origin,
        exchange=exchange,
        sources=[address for address in addresses if address is not None],
        value=version.value,
    )


async def _find_address(connection: Connection, exchange_row: int) -> ExchangeAddress | None:
    """Returns the address of an exchange by its row; None: the exchange is gone."""
    row = await connection.fetch_row(SQL["exchange_address"], (exchange_row,))
    return None if row is None else ExchangeAddress(Scope(*row[:3]), row[3])
