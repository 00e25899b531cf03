"""Writes the outcomes of items: together where possible, each after the live turns of its conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from msgspec import Struct

from gateway.agents.batches.item_ending import EndedTurn, make_end_with_turn, report_turn
from gateway.agents.batches.item_failure import ItemFailed
from gateway.agents.batches.items import ItemReplayer
from gateway.core.dates import DAY_S
from gateway.metrics import Counter
from gateway.run.background.job_context import JobContext
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.queue import QueueTicket
from gateway.run.tools.toolbox import MAX_PARALLEL
from storage.batch_records import Batch, BatchItem, ItemRetry, ItemWrite
from storage.errors import WriteConflict
from storage.sql.store import Store

# The attempts to write an item's outcome that may find another writer faster, before the item fails. Not measured:
# fewer fail items of busy agents sooner, more hold up the batch.
_MAX_CONFLICTS: Final = 8

OutcomeFactory = Callable[[], Awaitable[ItemWrite | EndedTurn]]


class OutcomeDraft(Struct, frozen=True):
    """The outcome of an item before it is made."""

    # The item as it was when its outcome came.
    item: BatchItem
    # Returns the outcome. It is called again after a conflict with another writer.
    make_outcome: OutcomeFactory
    # The reply that the provider has billed; b"": no reply was billed.
    reply: bytes = b""


@dataclass(eq=False, slots=True)
class ItemOutcomes:
    """Writes the outcomes of one batch's items, in one attempt of its job."""

    # The store with the items.
    store: Store
    # The memory, with the queues of conversations.
    keeper: MemoryKeeper
    # Makes the ends of items that cannot continue.
    replayer: ItemReplayer
    # The job of the batch: outcomes are written only while this attempt holds it.
    job: JobContext
    # The batch as it was before the attempt.
    batch: Batch
    # Counts the tokens of all batches.
    tokens: Counter
    # The writes that wait for a busy conversation.
    _deferred_writes: list[asyncio.Task[None]] = field(default_factory=list, init=False)

    async def write_outcomes(self, drafts: Sequence[OutcomeDraft]) -> None:
        """Writes the outcomes of items together. The outcome of a busy conversation is written once it is free."""
        outcomes = await _make_outcomes(drafts)
        queues = self.keeper.queues
        ended_turns: list[EndedTurn] = []
        writes: list[ItemWrite] = []
        written_drafts: list[OutcomeDraft] = []
        with ExitStack() as stack:
            for draft, outcome in zip(drafts, outcomes, strict=True):
                if not isinstance(outcome, EndedTurn):
                    writes.append(outcome)
                elif await queues.try_enter(outcome.turn.queue, stack.enter_context(QueueTicket())):
                    writes.append(await make_end_with_turn(self.keeper, outcome))
                    ended_turns.append(outcome)
                    # Live turns come in between.
                    await asyncio.sleep(0)
                else:
                    self._deferred_writes.append(asyncio.create_task(self._write_alone(draft)))
                    continue
                written_drafts.append(draft)
            with suppress(WriteConflict):
                await self.write(writes)
                for ended_turn in ended_turns:
                    report_turn(self.keeper, ended_turn)
                return
        # Two of the items have changed one block, or another writer was faster. Now each is made and written by itself.
        for draft in written_drafts:
            await self._write_alone(draft)

    async def write(self, writes: Sequence[ItemWrite]) -> None:
        """Writes outcomes in one transaction. Raises: WriteConflict, StoreError."""
        if not writes:
            return
        day = int(self.keeper.now() // DAY_S)
        await self.job.commit(self.store.batch_items.make_write_effect(self.batch.project, day, writes))
        self.tokens.inc(by=sum(write.counts.total for write in writes if not isinstance(write, ItemRetry)))

    async def wait_for_deferred(self) -> None:
        """Waits until the outcomes of busy conversations are written."""
        while self._deferred_writes:
            await self._deferred_writes.pop()

    async def aclose(self) -> None:
        """Cancels the writes that still wait for busy conversations."""
        await _cancel(self._deferred_writes)

    async def _write_alone(self, draft: OutcomeDraft) -> None:
        """Writes the outcome of one item, as soon as its conversation is free. Raises: WriteConflict, StoreError."""
        for _ in range(_MAX_CONFLICTS):
            with suppress(WriteConflict):
                await self._try_to_write_alone(draft.make_outcome)
                return
        failure = ItemFailed("The blocks of this agent, or its conversation, change too fast.")
        await self._try_to_write_alone(
            partial(self.replayer.make_early_end, draft.item, failure, draft.reply)
        )

    async def _try_to_write_alone(self, make_outcome: OutcomeFactory) -> None:
        """Writes an outcome, after the live turns of its conversation. Raises: WriteConflict, StoreError."""
        outcome = await make_outcome()
        with QueueTicket() as ticket:
            if isinstance(outcome, EndedTurn):
                await self.keeper.queues.enter(outcome.turn.queue, ticket)
                await self.write([await make_end_with_turn(self.keeper, outcome)])
                report_turn(self.keeper, outcome)
            else:
                await self.write([outcome])


async def _make_outcomes(drafts: Sequence[OutcomeDraft]) -> list[ItemWrite | EndedTurn]:
    """Makes the outcomes of items, a few at a time."""
    slots = asyncio.Semaphore(MAX_PARALLEL)

    async def make(draft: OutcomeDraft) -> ItemWrite | EndedTurn:
        async with slots:
            return await draft.make_outcome()

    tasks = [asyncio.create_task(make(draft)) for draft in drafts]
    try:
        # If one fails, the others go on, so that their calls end with noted answers before the next attempt.
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await _cancel(tasks)
    return [task.result() for task in tasks]


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels tasks that have not ended, and waits for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
