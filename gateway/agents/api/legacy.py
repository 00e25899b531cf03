"""The paths of Letta 0.6, which older programs call. The handlers of newer paths answer most of them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gateway.agents.api._paging import OLDEST_FIRST, PASSAGES
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.blocks import BlockRoutes, CreateBlock
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.passages import PassageRoutes
from gateway.agents.api.tools import ToolRoutes
from gateway.agents.wire.struct_fields import read_texts
from storage.listing import BlockChange
from storage.records import API_ORIGIN


class LegacyRoutes:
    """The routes of Letta 0.6."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._named_blocks = api.store.named_blocks
        self._blocks, self._passages, self._tools = BlockRoutes(api), PassageRoutes(api), ToolRoutes(api)

    def list_routes(self) -> list[AgentsRoute]:
        """Returns the routes. The summary of each in `/openapi.json` is its handler's, with the version."""
        agent, blocks, passages, tools = "/v1/agents/{agent_id}", self._blocks, self._passages, self._tools
        agent_blocks, archive = f"{agent}/memory/block", f"{agent}/archival"
        block = f"{agent_blocks}/{{block_label:path}}"
        routes = [
            AgentsRoute("GET", f"{agent}/memory", blocks.retrieve_memory),
            AgentsRoute("PATCH", f"{agent}/memory", self.write_blocks, reads_body=True),
            AgentsRoute("GET", agent_blocks, blocks.list_agent_blocks, paging=OLDEST_FIRST),
            AgentsRoute("POST", agent_blocks, self.add_block),
            AgentsRoute("GET", block, blocks.retrieve_labelled, title="Return an agent's block."),
            AgentsRoute("PATCH", block, blocks.update_labelled),
            AgentsRoute("DELETE", block, self.remove_block),
            AgentsRoute("GET", archive, passages.list_passages, paging=PASSAGES),
            AgentsRoute("POST", archive, passages.create),
            AgentsRoute("DELETE", f"{archive}/{{memory_id}}", passages.delete),
            AgentsRoute("PATCH", f"{agent}/add-tool/{{tool_id}}", tools.attach),
            AgentsRoute("PATCH", f"{agent}/remove-tool/{{tool_id}}", tools.detach),
        ]
        return [replace(route, title=f"{route.summary[:-1]} (0.6).") for route in routes]

    async def write_blocks(self, request: ApiRequest) -> dict[str, Any]:
        """Change values of an agent's blocks by their labels, for all who see them."""
        agent = await self._api.agents.get(request)
        values = read_texts(request.data)
        # All labels are looked up before any block is written.
        entries = [await self._named_blocks.get_labelled(agent.id, label) for label in values]
        for entry, value in zip(entries, values.values(), strict=True):
            change = BlockChange(value=value)
            await self._named_blocks.change(
                request.project, entry.block.uid, change, at=self._api.now(), origin=API_ORIGIN
            )
        return await self._blocks.retrieve_memory(request)

    async def add_block(self, request: ApiRequest, body: CreateBlock) -> dict[str, Any]:
        """Give an agent a new block."""
        agent = await self._api.agents.get(request)
        entry = await self._blocks.create_block(request.project, body)
        try:
            await self._named_blocks.attach(agent, entry.block.uid)
        except Exception:
            # The agent may have a block with this label. Whatever the cause, no block stays that no agent sees.
            await self._named_blocks.delete(request.project, entry.block.uid)
            raise
        return await self._blocks.retrieve_memory(request)

    async def remove_block(self, request: ApiRequest) -> dict[str, Any]:
        """Take a block from an agent, and delete it if nobody else sees it."""
        agent = await self._api.agents.get(request)
        label = request.path_params["block_label"].rstrip("/")
        entry = await self._named_blocks.get_labelled(agent.id, label)
        entry = await self._named_blocks.detach(agent, entry.block.uid)
        if not (entry.owner or entry.profile or await self._named_blocks.load_agents_seeing(entry.block.id)):
            await self._named_blocks.delete(request.project, entry.block.uid)
        return await self._blocks.retrieve_memory(request)
