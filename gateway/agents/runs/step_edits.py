"""The edits that a step's tools make on the blocks that the step read. The next step writes them with the results.

The write is a compare-and-set. If another writer was faster, the edits are applied again to the new blocks, so that no
result reports an edit that was not made. A note after the results shows the model the changes of other writers.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.core.conversation.private import NUDGE_SENDER, CallStatus, with_private
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.memory.block_edit import EditResult
from gateway.core.memory.edit_ids import map_edits_to_calls, parse_call_id
from gateway.core.memory.edits import make_block_merge
from gateway.core.memory.memory_tools import STORED_SOURCES
from gateway.core.prompt.note_text import render_note
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, ShownBlocks, combine_shown
from gateway.core.turn.tool_result import ToolResult
from gateway.run.memory.block_edits import BlockEdits
from storage.commands import BlockMerge
from storage.records import Block


class StepEdits:
    """The blocks that a step read, and the edits that its tools made on them."""

    def __init__(self, blocks: Sequence[Block], shown: ShownBlocks, client_call_ids: frozenset[str]) -> None:
        """Begins without edits.

        blocks: the blocks that the step read, with their versions.
        shown: the text of each block that the step's prompt shows last.
        client_call_ids: the ids of the calls that the client has answered.
        """
        self.blocks_read = tuple(blocks)
        self.block_edits = BlockEdits(list(blocks), shown=shown)
        self._client_call_ids = client_call_ids

    def ran_alone(self, results: Sequence[ToolResult]) -> bool:
        """Returns whether each result is of an edit or came from the client, so that no tool ran that takes time."""
        call_ids = map_edits_to_calls(result.call_id for result in results)
        editing_call_ids = {parse_call_id(edit.call_id, call_ids) for edit in self.block_edits.edits}
        return editing_call_ids | self._client_call_ids >= {*call_ids.values()}

    def were_made_on(self, blocks: Sequence[Block]) -> bool:
        """Returns whether these blocks have the versions that the step read."""
        return {block.id: block.version for block in blocks} == self.versions_read

    def reapply(self, earlier_edits: StepEdits, results: Sequence[ToolResult]) -> list[ToolResult]:
        """Applies edits that were made on older blocks to these blocks. Returns the new results of the step.

        earlier_edits: the edits on the older blocks.
        results: the results of all calls of the step, made when the edits were applied to the older blocks.
        """
        call_ids = map_edits_to_calls(result.call_id for result in results)
        edit_results: dict[str, list[EditResult]] = {}
        for edit in earlier_edits.block_edits.edits:
            if edit.op in STORED_SOURCES:
                self.block_edits.edits.append(edit)
                continue
            call_id = parse_call_id(edit.call_id, call_ids)
            edit_results.setdefault(call_id, []).append(self.block_edits.apply(edit))
        return [
            _with_edits(result, edit_results[result.call_id]) if result.call_id in edit_results else result
            for result in results
        ]

    def merge(self, exchange_row: int) -> BlockMerge:
        """Returns the edits to be written. exchange_row: the row of the step's exchange."""
        edits = [replace(edit, exchange_row=exchange_row) for edit in self.block_edits.edits]
        return make_block_merge(self.blocks_read, edits)

    @property
    def versions_read(self) -> dict[int, int]:
        """The versions that the blocks must still have when the edits are written (compare-and-set), by row."""
        return {block.id: block.version for block in self.blocks_read}

    def make_messages(self, results: Sequence[ToolResult], mark: str, now: float) -> list[WireMessage]:
        """Returns results as messages, with a note of the changes that other writers have made to the blocks.

        mark: the word that marks the note as this memory's.
        now: seconds since the epoch.
        """
        if not results:
            return []
        changes, shown = self.block_edits.describe_changes(result.shown for result in results)
        if not changes:
            return [result.as_stored() for result in results]
        note = render_note((), changes, now, mark=mark).rstrip()
        last = next((each for each in reversed(results) if each.call_id not in self._client_call_ids), None)
        if last is not None:
            last_with_note = replace(last, changes=note, shown=shown)
            return [(last_with_note if result is last else result).as_stored() for result in results]
        # All results are the client's and stay as they are, so the note is a message of its own.
        message: WireMessage = {"role": "user", "content": note}
        nudge = with_private(message, shown="system", sender=NUDGE_SENDER, shown_blocks=dict(shown))
        return [*(result.as_stored() for result in results), nudge]


def _with_edits(result: ToolResult, edits: Sequence[EditResult]) -> ToolResult:
    """Returns the result of a call after its edits were applied again."""
    status: CallStatus = "error" if any(edit.has_failed for edit in edits) else "success"
    content = "\n".join(edit.message for edit in edits)
    shown = combine_shown((edit.shown for edit in edits), NOTHING_SHOWN)
    return replace(result, content=content, status=status, shown=shown)
