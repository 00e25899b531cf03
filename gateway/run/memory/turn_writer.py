"""Writes the turns that have ended, and puts them into the caches once they are committed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from gateway.core.definition import Sleeptime
from gateway.core.memory.delegated import DelegatedTasks
from gateway.core.prompt.summary import SummaryPlan
from gateway.core.turn.commands import FINISHED, End, TurnOutcome
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.context_reading import read_context
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.queue import QueueTicket
from gateway.run.memory.resent import ResentLists
from gateway.run.memory.turn_write import make_turn_write
from gateway.run.receipt import Receipt
from storage.commands import CommittedTurn, MemorySnapshot, TurnWrite
from storage.errors import StaleWrite
from storage.sql.store import Store

# A memory is indexed soon when it has this many new messages.
INDEX_EVERY = 16
# Or when a turn adds this many characters: every query reads them until they are indexed.
_INDEX_CHARS = 32_000
# The most times that memory is read for a turn while something of it is forgotten. A forgetting of some parts changes
# the memory once for each phase. Not measured: with fewer, a turn fails that a forgetting overtakes several times.
STALE_TRIES = 10
_log = logging.getLogger("mnemogate")


class TurnEvents(Protocol):
    """The events that the writer of turns reports to the background services. Every method returns at once."""

    @property
    def makes_summaries(self) -> bool:
        """True: there is a model for summaries. Agents may have one of their own."""

    def report_outdated_index(self, agent_row: int, messages: int | None) -> None:
        """Reports that the search index of a memory is outdated.

        messages: the number of messages that the index lacks; None: more than queries should read.
        """

    def report_pending_edits(self) -> None:
        """Reports a turn with memory edits. They are merged into the blocks when the turn is confirmed."""

    def report_stored_turn(
        self, agent_row: int, messages: int, sleeptime: Sleeptime | None, seq: int | None
    ) -> None:
        """Reports a turn that is stored.

        messages: the number of messages that the turn adds to the memory.
        sleeptime: the agents that read these messages later.
        seq: the number of the first of these messages, or a number near it.
        """

    def report_filling_window(self, turn: CommittedTurn, summary_plan: SummaryPlan) -> None:
        """Reports that a conversation needs a summary soon."""


@dataclass(eq=False)
class TurnWriter:
    """Writes turns, and holds the committed turns that are not cached yet."""

    # The store of the memories.
    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Gets the events of turns for the background services.
    events: TurnEvents
    # The lists of earlier requests with their hashes.
    resent_lists: ResentLists
    # The tasks that models have given to sub-agents.
    delegated_tasks: DelegatedTasks
    # The seconds within which the opening of an unnamed conversation can be repeated.
    idle_s: float
    # Turns that are committed and are cached after their replies, or before the next request is read.
    _uncached: deque[Callable[[], None]] = field(init=False, default_factory=deque)

    def write(
        self,
        context: MemoryContext,
        prompt: Prompt,
        block_edits: BlockEdits,
        outcome: TurnOutcome,
        receipt: Receipt | None = None,
    ) -> asyncio.Future[CommittedTurn] | asyncio.Future[None] | asyncio.Future[CommittedTurn | None]:
        """Begins the write of a turn that has ended. The result is None if nothing of the turn is to be stored.

        The future fails with StoreError. Cancelling it does not cancel the write. In append mode the next request of
        the conversation waits for this write, and not for the end of the request.

        receipt: the receipt of the reply; None: no record of its recall is stored.
        """
        request, reply = context.request, outcome.shown_reply
        request.ticket.transfer()
        if reply is not None and "tool_calls" in reply and request.identity.scope is not None:
            self.delegated_tasks.note_calls(
                request.identity.scope, request.chat.identity_fields, reply, self.now()
            )
        if context.exchange_row < 0 and _ends_unwritten(context, outcome):
            return self._end_unwritten(context)
        if not context.plan.is_off_record:
            return self._commit(context, prompt, block_edits, outcome, receipt)
        # The commit has no ticket to leave: the queue is left after the last attempt.
        unqueued = replace(context, request=replace(request, ticket=QueueTicket()))
        writing = self._commit(unqueued, prompt, block_edits, outcome, receipt)
        return asyncio.ensure_future(
            self._commit_off_record(writing, unqueued, prompt, outcome, request.ticket)
        )

    def _commit(
        self,
        context: MemoryContext,
        prompt: Prompt,
        block_edits: BlockEdits,
        outcome: TurnOutcome,
        receipt: Receipt | None = None,
    ) -> asyncio.Future[CommittedTurn] | asyncio.Future[None]:
        """Begins the commit of a turn. The future fails with StoreError."""
        try:
            write = make_turn_write(context, prompt, block_edits, outcome, self.now(), receipt=receipt)
            writing = self.store.turns.commit(write)
        except Exception as error:
            return self._end_unwritten(context, error)
        if write.plain is not None:
            exchange, listing = write.plain.exchange, context.plan.query.listing
            # Before the commit: the cached hashes follow from the messages alone, whether or not they are stored.
            self.resent_lists.cache_reply(
                context.request.chat,
                listing,
                outcome.shown_reply or {},
                exchange.reply or (),
                exchange.path_hash,
            )
        summary_plan = prompt.window.summary_plan if outcome.state is FINISHED else None
        writing.add_done_callback(partial(self._on_written, context, write, summary_plan))
        return writing

    async def _commit_off_record(
        self,
        writing: asyncio.Future[CommittedTurn] | asyncio.Future[None],
        context: MemoryContext,
        prompt: Prompt,
        outcome: TurnOutcome,
        ticket: QueueTicket,
    ) -> CommittedTurn | None:
        """Waits for the commit of a turn off the record, and plans it again if something was forgotten meanwhile.

        Without its hashes a later list with memory on would bring its words into the memory. So the next request of a
        conversation in append mode waits until they are stored.
        """
        try:
            for _ in range(STALE_TRIES - 1):
                try:
                    return await writing
                except StaleWrite:
                    context = await read_context(self.store, self.resent_lists, context.request, self.idle_s)
                    if not context.plan.is_off_record:
                        raise  # it repeats a turn off the record of which nothing is left
                writing = self._commit(context, prompt, BlockEdits(), outcome)
            return await writing
        finally:
            ticket.leave()

    def _end_unwritten(self, context: MemoryContext, error: Exception | None = None) -> asyncio.Future[None]:
        """Lets the next request begin, without a write. Returns a future that is done, with the error if any."""
        context.request.ticket.leave()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        return future

    def _on_written(
        self,
        context: MemoryContext,
        write: TurnWrite,
        summary_plan: SummaryPlan | None,
        writing: asyncio.Future[CommittedTurn],
    ) -> None:
        """Caches a committed turn: a plain turn after its reply, since the reply waits for this callback.

        Any other turn is cached at once. It may be an opening, which is cached with its words: later these might be
        forgotten already.
        """
        if writing.cancelled() or writing.exception() is not None:
            context.request.ticket.leave()
            return
        committed = writing.result()
        if not self._uncached:
            _call_after_reply(self.cache_all)
        self._uncached.append(partial(self._cache_and_report, context, write, summary_plan, committed))
        if not committed.is_plain:
            self.cache_all()

    def cache_all(self) -> None:
        """Puts the turns that are committed into the caches."""
        while self._uncached:
            try:
                self._uncached.popleft()()
            except Exception:  # the next turns are other users' turns
                _log.exception("A stored turn could not be put into the caches, by a fault in the gateway.")

    def _cache_and_report(
        self,
        context: MemoryContext,
        write: TurnWrite,
        summary_plan: SummaryPlan | None,
        committed: CommittedTurn,
    ) -> None:
        """Caches and reports a committed turn. summary_plan: the summary that its window needs; None: no summary."""
        context.request.ticket.leave()
        snapshot = context.snapshot
        self.store.turns.cache_committed(write, committed)
        agent = committed.agent
        if agent is not context.agent:
            self.store.agents.cache(agent)
        self.report_lag(agent.id, snapshot, write.chars)
        if write.edits:
            self.events.report_pending_edits()
        if not context.plan.is_off_record and agent.scope.spans_conversations:
            self.events.report_stored_turn(
                agent.id, len(context.plan.messages) + 1, context.request.spec.sleeptime, snapshot.next_seq
            )
        if summary_plan is not None:
            self.events.report_filling_window(committed, summary_plan)

    def report_lag(self, agent_row: int, snapshot: MemorySnapshot, chars: int) -> None:
        """Reports a memory that is to be indexed soon.

        snapshot: the snapshot with which the turn began.
        chars: the number of characters that the turn has added.
        """
        # The counts at the beginning of the turn are near enough for work that is done later.
        unindexed = snapshot.next_seq - snapshot.indexed_seq
        if unindexed >= INDEX_EVERY or chars > _INDEX_CHARS:
            self.events.report_outdated_index(agent_row, unindexed)


def _ends_unwritten(context: MemoryContext, outcome: TurnOutcome) -> bool:
    """Returns whether a turn ends without a write.

    A failed turn is sent again. A turn off the record leaves its tombstone even so, for a later list with the turn.
    """
    has_failed = outcome.state is End.FAILED and not outcome.text
    return context.request.identity.leaves_nothing or (has_failed and not context.plan.is_off_record)


def _call_after_reply(work: Callable[[], None]) -> None:
    """Calls `work` after the turn that waits for a commit has sent its reply. Call it from the commit's callback."""
    loop = asyncio.get_running_loop()
    # In this pass of the loop, a later callback of the commit sets the future that `TurnSaving.save` waits for. In the
    # next pass the turn wakes, and sends its reply. `work` would come before it in that pass, so it is scheduled from
    # there, for the pass after it.
    loop.call_soon(loop.call_soon, work)
