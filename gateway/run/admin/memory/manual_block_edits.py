"""Edits of blocks by hand. Each names the version that its editor saw, and is refused if another version is current."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from gateway.errors import BadRequest, Conflict, NotAllowed, UnknownId
from gateway.run.admin.audited_parts import AuditedVersion
from gateway.run.admin.memory.editor import Editor, note_edit
from gateway.run.admin.memory_by_uid import get_agent
from storage.errors import BlockTooLong, NotFound, WriteConflict
from storage.records import Block
from storage.sql.store import Store

# The reason of an undo that the limit of a block refuses, which has been lowered since.
UNDO_OVER_LIMIT = "The text before the last change is longer than the block’s limit now."


class ManualBlockEdits(Struct, frozen=True):
    """Changes blocks of memories, which are named by their uid. The audit records each change.

    Each method raises: UnknownId: the editor sees no such memory or block; Conflict: the block has another version than
    `version`, the one that the editor saw; BadRequest; NotAllowed: the editor is the person, and the block is read-only
    or shared.
    """

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    async def edit(self, editor: Editor, uid: str, label: str, value: str, version: int) -> Block:
        """Gives a block another value. The value that it has makes no version."""
        block = await self._get_block(editor, uid, label, version)
        if value == block.value:
            return block
        try:
            written_block = await self.store.blocks.write(
                block.id, version, value, at=self.now(), origin=editor.origin
            )
        except NotFound as error:
            raise _make_unknown_block_error() from error
        except BlockTooLong as error:
            raise BadRequest(
                f"The text of “{label}” takes {block.limit:,} characters at most, not {len(value):,}.",
                param="value",
            ) from error
        except WriteConflict as error:
            raise _make_version_conflict(label) from error
        await note_edit(
            self.store, self.now(), editor, "edit", uid, AuditedVersion(label, written_block.version)
        )
        return written_block

    async def undo(self, editor: Editor, uid: str, label: str, version: int) -> Block:
        """Takes back the last change of a block."""
        block = await self._get_block(editor, uid, label, version)
        try:
            undone_block = await self.store.blocks.undo(block.id, at=self.now(), version=version)
        except NotFound as error:
            # Raises if the block was forgotten meanwhile.
            await self._get_block(editor, uid, label, version)
            raise BadRequest("The block has no change left to undo.", param="version") from error
        except BlockTooLong as error:
            raise BadRequest(UNDO_OVER_LIMIT, param="version") from error
        except WriteConflict as error:
            raise _make_version_conflict(label) from error
        await note_edit(
            self.store, self.now(), editor, "undo", uid, AuditedVersion(label, undone_block.version)
        )
        return undone_block

    async def restore(self, editor: Editor, uid: str, label: str, version: int, to: int) -> Block:
        """Brings back the value of an older version."""
        block = await self._get_block(editor, uid, label, version)
        try:
            restored_block = await self.store.blocks.restore(
                block.id, version, to, at=self.now(), origin=editor.origin
            )
        except NotFound as error:
            # Raises if the block was forgotten meanwhile.
            await self._get_block(editor, uid, label, version)
            raise BadRequest(
                f"The block has no version {to} that could be brought back.", param="to"
            ) from error
        except BlockTooLong as error:
            raise BadRequest(f"Version {to} is longer than the block’s limit now.", param="to") from error
        except WriteConflict as error:
            raise _make_version_conflict(label) from error
        what = AuditedVersion(label, restored_block.version, restored=to)
        await note_edit(self.store, self.now(), editor, "restore", uid, what)
        return restored_block

    async def _get_block(self, editor: Editor, uid: str, label: str, version: int) -> Block:
        store = self.store
        agent = await get_agent(store, editor.project, uid)
        is_person = editor.origin != "operator"
        # For a person `facts.load_blocks` returns shared blocks as read-only blocks.
        blocks = await (store.facts.load_blocks(agent.id) if is_person else store.blocks.load(agent.id))
        block = next((each for each in blocks if each.label == label), None)
        if block is None:
            raise _make_unknown_block_error()
        if is_person and block.read_only:
            raise NotAllowed("This text is the application’s own, and is not changed here.")
        if block.version != version:
            raise _make_version_conflict(label)
        return block


def _make_version_conflict(label: str) -> Conflict:
    return Conflict(
        f"The text of “{label}” was changed since you saw it. Nothing was written.", param="version"
    )


def _make_unknown_block_error() -> UnknownId:
    return UnknownId("There is no such block.")
