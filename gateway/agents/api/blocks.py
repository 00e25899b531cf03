"""Blocks: made by themselves, attached to agents, changed and brought back."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.api._paging import OLDEST_FIRST, cut_page, read_page
from gateway.agents.api._query import AgentsOfQuery, BlocksQuery, HistoryQuery, PageQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.wire.sent_values import find_sent, get_sent_fields, get_sent_or
from gateway.agents.wire.shown_values import NO_AUTHORS, NO_TEMPLATE, render_time
from gateway.agents.wire.struct_fields import NO_TEMPLATES, ONE_PROJECT, Body, Maybe, Name, NoEffect, Strings
from gateway.core import ids
from gateway.errors import BadRequest
from storage.listing import BlockChange, BlockDraft, BlockEntry, BlockFilter
from storage.records import API_ORIGIN, Block, Revision

# The most characters of a block that is made without a limit; Letta's number.
DEFAULT_LIMIT = 100_000
# The descriptions of blocks that are made without a description, by label; Letta's labels, in other words.
_DESCRIPTIONS = {
    "human": "What you know of the person you talk with: who they are, what they like, what matters to them.",
    "persona": "Who you are: how you think, speak and act.",
}

_Limit = Annotated[int, Meta(ge=0, le=10_000_000)]


class UpdateBlock(Body):
    """A change of a block; what is left out stays."""

    label: Maybe[Name] = UNSET
    value: Maybe[str] = UNSET
    description: Maybe[str] = UNSET
    limit: Maybe[_Limit] = UNSET
    read_only: Maybe[bool] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    tags: Maybe[Strings] = UNSET
    hidden: Maybe[bool] = UNSET
    is_template: Annotated[bool | None, NO_TEMPLATES] | UnsetType = UNSET
    template_name: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    base_template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    deployment_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    entity_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    preserve_on_migration: Annotated[bool | None, NO_TEMPLATES] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


class CreateBlock(UpdateBlock):
    """A block that is made."""

    label: Name
    value: str


class AgentBlock(CreateBlock):
    """A block that is made with an agent. A block that exists already is copied, as by Letta's server."""

    id: NoEffect[str] = UNSET
    created_by_id: NoEffect[str] = UNSET
    last_updated_by_id: NoEffect[str] = UNSET


def make_block_draft(create: CreateBlock) -> BlockDraft:
    """Returns the block that a body creates."""
    block = Block(
        id=0,
        label=create.label,
        description=get_sent_or(create.description, _DESCRIPTIONS.get(create.label, "")),
        value=create.value,
        limit=get_sent_or(create.limit, DEFAULT_LIMIT),
        read_only=create.read_only is True,
    )
    return BlockDraft(block, _read_details(create))


def _make_change(update: UpdateBlock) -> BlockChange:
    """Returns the change of a block that an update asks for."""
    fields = get_sent_fields(update)
    description = fields.get("description")
    return BlockChange(
        value=fields.get("value"),
        label=fields.get("label"),
        description="" if "description" in fields and description is None else description,
        limit=fields.get("limit"),
        read_only=fields.get("read_only"),
        details=_read_details(update),
    )


def _read_details(block: UpdateBlock) -> dict[str, Any]:
    """Returns the fields of a block that a turn does not need."""
    fields = get_sent_fields(block)
    return {name: fields[name] for name in ("metadata", "tags", "hidden") if fields.get(name) is not None}


def render_block(entry: BlockEntry) -> dict[str, Any]:
    """Returns the JSON of a block."""
    block, details = entry.block, entry.details
    return {
        "id": ids.make_id("block", block.uid),
        "label": block.label,
        "value": block.value,
        "limit": block.limit,
        "description": block.description or None,
        "read_only": block.read_only,
        "metadata": details.get("metadata") or {},
        "tags": details.get("tags") or [],
        "hidden": details.get("hidden"),
        "is_template": False,
        "template_name": None,
        **NO_TEMPLATE,
        "entity_id": None,
        "preserve_on_migration": False,
        **NO_AUTHORS,
    }


def _render_revision(revision: Revision) -> dict[str, Any]:
    """Returns the JSON of a value that a block had.

    `version` counts from 1, and `restores` is the version that an undo brought back.
    """
    return {
        "version": revision.version,
        "value": revision.value,
        "at": render_time(revision.at),
        "origin": revision.origin,
        "restores": revision.restores,
    }


