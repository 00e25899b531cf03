"""The edits of blocks in a turn, as its model sees them before they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from gateway.core.memory import edits
from gateway.core.memory.block_edit import EditResult
from gateway.core.memory.memory_tools import REWRITE_OPERATIONS, STORED_SOURCES
from gateway.core.prompt.shown_blocks import (
    NOTHING_SHOWN,
    Shown,
    changes_since,
    frame,
    is_shown,
    last_shown,
    shown_by_block,
    shown_by_edit,
)
from storage.records import Block, BlockOp

CHANGED_MEANWHILE = (
    "Error: the block {label!r} was changed by another writer since you saw it. Nothing was done. It now reads:"
    "\n{frame}"
)


@dataclass(slots=True)
class BlockEdits:
    """The edits of a turn's model to memory. They stay pending until the turn is confirmed."""

    # As the model sees them, with its own edits.
    blocks: list[Block] = field(default_factory=list)
    ops: list[BlockOp] = field(default_factory=list)
    # What the prompt, and the results of the rounds since, show last of each block.
    shown: Shown = field(default_factory=dict)
    # What the results of this round show so far.
    _shown_in_round: Shown = field(default_factory=dict)

    def apply(self, op: BlockOp, *, is_read: bool = True) -> EditResult:
        """Makes an edit on the blocks as the model sees them. Returns the result that the model reads.

        is_read: the model makes the edit, so it may only overwrite what it has seen, and its result shows the block. It
            is False where code makes the edit, which was given the block as it is.
        """
        before = next((block for block in self.blocks if block.label == op.label), None)
        if before is not None and op.op in REWRITE_OPERATIONS:
            op = replace(op, seen=edits.digest_value(before.value))
        blocks, edit = edits.apply_operation(self.blocks, op)
        if edit.value is not None:
            if is_read and (error := self._unseen_error(op)) is not None:
                edit = error
            else:
                self.blocks = blocks
                self.ops.append(op)
        elif edit.has_failed:
            return edit
        if before is None or not is_read:
            return edit
        now = next(block for block in self.blocks if block.label == op.label)
        # A rewrite has the whole block, or its error quotes it. The result of another edit shows the part that changed.
        shown = shown_by_block(now) if op.op in REWRITE_OPERATIONS else shown_by_edit(before, now)
        self._shown_in_round = last_shown((shown,), self._shown_in_round)
        return replace(edit, shown=shown)

    def reapply(self, blocks: Sequence[Block]) -> None:
        """Makes the edits on other values of the blocks. One that cannot be made any more changes nothing."""
        self.blocks = [*blocks]
        for op in self.ops:
            if op.op not in STORED_SOURCES:
                self.blocks = edits.apply_operation(self.blocks, op).blocks

    def describe_changes(self, results: Iterable[Shown]) -> tuple[tuple[str, ...], Shown]:
        """Ends a round: returns a text for each block that is not as it was last shown, and what the round shows.

        A text has to stand after the results, and is returned once. What the round shows includes the texts.
        results: what each of the round's results shows.
        """
        shown = last_shown(results, NOTHING_SHOWN)
        last = last_shown((shown,), self.shown)
        changes, shown_now = changes_since(last, self.blocks)
        self.shown = shown_now
        self._shown_in_round = NOTHING_SHOWN
        new = (
            {label: value for label, value in self.shown.items() if last.get(label) != value}
            if changes
            else {}
        )
        return changes, {**shown, **new}

    def _is_seen(self, block: Block) -> bool:
        return is_shown(last_shown((self._shown_in_round,), self.shown), block)

    def _unseen_error(self, op: BlockOp) -> EditResult | None:
        """Returns an error where the model would overwrite another writer's text that it has not seen."""
        block = next(each for each in self.blocks if each.label == op.label)
        if op.op not in REWRITE_OPERATIONS or self._is_seen(block):
            return None
        return EditResult(None, CHANGED_MEANWHILE.format(label=op.label, frame=frame(block)), has_failed=True)
