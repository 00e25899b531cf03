"""The edits of a step's tools: made on the blocks that the step found, and with their results written behind it.

They are written by compare-and-set. If somebody else was faster they are made again on what is there then, so no result
tells what did not happen. What others wrote meanwhile is told behind the results.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.conversation.canonical import WireMessage
from gateway.core.conversation.private import NUDGE, with_private
from gateway.core.memory import edits
from gateway.core.memory.builtin import call_of
from gateway.core.memory.tools import Edit
from gateway.core.prompt.note import render_note
from gateway.core.prompt.section import learned, untold
from gateway.core.turn.guide import ToolResult
from gateway.run.memory.record import BlockEdits
from storage.commands import BlockMerge
from storage.records import Block, Snapshot
from storage.value import changed


class StepEdits:
    """The blocks as the tools of a step found them, and what they changed.

    pinned: the memory section of the path. theirs: ids of calls that the client has answered.
    """

    def __init__(self, blocks: Sequence[Block], pinned: Snapshot | None, theirs: frozenset[str]) -> None:
        self.found = tuple(blocks)
        told = None if pinned is None else dict(pinned.known.get("blocks", {}))
        self.changes = BlockEdits(list(blocks), told=told)
        self._theirs = theirs

    def account_for(self, results: Sequence[ToolResult]) -> bool:
        """Returns whether all these results are of edits, or the client's: none comes of a tool that may take long."""
        calls = {each.call_id for each in results}
        return calls <= {call_of(op.call_id, calls) for op in self.changes.ops} | self._theirs

    def have_found(self, blocks: Sequence[Block]) -> bool:
        """Returns whether these are the versions of the blocks that the tools found."""
        return _versions(blocks) == _versions(self.found)

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
        ops = [changed(op, exchange=exchange) for op in self.changes.ops]
        return edits.merge(self.found, ops), _versions(self.found)

    def learned(self, pinned: Snapshot | None, results: Sequence[ToolResult]) -> Snapshot | None:
        """Returns the memory section of a path that has seen these results, which tell it of the edits."""
        if self.changes.ops or self._untold(pinned, results):
            return learned(pinned, self.changes.blocks)
        return pinned

    def messages(
        self, results: Sequence[ToolResult], pinned: Snapshot | None, now: float
    ) -> list[WireMessage]:
        """Returns results as messages, with what the path has to be told of other people's edits."""
        messages = [each.stored() for each in results]
        if changes := self._untold(pinned, results):
            frame = render_note((), changes, now).rstrip()
            ours = [n for n, each in enumerate(results) if each.call_id not in self._theirs]
            if ours:
                last = messages[ours[-1]]
                said = str(last["content"])
                # A person is shown what the tool said.
                messages[ours[-1]] = with_private({**last, "content": f"{said}\n\n{frame}"}, said=len(said))
            else:
                # The client's results stay as it gave them.
                messages.append(
                    with_private({"role": "user", "content": frame}, shown="system", sender=NUDGE)
                )
        return messages

    def _untold(self, pinned: Snapshot | None, results: Sequence[ToolResult]) -> tuple[str, ...]:
        return untold(pinned, self.found, self.changes.blocks) if results else ()


def _with_edits(result: ToolResult, made: Sequence[Edit]) -> ToolResult:
    """Returns the result of a call as it is after its edits were made again."""
    status = next((each.status for each in made if each.status == "error"), "success")
    return changed(result, content="\n".join(each.result for each in made), status=status)


def _versions(blocks: Sequence[Block]) -> dict[int, int]:
    return {block.id: block.version for block in blocks}
