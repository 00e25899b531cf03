"""Memory blocks: their values, the history of each, and the edits of turns that are not yet confirmed.

Changes are compare-and-set on the version. Each leaves a row of history, and each can be undone. No writer can make a
value longer than its block's limit. The core decides what an edit means, and what models may write.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

import orjson
from msgspec.structs import replace

from storage.database import Connection, Row
from storage.errors import BlockOverLimit, NotFound, WriteConflict
from storage.listing import LAST_NUMBER
from storage.records import Agent, Block, MemoryEdit, Revision
from storage.sql.epochs import load_epoch
from storage.sql.group import Group, as_method, bulk_writes, long_reads, reads, writes
from storage.sql.statements import load, run_of

SQL = load("blocks.sql")

# The most memories that one write of blocks changes. It takes 1 to 3 ms, for which turns may have to wait.
_MEMORIES_PER_WRITE = 64
DEFAULT_ORIGIN = "default"
UNDO_ORIGIN = "undo"
FORGET_ORIGIN = "forget"
# The origin of a version with an erased value, which cannot be brought back. The text is short: the row must not grow
# (storage/sqlite/padding.py).
FORGOTTEN_ORIGIN = "-"


async def load_blocks(
    connection: Connection, agent_row: int, *, shared_read_only: bool = False
) -> tuple[Block, ...]:
    """Returns the blocks that an agent sees, as `visible_blocks`.

    shared_read_only: returns shared and attached blocks as read-only, for callers that may not write them.
    """
    rows = await connection.rows(SQL["block_load"], (agent_row,))
    blocks = [(owner, make_block(row)) for *row, owner in rows]
    if shared_read_only:
        blocks = [(owner, replace(block, read_only=True) if owner else block) for owner, block in blocks]
    return tuple(visible_blocks(blocks))


def visible_blocks(blocks: Iterable[tuple[int, Block]]) -> list[Block]:
    """Returns the blocks that an agent sees: its own and its profile's in the order they were made, then attached ones.

    blocks: pairs of an owner and a block. The owner is 0 for the agent's own block, 1 for its profile's, and from 2 on
        the position of an attached block. Of blocks with one label the first in this order counts.
    """
    by_label: dict[str, tuple[int, Block]] = {}
    for owner, block in blocks:
        if block.label not in by_label or owner < by_label[block.label][0]:
            by_label[block.label] = owner, block
    in_order = sorted(by_label.values(), key=lambda owned: (max(1, owned[0]), owned[1].id))
    return [block for _, block in in_order]


async def default_blocks(connection: Connection, agent_row: int) -> list[Block]:
    """Returns an agent's own blocks, each with the value that the profile gave to it."""
    rows = await connection.rows(SQL["block_defaults"], (agent_row,))
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
    await _ensure(connection, "block_insert_own", (agent_row,), defaults, at)


async def ensure_shared_blocks(
    connection: Connection, project: str, profile: str, defaults: Iterable[Block], at: float
) -> None:
    """Gives a profile the shared blocks that it lacks."""
    await _ensure(connection, "block_insert_shared", (project, profile), defaults, at)


async def _ensure(
    connection: Connection, statement: str, owner: tuple[object, ...], blocks: Iterable[Block], at: float
) -> None:
    for block in blocks:
        values = (*owner, block.label, block.description, block.limit, int(block.read_only), uuid.uuid4().hex)
        id = await connection.value(SQL[statement], values)
        if id is not None:
            await begin_value(connection, id, block.value, at, DEFAULT_ORIGIN)


async def begin_value(connection: Connection, block_row: int, value: str, at: float, origin: str) -> None:
    """Gives a new block its first value."""
    version_row = await _add_version(connection, block_row, 1, value, at=at, origin=origin)
    await connection.run(SQL["block_point"], (version_row, block_row))


def _settings(block: Block) -> tuple[str, int, int]:
    return (block.description, block.limit, int(block.read_only))


