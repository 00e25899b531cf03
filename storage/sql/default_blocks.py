"""The blocks that the settings give to the users of a profile, and how stored ones follow the settings."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from storage.database import Connection
from storage.records import Block
from storage.sql.blocks import begin_value, write_block
from storage.sql.group import StoreGroup, bulk_writes, long_reads, reads, writes
from storage.sql.statements import load, load_column, run_for_list

SQL = load("default_blocks.sql")

# The most memories that one write of blocks changes. It takes 1 to 3 ms, for which turns may have to wait.
_MEMORIES_PER_WRITE = 64
_DEFAULT_ORIGIN = "default"


async def load_default_blocks(connection: Connection, agent_row: int) -> list[Block]:
    """Returns an agent's own blocks, each with the value that the profile gave to it."""
    rows = await connection.fetch_rows(SQL["of_agent"], (agent_row,))
    return [
        Block(
            id=0,
            label=label,
            description=description,
            value=value or "",
            limit=limit,
            read_only=bool(read_only),
        )
        for label, description, limit, read_only, value in rows
    ]


async def ensure_blocks(connection: Connection, agent_row: int, defaults: Iterable[Block], at: float) -> None:
    """Gives an agent the blocks of its profile that it lacks. Ids and versions in `defaults` are ignored."""
    await _add_missing(connection, "insert_own", (agent_row,), defaults, at)


async def ensure_shared_blocks(
    connection: Connection, project: str, profile: str, defaults: Iterable[Block], at: float
) -> None:
    """Gives a profile the shared blocks that it lacks."""
    await _add_missing(connection, "insert_shared", (project, profile), defaults, at)


async def _add_missing(
    connection: Connection, statement: str, owner: tuple[object, ...], blocks: Iterable[Block], at: float
) -> None:
    """Adds the blocks that their owner lacks.

    statement: the name of the statement that adds a block.
    owner: the owner, as the first values of the statement.
    """
    for block in blocks:
        values = (*owner, block.label, block.description, block.limit, int(block.read_only), uuid.uuid4().hex)
        block_row = await connection.fetch_value(SQL[statement], values)
        if block_row is not None:
            await begin_value(connection, block_row, block.value, at, _DEFAULT_ORIGIN)


def _list_settings_values(block: Block) -> tuple[str, int, int]:
    """Returns the values of a block that follow the settings, in the order of the statements' parameters."""
    return (block.description, block.limit, int(block.read_only))


class DefaultBlocks(StoreGroup):
    """Brings stored blocks up to the settings."""

    @reads
    async def find_followed_digest(self, connection: Connection) -> bytes | None:
        """Returns the digest of the settings that the stored blocks follow; None: no digest is stored."""
        return await connection.fetch_value(SQL["followed"])

    @writes
    async def note_followed(self, connection: Connection, digest: bytes) -> None:
        """Notes the digest of the settings that the stored blocks follow now."""
        await connection.run(SQL["note_followed"], (digest,))

    async def follow(self, profile: str, own: Sequence[Block], shared: Sequence[Block], *, at: float) -> None:
        """Brings the stored blocks of a profile up to the settings. Ids and versions of the arguments do not count.

        Descriptions, limits and permissions become those of the settings, as does the value of a shared block that was
        never written to. The values of people's own blocks stay. Missing blocks are added. Blocks that the settings no
        longer name stay, since they may hold a user's words.
        """
        for block in own:
            last_agent_row = 0
            while agent_rows := await self._find_differing(profile, block, last_agent_row):
                await self._follow_own(agent_rows, block, at)
                last_agent_row = agent_rows[-1]
        if shared:
            projects = await self._find_projects(profile)
            for block in shared:
                await self._follow_shared(profile, projects, block, at)

    @long_reads
    async def _find_differing(
        self, connection: Connection, profile: str, block: Block, after: int
    ) -> list[int]:
        """Returns a page of a profile's memories that lack a block or have it with other settings, by their rows.

        after: the last row of the previous page, or 0.
        """
        values = (profile, block.label, *_list_settings_values(block), after, _MEMORIES_PER_WRITE)
        return await load_column(connection, SQL["differing"], values)

    @bulk_writes
    async def _follow_own(
        self, connection: Connection, agent_rows: Sequence[int], block: Block, at: float
    ) -> None:
        """Brings a block of these memories up to its settings, and adds it to memories that lack it."""
        await connection.lock_sharers(*agent_rows)
        await run_for_list(
            connection, SQL["follow_own"], agent_rows, block.label, *_list_settings_values(block)
        )
        for agent_row in agent_rows:
            await ensure_blocks(connection, agent_row, [block], at)

    @long_reads
    async def _find_projects(self, connection: Connection, profile: str) -> list[str]:
        return await load_column(connection, SQL["projects"], (profile,))

    @bulk_writes
    async def _follow_shared(
        self, connection: Connection, profile: str, projects: Iterable[str], block: Block, at: float
    ) -> None:
        await connection.run(SQL["follow_shared"], (profile, block.label, *_list_settings_values(block)))
        for project in projects:
            await ensure_shared_blocks(connection, project, profile, [block], at)
        values = (profile, block.label, _DEFAULT_ORIGIN, block.value)
        for block_row, version in await connection.fetch_rows(SQL["untouched"], values):
            await write_block(
                connection, block_row, version, block.value, at=at, origin=_DEFAULT_ORIGIN, is_bounded=False
            )
