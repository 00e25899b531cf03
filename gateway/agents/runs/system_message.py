"""The system message with which each conversation of an agent begins: its system prompt with memory.

It is stored nowhere. It is rendered when it is asked for, as it would go to the model with the next send, under an id
that stays: place 0 of the agent for the agent's own conversation, place 0 of a conversation for any other one.
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
from storage.records import DEFAULT, Agent
from storage.sql.store import Store

# Its place. The first stored message of a memory stands at 1.
SYSTEM_SEQ: Final = 0
# The part of a second by which it is older than the first message, so that a list sorted by date begins with it.
_BEFORE_S = 0.001


class SystemMessage(Struct, frozen=True):
    """A system message as it would go to the model now."""

    id: str
    text: str
    # Seconds since the epoch, before the first message of its list.
    at: float
    # The public name of its conversation, or `default`.
    conversation: str


def system_id(agent: Agent, conversation: str = DEFAULT) -> str:
    """Returns the id of a conversation's system message. conversation: `default`, or a public name."""
    return ids.id_at("message", agent.uid if conversation == DEFAULT else conversation, SYSTEM_SEQ)


class SystemMessages(Struct, frozen=True):
    """The system messages of all agents."""

    store: Store
    registry: Registry
    runs: AgentRuns

    async def named(self, project: str, uid: str) -> tuple[Agent, str]:
        """Returns the owner of a system message by its id: an agent, and `default` or a public name. Raises: NotFound.

        uid: of the id.
        """
        try:
            return (await self.registry.find(project, uid)).agent, DEFAULT
        except NotFound:
            entry = await self.store.conversations.get(project, uid)
            return entry.agent, DEFAULT if entry.conversation.key == DEFAULT else uid

    async def of(self, agent: Agent, conversation: str = DEFAULT) -> SystemMessage:
        """Returns the one of a conversation. conversation: as `named` returns it. Raises: NotFound, StoreError."""
        project, row, begun = agent.scope.project, None, agent.created
        spec = (await self.registry.agent(project, agent.uid)).spec
        if conversation != DEFAULT:
            entry = await self.store.conversations.get(project, conversation)
            row, begun = entry.conversation.id, entry.begun
            spec = await self.registry.in_conversation(project, ids.id_of("conv", conversation), spec)
        text = await self.runs.system_text(RunRequest(spec, agent.scope, conversation))
        # An agent's list has the messages of all its conversations.
        first = await self.store.messages.page(agent.id, Page(limit=1, newest_first=False), conversation=row)
        # A memory that was moved here is younger than its messages.
        at = first[0].exchange.begun - _BEFORE_S if first else begun
        return SystemMessage(system_id(agent, conversation), text, at, conversation)
