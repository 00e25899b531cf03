"""The parts of an agent that its agent file contains, read from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import orjson
from msgspec.structs import replace

from gateway.agents.core.agent_file import PortableArchive, PortableMessage
from gateway.agents.registry.conversation_registry import find_conversation
from storage.definition_records import DefinitionKind
from storage.listing import Page, PassageDraft, PassageFilter
from storage.records import REPLY, Agent, Exchange
from storage.sql.store import Store

# The most exchanges, and the most passages, that one read returns.
_EXCHANGES_PER_READ = 50
_PASSAGES_PER_READ = 500


class AgentExport:
    """Reads the parts of agents for their files. Each method raises NotFound and StoreUnavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load_messages(self, agent: Agent, conversation_name: str) -> Sequence[PortableMessage]:
        """Returns the messages of a conversation, oldest first, with the messages of hidden rounds.

        conversation_name: `default`, the client's name, or the public id of the conversation.
        """
        conversation = await find_conversation(self._store, agent, conversation_name)
        if conversation is None:
            return []
        messages: list[PortableMessage] = []
        page = Page(-1, None, _EXCHANGES_PER_READ, newest_first=False)
        list_page = partial(self._store.messages.list_page, conversation_row=conversation.id)
        while listed_exchanges := await list_page(agent.id, page):
            for listed_exchange in listed_exchanges:
                messages += _list_messages(listed_exchange.exchange)
            page = replace(page, after=listed_exchanges[-1].exchange.next_seq)
        return messages

    async def load_passages(self, memory: Agent) -> Sequence[PassageDraft]:
        """Returns the passages of a memory, oldest first."""
        drafts: list[PassageDraft] = []
        page: Page[int] = Page(limit=_PASSAGES_PER_READ, newest_first=False)
        while passages := await self._store.passages.list_page(memory.id, page, PassageFilter()):
            drafts += [
                PassageDraft(text=passage.text, at=passage.at, tags=passage.tags, metadata=passage.metadata)
                for passage in passages
            ]
            page = replace(page, after=passages[-1].seq)
        return drafts

    async def load_archives(self, agent: Agent) -> Sequence[PortableArchive]:
        """Returns the archives that are attached to an agent."""
        rows = await self._store.attached.load_targets(agent.id, DefinitionKind.ARCHIVE)
        definitions = await self._store.definitions.find_by_memories(DefinitionKind.ARCHIVE, rows)
        memories = await self._store.defined_agents.load_memories(agent.scope.project, rows)
        return [
            PortableArchive(
                definitions[memory.id].name, definitions[memory.id].body, await self.load_passages(memory)
            )
            for memory in memories
            if memory.id in definitions
        ]


def _list_messages(exchange: Exchange) -> Iterator[PortableMessage]:
    """Yields the messages of an exchange that were not forgotten."""
    for index, message in enumerate(orjson.loads(exchange.input or b"[]")):
        if index not in exchange.redactions:
            yield PortableMessage(message, exchange.begun)
    if exchange.shown_reply is None or REPLY in exchange.redactions:
        return
    if exchange.full_reply is not None:
        messages = orjson.loads(exchange.full_reply)["messages"]
    else:
        messages = [orjson.loads(exchange.shown_reply)]
    for message in messages:
        model = exchange.model.partition("/")[2] if message.get("role") == "assistant" else ""
        yield PortableMessage(message, exchange.ended or exchange.begun, model)
