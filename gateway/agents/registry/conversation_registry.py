"""Conversations of agents other than `default`: created, changed, and forgotten when they are deleted.

Each conversation is one path with a window of its own. All conversations of an agent share its blocks and passages, and
recall from the same memory.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.core import ids
from gateway.core.definition import ConversationDefinition
from gateway.errors import BadRequest, Conflict, make_sentence
from gateway.run.store_errors import retry_changed_record
from storage.errors import CannotFork, NotFound
from storage.listing import ConversationEntry
from storage.records import API_PROFILE, DEFAULT_CONVERSATION, Agent, Conversation
from storage.sql.store import Store


def read_conversation_definition(entry: ConversationEntry) -> ConversationDefinition:
    """Returns the definition of a conversation; the default definition if none is stored."""
    return ConversationDefinition.of({} if entry.definition is None else entry.definition.body)


async def find_conversation(store: Store, agent: Agent, name: str) -> Conversation | None:
    """Returns a conversation; None if the name is `default` and the conversation has not begun. Raises: NotFound.

    name: `default`, the client's name, a uid or a public id.
    """
    try:
        return await store.messages.get_conversation(agent.id, ids.parse_uid("conv", name) or name)
    except NotFound:
        if name == DEFAULT_CONVERSATION:
            return None
        raise NotFound(f"there is no conversation {name!r}") from None


async def erase_conversation(
    store: Store, agent: Agent, conversation_row: int, *, keeps_memory: bool, at: float
) -> None:
    """Erases the messages of a conversation, and frees its name.

    keeps_memory: True if facts, passages and blocks that came from the conversation stay.
    at: the time of the request, in seconds since the epoch.
    """
    forgetting = await store.conversations.release(agent, conversation_row, keeps_memory=keeps_memory, at=at)
    store.agents.uncache(agent.scope)
    await store.forgetting.finish(forgetting)


class AgentConversations:
    """Makes, forks, changes and deletes conversations of agents.

    Besides the errors that a method names, it raises NotFound, WriteConflict, StaleWrite and StoreUnavailable.
    """

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def create(self, agent: Agent, definition: ConversationDefinition) -> ConversationEntry:
        """Creates an empty conversation. Raises: Conflict for a profile's memory with another model."""
        _check_may_define(agent, definition)
        return await self._store.conversations.create(agent, ids.new_uid(), definition.dump(), at=self._now())

    async def fork(
        self,
        agent: Agent,
        source: int | None,
        definition: ConversationDefinition,
        *,
        is_hidden: bool,
        upto: int | None,
    ) -> ConversationEntry:
        """Creates a conversation that shares the past and the model of a source conversation.

        source: the row of the source; None: the agent's own conversation, which has not begun.
        definition: the definition of the source.
        is_hidden: True if lists leave the new conversation out.
        upto: the number of the last shared message; 0: no message is shared; None: all messages before an active run.

        Raises: BadRequest if a fork cannot begin after that message; NotFound if the source does not have it.
        """
        uid, at = ids.new_uid(), self._now()
        body = replace(definition, summary=None, description=None, archived=None, hidden=is_hidden).dump()
        if source is None:
            if upto:
                raise NotFound(f"there is no message {upto} in this conversation")
            return await self._store.conversations.create(agent, uid, body, at=at)
        try:
            return await self._store.forks.create(agent, source, uid, body, at=at, upto=upto)
        except CannotFork as error:
            raise BadRequest(make_sentence(error.message), param="message_id") from error

    async def change(
        self, project: str, uid: str, edit: Callable[[ConversationDefinition], ConversationDefinition]
    ) -> ConversationEntry:
        """Changes a conversation's definition. Raises: Conflict, as `create` does.

        project: the caller's project, to which the conversation belongs.
        edit: the function that makes the new definition from the present one. It may be called again.
        """

        async def change() -> ConversationEntry:
            entry = await self._store.conversations.get(project, uid)
            definition = edit(read_conversation_definition(entry))
            _check_may_define(entry.agent, definition)
            return await self._store.conversations.change(entry, definition.dump(), at=self._now())

        return await retry_changed_record(change)

    async def delete(self, entry: ConversationEntry) -> None:
        """Forgets a conversation and all that was derived from it."""
        row = entry.conversation.id
        await erase_conversation(self._store, entry.agent, row, keeps_memory=False, at=self._now())


def _check_may_define(agent: Agent, definition: ConversationDefinition) -> None:
    """Raises: Conflict if a definition sets a model or settings for a conversation of a profile's memory."""
    if agent.scope.profile != API_PROFILE and (
        definition.model or definition.context_window or definition.sampling
    ):
        raise Conflict(
            f"This is the memory of a user of profile {agent.scope.profile!r}, which the settings file configures: its "
            "conversations have no model of their own."
        )
