"""Views of blocks: all of a memory, one with its versions and their differences, and the change by an undo."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from msgspec import Struct

from gateway.core.memory.mcp_tools import describe_mcp_origin
from gateway.run.admin.list_page import PAGE_LIMIT, make_next_cursor, parse_cursor
from gateway.run.admin.memory.block_versions import BlockDiff, BlockVersions, get_shown_block
from gateway.run.admin.memory.source_records import list_sources
from gateway.run.admin.memory_by_uid import get_memory
from gateway.run.admin.records.memory_records import (
    BLOCK_ORIGINS,
    BlockOrigin,
    BlockRecord,
    SourceRecord,
    VersionRecord,
)
from storage.batch_records import parse_call_origin
from storage.listing import LAST_NUMBER
from storage.operator_records import ShownBlock
from storage.records import Block, Revision, list_lost_lines
from storage.sql.store import Store

# The origins of versions that correct the version before.
_CORRECTIONS = ("operator", "person", "undo")


class BlockPage(Struct, frozen=True):
    """A block with a page of its versions, the newest first."""

    block: BlockRecord
    versions: tuple[VersionRecord, ...]
    next: str | None
    # The changes since the earlier version; None: the block has no earlier version to compare with.
    diff: BlockDiff | None


class ChangedBlock(Struct, frozen=True):
    """The version that a block had at an earlier time, and the present one."""

    # The number of the earlier version; None: that version is forgotten, or the block was made later.
    before: int | None
    now: int
    # The text of the earlier version.
    text_before: str = ""


class BlocksSince(Struct, frozen=True):
    """The blocks of a memory by their labels, divided by whether they were changed after a time."""

    # The texts of the blocks that were not changed.
    same: dict[str, str]
    changed: dict[str, ChangedBlock]


class BlockCorrection(NamedTuple):
    """The texts of a block before and after a correction, or an undo."""

    old: str
    new: str
    # What an undo took out may be right.
    is_undo: bool

    @property
    def replaced_lines(self) -> str:
        """The lines of the old text that the new one does not have."""
        return "\n".join(list_lost_lines(self.old, self.new))


class BlockViews(Struct, frozen=True):
    """Reads the blocks of a memory. The methods raise UnknownId where there is no such memory, or no such block."""

    store: Store

    @property
    def versions(self) -> BlockVersions:
        """The versions of blocks."""
        return BlockVersions(self.store)

    async def show(
        self,
        project: str | None,
        uid: str,
        label: str,
        *,
        from_: int | None = None,
        to: int | None = None,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
    ) -> BlockPage:
        """Returns a block with a page of its versions.

        from_: the older version of the comparison; None: the version before `to`.
        to: the newer version of the comparison; None: the newest version.

        Raises: BadRequest: there is no such version.
        """
        memory = await get_memory(self.store, project, uid)
        shown_block = await get_shown_block(self.store, memory.id, label)
        # The list shows the newest version first, so the versions after a version have lower numbers.
        before = parse_cursor(after, LAST_NUMBER)
        versions = await self.store.blocks.list_revisions(
            shown_block.block.id, before=before, limit=limit + 1, includes_forgotten=False
        )
        sources = await list_sources(self.store, memory, versions[:limit])
        pending_labels = await self.store.turn_edits.list_pending_labels(memory.id)
        return BlockPage(
            _make_block_record(shown_block, pending_labels.count(label)),
            tuple(map(_make_version_record, versions[:limit], sources)),
            make_next_cursor(versions, limit, lambda version: str(version.version)),
            await self.versions.compare(shown_block.block.id, from_, to),
        )

    async def find_origins(
        self, uid: str, label: str, lines: Sequence[str], version: int | None
    ) -> list[VersionRecord | None]:
        """Returns for some lines of a version the version since which the block has had each of them.

        An item is None if that version is older than the versions that are looked at, or if it is forgotten.

        version: the number of the version with the lines; None: the newest version.
        """
        page = await self.show(None, uid, label, after=None if version is None else str(version + 1))
        return [_find_origin(page, line) for line in lines]

    async def list_by_uid(self, project: str | None, uid: str) -> tuple[BlockRecord, ...]:
        """Returns the blocks of a memory."""
        return await self.list_by_row((await get_memory(self.store, project, uid)).id)

    async def list_changed_since(self, uid: str, since: float) -> BlocksSince:
        """Returns the blocks of a memory, and which of them were changed after a time, in seconds since the epoch."""
        memory = await get_memory(self.store, None, uid)
        pages = self.store.memory_pages
        shown_blocks = await pages.list_blocks(memory.id)
        changed_blocks = [shown.block for shown in shown_blocks if shown.changed_at > since]
        rows = [block.id for block in changed_blocks]
        versions_before = await pages.load_versions_at(rows, since) if rows else {}
        return BlocksSince(
            same={
                shown.block.label: shown.block.value for shown in shown_blocks if shown.changed_at <= since
            },
            changed={
                block.label: _make_changed_block(versions_before.get(block.id), block)
                for block in changed_blocks
            },
        )

    async def list_by_row(self, agent_row: int) -> tuple[BlockRecord, ...]:
        """Returns the same as `list_by_uid`, for the row of a memory."""
        pending_labels = await self.store.turn_edits.list_pending_labels(agent_row)
        shown_blocks = await self.store.memory_pages.list_blocks(agent_row)
        return tuple(
            _make_block_record(shown, pending_labels.count(shown.block.label)) for shown in shown_blocks
        )


def _find_origin(page: BlockPage, line: str) -> VersionRecord | None:
    """Returns since which version a block has had a line of the first version of a page; None: an older one."""
    versions_with_line = [*takewhile(lambda version: line in version.value, page.versions)]
    if len(versions_with_line) == len(page.versions) and page.next is not None:
        return None
    return versions_with_line[-1] if versions_with_line else None


def find_correction(page: BlockPage) -> BlockCorrection | None:
    """Returns the last change of a block if the page has it and it is a correction."""
    if len(page.versions) < 2:
        return None
    newest, previous = page.versions[:2]
    if newest.origin not in _CORRECTIONS or newest.version != page.block.version:
        return None
    return BlockCorrection(previous.value, newest.value, is_undo=newest.origin == "undo")


def list_with_lost_lines(page: BlockPage) -> set[int]:
    """Returns the numbers of the versions of a page with lines that the block no longer has."""
    return {each.version for each in page.versions if list_lost_lines(each.value, page.block.value)}


def _make_changed_block(before: Revision | None, block: Block) -> ChangedBlock:
    if before is None:
        return ChangedBlock(None, block.version)
    return ChangedBlock(before.version, block.version, before.value)


def _make_block_record(shown: ShownBlock, waiting: int) -> BlockRecord:
    block = shown.block
    return BlockRecord(
        label=block.label,
        description=block.description,
        value=block.value,
        version=block.version,
        chars=len(block.value),
        limit=block.limit,
        read_only=block.read_only,
        shared=shown.is_shared,
        changed_at=shown.changed_at,
        origin=_make_block_origin(shown.origin),
        waiting=waiting,
    )


def _make_version_record(revision: Revision, sources: tuple[SourceRecord, ...]) -> VersionRecord:
    return VersionRecord(
        version=revision.version,
        at=revision.at,
        origin=_make_block_origin(revision.origin),
        restores=revision.restores,
        chars=len(revision.value),
        value=revision.value,
        sources=sources,
    )


def _make_block_origin(stored: str) -> BlockOrigin:
    """Returns the writer of a version. stored: the version's origin; a name that a program has given means the API."""
    if (call := parse_call_origin(stored)) is not None:
        # The origin names a run only where it wrote without an exchange in this memory, as a sleeptime agent does.
        return "sleeptime" if call.run else "tool"
    kind = stored.partition(":")[0] if describe_mcp_origin(stored) else stored
    return next((origin for origin in BLOCK_ORIGINS if origin == kind), "api")
