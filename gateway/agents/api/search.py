"""Searches of messages: the bodies of requests, the JSON of hits, and the routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.named_conversation import get_owner, read_conversation_name
from gateway.agents.api.passages import read_moment
from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.agents.runs.message_search import MessageSearch
from gateway.agents.wire.message import Showing
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.shown_values import make_conversation_id
from gateway.agents.wire.struct_fields import NO_TEMPLATES, Body, Maybe, refused
from gateway.core import ids
from gateway.errors import BadRequest
from storage.listing import AgentFilter, Page
from storage.records import Agent

# The most agents of one search that names none. Not measured: each has an index of its own.
_MAX_SEARCHED_AGENTS = 64
_PROJECT = refused("A key opens one project, and a search is of that.")


class SearchMessages(Body):
    """A search of messages, by words, by meaning, or both: of one agent, of one conversation, or of all agents."""

    query: Annotated[str, Meta(min_length=1)]
    agent_id: Maybe[str] = UNSET
    conversation_id: Maybe[str] = UNSET
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    search_mode: Literal["vector", "fts", "hybrid"] = "hybrid"
    roles: Maybe[list[Literal["user", "assistant"]]] = UNSET
    start_date: Maybe[str] = UNSET
    end_date: Maybe[str] = UNSET


class SearchAgents(SearchMessages):
    """A `SearchMessages` with the fields that older programs send."""

    project_id: Annotated[str | None, _PROJECT] | UnsetType = UNSET
    template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET


# The fields with the text, by the types of messages.
TEXT_FIELDS = {
    "user_message": "content",
    "assistant_message": "content",
    "system_message": "content",
    "reasoning_message": "reasoning",
}


class Hit(NamedTuple):
    """A message that a search has found, of a type in `TEXT_FIELDS`."""

    # The JSON of the message in lists.
    message: Mapping[str, Any]
    # The rank of the stored message, from 0. One stored message may be shown as several hits.
    rank: int
    # The public id of the agent of the message.
    agent_id: str
    # The public id of the conversation of the message.
    conversation_id: str

    def render(self) -> dict[str, Any]:
        """Returns the JSON of a hit."""
        message_type = self.message["message_type"]
        field = TEXT_FIELDS[message_type]
        return {
            "message_id": self.message["id"],
            "message_type": message_type,
            field: self.message[field],
            "created_at": self.message["date"],
            "agent_id": self.agent_id,
            "conversation_id": self.conversation_id,
        }

    def render_in_older_form(self) -> dict[str, Any]:
        """Returns the JSON of a hit in a search of Letta 0.16."""
        return {
            "embedded_text": self.message[TEXT_FIELDS[self.message["message_type"]]],
            "message": self.message,
            "fts_rank": None,
            "vector_rank": None,
            "rrf_score": 1 / (1 + self.rank),
        }


class MessageSearchRoutes:
    """The routes that search messages."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._search = MessageSearch(api.store, AgentMessages(api.store, api.now), api.keeper.embed_query)

    def list_routes(self) -> list[AgentsRoute]:
        return [
            AgentsRoute("POST", "/v1/messages/search", self.search),
            AgentsRoute("POST", "/v1/agents/messages/search", self.search_in_older_form),
        ]

    async def search(self, request: ApiRequest, body: SearchMessages) -> list[dict[str, Any]]:
        """Search messages."""
        return [hit.render() for hit in await self._load_hits(request.project, body)]

    async def search_in_older_form(self, request: ApiRequest, body: SearchAgents) -> list[dict[str, Any]]:
        """Search messages (0.16)."""
        return [hit.render_in_older_form() for hit in await self._load_hits(request.project, body)]

    async def _load_hits(self, project: str, search: SearchMessages) -> list[Hit]:
        """Returns the messages with text that a search finds, best first. Raises: BadRequest."""
        if search.search_mode == "vector" and self._api.keeper.embed_query is None:
            raise BadRequest(
                "There is no embedder (memory.embedder), so messages are searched by words.",
                param="search_mode",
            )
        conversation_name = read_conversation_name(search.conversation_id)
        ranked = await self._search.search(
            await self._load_agents(project, search, conversation_name),
            search.query,
            roles=find_sent(search.roles) or ("user", "assistant"),
            since=read_moment(search.start_date, ("body", "start_date")),
            until=read_moment(search.end_date, ("body", "end_date"), is_end=True),
            limit=search.limit,
            by_meaning=search.search_mode != "fts",
            conversation_name=conversation_name,
        )
        return [
            hit for rank, (agent, view) in enumerate(ranked) for hit in self._make_hits(agent, view, rank)
        ]

    async def _load_agents(
        self, project: str, search: SearchMessages, conversation_name: str | None
    ) -> Sequence[Agent]:
        """Returns the agents to search: the named agent, the owner of the named conversation, or else all agents.

        Raises: BadRequest if these are too many.
        """
        if (agent := await self._api.agents.find_by_sent_id(project, search.agent_id)) is not None:
            return [agent]
        if conversation_name is not None:
            return [await get_owner(self._api.store, project, conversation_name)]
        all_agents = AgentFilter(includes_hidden=True, order="completed")
        page: Page[str] = Page(limit=_MAX_SEARCHED_AGENTS + 1)
        entries = await self._api.store.defined_agents.list_page(project, all_agents, page)
        if len(entries) > _MAX_SEARCHED_AGENTS:
            raise BadRequest(
                f"A search asks {_MAX_SEARCHED_AGENTS} agents at most, and there are more: name one.",
                param="agent_id",
            )
        return [entry.agent for entry in entries]

    def _make_hits(self, agent: Agent, view: MessageView, rank: int) -> Iterator[Hit]:
        """Yields the hits for a stored message: one for each message with text that shows it."""
        agent_id = ids.make_id("agent", agent.uid)
        conversation_id = make_conversation_id(view.conversation_uid, view.key)
        for message in MessageRenderer(self._api.store, agent, Showing()).render_message(view):
            if message["message_type"] in TEXT_FIELDS:
                yield Hit(message, rank, agent_id, conversation_id)
