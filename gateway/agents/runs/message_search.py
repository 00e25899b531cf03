"""Searches the messages of agents, by words and by meaning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from msgspec import Struct

from gateway.agents.registry.conversation_registry import find_conversation
from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.core.ids import ObjectRef
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.tools import searches
from storage.errors import NotFound
from storage.fusion import interleave
from storage.records import Agent, Message, Vector
from storage.sql.store import Store


class MessageSearch(Struct, frozen=True):
    """Searches the messages of agents. Nothing is written."""

    # The store with the indexes of messages.
    store: Store
    # Reads the messages that a search has found.
    messages: AgentMessages
    # Makes the vector of a query; None: messages are searched by words alone.
    embed_query: EmbedQuery | None = None

    async def search(
        self,
        agents: Sequence[Agent],
        query: str,
        *,
        roles: Collection[str] = ("user", "assistant"),
        since: float | None = None,
        until: float | None = None,
        limit: int = 10,
        by_meaning: bool = True,
        conversation_name: str | None = None,
    ) -> Sequence[tuple[Agent, MessageView]]:
        """Returns messages of these agents that match a query, best first, with the agent of each.

        since, until: the bounds of the messages' times in seconds since the epoch, `until` excluded; None: no bound.
        limit: the largest number of messages to return.
        by_meaning: True if the search takes vectors as well as words, if there is an embedder.
        conversation_name: the name of the only conversation to search; None: all conversations.

        Raises: StoreError.
        """
        embed = self.embed_query if by_meaning else None
        rows = [agent.id for agent in agents]
        vector = None if embed is None else await embed(rows, query, searches.SEARCH_MS)

        def matches(hit: Message) -> bool:
            in_time = (since is None or hit.at >= since) and (until is None or hit.at < until)
            return hit.kind == "message" and hit.role in roles and in_time

        ranked: list[list[tuple[Agent, MessageView]]] = []
        for agent in agents:
            views = await self._search_agent(agent, query, matches, limit, conversation_name, vector)
            ranked.append([(agent, view) for view in views])
        return interleave(ranked)[:limit]

    async def _search_agent(
        self,
        agent: Agent,
        query: str,
        matches: Callable[[Message], bool],
        limit: int,
        conversation_name: str | None,
        vector: Vector | None,
    ) -> Sequence[MessageView]:
        """Returns the messages of one agent that match a query, best first.

        matches: a function that returns whether a found message may be returned.
        vector: the vector of the query; None: messages are searched by words alone.
        """
        owner = await self.store.agents.find_by_id(agent.id)
        if owner is None:
            return []
        # The last message number to search, by the row of each conversation on the path; None: everything is searched.
        last_seqs = None
        if conversation_name is not None:
            conversation = None
            with suppress(NotFound):
                conversation = await find_conversation(self.store, owner, conversation_name)
            if conversation is None:
                return []
            last_seqs = await self.store.messages.load_past(owner.id, conversation.id)

        def matches_on_path(hit: Message) -> bool:
            return matches(hit) and (last_seqs is None or hit.seq <= last_seqs.get(hit.conversation_row, -1))

        hits = await self.store.recall.search(
            owner, query, limit=limit, takes=matches_on_path, deadline_ms=searches.SEARCH_MS, vector=vector
        )
        views: list[MessageView] = []
        for hit in hits:
            with suppress(NotFound):  # the message was forgotten since the search found it
                views.append(await self.messages.get(owner, ObjectRef(owner.uid, hit.seq)))
        return views
