"""Renders the system message with which each conversation of an agent begins: its system prompt with memory.

The message is not stored. It is rendered as it would go to the model with the next send. Its id does not change: it is
message 0 of the agent for the conversation `default`, and message 0 of the conversation for any other.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from gateway.agents.registry.registry import Registry
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.run import RunRequest
from gateway.core import ids
from storage.errors import NotFound
from storage.listing import Page
from storage.records import DEFAULT_CONVERSATION, Agent
from storage.sql.store import Store

# The number in the id of a system message. The first stored message of a memory has 1.
SYSTEM_SEQ: Final = 0
# The seconds by which a system message is dated before the first message, so that a list sorted by date begins with it.
_BEFORE_S = 0.001


class SystemMessage(Struct, frozen=True):
    """A system message as it would go to the model now."""

    # The public id of the message.
    id: str
    # The system prompt, with the memory section.
    text: str
    # Seconds since the epoch, before the first message of its list.
    at: float
    # The `Conversation.name` of the conversation.
    conversation_name: str


def make_system_id(agent: Agent, conversation_name: str = DEFAULT_CONVERSATION) -> str:
    """Returns the id of a conversation's system message."""
    return ids.make_id_with_seq(
        "message", agent.uid if conversation_name == DEFAULT_CONVERSATION else conversation_name, SYSTEM_SEQ
    )


class SystemMessageRenderer(Struct, frozen=True):
    """Renders system messages, and finds their conversations."""

    # The store with the agents, the conversations and their messages.
    store: Store
    # Resolves agents, with the settings of their conversations.
    registry: Registry
    # Renders the prompt that a send would have.
    agent_runs: AgentRuns

    async def find_conversation(self, project: str, uid: str) -> tuple[Agent, str]:
        """Returns the agent and the name of a system message's conversation. Raises: NotFound, StoreError.

        uid: the uid in the message's id, of an agent or a conversation.
        """
        try:
            return (await self.store.defined_agents.get(project, uid)).agent, DEFAULT_CONVERSATION
        except NotFound:
            entry = await self.store.conversations.get(project, uid)
            return entry.agent, entry.conversation.name

    async def render(self, agent: Agent, conversation_name: str = DEFAULT_CONVERSATION) -> SystemMessage:
        """Renders the system message of a conversation. Raises: NotFound, StoreError."""
        project = agent.scope.project
        # Without a row, the first message of all conversations is read, since the list of an agent has all of them.
        conversation_row = None
        began_at = agent.created
        spec = (await self.registry.resolver.resolve_uid(project, agent.uid)).spec
        if conversation_name != DEFAULT_CONVERSATION:
            entry = await self.store.conversations.get(project, conversation_name)
            conversation_row, began_at = entry.conversation.id, entry.begun
            spec = await self.registry.resolver.with_conversation_settings(project, conversation_name, spec)
        text = (await self.agent_runs.preview(RunRequest(spec, agent.scope, conversation_name))).system
        oldest: Page[int] = Page(limit=1, newest_first=False)
        first_exchanges = await self.store.messages.list_page(
            agent.id, oldest, conversation_row=conversation_row
        )
        # Imported messages may be older than the agent here, so the date of the first message counts.
        at = first_exchanges[0].exchange.begun - _BEFORE_S if first_exchanges else began_at
        return SystemMessage(make_system_id(agent, conversation_name), text, at, conversation_name)
