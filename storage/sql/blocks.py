"""Memory blocks: their values, and the history of each.

Changes are compare-and-set on the version. Each leaves a row of history, and each can be undone. No writer can make a
value longer than its block's limit. The core decides the result of an edit, and the blocks that models may write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from storage.database import Connection, Row
from storage.errors import BlockTooLong, NotFound, WriteConflict
from storage.listing import LAST_NUMBER
from storage.records import Agent, Block, Revision
from storage.sql.epochs import find_epoch
from storage.sql.group import StoreGroup, as_method, reads, writes
from storage.sql.statements import load

SQL = load("blocks.sql")

_UNDO_ORIGIN = "undo"
FORGET_ORIGIN = "forget"
# The origin of a version with an erased value, which cannot be brought back. The text is short: the row must not grow
# (storage/sqlite/padding.py).
FORGOTTEN_ORIGIN = "-"


class RestoredVersion(NamedTuple):
    """The earlier version of a block that an undo brings back."""

    # The number of the version.
    version: int
    # The text of the version.
    value: str
    # The rows of the exchanges that the value came from, as a JSON list.
    sources: bytes


class OwnedBlock(NamedTuple):
    """A block that an agent may see, and its owner."""

    # The owner. 0: the agent; 1: its profile; from 2 on: another owner, by the position among the attached blocks.
    owner: int
    # The block.
    block: Block


async def load_blocks(
    connection: Connection, agent_row: int, *, makes_shared_read_only: bool = False
) -> tuple[Block, ...]:
    """Returns the blocks that an agent sees, as `list_visible_blocks`.

    makes_shared_read_only: True marks shared and attached blocks as read-only, for callers that may not write them.
    """
    rows = await connection.fetch_rows(SQL["block_load"], (agent_row,))
    blocks = [OwnedBlock(owner, make_block(row)) for *row, owner in rows]
    if makes_shared_read_only:
        blocks = [
            OwnedBlock(owner, replace(block, read_only=True) if owner else block) for owner, block in blocks
        ]
    return tuple(list_visible_blocks(blocks))


async def load_shared_blocks(connection: Connection, project: str, profile: str) -> list[Block]:
    """Returns the blocks that all users of a profile see, in the order they were made."""
    return [make_block(row) for row in await connection.fetch_rows(SQL["shared_blocks"], (project, profile))]


def list_visible_blocks(blocks: Iterable[OwnedBlock]) -> list[Block]:
    """Returns the blocks that an agent sees: its own and its profile's in the order they were made, then attached ones.

    If several blocks have one label, the block with the lowest owner counts.
    """
    by_label: dict[str, OwnedBlock] = {}
    for owned in blocks:
        label = owned.block.label
        if label not in by_label or owned.owner < by_label[label].owner:
            by_label[label] = owned
    visible = sorted(by_label.values(), key=lambda owned: (max(1, owned.owner), owned.block.id))
    return [owned.block for owned in visible]


async def begin_value(connection: Connection, block_row: int, value: str, at: float, origin: str) -> None:
    """Gives a new block its first value."""
    version_row = await insert_version(connection, block_row, 1, value, at=at, origin=origin)
    await connection.run(SQL["block_point"], (version_row, block_row))


async def insert_version(
    connection: Connection,
    block_row: int,
    version: int,
    value: str,
    *,
    at: float,
    origin: str,
    exchange_row: int | None = None,
    sources: bytes = b"[]",
    restores: int | None = None,
) -> int:
    """Adds a version to a block's history. Returns its row, which the block does not point to yet.

    sources: the rows of the exchanges that the value came from, as JSON.
    restores: the earlier version that this version restores; None: it restores none.
    """
    values = (block_row, version, restores, at, origin, exchange_row, sources, value)
    return int(await connection.fetch_value(SQL["block_history_insert"], values))


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
    """Sets the value if the block is still at that version. Raises: WriteConflict, BlockTooLong, NotFound.

    version: the number of the version that the caller read.
    value: the new value.
    at: the present time, in seconds since the epoch.
    origin: the writer of the value, as `Revision.origin`.
    exchange_row: the row of the exchange in which the value is written; None: it is written in no exchange.
    sources: the rows of the exchanges that the value came from.
    restores: the number of the earlier version that the value restores; None: it restores none.
    is_bounded: True if the value may not be longer than the block's limit.
    room: the bytes that are reserved for sources which are added later, when the row must not grow.
    by: the agent that writes, as it was read. If something of its memory was forgotten since, which the value may
        quote, the write is a conflict.
    """
    if by is not None:
        await connection.lock_sharers(by.id)
        if await find_epoch(connection, by.id) != by.epoch:
            raise WriteConflict("something of this memory was forgotten meanwhile")
    stored_block = await get_block(connection, block_row)
    # Compare and set: a caller that read an older version has not seen the value that it would overwrite.
    if stored_block.version != version:
        raise WriteConflict(
            f"block {stored_block.label!r} is at version {stored_block.version}, not {version}: it was changed since"
        )
    # A value that is longer than a limit that was lowered since may stay as long or get shorter.
    if is_bounded and len(value) > max(stored_block.limit, len(stored_block.value)):
        check_limit(stored_block.label, value, stored_block.limit)
    padded_sources = orjson.dumps(list(sources)).ljust(room)
    version_row = await insert_version(
        connection, block_row, version + 1, value, at=at, origin=origin,
        exchange_row=exchange_row, sources=padded_sources, restores=restores,
    )  # fmt: skip
    await connection.run(SQL["block_advance"], (version_row, block_row, version))
    return replace(stored_block, value=value, version=version + 1)


def check_limit(label: str, value: str, limit: int) -> None:
    """Checks the length of a value. Raises: BlockTooLong."""
    if len(value) > limit:
        raise BlockTooLong(f"block {label!r} takes {limit} characters at most, not {len(value)}")


async def _restore_block(
    connection: Connection, block_row: int, version: int, restored_version: int, *, at: float, origin: str
) -> Block:
    """Brings back the value that a block had in an earlier version. version: the block's present version.

    Raises: NotFound, WriteConflict, BlockTooLong.
    """
    row = await connection.fetch_row(
        SQL["block_history_get"], (block_row, restored_version, FORGOTTEN_ORIGIN)
    )
    if row is None:
        raise NotFound(f"there is no version {restored_version}")
    value, sources = row
    return await write_block(
        connection,
        block_row,
        version,
        value,
        at=at,
        origin=origin,
        sources=orjson.loads(sources),
        restores=restored_version,
    )


async def undo_block(
    connection: Connection, block_row: int, *, at: float, version: int | None = None
) -> Block:
    """Brings back the value before the last change; a second undo brings back the value before that.

    version: the version that the caller read; None: any.

    Raises: NotFound, WriteConflict, BlockTooLong.

    An undo is a new version that names the version it restored. The next undo goes on from the restored version, so
    undoing twice is not redoing. The version with which a forgetting ends names a restored version, too.
    """
    stored_block = await get_block(connection, block_row)
    if version is not None and stored_block.version != version:
        raise WriteConflict(
            f"block {stored_block.label!r} is at version {stored_block.version}, not {version}"
        )
    undo_target = await find_undo_target(connection, stored_block)
    if undo_target is None:
        raise NotFound(f"block {stored_block.label!r} has no change left to undo")
    sources = orjson.loads(undo_target.sources)
    return await write_block(
        connection, block_row, stored_block.version, undo_target.value, at=at, origin=_UNDO_ORIGIN, sources=sources,
        restores=undo_target.version,
    )  # fmt: skip


async def find_undo_target(connection: Connection, block: Block) -> RestoredVersion | None:
    """Returns the version that an undo of a block's last change brings back; None: no version is left.

    Versions with the block's present value are passed over: a forgetting may have removed the lines that differed.
    """
    version = block.version
    while True:
        # A value that was restored by undos is undone from the version in which it was written.
        while (
            restored_version := await connection.fetch_value(
                SQL["block_history_restores"], (block.id, version)
            )
        ) is not None:
            version = restored_version
        row = await connection.fetch_row(SQL["block_history_before"], (block.id, version, FORGOTTEN_ORIGIN))
        if row is None:
            return None
        earlier_version = RestoredVersion(*row)
        if earlier_version.value != block.value:
            return earlier_version
        version = earlier_version.version


class Blocks(StoreGroup):
    """Reads and writes of blocks, each in a transaction of its own."""

    load = reads(as_method(load_blocks))
    write = writes(as_method(write_block))
    undo = writes(as_method(undo_block))
    restore = writes(as_method(_restore_block))
    find_undo_target = reads(as_method(find_undo_target))

    @reads
    async def list_revisions(
        self,
        connection: Connection,
        block_row: int,
        *,
        before: int = LAST_NUMBER,
        limit: int = 100,
        includes_forgotten: bool = True,
    ) -> list[Revision]:
        """Returns a page of the values that a block had, newest first.

        before: the last version of the previous page.
        includes_forgotten: True includes forgotten versions, with the origin `FORGOTTEN_ORIGIN` and an empty value.
        """
        excluded_origin = "" if includes_forgotten else FORGOTTEN_ORIGIN
        values = (block_row, before, excluded_origin, limit)
        rows = await connection.fetch_rows(SQL["block_history_list"], values)
        return [make_revision(row) for row in rows]


def make_revision(row: Row) -> Revision:
    """Returns the record of a row of the table `block_history`."""
    version, restores, at, origin, exchange_row, sources, value = row
    return Revision(
        version=version,
        restores=restores,
        at=at,
        origin=origin,
        exchange_row=exchange_row,
        sources=tuple(orjson.loads(sources)),
        value=value,
    )


def make_block(row: Row) -> Block:
    """Returns the record of a row that begins with the columns of `block_get`."""
    block_row, label, description, value, limit, read_only, version, uid, *_ = row
    return Block(
        id=block_row,
        label=label,
        description=description,
        value=value,
        limit=limit,
        read_only=bool(read_only),
        version=version,
        uid=uid,
    )


async def get_block(connection: Connection, block_row: int) -> Block:
    """Returns a block by its row. Raises: NotFound."""
    row = await connection.fetch_row(SQL["block_get"], (block_row,))
    if row is None:
        raise NotFound(f"there is no block {block_row}")
    return make_block(row)