class BlockRoutes:
    """The routes of blocks."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._blocks = api.store.named_blocks

    def list_routes(self) -> list[AgentsRoute]:
        blocks, block = "/v1/blocks", "/v1/blocks/{block_id}"
        agent_blocks = "/v1/agents/{agent_id}/core-memory/blocks"
        labelled_block = f"{agent_blocks}/{{block_label:path}}"
        return [
            AgentsRoute("GET", blocks, self.list_blocks, paging=OLDEST_FIRST),
            AgentsRoute("POST", blocks, self.create),
            AgentsRoute("GET", f"{blocks}/count", self.count),
            AgentsRoute("GET", block, self.retrieve),
            AgentsRoute("PATCH", block, self.update),
            AgentsRoute("DELETE", block, self.delete),
            AgentsRoute("GET", f"{block}/agents", self.list_agents),
            AgentsRoute("GET", f"{block}/history", self.list_history),
            AgentsRoute("POST", f"{block}/undo", self.undo),
            AgentsRoute("GET", "/v1/agents/{agent_id}/core-memory", self.retrieve_memory),
            AgentsRoute("GET", agent_blocks, self.list_agent_blocks, paging=OLDEST_FIRST),
            AgentsRoute("PATCH", f"{agent_blocks}/attach/{{block_id}}", self.attach),
            AgentsRoute("PATCH", f"{agent_blocks}/detach/{{block_id}}", self.detach),
            AgentsRoute("GET", labelled_block, self.retrieve_labelled),
            AgentsRoute("PATCH", labelled_block, self.update_labelled),
        ]

    async def list_blocks(self, request: ApiRequest, query: BlocksQuery) -> list[dict[str, Any]]:
        """List blocks."""
        min_agents, max_agents = _read_agent_counts(query)
        block_filter = BlockFilter(
            label=find_sent(query.label), label_text=find_sent(query.label_search),
            description_text=find_sent(query.description_search),
            value_text=find_sent(query.value_search), min_agents=min_agents, max_agents=max_agents,
            tags=find_sent(query.tags) or (), needs_all_tags=query.match_all_tags,
            name=find_sent(query.name), includes_hidden=query.show_hidden_blocks is True,
        )  # fmt: skip
        page = await read_page(query, partial(self._get_row, request.project))
        entries = await self._blocks.list_page(request.project, block_filter, page)
        return list(map(render_block, entries))

    async def count(self, request: ApiRequest) -> int:
        """Count blocks."""
        return await self._blocks.count(request.project)

    async def create(self, request: ApiRequest, body: CreateBlock) -> dict[str, Any]:
        """Make a block that is attached to no agent yet."""
        return render_block(await self.create_block(request.project, body))

    async def create_block(self, project: str, body: CreateBlock) -> BlockEntry:
        """Makes the block of a body, attached to no agent."""
        draft = make_block_draft(body)
        return await self._blocks.create(project, draft, at=self._api.now(), origin=API_ORIGIN)

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return a block."""
        return render_block(await self._get(request))

    async def update(self, request: ApiRequest, body: UpdateBlock) -> dict[str, Any]:
        """Change a block for all who see it."""
        return await self._change(request.project, request.read_uid("block", "block_id"), body)

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete a block, and take it from all who see it."""
        await self._blocks.delete(request.project, request.read_uid("block", "block_id"))
        return {"message": "The block is deleted."}

    async def list_agents(self, request: ApiRequest, query: AgentsOfQuery) -> list[dict[str, Any]]:
        """List the agents that see a block."""
        rows = await self._blocks.load_agents_seeing((await self._get(request)).block.id)
        return await self._api.agents.list_page(request.project, rows, query)

    async def list_history(self, request: ApiRequest, query: HistoryQuery) -> list[dict[str, Any]]:
        """List the values that a block had, newest first."""
        entry = await self._get(request)
        revisions = await self._api.store.blocks.list_revisions(
            entry.block.id, before=query.before, limit=query.limit
        )
        return list(map(_render_revision, revisions))

    async def undo(self, request: ApiRequest) -> dict[str, Any]:
        """Bring back the value that a block had before its last change."""
        uid = request.read_uid("block", "block_id")
        return render_block(await self._blocks.undo(request.project, uid, at=self._api.now()))

    async def retrieve_memory(self, request: ApiRequest) -> dict[str, Any]:
        """Return an agent's blocks."""
        memory: dict[str, Any] = (await self._api.agents.render_requested(request))["memory"]
        return memory

    async def list_agent_blocks(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List an agent's blocks."""
        agent = await self._api.agents.get(request)
        entries = (await self._blocks.load_visible([agent.id]))[agent.id]
        return cut_page([render_block(entry) for entry in entries], query)

    async def attach(self, request: ApiRequest) -> dict[str, Any]:
        """Have an agent see a block."""
        await self._blocks.attach(await self._api.agents.get(request), request.read_uid("block", "block_id"))
        return await self._api.agents.render_requested(request)

    async def detach(self, request: ApiRequest) -> dict[str, Any]:
        """Take a block from an agent."""
        await self._blocks.detach(await self._api.agents.get(request), request.read_uid("block", "block_id"))
        return await self._api.agents.render_requested(request)

    async def retrieve_labelled(self, request: ApiRequest) -> dict[str, Any]:
        """Return an agent's block by its label."""
        return render_block(await self._get_labelled(request))

    async def update_labelled(self, request: ApiRequest, body: UpdateBlock) -> dict[str, Any]:
        """Change an agent's block by its label, for all who see it."""
        return await self._change(request.project, (await self._get_labelled(request)).block.uid, body)

    async def _get(self, request: ApiRequest) -> BlockEntry:
        return await self._blocks.get(request.project, request.read_uid("block", "block_id"))

    async def _get_labelled(self, request: ApiRequest) -> BlockEntry:
        agent = await self._api.agents.get(request)
        return await self._blocks.get_labelled(agent.id, request.path_params["block_label"].rstrip("/"))

    async def _change(self, project: str, uid: str, update: UpdateBlock) -> dict[str, Any]:
        change = _make_change(update)
        changed = await self._blocks.change(project, uid, change, at=self._api.now(), origin=API_ORIGIN)
        return render_block(changed)

    async def _get_row(self, project: str, block_id: str) -> int:
        return (await self._blocks.get(project, read_uid("block", block_id))).block.id


def _read_agent_counts(query: BlocksQuery) -> tuple[int, int]:
    """Returns the least and the greatest number of agents that see the listed blocks. Raises: BadRequest."""
    name = "connected_to_agents_count_eq"
    counts = find_sent(query.connected_to_agents_count_eq)
    if counts:
        if len(counts) > 1:
            raise BadRequest(f"{name} takes one number.", param=name)
        return counts[0], counts[0]
    above = get_sent_or(query.connected_to_agents_count_gt, -1)
    below = get_sent_or(query.connected_to_agents_count_lt, BlockFilter().max_agents + 1)
    return above + 1, below - 1
