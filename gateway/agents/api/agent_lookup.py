"""Looks up the agents that requests of the agents API name, as records or as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from gateway.agents.api._paging import read_page
from gateway.agents.api._query import PageQuery
from gateway.agents.api._route import ApiRequest, read_uid
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.registry.registry import Registry
from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Maybe
from storage.listing import AgentEntry
from storage.records import Agent
from storage.sql.store import Store


class AgentLookup(Struct, frozen=True):
    """Gets agents by the ids in requests. Methods that get one agent raise UnknownId and NotFound."""

    # Reads the records of agents.
    store: Store
    # Reads agents with their parts.
    registry: Registry
    # Makes the JSON of agents. Injected, since the modules that make JSON import this module.
    make_json: Callable[[Sequence[AgentView]], Awaitable[list[dict[str, Any]]]]

    async def get(self, request: ApiRequest) -> Agent:
        """Returns the record of the agent in the path."""
        return (await self.get_entry(request)).agent

    async def get_entry(self, request: ApiRequest) -> AgentEntry:
        """Returns the record and the definition of the agent in the path."""
        return await self.store.defined_agents.get(request.project, request.read_uid("agent", "agent_id"))

    async def get_by_id(self, project: str, public_id: str) -> Agent:
        """Returns the record of the agent with a public id."""
        return (await self.store.defined_agents.get(project, read_uid("agent", public_id))).agent

    async def find_by_sent_id(self, project: str, sent_id: Maybe[str]) -> Agent | None:
        """Returns the record of the agent that a parameter names; None if the parameter was not sent."""
        return None if (public_id := find_sent(sent_id)) is None else await self.get_by_id(project, public_id)

    async def get_view(self, request: ApiRequest) -> AgentView:
        """Returns the agent in the path with its tools, blocks and tags."""
        return await self.registry.get(request.project, request.read_uid("agent", "agent_id"))

    async def resolve(self, request: ApiRequest) -> ResolvedAgent:
        """Returns the agent in the path with all that a send needs."""
        uid = request.read_uid("agent", "agent_id")
        return await self.registry.resolver.resolve_uid(request.project, uid)

    async def render_requested(self, request: ApiRequest) -> dict[str, Any]:
        """Returns the JSON of the agent in the path."""
        return await self.render(await self.get_view(request))

    async def render(self, view: AgentView) -> dict[str, Any]:
        """Returns the JSON of an agent. Raises: StoreError."""
        (agent_json,) = await self.make_json([view])
        return agent_json

    async def list_page(self, project: str, rows: Sequence[int], query: PageQuery) -> list[dict[str, Any]]:
        """Returns the JSON of a page of a list of agents. rows: the rows of all agents in the list."""

        async def get_row(agent_id: str) -> int:
            return (await self.get_by_id(project, agent_id)).id

        page = await read_page(query, get_row, size=100)
        low, high = page.bounds
        page_rows = sorted((row for row in rows if low < row < high), reverse=page.newest_first)[: page.limit]
        # `load_several` returns agents oldest first, whatever the order of their rows.
        oldest_first = await self.make_json(await self.registry.load_several(project, page_rows))
        return oldest_first[::-1] if page.newest_first else oldest_first
