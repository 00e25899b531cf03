"""Blocks as the agents API knows them: by public ids, created without an agent, attached to several agents.

A block has an owner, and is deleted with the owner; or a profile, whose users all share the block; or neither.
The table `attached` has the other agents that see the block. An agent sees at most one block of a label: a write that
would show the agent a second block of the label is a WriteConflict.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

import orjson
from msgspec.structs import replace

from storage.database import Connection, Row
from storage.definition_records import DefinitionKind
from storage.errors import BlockTooLong, NotFound, WriteConflict
from storage.listing import BlockChange, BlockDraft, BlockEntry, BlockFilter, DefinitionDraft, Page
from storage.records import Agent, Block
from storage.sql.agents_api.attached import attach, detach, detach_all
from storage.sql.agents_api.definitions import find_definition, put_definition, remove_definition
from storage.sql.block_history import collect_source_rows
from storage.sql.blocks import (
    OwnedBlock,
    begin_value,
    check_limit,
    list_visible_blocks,
    make_block,
    undo_block,
    write_block,
)
from storage.sql.filtered_pages import fill_page
from storage.sql.group import StoreGroup, as_method, long_reads, reads, writes
from storage.sql.readers import load_sleeptime_agents
from storage.sql.sections import empty_sections_showing
from storage.sql.statements import load, load_column, load_rows, lower_ascii

SQL = load("agents_api/blocks.sql")

# The fewest blocks that a list reads at once. Not measured: with more, a request for a few reads more than it needs.
_MIN_BLOCKS = 200


async def add_block(
    connection: Connection,
    project: str,
    draft: BlockDraft,
    *,
    at: float,
    origin: str,
    owner: int | None = None,
) -> BlockEntry:
    """Stores a new block.

    at: the present time, in seconds since the epoch.
    origin: the writer of the first value, as `Revision.origin`.
    owner: the row of the agent that owns the block; None: no agent owns it.

    Raises: BlockTooLong, WriteConflict.
    """
    block = draft.block
    check_limit(block.label, block.value, block.limit)
    uid = block.uid or uuid.uuid4().hex
    values = (project, block.label, block.description, block.limit, int(block.read_only), uid)
    block_row = int(await connection.fetch_value(SQL["insert"], values))
    await begin_value(connection, block_row, block.value, at, origin)
    if owner is not None:
        await _check_label(connection, owner, block_row, block.label)
        await connection.run(SQL["set_owner"], (owner, block_row))
        await _attach_to_sleeptime_agents(connection, owner, block_row, block.label)
    if draft.details:
        definition_draft = DefinitionDraft(project, DefinitionKind.BLOCK, uid, draft.details)
        await put_definition(connection, definition_draft, at=at)
    return await get_block_entry(connection, project, uid)


async def get_block_entry(connection: Connection, project: str, uid: str) -> BlockEntry:
    """Returns the block with this public id. Raises: NotFound, also for a block of another project."""
    row = await connection.fetch_row(SQL["find"], (uid, project))
    if row is None:
        raise NotFound(f"there is no block {uid!r}")
    return _make_entry(row)


async def load_visible_blocks(
    connection: Connection, agent_rows: Sequence[int]
) -> dict[int, list[BlockEntry]]:
    """Returns the blocks that each of these agents sees, in the order of `list_visible_blocks`, by agent."""
    entries: dict[int, BlockEntry] = {}
    owned_by_agent: dict[int, list[OwnedBlock]] = {agent_row: [] for agent_row in agent_rows}
    for *row, agent_row, owner in await load_rows(connection, SQL["visible"], agent_rows):
        entry = entries[row[0]] = _make_entry(row)
        owned_by_agent[agent_row].append(OwnedBlock(owner, entry.block))
    return {
        agent_row: [entries[block.id] for block in list_visible_blocks(blocks)]
        for agent_row, blocks in owned_by_agent.items()
    }


async def attach_block(connection: Connection, agent_row: int, entry: BlockEntry) -> None:
    """Attaches a block to an agent, unless the agent sees it already. Raises: WriteConflict."""
    if entry.owner == agent_row:
        return
    await _check_label(connection, agent_row, entry.block.id, entry.block.label)
    await attach(connection, agent_row, DefinitionKind.BLOCK, entry.block.id)
    await _attach_to_sleeptime_agents(connection, agent_row, entry.block.id, entry.block.label)


async def share_blocks(connection: Connection, agent_row: int) -> None:
    """Attaches an agent's blocks to its sleeptime agents, except blocks that all users of a profile share."""
    for entry in (await load_visible_blocks(connection, [agent_row]))[agent_row]:
        if entry.owner is not None or not entry.profile:
            await _attach_to_sleeptime_agents(connection, agent_row, entry.block.id, entry.block.label)


