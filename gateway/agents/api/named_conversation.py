"""The conversation that a request names, by the id of a conversation or of an agent, or by `default`.

The id of an agent, and `default` together with the agent's id, name the agent's own conversation.
"""

from msgspec import Struct

from gateway.agents.api._route import read_uid
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.registry.conversation_registry import find_conversation, read_conversation_definition
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Maybe
from gateway.core import ids
from gateway.core.definition import ConversationDefinition
from gateway.errors import BadRequest, UnknownId
from storage.listing import ConversationEntry
from storage.records import DEFAULT_CONVERSATION, Agent
from storage.sql.store import Store


class NamedConversation(Struct, frozen=True):
    """The conversation that a request names."""

    # The agent of the conversation.
    agent: Agent
    # `default`, or the uid of the conversation.
    name: str
    # The stored conversation; None: the agent's own conversation, which may not have begun.
    entry: ConversationEntry | None

    @property
    def definition(self) -> ConversationDefinition:
        """The model and the settings of the conversation; the default definition for an agent's own conversation."""
        return ConversationDefinition() if self.entry is None else read_conversation_definition(self.entry)


async def get_conversation(
    api: AgentsApi, project: str, public_id: str, agent_uid: str | None
) -> NamedConversation:
    """Returns the conversation with an id. Raises: UnknownId, NotFound, BadRequest.

    agent_uid: the uid of the conversation's agent, which `default` requires; None: the request does not name the agent.
    """
    owner_uid = agent_uid if public_id == DEFAULT_CONVERSATION else ids.parse_uid("agent", public_id)
    if owner_uid is not None:
        agent = (await api.store.defined_agents.get(project, owner_uid)).agent
        conversation = NamedConversation(agent, DEFAULT_CONVERSATION, None)
    elif public_id == DEFAULT_CONVERSATION:
        raise BadRequest("Name the agent whose own conversation it is: `agent_id`.", param="agent_id")
    else:
        uid = read_uid("conv", public_id)
        entry = await api.store.conversations.get(project, uid)
        is_own = entry.conversation.key == DEFAULT_CONVERSATION
        conversation = NamedConversation(
            entry.agent, DEFAULT_CONVERSATION if is_own else uid, None if is_own else entry
        )
    if agent_uid not in (None, conversation.agent.uid):
        raise UnknownId(f"There is no conversation {public_id!r} of this agent.")
    return conversation


def read_conversation_name(sent_id: Maybe[str]) -> str | None:
    """Returns the name by which a conversation is looked up; None if no id was sent. Raises: UnknownId."""
    public_id = find_sent(sent_id)
    return public_id if public_id in (None, DEFAULT_CONVERSATION) else read_uid("conv", public_id)


async def get_owner(store: Store, project: str, conversation_name: str) -> Agent:
    """Returns the agent of a conversation. Raises: NotFound; BadRequest for `default`, which each agent has."""
    if conversation_name == DEFAULT_CONVERSATION:
        raise BadRequest(
            "Each agent has a conversation `default`: name it by its id.", param="conversation_id"
        )
    return (await store.conversations.get(project, conversation_name)).agent


async def find_conversation_row(store: Store, conversation: NamedConversation) -> int | None:
    """Returns the row of a conversation; None for an agent's own conversation that has not begun."""
    if conversation.entry is not None:
        return conversation.entry.conversation.id
    own_conversation = await find_conversation(store, conversation.agent, conversation.name)
    return None if own_conversation is None else own_conversation.id