async def write_block(
    connection: Connection,
    block_row: int,
    version: int,
    value: str,
    *,
    at: float,
    origin: str,
    exchange_row: int | None = None,
    sources: Sequence[int] = (),
    restores: int | None = None,
    is_bounded: bool = True,
    room: int = 0,
    by: Agent | None = None,
) -> Block:
    """Sets the value if the block is still at that version. Raises: WriteConflict, BlockOverLimit, NotFound.

    is_bounded: the value may not be longer than the block's limit.
    room: bytes that are reserved for sources, if they are added later: then the row must not grow.
    by: the agent that writes, as it was read. If something of its memory was forgotten since, which the value may
        quote, the write is a conflict.
    """
    if by is not None:
        await connection.lock_sharers(by.id)
        if await load_epoch(connection, by.id) != by.epoch:
            raise WriteConflict("something of this memory was forgotten meanwhile")
    stored = await get_block(connection, block_row)
    # Compare and set: a caller that read an older version has not seen the value that it would overwrite.
    if stored.version != version:
        raise WriteConflict(
            f"block {stored.label!r} is at version {stored.version}, not {version}: it was changed since"
        )
    # A value that is longer than a limit that was lowered since may stay as long or get shorter.
    if is_bounded and len(value) > max(stored.limit, len(stored.value)):
        check_limit(stored.label, value, stored.limit)
    padded_sources = orjson.dumps(list(sources)).ljust(room)
    version_row = await _add_version(
        connection,
        block_row,
        version + 1,
        value,
        at=at,
        origin=origin,
        restores=restores,
        exchange_row=exchange_row,
        sources=padded_sources,
    )
    await connection.run(SQL["block_advance"], (version_row, block_row, version))
    return replace(stored, value=value, version=version + 1)


def check_limit(label: str, value: str, limit: int) -> None:
    """Checks the length of a value. Raises: BlockOverLimit."""
    if len(value) > limit:
        raise BlockOverLimit(f"block {label!r} takes {limit} characters at most, not {len(value)}")


async def restore_block(
    connection: Connection, block_row: int, version: int, to: int, *, at: float, origin: str
) -> Block:
    """Brings back the value that a block had in the version `to`. version: the block's present version.

    Raises: NotFound, WriteConflict, BlockOverLimit.
    """
    row = await connection.row(SQL["block_history_get"], (block_row, to, FORGOTTEN_ORIGIN))
    if row is None:
        raise NotFound(f"there is no version {to}")
    value, sources = row
    return await write_block(
        connection,
        block_row,
        version,
        value,
        at=at,
        origin=origin,
        sources=orjson.loads(sources),
        restores=to,
    )


async def undo_block(
    connection: Connection, block_row: int, *, at: float, version: int | None = None
) -> Block:
    """Brings back the value before the last change; a second undo brings back the value before that.

    version: the version that the caller read, or None for any.

    Raises: NotFound, WriteConflict.

    An undo is a new version that names the version it restored. The next undo goes on from the restored version, so
    undoing twice is not redoing. The version with which a forgetting ends names a restored version, too.
    """
    stored = await get_block(connection, block_row)
    if version is not None and stored.version != version:
        raise WriteConflict(f"block {stored.label!r} is at version {stored.version}, not {version}")
    before = await _find_before(connection, block_row, stored.version)
    if before is None:
        raise NotFound(f"block {stored.label!r} has no change left to undo")
    version, value, sources = before
    return await write_block(
        connection,
        block_row,
        stored.version,
        value,
        at=at,
        origin=UNDO_ORIGIN,
        sources=orjson.loads(sources),
        restores=version,
    )


async def _find_before(connection: Connection, block_row: int, version: int) -> Row | None:
    """Returns what an undo of a version brings back: its version, value and sources; None if nothing is left."""
    # A value that was restored by undos is undone from the version in which it was written.
    while (
        restored := await connection.value(SQL["block_history_restores"], (block_row, version))
    ) is not None:
        version = restored
    return await connection.row(SQL["block_history_before"], (block_row, version, FORGOTTEN_ORIGIN))


async def add_edit(connection: Connection, agent_row: int, edit: MemoryEdit) -> bool:
    """Adds a memory edit of a turn. Returns False if the edit of this call of the turn is there already."""
    seen = edit.seen if edit.state == "pending" else None
    values = (
        agent_row,
        edit.exchange_row,
        edit.call_id,
        edit.state,
        edit.at,
        edit.op,
        edit.label,
        edit.arguments,
        seen,
    )
    return await connection.row(SQL["op_insert"], values) is not None


async def load_edits(connection: Connection, agent_row: int, exchange_row: int) -> tuple[MemoryEdit, ...]:
    """Returns all memory edits of one turn."""
    rows = await connection.rows(SQL["op_of_exchange"], (agent_row, exchange_row))
    return tuple(MemoryEdit(*row) for row in rows)


