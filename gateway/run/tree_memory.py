"""The memory of a turn that is written as one exchange of a tree."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.core.prompt.note_text import render_note
from gateway.core.tags import make_mark
from gateway.core.turn import commands
from gateway.core.turn.commands import TurnOutcome
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.section_blocks import read_blocks_on_path
from gateway.run.receipt import Receipt
from gateway.run.tools.toolbox import ToolAnswer, Toolbox
from gateway.run.turn_saving import SavedStep
from storage.errors import StoreError

_log = logging.getLogger("mnemogate")


@dataclass(slots=True)
class TreeMemory:
    """The memory of one turn. Implements `TurnMemory`, which documents the methods."""

    # The memories of the process.
    keeper: MemoryKeeper
    # The memory as it was read for the turn.
    context: MemoryContext
    # The edits of its memory tools.
    block_edits: BlockEdits
    # The tools that run in the gateway.
    toolbox: Toolbox
    # The receipt of the request.
    receipt: Receipt

    async def retarget(self, prompt: Prompt, target: Target, form: EndpointForm) -> Prompt:
        context = self.context.with_answering_target(target)
        return await self.keeper.composer.retarget_prompt(context, prompt, target, form)

    def note_target(self, prompt: Prompt) -> None:
        self.context = self.context.with_answering_target(prompt.target)

    async def note_changes(self, prompt: Prompt, answers: dict[int, ToolAnswer]) -> None:
        """Reads the blocks again, and adds a note about their changes to the last answer."""
        context = self.context
        try:
            snapshot = (
                await self.keeper.store.turns.find_snapshot(context.agent, key=None, path_hash=None)
                if context.agent.is_stored
                else None
            )
        except StoreError as error:
            _log.warning(
                "Memory blocks could not be read again within a reply, which may go on with older values: %s",
                error.message,
            )
            snapshot = None
        read_snapshot = context.snapshot
        if snapshot is not None and (snapshot.blocks, snapshot.edits) != (
            read_snapshot.blocks,
            read_snapshot.edits,
        ):
            # Another writer has changed the blocks meanwhile, so the turn's edits are applied to the new values.
            read_snapshot = replace(read_snapshot, blocks=snapshot.blocks, edits=snapshot.edits)
            self.context = context = replace(context, snapshot=read_snapshot)
            self.block_edits.reapply(read_blocks_on_path(context.request.spec, snapshot, context.path))
        texts, shown_blocks = self.block_edits.describe_changes(answers[n].shown for n in sorted(answers))
        if texts:
            mark = make_mark(context.agent.secret)
            note = render_note(
                (), texts, self.keeper.now(), mark=mark, names_mark=not prompt.names_mark(mark)
            ).rstrip()
            last_index = max(answers)
            answers[last_index] = replace(answers[last_index], changes=note, shown=shown_blocks)

    async def save_step(self, prompt: Prompt, step: commands.SaveStep) -> SavedStep:
        raise AssertionError("an exchange of a tree is written as a whole")

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        return self.keeper.writer.write(self.context, prompt, self.block_edits, outcome, self.receipt)
