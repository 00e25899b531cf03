"""The queue of a conversation's sends."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.agents.registry.conversation_registry import find_conversation
from gateway.agents.runs.background.run_ends import RunEnds
from gateway.agents.runs.run import RoutedSend
from gateway.core.conversation.kind import QueueName
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.queue import QueueTicket
from storage.records import DEFAULT_CONVERSATION, Agent

# The most sends in one conversation's queue, including the send that is being answered.
MAX_SENDS = 32


class SendQueue:
    """Has the sends of each conversation answered one after the other. One for the process."""

    def __init__(self, keeper: MemoryKeeper, ends: RunEnds) -> None:
        self._keeper = keeper
        self._ends = ends

    async def enter(self, send: RoutedSend, ticket: QueueTicket) -> RoutedSend:
        """Waits for the earlier sends. Returns the send with the name of its conversation that all sends use.

        ticket: the ticket that enters the queue.

        Raises: NotFound if there is no such conversation; TooManySends; StoreError.
        """
        queues, is_shared = self._keeper.queues, self._ends.is_shared
        with QueueTicket() as arrival:
            if is_shared:
                # Sends that wait for a server's answers queue in the order in which they came.
                arrivals = QueueName.for_send_arrival(send.scope, send.conversation_name)
                await queues.enter_here(arrivals, arrival, MAX_SENDS)
            agent, name = await self._get_conversation(send)
            if is_shared:
                await self._ends.wait_for_accepted(agent, name)
            await queues.enter(QueueName(agent.uid, name), ticket, MAX_SENDS, arrival)
        return replace(send, conversation_name=name, identity=replace(send.identity, conversation_key=name))

    async def _get_conversation(self, send: RoutedSend) -> tuple[Agent, str]:
        """Returns the agent, and the name that all sends to the conversation use. Raises: NotFound, StoreError."""
        agent = await self._keeper.store.agents.find_or_draft(send.scope)
        name = send.conversation_name
        if name == DEFAULT_CONVERSATION:
            return agent, name
        conversation = await find_conversation(self._keeper.store, agent, name)
        return agent, name if conversation is None else conversation.name
