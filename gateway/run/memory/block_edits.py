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
    BlockChanges,
    ShownBlocks,
    combine_shown,
    is_shown,
    list_changes,
    make_shown_by_block,
    make_shown_by_edit,
    render_block,
)
from storage.records import Block, MemoryEdit

_CHANGED_MEANWHILE = (
    "Error: the block {label!r} was changed by another writer since you saw it. Nothing was done. It now reads:"
    "\n{frame}"
)


@dataclass(slots=True)
class BlockEdits:
    """The edits of memory in a turn. They stay pending until the turn is confirmed."""

    # The blocks as the model sees them, with the edits of the turn.
    blocks: list[Block] = field(default_factory=list)
    # The edits that were made, in their order.
    edits: list[MemoryEdit] = field(default_factory=list)
    # The last text of each block in the prompt, or in a result of the rounds since.
    shown: ShownBlocks = field(default_factory=dict)
    # The last text of each block in the results of this round so far.
    _shown_in_round: ShownBlocks = field(default_factory=dict, init=False)

    def apply(self, edit: MemoryEdit, *, is_by_model: bool = True) -> EditResult:
        """Makes an edit on the blocks as the model sees them. Returns the result that the model reads.

        is_by_model: True: the model may only overwrite text that it has seen, and the result shows it the block. False:
            a program makes the edit, with the current block as its input.
        """
        before = self._find_block(edit.label)
        if before is not None and edit.op in REWRITE_OPERATIONS:
            edit = replace(edit, seen=edits.digest_seen_value(before.value))
        blocks, result = edits.apply_to_blocks(self.blocks, edit)
        if result.has_failed and result.value is None:
            return result
        if result.value is not None:
            if is_by_model and (error := self._find_unseen_error(edit)) is not None:
                result = error
            else:
                self.blocks = blocks
                self.edits.append(edit)
        after = self._find_block(edit.label)
        if before is None or after is None or not is_by_model:
            return result
        # A rewrite shows the whole block, in its call or its error. Any other edit shows the part that has changed.
        shown_by_result = (
            make_shown_by_block(after) if edit.op in REWRITE_OPERATIONS else make_shown_by_edit(before, after)
        )
        self._shown_in_round = combine_shown((shown_by_result,), self._shown_in_round)
        return replace(result, shown=shown_by_result)

    def _find_block(self, label: str) -> Block | None:
        return next((block for block in self.blocks if block.label == label), None)

    def reapply(self, blocks: Sequence[Block]) -> None:
        """Makes the edits on other values of the blocks. An edit that is impossible by now changes nothing."""
        self.blocks = [*blocks]
        for edit in self.edits:
            if edit.op not in STORED_SOURCES:
                self.blocks = edits.apply_to_blocks(self.blocks, edit).blocks

    def describe_changes(self, results: Iterable[ShownBlocks]) -> BlockChanges:
        """Ends a round. Returns the block changes that no result has shown yet, and the blocks that the round shows.

        The model has to get the texts of the changes after the results. Each text is returned once.

        results: the blocks that each result of the round shows.
        """
        shown_by_results = combine_shown(results, NOTHING_SHOWN)
        last_shown = combine_shown((shown_by_results,), self.shown)
        texts, self.shown = list_changes(last_shown, self.blocks)
        self._shown_in_round = NOTHING_SHOWN
        if not texts:
            return BlockChanges(texts, shown_by_results)
        shown_by_texts = {
            label: value for label, value in self.shown.items() if last_shown.get(label) != value
        }
        return BlockChanges(texts, {**shown_by_results, **shown_by_texts})

    def _find_unseen_error(self, edit: MemoryEdit) -> EditResult | None:
        """Returns an error where the model would overwrite another writer's text that it has not seen."""
        block = next(each for each in self.blocks if each.label == edit.label)
        shown = combine_shown((self._shown_in_round,), self.shown)
        if edit.op not in REWRITE_OPERATIONS or is_shown(shown, block):
            return None
        return EditResult(
            None, _CHANGED_MEANWHILE.format(label=edit.label, frame=render_block(block)), has_failed=True
        )
