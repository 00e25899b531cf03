"""The keeper of memory, one for the process: it begins turns, and holds the caches and services that they share.

A turn has three values: `MemoryContext` (the read memory), `Prompt` (the request for the upstream, by `Composer`) and
`TurnWrite` (the value that `TurnWriter` has written).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.kind import ConversationKind, QueueName
from gateway.core.memory.delegated import DelegatedTasks
from gateway.core.prompt.excerpt import list_query_keys, list_short_words
from gateway.core.prompt.note_query import find_name_pattern
from gateway.core.prompt.shown_blocks import render_label
from gateway.core.tags import quote_name
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
from gateway.run.memory.section_maker import SectionMaker
from gateway.run.memory.turn_write import OPENED_OUTCOME, make_turn_write
from gateway.run.memory.turn_writer import TurnEvents, TurnWriter
from gateway.settings import MemorySettings
from storage.errors import StoreTimeout
from storage.sql.store import Store

# Append mode needs the disk, and treats a disk that is slower than this as down. Not measured: a commit takes
# milliseconds, and the user waits for as long.
_OPEN_WAIT_S = 5.0
# The functions in the path of a turn that cache people's words or names. The store clears its own caches.
_WORD_CACHES = (list_query_keys, list_short_words, find_name_pattern, quote_name, render_label)


def _clear_word_caches() -> None:
    for function in _WORD_CACHES:
        function.cache_clear()


@dataclass
class MemoryKeeper:
    """Reads the memory of a turn when it begins, and holds the caches and services that the process's turns share."""

    # The store of the memories.
    store: Store
    # The table `memory` of the settings.
    settings: MemorySettings
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Gets the events of turns for the background services.
    events: TurnEvents
    # Returns the vector of a query; None: memory is searched by words alone.
    embed_query: EmbedQuery | None
    # The most seconds that a request waits for the write of its message in append mode.
    open_wait_s: float = _OPEN_WAIT_S
    # Makes prompts.
    composer: Composer = field(init=False)
    # Writes turns that have ended.
    writer: TurnWriter = field(init=False)
    # The locks of conversations that processes share.
    leases: Leases = field(init=False)
    # The lists of earlier requests with their hashes.
    resent_lists: ResentLists = field(init=False, default_factory=ResentLists)
    # The queues of conversations in append mode.
    queues: Queues = field(init=False)
    # The tasks that models have given to sub-agents.
    delegated_tasks: DelegatedTasks = field(init=False, default_factory=DelegatedTasks)
    # Held by a step that writes its edits again. In parallel the slowest step would be overtaken each time.
    editing: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.leases = Leases(self.store.conversation_locks)
        self.queues = Queues(self.leases)
        self.store.forgetting.add_forget_listener(self.resent_lists.clear)
        self.store.forgetting.add_forget_listener(_clear_word_caches)
        self.writer = TurnWriter(
            store=self.store,
            now=self.now,
            events=self.events,
            resent_lists=self.resent_lists,
            delegated_tasks=self.delegated_tasks,
            idle_s=self.settings.idle_s,
        )
        recaller = Recaller(self.store, self.settings, self.embed_query)
        section_maker = SectionMaker(recaller, self.settings.cache_s)
        self.composer = Composer(self.store, recaller, section_maker, self.events.makes_summaries)

    async def begin(self, request: MemoryRequest) -> MemoryContext:
        """Reads the context of a request.

        Raises:
            HistoryForgotten: a memory from which earlier messages of the request were read is gone. Its words would
                be stored as if the client had sent them.
            StoreError: memory cannot be read.
        """
        self.writer.cache_all()
        context = await read_context(self.store, self.resent_lists, request, self.settings.idle_s)
        await self.check_history(request.chat.memories, context.agent.id)
        return context

    async def check_history(self, memories: Collection[int], read_row: int | None = None) -> None:
        """Checks that no memory from which earlier messages of a request were read is gone.

        memories: the rows of these memories.
        read_row: the row of a memory that was just read; None: no memory was.

        Raises: HistoryForgotten: one is gone; StoreError.
        """
        for agent_row in memories:
            if agent_row != read_row and not await self.store.agents.exists(agent_row):
                raise HistoryForgotten

    async def enter_queue(self, request: MemoryRequest, arrival: QueueTicket | None) -> None:
        """Waits in append mode until the requests of its conversation before this one have left the queue.

        A request that is read again does not wait again.

        arrival: the value of `ChatCall.arrival_ticket`.

        Raises: StoreTimeout: longer than the ticket allows; StoreError.
        """
        if request.kind is not ConversationKind.APPENDED or request.ticket.is_first:
            return
        key = request.identity.conversation_key
        assert key is not None  # append mode needs a named conversation
        agent = await find_or_draft_agent(self.store, request)
        try:
            async with asyncio.timeout(request.ticket.timeout_s):
                await self.queues.enter(QueueName(agent.uid, key), request.ticket, arrival=arrival)
        except TimeoutError:
            raise StoreTimeout("another request of this conversation is being answered") from None

    async def open(self, context: MemoryContext, prompt: Prompt) -> MemoryContext:
        """Writes the user's message before the model is asked, in append mode. Raises: StoreError."""
        write = make_turn_write(
            context, prompt, BlockEdits(), OPENED_OUTCOME, now=self.now(), rule=settle.write_draft
        )
        try:
            async with asyncio.timeout(self.open_wait_s):
                committed = await asyncio.shield(self.store.turns.commit(write))
        except TimeoutError:
            raise StoreTimeout("the disk did not take the message in time") from None
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
