"""The edits of a step's tools: made on the blocks that the step found, and written after it with their results.

They are written by compare-and-set. If another writer was faster they are made again on the new state, so no result
reports what did not happen. What others wrote meanwhile is in a note after the results.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.core.conversation.canonical import WireMessage
from gateway.core.conversation.private import NUDGE, with_private
from gateway.core.memory import edits
from gateway.core.memory.builtin import call_of
from gateway.core.memory.memory_tools import Edit
from gateway.core.prompt.note import render_note
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, Shown, last_shown
from gateway.core.turn.guide import ToolResult
from gateway.run.memory.record import BlockEdits
from storage.commands import BlockMerge
from storage.records import Block


class StepEdits:
    """The blocks as the tools of a step found them, and what they changed."""

    def __init__(self, blocks: Sequence[Block], shown: Shown, client_calls: frozenset[str]) -> None:
        """Takes the blocks of a step.

        shown: what its prompt shows last of each.
        client_calls: ids of calls that the client has answered.
        """
        self.blocks_read = tuple(blocks)
        self.changes = BlockEdits(list(blocks), shown=shown)
        self._client_calls = client_calls

    def account_for(self, results: Sequence[ToolResult]) -> bool:
        """Returns whether all these results are of edits, or the client's: none comes of a tool that may take long."""
        calls = {each.call_id for each in results}
        return calls <= {call_of(op.call_id, calls) for op in self.changes.ops} | self._client_calls

    def are_unchanged(self, blocks: Sequence[Block]) -> bool:
        """Returns whether these are the versions of the blocks that the tools found."""
        return _versions(blocks) == _versions(self.blocks_read)

    def made_again(self, before: StepEdits, results: Sequence[ToolResult]) -> list[ToolResult]:
        """Makes the edits of another one on these blocks. Returns its results with what came of it here."""
        calls = {each.call_id for each in results}
        made: dict[str, list[Edit]] = {}
        for op in before.changes.ops:
            if op.op in edits.KEEPING:
                self.changes.ops.append(op)
                continue
            made.setdefault(call_of(op.call_id, calls), []).append(self.changes.make(op))
        return [_with_edits(each, made[each.call_id]) if each.call_id in made else each for each in results]

    def merge(self, exchange: int) -> tuple[BlockMerge, dict[int, int]]:
        """Returns what was changed, and the versions of the blocks that were found. exchange: the step's."""
        ops = [replace(op, exchange=exchange) for op in self.changes.ops]
        return edits.merge(self.blocks_read, ops), _versions(self.blocks_read)

    def messages(self, results: Sequence[ToolResult], mark: str, now: float) -> list[WireMessage]:
        """Returns results as messages, with a note of what other writers have changed. mark: the memory's."""
        if not results:
            return []
        changes, shown = self.changes.describe_changes(each.shown for each in results)
        if not changes:
            return [each.stored() for each in results]
        note = render_note((), changes, now, mark=mark).rstrip()
        last = next((each for each in reversed(results) if each.call_id not in self._client_calls), None)
        if last is not None:
            noted = replace(last, changes=note, shown=shown)
            return [(noted if each is last else each).stored() for each in results]
        # The client's results stay as it gave them.
        nudge: WireMessage = {"role": "user", "content": note}
        return [
            *(each.stored() for each in results),
            with_private(nudge, shown="system", sender=NUDGE, shown_blocks=dict(shown)),
        ]


def _with_edits(result: ToolResult, made: Sequence[Edit]) -> ToolResult:
    """Returns the result of a call as it is after its edits were made again."""
    status = next((each.status for each in made if each.status == "error"), "success")
    content, shown = "\n".join(each.result for each in made), (each.shown for each in made)
    return replace(result, content=content, status=status, shown=last_shown(shown, NOTHING_SHOWN))


def _versions(blocks: Sequence[Block]) -> dict[int, int]:
    return {block.id: block.version for block in blocks}
