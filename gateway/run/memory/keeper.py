"""The keeper of memory, one for the process: it reads what a turn needs, and writes the turn when it has ended.

A turn has three values: `MemoryContext` (what was read), `Prompt` (what goes upstream) and `TurnWrite` (what is
written). The keeper holds only what turns share: the queues of append mode, the lists that were sent last, and for a
moment the turns that are committed and not yet cached for the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.kind import ConversationKind
from gateway.core.definition import Sleeptime
from gateway.core.memory.delegated import DelegatedTasks
from gateway.core.prompt.excerpt import list_query_keys, list_short_words
from gateway.core.prompt.note_query import find_name_pattern
from gateway.core.prompt.shown_blocks import render_label
from gateway.core.prompt.summary import WantedSummary
from gateway.core.tags import quote_name
from gateway.core.turn.commands import FINISHED, End, TurnOutcome
from gateway.errors import HistoryForgotten
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.composer import Composer
from gateway.run.memory.context_reading import read_context
from gateway.run.memory.leases import Leases
from gateway.run.memory.memory_agent import find_or_draft_agent
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.memory.queue import Queues, QueueTicket
from gateway.run.memory.recall import Recaller
from gateway.run.memory.resent import ResentLists
from gateway.run.memory.turn_write import OPENED_OUTCOME, make_turn_write
from gateway.run.receipt import Receipt
from gateway.settings import MemorySettings
from storage.commands import Committed, MemorySnapshot, TurnWrite
from storage.errors import Stale, TooSlow
from storage.sql.store import Store

# A memory is indexed soon when it has this many new messages.
INDEX_EVERY = 16
# Or when a turn adds this many characters: every query reads them until they are indexed.
INDEX_CHARS = 32_000
# Append mode needs the disk, and treats a disk that is slower than this as down. Not measured: a commit takes
# milliseconds, and the user waits for as long.
OPEN_WAIT_S = 5.0
# How often memory is read for a turn while something of it is forgotten. A forgetting of some parts changes the memory
# once for each phase. Not measured: with fewer, a turn fails that a forgetting overtakes several times.
STALE_TRIES = 10
# The functions in the path of a turn that cache people's words or names. The store clears its own caches.
_WORD_CACHES = (list_query_keys, list_short_words, find_name_pattern, quote_name, render_label)
_log = logging.getLogger("mnemogate")


def _clear_word_caches() -> None:
    for function in _WORD_CACHES:
        function.cache_clear()


class TurnEvents(Protocol):
    """The events that the keeper reports to the background services. Every method returns at once."""

    @property
    def makes_summaries(self) -> bool:
        """There is a model for summaries. Agents may have one of their own."""

    def index_outdated(self, agent_row: int, messages: int | None = None) -> None:
        """Reports that the search index of a memory is outdated.

        messages: how many messages the index lacks; None: more than queries should read.
        """

    def edits_pending(self) -> None:
        """Reports a turn with memory edits. They are merged into the blocks when the turn is confirmed."""

    def turn_stored(
        self, agent_row: int, messages: int, sleeptime: Sleeptime | None = None, seq: int | None = None
    ) -> None:
        """Reports a turn.

        messages: how many messages the turn adds to the memory.
        sleeptime: the agents that read these messages later.
        seq: the number of the first of these messages, or a number near it.
        """

    def window_filling(self, turn: Committed, wanted_summary: WantedSummary) -> None:
        """Reports that a conversation needs a summary soon."""


@dataclass
class MemoryKeeper:
    """Reads and writes the memory of all turns."""

    store: Store
    settings: MemorySettings
    # Seconds since the epoch.
    now: Callable[[], float]
    events: TurnEvents
    # None: memory is searched by words alone.
    embed_query: EmbedQuery | None
    open_wait_s: float = OPEN_WAIT_S
    composer: Composer = field(init=False)
    leases: Leases = field(init=False)
    resent: ResentLists = field(init=False, default_factory=ResentLists)
    queues: Queues = field(init=False)
    delegated: DelegatedTasks = field(init=False, default_factory=DelegatedTasks)
    # Held by a step that writes its edits again. In parallel the slowest step would be overtaken each time.
    editing: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    # Turns that are committed and are cached after their replies, or before the next request is read.
    _uncached: deque[Callable[[], None]] = field(init=False, default_factory=deque)

    def __post_init__(self) -> None:
        self.leases = Leases(self.store.conversation_locks)
        self.queues = Queues(self.leases)
        self.store.forgetting.add_forget_listener(self.resent.clear)
        self.store.forgetting.add_forget_listener(_clear_word_caches)
        recaller = Recaller(self.store, self.settings, self.embed_query)
        self.composer = Composer(self.store, recaller, self.settings.cache_s, self.events.makes_summaries)

    # -- when a turn begins

    async def begin(self, request: MemoryRequest, *, opens: bool = True) -> MemoryContext:
        """Reads the context of a request. opens: a turn follows.

        In append mode the turns of one conversation queue: each waits until the previous turn has left the queue. A
        request that is read again does not wait again.

        Raises:
            HistoryForgotten: a memory from which earlier messages of the request were read is gone. Its words would
                be stored as if the client had sent them.
            StoreError: memory cannot be read.
        """
        if self._uncached:
            self._cache_all()
        if opens and request.kind is ConversationKind.APPENDED and not request.ticket.is_first:
            await self._queue(request)
            # The time is taken again, because the turn that this request waited for was written meanwhile.
            request = replace(request, now=self.now())
        context = await read_context(self.store, self.resent, request, self.settings.idle_s)
        await self.check_history(request.chat.memories, context.agent.id)
        return context

    async def check_history(self, memories: Collection[int], read_row: int | None = None) -> None:
        """Checks that no memory from which earlier messages of a request were read is gone.

        memories: the rows of these memories.
        read_row: the row of a memory that was just read, or None.

        Raises: HistoryForgotten: one is gone; StoreError.
        """
        for agent_row in memories:
            if agent_row != read_row and not await self.store.agents.exists(agent_row):
                raise HistoryForgotten

    async def _queue(self, request: MemoryRequest) -> None:
        """Waits for the requests before this one. Raises: TooSlow: longer than the ticket allows."""
        key = request.identity.conversation_key
        assert key is not None  # append mode needs a named conversation
        agent = await find_or_draft_agent(self.store, request)
        try:
            async with asyncio.timeout(request.ticket.timeout_s):
                await self.queues.enter((agent.uid, key), request.ticket)
        except TimeoutError:
            raise TooSlow("another request of this conversation is being answered") from None

    async def open(self, context: MemoryContext, prompt: Prompt) -> MemoryContext:
        """Writes the user's message before the model is asked, in append mode. Raises: StoreError."""
        write = make_turn_write(context, prompt, BlockEdits(), OPENED_OUTCOME, self.now(), settle.write_draft)
        try:
            async with asyncio.timeout(self.open_wait_s):
                committed = await asyncio.shield(self.store.turns.commit(write))
        except TimeoutError:
            raise TooSlow("the disk did not take the message in time") from None
        self.store.turns.cache_committed(write, committed)
        self.store.agents.cache(committed.agent)
        plan = replace(context.plan, conversation_row=committed.conversation_row)
        change = write.change
        # No other exchange was written since the tree was read, and this write has changed no other exchange.
        is_as_read = committed.seq == context.snapshot.next_seq and change is not None and change.is_alone
        return replace(
            context,
            exchange_row=committed.exchange_row,
            agent=committed.agent,
            plan=plan,
            opened_exchange=committed.added if is_as_read else None,
        )

    # -- when a turn ends

    def write(
        self,
        context: MemoryContext,
        prompt: Prompt,
        block_edits: BlockEdits,
        outcome: TurnOutcome,
        receipt: Receipt | None = None,
    ) -> asyncio.Future[Committed] | asyncio.Future[None] | asyncio.Future[Committed | None]:
        """Begins the write of a turn that has ended. The result is None if nothing of the turn is to be stored.

        The future fails with StoreError. Cancelling it does not cancel the write. In append mode the next request of
        the conversation waits for this write, and not for the end of the request.

        receipt: of the reply; None: no record of its recall is stored.
        """
        request, reply = context.request, outcome.shown_reply
        request.ticket.hand_on()
        if reply is not None and "tool_calls" in reply and request.identity.scope is not None:
            self.delegated.note_calls(request.identity.scope, request.chat.identity_fields, reply, self.now())
        if context.exchange_row < 0 and _ends_unwritten(context, outcome):
            return self._end_unwritten(context)
        if not context.plan.off_record:
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
    ) -> asyncio.Future[Committed] | asyncio.Future[None]:
        """Begins the commit of a turn. The future fails with StoreError."""
        request, reply = context.request, outcome.shown_reply
        try:
            write = make_turn_write(context, prompt, block_edits, outcome, self.now(), receipt=receipt)
            writing = self.store.turns.commit(write)
        except Exception as error:
            return self._end_unwritten(context, error)
        if write.plain is not None:
            exchange, listing = write.plain.exchange, context.plan.query.listing
            # Before the commit: what is cached follows from the messages alone, whether or not they are stored.
            self.resent.cache_reply(
                request.chat, listing, reply or {}, exchange.reply or (), exchange.path_hash
            )
        wanted_summary = prompt.window.wanted_summary if outcome.state is FINISHED else None
        writing.add_done_callback(partial(self._on_written, context, write, wanted_summary))
        return writing

    async def _commit_off_record(
        self,
        writing: asyncio.Future[Committed] | asyncio.Future[None],
        context: MemoryContext,
        prompt: Prompt,
        outcome: TurnOutcome,
        ticket: QueueTicket,
    ) -> Committed | None:
        """Waits for the commit of a turn off the record, and plans it again if something was forgotten meanwhile.

        Without its hashes a later list with memory on would bring its words into the memory. So the next request of a
        conversation in append mode waits until they are stored.
        """
        try:
            for _ in range(STALE_TRIES - 1):
                try:
                    return await writing
                except Stale:
                    context = await read_context(
                        self.store, self.resent, context.request, self.settings.idle_s
                    )
                    if not context.plan.off_record:
                        raise  # it repeats a turn off the record of which nothing is left
                writing = self._commit(context, prompt, BlockEdits(), outcome)
            return await writing
        finally:
            ticket.leave()

    def _end_unwritten(self, context: MemoryContext, error: Exception | None = None) -> asyncio.Future[None]:
        """Lets the next request begin, without a write. Returns a future that is done, with the error if any."""
        context.request.ticket.leave()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)
        return ended

    def _on_written(
        self,
        context: MemoryContext,
        write: TurnWrite,
        wanted_summary: WantedSummary | None,
        writing: asyncio.Future[Committed],
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
            _after_reply(self._cache_all)
        self._uncached.append(partial(self._cache_and_report, context, write, wanted_summary, committed))
        if not committed.is_plain:
            self._cache_all()

    def _cache_all(self) -> None:
        while self._uncached:
            try:
                self._uncached.popleft()()
            except Exception:  # the next turns are other users' turns
                _log.exception("A stored turn could not be put into the caches, by a fault in the gateway.")

    def _cache_and_report(
        self,
        context: MemoryContext,
        write: TurnWrite,
        wanted_summary: WantedSummary | None,
        committed: Committed,
    ) -> None:
        """Caches and reports a committed turn. wanted_summary: the summary that its window needs, or None."""
        context.request.ticket.leave()
        snapshot, events = context.snapshot, self.events
        self.store.turns.cache_committed(write, committed)
        agent = committed.agent
        if agent is not context.agent:
            self.store.agents.cache(agent)
        self.report_lag(agent.id, snapshot, write.chars)
        if write.edits:
            events.edits_pending()
        if not context.plan.off_record and agent.scope.spans_conversations:
            events.turn_stored(
                agent.id, len(context.plan.messages) + 1, context.request.spec.sleeptime, snapshot.next_seq
            )
        if wanted_summary is not None:
            events.window_filling(committed, wanted_summary)

    def report_lag(self, agent_row: int, snapshot: MemorySnapshot, chars: int) -> None:
        """Reports a memory that is to be indexed soon.

        snapshot: as the turn began.
        chars: the characters that the turn has added.
        """
        # The counts at the beginning of the turn are near enough for work that is done later.
        unindexed = snapshot.next_seq - snapshot.indexed_seq
        if unindexed >= INDEX_EVERY or chars > INDEX_CHARS:
            self.events.index_outdated(agent_row, unindexed)


def _ends_unwritten(context: MemoryContext, outcome: TurnOutcome) -> bool:
    """Returns whether a turn ends without a write.

    A failed turn is sent again. A turn off the record leaves its tombstone even so, for a later list with the turn.
    """
    has_failed = outcome.state is End.FAILED and not outcome.text
    return context.request.identity.leaves_nothing or (has_failed and not context.plan.off_record)


def _after_reply(work: Callable[[], None]) -> None:
    """Calls `work` after the turn that waits for a commit has sent its reply. Call it from the commit's callback."""
    loop = asyncio.get_running_loop()
    # In this pass of the loop, a later callback of the commit sets the future that `TurnSaving.save` waits for. In the
    # next pass the turn wakes, and sends its reply. `work` would come before it in that pass, so it is scheduled from
    # there, for the pass after it.
    loop.call_soon(loop.call_soon, work)