async def detach_copies(connection: Connection, project: str, agent_row: int, reader_row: int) -> None:
    """Detaches copies of an agent's blocks from its sleeptime agent, which was imported with them before the agent.

    A copy that no other agent sees is deleted, or its text would outlive the agent's block.
    """
    by_agent = await load_visible_blocks(connection, [agent_row, reader_row])
    rows_by_label = {entry.block.label: entry.block.id for entry in by_agent[agent_row]}
    for entry in by_agent[reader_row]:
        block_row = entry.block.id
        is_unowned = entry.owner is None and not entry.profile
        is_copy = rows_by_label.get(entry.block.label, block_row) != block_row
        if not (is_unowned and is_copy):
            continue
        await detach(connection, reader_row, DefinitionKind.BLOCK, block_row)
        if not await load_agents_seeing(connection, block_row):
            await _delete_block(connection, project, entry)


async def _attach_to_sleeptime_agents(
    connection: Connection, agent_row: int, block_row: int, label: str
) -> None:
    """Attaches a block to those sleeptime agents of an agent that see no other block of its label."""
    for reader_row in await load_sleeptime_agents(connection, agent_row):
        if not await _sees_other_block(connection, reader_row, block_row, label):
            await attach(connection, reader_row, DefinitionKind.BLOCK, block_row)


async def detach_block(connection: Connection, agent: Agent, entry: BlockEntry) -> bool:
    """Detaches a block from an agent and its sleeptime agents. The agent's own block is left without an owner.

    Returns False if the block was neither attached to the agent nor its own.
    """
    for reader_row in await load_sleeptime_agents(connection, agent.id):
        await detach(connection, reader_row, DefinitionKind.BLOCK, entry.block.id)
    if entry.owner == agent.id:
        return bool(await connection.run(SQL["clear_owner"], (entry.block.id, agent.id)))
    return await detach(connection, agent.id, DefinitionKind.BLOCK, entry.block.id)


async def hand_over_blocks(connection: Connection, agent_row: int) -> None:
    """Leaves the blocks of an agent that is to be deleted to the other agents that see them, with their values.

    The values lose their links to the agent's exchanges. The agent's own blocks lose their owner.
    """
    for (block_row,) in await connection.fetch_rows(SQL["shared_with"], (agent_row,)):
        for version, exchange_row, sources in await connection.fetch_rows(SQL["history"], (block_row,)):
            source_rows = sorted(collect_source_rows(exchange_row, sources))
            own_rows = {
                row[0] for row in await load_rows(connection, SQL["exchanges_among"], source_rows, agent_row)
            }
            if own_rows:
                other_sources = orjson.dumps([row for row in orjson.loads(sources) if row not in own_rows])
                # The row of the version has the same length as before.
                padded_sources = other_sources.ljust(len(sources))
                foreign_row = None if exchange_row in own_rows else exchange_row
                await write_version_sources(connection, block_row, version, foreign_row, padded_sources)
    await connection.run(SQL["hand_over"], (agent_row,))


async def write_version_sources(
    connection: Connection, block_row: int, version: int, exchange_row: int | None, sources: bytes
) -> None:
    """Writes the row of the exchange in which a version of a block was written; None: the exchange is gone.

    sources: all exchanges that the version came from, in as many bytes of the row as before.
    """
    await connection.run(SQL["version_sources"], (block_row, version, exchange_row, sources))


async def load_agents_seeing(connection: Connection, block_row: int) -> list[int]:
    """Returns the rows of the agents that see a block."""
    return await load_column(connection, SQL["seers"], (block_row,))


