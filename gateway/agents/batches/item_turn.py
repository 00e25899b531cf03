"""The turn of an item of a batch, while it is replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.agents.batches.item_texts import ItemTexts
from gateway.agents.batches.stored_replies import ReplayedTools, StoredReplies
from gateway.core.conversation.kind import QueueName
from gateway.core.prompt.note_text import render_note
from gateway.core.tags import make_mark
from gateway.core.turn import commands
from gateway.core.turn.commands import TurnOutcome
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.tools.toolbox import ToolAnswer
from gateway.run.turn_saving import SavedStep
from gateway.run.upstream.route import Route
from storage.batch_records import BatchItem
from storage.records import MemoryEdit
from storage.run_records import TokenCounts


@dataclass(slots=True)
class ItemTurn:
    """The turn of an item, which is replayed from the stored texts. Implements `TurnMemory`."""

    # The item as it was when the turn was opened.
    item: BatchItem
    # The stored texts of the item.
    texts: ItemTexts
    # The item's request to memory, for the first endpoint of its route, and the conversation before the turn.
    context: MemoryContext
    # The blocks, with the edits of the rounds that are replayed.
    block_edits: BlockEdits
    # The tools of the turn, with stored results first.
    toolbox: ReplayedTools
    # The replies of the turn, stored replies first.
    replies: StoredReplies
    # The route to the item's model.
    route: Route
    # Returns seconds since the epoch.
    now: Callable[[], float]
    # The outcome of the turn; None: the turn waits for a reply.
    outcome: TurnOutcome | None = None

    @property
    def queue(self) -> QueueName:
        """The queue of the item's conversation, in which live turns wait as well."""
        return QueueName(self.context.agent.uid, self.item.conversation_name)

    @property
    def new_edits(self) -> list[MemoryEdit]:
        """The edits of the round that is not stored yet. Before them `block_edits` has the inserts of stored rounds."""
        return self.block_edits.edits[sum(len(stored_round.inserts) for stored_round in self.texts.rounds) :]

    async def retarget(self, prompt: Prompt, target: Target, form: EndpointForm) -> Prompt:
        return prompt

    def note_target(self, prompt: Prompt) -> None:
        return

    async def note_changes(self, prompt: Prompt, answers: dict[int, ToolAnswer]) -> None:
        """Adds a note of the blocks that other writers have changed since to the last stored result.

        A request may wait for hours, so the note is made for each request, and is no part of the stored rounds.
        """
        if not self.replies.composes or self.replies.taken_count < len(self.texts.rounds):
            return
        results = [result.shown for stored_round in self.texts.rounds for result in stored_round.results]
        texts, _ = self.block_edits.describe_changes(results)
        if texts:
            note = render_note((), texts, self.now(), mark=make_mark(self.context.agent.secret)).rstrip()
            last_index = max(answers)
            answers[last_index] = replace(answers[last_index], changes=note)

    async def save_step(self, prompt: Prompt, step: commands.SaveStep) -> SavedStep:
        raise AssertionError("the turn of an item is written as a whole")

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        # `make_end_with_turn` writes the outcome, while its caller holds the queue of the conversation.
        self.outcome = outcome
        return asyncio.sleep(0)

    def sum_counts(self, last_counts: TokenCounts) -> TokenCounts:
        """Returns the tokens of all rounds. last_counts: the tokens of the round that is not stored yet."""
        return last_counts.plus(*(stored_round.counts for stored_round in self.texts.rounds))
