"""Conversations with items (`conv_...`) that the gateway itself has made.

Such a conversation is a definition, with its metadata and the items that wait for the next response. Clients use its
id. The first response adds a stored conversation of the same name, in the memory of that request's user, and the
definition belongs to this memory from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import QueueName
from gateway.core.conversation.wire_message import is_system
from gateway.errors import Conflict, UnknownId
from gateway.run.memory.named_turns import NamedTurn, load_turns_to
from gateway.run.memory.queue import Queues, QueueTicket
from gateway.run.store_errors import map_store_errors, retry_changed_record
from gateway.run.stored_responses import ResponseOwner
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound, RecordChanged, StaleWrite
from storage.forget_commands import ForgetTarget
from storage.listing import DefinitionDraft, Page
from storage.records import Agent, Scope
from storage.sql.store import Store

_KIND: Final = DefinitionKind.CONVERSATION
PREFIX: Final = "conv_"
# Returns the changed body of a conversation. The argument is the stored body.
_Edit = Callable[[dict[str, Any]], dict[str, Any]]


class ResponseConversation(Struct, frozen=True):
    """A conversation with items, whether it has responses or not."""

    # The definition, with the metadata and the items that wait for the next response.
    definition: Definition
    # The memory to which it belongs; None: there was no response yet.
    agent: Agent | None

    @property
    def id(self) -> str:
        return self.definition.uid

    @property
    def scope(self) -> Scope | None:
        return None if self.agent is None else self.agent.scope

    @property
    def metadata(self) -> Json:
        metadata: Json = self.definition.body.get("metadata") or {}
        return metadata

    @property
    def items(self) -> list[Json]:
        """The items that wait for the next response."""
        return list(self.definition.body.get("items") or ())


class ContinuedConversation(Struct, frozen=True):
    """A conversation that a request continues, with the items that waited for the request."""

    # The conversation.
    conversation: ResponseConversation
    # The conversation's waiting items that go before the request's input.
    items: Sequence[Json]


def _select_one_time_items(items: Iterable[Json]) -> dict[str, Json]:
    """Returns the items that go into one response alone, by their ids.

    All other items (system and developer messages, and summaries) go into each response.
    """
    return {item["id"]: item for item in items if not is_system(item) and item.get("type") != "compaction"}


def make_unknown_conversation_error(conversation_id: str) -> UnknownId:
    return UnknownId.for_id("Conversation", conversation_id, "conversation")


@dataclass(eq=False)
class ResponseConversations:
    """Creates, reads and changes conversations with items. There is one object for the process.

    Each method raises MemoryUnavailable.
    """

    # The store of the conversations.
    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The queues of conversations, in which responses take turns.
    queues: Queues

    async def create(self, project: str, metadata: Json, items: Sequence[Json]) -> ResponseConversation:
        """Creates a conversation. items: the items with their ids, which wait for the first response."""
        body: Json = {"metadata": metadata, "items": list(items)}
        draft = DefinitionDraft(project, _KIND, PREFIX + token_hex(16), body)
        with map_store_errors():
            definition = await self.store.definitions.add(draft, at=self.now())
        return ResponseConversation(definition, None)

    async def get(self, owner: ResponseOwner, conversation_id: str) -> ResponseConversation:
        """Returns a conversation that a caller may read. Raises: UnknownId."""
        with map_store_errors():
            definition = await self.store.definitions.find(owner.project, _KIND, conversation_id)
            if definition is None:
                raise make_unknown_conversation_error(conversation_id)
            agent = None
            if definition.memory_row:
                memories = await self.store.defined_agents.load_memories(
                    owner.project, [definition.memory_row]
                )
                if not memories:
                    raise make_unknown_conversation_error(conversation_id)
                agent = memories[0]
        if agent is not None and not owner.may_read(agent):
            raise make_unknown_conversation_error(conversation_id)
        return ResponseConversation(definition, agent)

    async def reserve(
        self, owner: ResponseOwner, conversation_id: str, ticket: QueueTicket
    ) -> ResponseConversation:
        """Waits until no other response of this process continues a conversation, and returns the conversation.

        The conversation is reserved until the ticket is left. Items that wait for one response alone are reserved from
        other processes as well.

        Raises: UnknownId.
        """
        with map_store_errors():
            # Before anything is read, because the read of a later request might end first.
            await self.queues.enter_here(QueueName("", conversation_id), ticket)
            conversation = await self.get(owner, conversation_id)
            if not _select_one_time_items(conversation.items):
                return conversation
            await self.queues.acquire_lock(QueueName("", conversation_id), ticket)
        return await self.get(owner, conversation_id)

    async def bind(self, conversation: ResponseConversation, scope: Scope, spec: AgentSpec) -> None:
        """Binds a conversation to a memory. Raises: UnknownId: it was deleted, or belongs to another memory."""
        with map_store_errors():
            try:
                is_bound = await self._bind(conversation, scope, spec)
            except StaleWrite:
                # The cached agent was forgotten, and is no longer cached.
                is_bound = await self._bind(conversation, scope, spec)
        if not is_bound:
            raise make_unknown_conversation_error(conversation.id)

    async def _bind(self, conversation: ResponseConversation, scope: Scope, spec: AgentSpec) -> bool:
        """Returns whether a conversation belongs to a memory now. Raises: StaleWrite: the memory was forgotten."""
        agents = self.store.agents
        agent = await agents.find_or_create(scope, spec.own_blocks, spec.shared_blocks, self.now())
        try:
            return await self.store.definitions.bind(conversation.definition.id, agent.id) == agent.id
        except NotFound:
            return False
        except StaleWrite:
            agents.uncache(scope)
            raise

    async def change(self, conversation: ResponseConversation, edit: _Edit) -> ResponseConversation:
        """Changes a conversation's metadata or its waiting items. Raises: Conflict, UnknownId."""
        with map_store_errors():
            try:
                changed_definition = await self._change_latest(conversation, edit)
            except NotFound:
                raise make_unknown_conversation_error(conversation.id) from None
            except RecordChanged:
                raise Conflict(
                    "The conversation is being changed by other requests. Send it again."
                ) from None
        return ResponseConversation(changed_definition, conversation.agent)

    async def _change_latest(self, conversation: ResponseConversation, edit: _Edit) -> Definition:
        """Changes a conversation as it is stored now. Raises: NotFound, RecordChanged."""
        definitions = self.store.definitions
        definition = conversation.definition

        async def change() -> Definition:
            latest = await definitions.get(definition.project, _KIND, definition.uid)
            return await definitions.change(latest, edit(dict(latest.body)), at=self.now())

        return await retry_changed_record(change)

    async def remove_answered(self, continued: ContinuedConversation, agent: Agent) -> None:
        """Removes the items that a response has in its turn.

        agent: the memory of the turn, which may still be open.

        Raises: UnknownId: the conversation was deleted while the response waited. An open turn is forgotten.
        """
        conversation = replace(continued.conversation, agent=agent)
        with map_store_errors():
            try:
                if answered_items := _select_one_time_items(continued.items):
                    await self._change_latest(conversation, lambda body: _without_items(body, answered_items))
                else:
                    await self.store.definitions.get(agent.scope.project, _KIND, conversation.id)
            except NotFound:
                await self._forget_turns(conversation)
                raise make_unknown_conversation_error(conversation.id) from None

    async def put_back(self, continued: ContinuedConversation) -> None:
        """Puts back the items of a response with refused messages, so that they wait again. Raises: StoreError."""
        items = _select_one_time_items(continued.items)

        def add(body: dict[str, Any]) -> dict[str, Any]:
            return {**body, "items": [*items.values(), *_without_items(body, items)["items"]]}

        if items:
            with suppress(NotFound):
                await self._change_latest(continued.conversation, add)

    async def load_turns(self, conversation: ResponseConversation) -> list[NamedTurn]:
        """Returns the turns of the path to the newest active turn, oldest first; forgotten turns are among them."""
        if conversation.agent is None:
            return []
        messages = self.store.messages
        memory = conversation.agent
        with map_store_errors(), suppress(NotFound):
            stored_conversation = await messages.get_conversation(memory.id, conversation.id)
            newest_page = await messages.list_page(
                memory.id, Page(limit=1), conversation_row=stored_conversation.id
            )
            if newest_page:
                return await load_turns_to(self.store, memory, newest_page[0].exchange)
        return []

    async def forget_message(self, conversation: ResponseConversation, seq: int) -> None:
        """Forgets one message of a conversation's turns."""
        assert conversation.agent is not None  # it has a turn, and so a memory
        with map_store_errors():
            await self.store.forgetting.forget(conversation.agent.id, ForgetTarget(message_seqs=[seq]))

    async def delete(self, conversation: ResponseConversation) -> None:
        """Forgets a conversation with all its responses."""
        with map_store_errors():
            await self._forget_turns(conversation)
            await self.store.definitions.remove(conversation.definition.id)

    async def _forget_turns(self, conversation: ResponseConversation) -> None:
        """Forgets the turns of a conversation. Raises: StoreError."""
        agent = conversation.agent
        if agent is None:
            return
        if not agent.scope.spans_conversations:
            await self.store.forgetting.forget(agent.id, ForgetTarget(is_all=True))
            return
        conversation_row = await self.store.forget_targets.find_conversation(agent.id, conversation.id)
        if conversation_row is not None:
            await self.store.forgetting.forget(agent.id, ForgetTarget(conversation_row=conversation_row))


def _without_items(body: dict[str, Any], ids: Collection[str]) -> dict[str, Any]:
    """Returns a copy of a conversation's body without some waiting items. ids: the ids of these items."""
    return {**body, "items": [item for item in body.get("items") or () if item["id"] not in ids]}