class NamedBlocks(StoreGroup):
    """Blocks by their public ids. A parameter `project` is the caller's; no other project's block is found."""

    get = reads(as_method(get_block_entry))
    load_agents_seeing = reads(as_method(load_agents_seeing))
    load_visible = reads(as_method(load_visible_blocks))
    create = writes(as_method(add_block))

    @reads
    async def count(self, connection: Connection, project: str) -> int:
        """Counts the blocks of a project."""
        return int(await connection.fetch_value(SQL["count"], (project,)))

    @long_reads
    async def list_page(
        self, connection: Connection, project: str, block_filter: BlockFilter, page: Page[int]
    ) -> list[BlockEntry]:
        """Returns a page of a project's blocks. The cursors of the page are rows of blocks."""

        async def read(low: int, high: int, size: int) -> tuple[Iterable[BlockEntry], int | None]:
            values = (
                project, low, high, block_filter.label, lower_ascii(block_filter.label_text),
                lower_ascii(block_filter.description_text), lower_ascii(block_filter.value_text),
                block_filter.min_agents, block_filter.max_agents, size,
            )  # fmt: skip
            rows = await connection.fetch_rows(SQL[f"list_{page.direction}"], values)
            # A block's details lie in a document, so some of a page may drop out.
            matching = [entry for entry in map(_make_entry, rows) if block_filter.matches(entry)]
            return matching, rows[-1][0] if len(rows) == size else None

        return await fill_page(page, *page.bounds, read, min_rows=_MIN_BLOCKS)

    @reads
    async def get_labelled(self, connection: Connection, agent_row: int, label: str) -> BlockEntry:
        """Returns the block of this label that an agent sees. Raises: NotFound."""
        for entry in (await load_visible_blocks(connection, [agent_row]))[agent_row]:
            if entry.block.label == label:
                return entry
        raise NotFound(f"the agent has no block {label!r}")

    @writes
    async def change(
        self,
        connection: Connection,
        project: str,
        uid: str,
        change: BlockChange,
        *,
        at: float,
        origin: str,
        version: int | None = None,
    ) -> BlockEntry:
        """Changes a block for all agents that see it. version: the block's version that the caller read; None: any.

        Raises: NotFound; BlockTooLong; WriteConflict if an agent that sees the block has another one of the new label,
            or the block has another version.
        """
        entry = await _lock_block(connection, project, uid)
        block = entry.block
        if version is not None and version != block.version:
            raise WriteConflict(
                f"block {block.label!r} is at version {block.version}, not {version}: it was changed since"
            )
        await _check_change(connection, block, change)
        changed_block = change.apply(block)
        if replace(changed_block, value=block.value) != block:
            values = (
                changed_block.label,
                changed_block.description,
                changed_block.limit,
                int(changed_block.read_only),
                block.id,
            )
            await connection.run(SQL["describe"], values)
        if changed_block.value != block.value:
            await write_block(connection, block.id, block.version, changed_block.value, at=at, origin=origin)
        if change.details:
            details = {**entry.details, **change.details}
            draft = DefinitionDraft(project, DefinitionKind.BLOCK, uid, details)
            await put_definition(connection, draft, at=at)
        return await get_block_entry(connection, project, uid)

    @writes
    async def undo(self, connection: Connection, project: str, uid: str, *, at: float) -> BlockEntry:
        """Brings back the value before the last change. Raises: NotFound, BlockTooLong."""
        entry = await _lock_block(connection, project, uid)
        await undo_block(connection, entry.block.id, at=at)
        return await get_block_entry(connection, project, uid)

    @writes
    async def attach(self, connection: Connection, agent: Agent, uid: str) -> BlockEntry:
        """Attaches a block to an agent. Raises: NotFound; WriteConflict: it sees another block of that label."""
        await connection.lock_sharers(agent.id)
        entry = await get_block_entry(connection, agent.scope.project, uid)
        await attach_block(connection, agent.id, entry)
        return entry

    @writes
    async def detach(self, connection: Connection, agent: Agent, uid: str) -> BlockEntry:
        """Detaches a block from an agent. A block that the agent owned has no owner then. Raises: NotFound."""
        await connection.lock_sharers(agent.id)
        entry = await get_block_entry(connection, agent.scope.project, uid)
        if not await detach_block(connection, agent, entry):
            raise NotFound(f"the agent has no block {uid!r} attached")
        return await get_block_entry(connection, agent.scope.project, uid)

    @writes
    async def delete(self, connection: Connection, project: str, uid: str) -> None:
        """Deletes a block with all its values, for all agents. Raises: NotFound; WriteConflict: it is a profile's."""
        entry = await _lock_block(connection, project, uid)
        if entry.owner is None and entry.profile:
            raise WriteConflict(
                f"block {entry.block.label!r} is declared in the settings, for all users of a profile"
            )
        await _delete_block(connection, project, entry)


async def _check_change(connection: Connection, block: Block, change: BlockChange) -> None:
    """Checks that a block may get its new label and limit. Raises: WriteConflict, BlockTooLong."""
    changed_block = change.apply(block)
    # Without a new limit the value is checked where it is written.
    if change.limit is not None and len(changed_block.value) > change.limit:
        raise BlockTooLong(
            f"block {changed_block.label!r} has {len(changed_block.value)} characters, "
            f"more than a limit of {change.limit}"
        )
    if changed_block.label != block.label:
        for agent_row in await load_agents_seeing(connection, block.id):
            await _check_label(connection, agent_row, block.id, changed_block.label)


async def _lock_block(connection: Connection, project: str, uid: str) -> BlockEntry:
    """Locks a block against other transactions until this one ends, and returns the block. Raises: NotFound."""
    await connection.lock_seers((await get_block_entry(connection, project, uid)).block.id)
    return await get_block_entry(connection, project, uid)


async def _delete_block(connection: Connection, project: str, entry: BlockEntry) -> None:
    await empty_sections_showing(connection, entry.block.id)
    await detach_all(connection, DefinitionKind.BLOCK, entry.block.id)
    await connection.run(SQL["values_empty"], (entry.block.id,))
    await connection.run(SQL["delete"], (entry.block.id,))
    definition = await find_definition(connection, project, DefinitionKind.BLOCK, entry.block.uid)
    if definition is not None:
        await remove_definition(connection, definition.id)


async def _sees_other_block(connection: Connection, agent_row: int, block_row: int, label: str) -> bool:
    """Returns whether an agent sees another block of a label than this one."""
    return await connection.fetch_row(SQL["labelled"], (label, block_row, agent_row)) is not None


async def _check_label(connection: Connection, agent_row: int, block_row: int, label: str) -> None:
    """Checks that an agent sees no other block of a label. Raises: WriteConflict."""
    if await _sees_other_block(connection, agent_row, block_row, label):
        raise WriteConflict(f"the agent would have two blocks labelled {label!r}, and labels are unique")


def _make_entry(row: Row) -> BlockEntry:
    *block, owner, profile, details = row
    return BlockEntry(make_block(block), owner, profile, orjson.loads(details) if details else {})