async def settle_edits(connection: Connection, agent_row: int, ids: Iterable[int], state: str) -> None:
    """Marks edits as merged or dropped, once and for all."""
    for id in ids:
        await connection.run(SQL["op_settle"], (state, id, agent_row))


class Blocks(Group):
    """Reads and writes of blocks, each in a transaction of its own."""

    load = reads(as_method(load_blocks))
    write = writes(as_method(write_block))
    undo = writes(as_method(undo_block))
    restore = writes(as_method(restore_block))

    @reads
    async def list_pending_labels(self, connection: Connection, agent_row: int) -> tuple[str, ...]:
        """Returns the label of each edit that waits until its turn is confirmed, without edits of superseded turns."""
        return tuple(label for (label,) in await connection.rows(SQL["op_waiting"], (agent_row,)))

    @reads
    async def find_undone(
        self, connection: Connection, block_row: int, version: int
    ) -> tuple[int, str] | None:
        """Returns the version and value that an undo of a version brings back; None if there is none left."""
        before = await _find_before(connection, block_row, version)
        return None if before is None else (before[0], before[1])

    @reads
    async def list_revisions(
        self, connection: Connection, block_row: int, *, before: int = LAST_NUMBER, limit: int = 100
    ) -> tuple[Revision, ...]:
        """Returns the newest values that the block had before a version, newest first."""
        rows = await connection.rows(SQL["block_history_list"], (block_row, before, limit))
        return tuple(map(make_revision, rows))

    @reads
    async def load_followed_digest(self, connection: Connection) -> bytes | None:
        """Returns the digest of the settings that the stored blocks follow; None if it is not stored."""
        digest: bytes | None = await connection.value(SQL["followed"])
        return digest

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
            after = 0
            while agents := await self._find_differing(profile, block, after):
                await self._follow_own(agents, block, at)
                after = agents[-1]
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
        values = (profile, block.label, *_settings(block), after, _MEMORIES_PER_WRITE)
        return [agent_row for (agent_row,) in await connection.rows(SQL["block_differing"], values)]

    @bulk_writes
    async def _follow_own(
        self, connection: Connection, agent_rows: Sequence[int], block: Block, at: float
    ) -> None:
        """Brings a block of these memories up to its settings, and adds it to memories that lack it."""
        await connection.lock_sharers(*agent_rows)
        await run_of(connection, SQL["block_follow_own"], agent_rows, block.label, *_settings(block))
        for agent_row in agent_rows:
            await ensure_blocks(connection, agent_row, [block], at)

    @long_reads
    async def _find_projects(self, connection: Connection, profile: str) -> list[str]:
        return [project for (project,) in await connection.rows(SQL["block_profile_projects"], (profile,))]

    @bulk_writes
    async def _follow_shared(
        self, connection: Connection, profile: str, projects: Iterable[str], block: Block, at: float
    ) -> None:
        await connection.run(SQL["block_follow_shared"], (profile, block.label, *_settings(block)))
        for project in projects:
            await ensure_shared_blocks(connection, project, profile, [block], at)
        values = (profile, block.label, DEFAULT_ORIGIN, block.value)
        for id, version in await connection.rows(SQL["block_untouched"], values):
            await write_block(
                connection, id, version, block.value, at=at, origin=DEFAULT_ORIGIN, is_bounded=False
            )


def make_revision(row: Row) -> Revision:
    """Makes the record of a row of the table `block_history`."""
    version, restores, at, origin, exchange_row, sources, value = row
    return Revision(version, restores, at, origin, exchange_row, tuple(orjson.loads(sources)), value)


def make_block(row: Row) -> Block:
    """Makes the record of a row that begins as those of `block_get`."""
    id, label, description, value, limit, read_only, version, uid, *_ = row
    return Block(id, label, description, value, limit, bool(read_only), version, uid)


async def get_block(connection: Connection, block_row: int) -> Block:
    """Returns a block by its row. Raises: NotFound."""
    row = await connection.row(SQL["block_get"], (block_row,))
    if row is None:
        raise NotFound(f"there is no block {block_row}")
    return make_block(row)


async def _add_version(
    connection: Connection,
    block_row: int,
    version: int,
    value: str,
    *,
    at: float,
    origin: str,
    restores: int | None = None,
    exchange_row: int | None = None,
    sources: bytes = b"[]",
) -> int:
    """Adds a version of a block. Returns the version's row."""
    values = (block_row, version, restores, at, origin, exchange_row, sources, value)
    return int(await connection.value(SQL["block_history_insert"], values))
