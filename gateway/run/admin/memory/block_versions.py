"""Versions of blocks: their differences, the changes by undos, and the version before a change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.memory_by_uid import get_memory
from storage.listing import LAST_NUMBER
from storage.operator_records import FoundMemory, ShownBlock
from storage.records import Block, Revision, list_lost_lines
from storage.sql.store import Store


class BlockDiff(Struct, frozen=True, rename={"from_": "from"}):
    """The difference of two versions of a block."""

    # The numbers of the versions.
    from_: int
    to: int
    parts: tuple[DiffPart, ...]


class BlockUndos(NamedTuple):
    """The changes that undos and redos of blocks would make, by the labels of the blocks that have any."""

    undos: dict[str, BlockDiff]
    # Each takes back the undo that was the block's last change.
    redos: dict[str, BlockDiff]


class VersionId(NamedTuple):
    """The block and the number of an earlier version. Its `str` is LABEL/NUMBER."""

    label: str
    version: int

    @classmethod
    def parse(cls, text: str) -> VersionId:
        """Parses LABEL/NUMBER. Raises: ValueError."""
        # A label may have slashes.
        label, _, number = text.rpartition("/")
        return cls(label, int(number))

    def __str__(self) -> str:
        return f"{self.label}/{self.version}"


class EarlierVersion(NamedTuple):
    """An earlier version of a block."""

    block: Block
    version: int
    value: str


class BlockVersions(Struct, frozen=True):
    """Reads and compares versions of blocks. The methods raise UnknownId where there is no such memory or block."""

    store: Store

    async def list_undos(self, project: str | None, uid: str, label: str | None = None) -> BlockUndos:
        """Returns the change of each block by an undo, and by a redo.

        label: only the block with this label is compared; None: all blocks are.
        """
        memory = await get_memory(self.store, project, uid)
        shown_blocks = await self.store.memory_pages.list_blocks(memory.id)
        undos: list[EarlierVersion] = []
        redos: list[EarlierVersion] = []
        for shown in shown_blocks:
            block = shown.block
            if label not in (None, block.label):
                continue
            if undo := await self.store.blocks.find_undo_target(block):
                undos.append(EarlierVersion(block, undo.version, undo.value))
            if shown.origin == "undo" and (redo := await self._find_last(block.id, block.version)):
                redos.append(EarlierVersion(block, redo.version, redo.value))
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        return await asyncio.to_thread(lambda: BlockUndos(_compare_blocks(undos), _compare_blocks(redos)))

    async def get_earlier(self, memory: FoundMemory, version_id: VersionId) -> EarlierVersion:
        """Returns an earlier version of a block that has lines which the block has no longer.

        Raises: UnknownId: there is no such version, or the block has all its lines.
        """
        block = (await get_shown_block(self.store, memory.id, version_id.label)).block
        revision = await self._find_last(block.id, version_id.version + 1)
        if revision is None or revision.version != version_id.version:
            raise UnknownId(f"The block has no version {version_id.version}.")
        if not list_lost_lines(revision.value, block.value):
            raise UnknownId(
                f"Version {version_id.version} has no line that the block does not have now."
                " Take out of the block what is wrong."
            )
        return EarlierVersion(block, revision.version, revision.value)

    async def compare(self, block_row: int, from_: int | None, to: int | None) -> BlockDiff | None:
        """Returns the difference of two versions, or None without a version before `to`. Raises: BadRequest."""
        newer_version: Revision | None
        older_version: Revision | None
        if to is None:
            newer_version = await self._find_last(block_row)
        else:
            newer_version = await self._get(block_row, to, "to")
        if newer_version is None:
            return None
        if from_ is None:
            older_version = await self._find_last(block_row, newer_version.version)
        else:
            older_version = await self._get(block_row, from_, "from")
        if older_version is None:
            return None
        parts = await asyncio.to_thread(diff_words, older_version.value, newer_version.value)
        return BlockDiff(older_version.version, newer_version.version, parts)

    async def _find_last(self, block_row: int, before: int = LAST_NUMBER) -> Revision | None:
        versions = await self.store.blocks.list_revisions(
            block_row, before=before, limit=1, includes_forgotten=False
        )
        return versions[0] if versions else None

    async def _get(self, block_row: int, version: int, param: str) -> Revision:
        revision = await self._find_last(block_row, version + 1)
        if revision is None or revision.version != version:
            raise BadRequest(f"The block has no version {version}.", param=param)
        return revision


async def get_shown_block(store: Store, agent_row: int, label: str) -> ShownBlock:
    """Returns a block of a memory. Raises: UnknownId."""
    blocks = await store.memory_pages.list_blocks(agent_row)
    shown_block = next((shown for shown in blocks if shown.block.label == label), None)
    if shown_block is None:
        # The audit links to blocks that may be deleted since.
        raise UnknownId("There is no such block. If there was one, it was deleted.")
    return shown_block


def _compare_blocks(earlier: Sequence[EarlierVersion]) -> dict[str, BlockDiff]:
    """Returns how blocks differ from earlier versions of them, by the blocks' labels."""
    return {
        block.label: BlockDiff(block.version, version, diff_words(block.value, value))
        for block, version, value in earlier
    }
