"""Tools: the gateway's built-in tools, tools that callers have defined, and the tools of agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._paging import OLDEST_FIRST, cut_page, read_page_at
from gateway.agents.api._query import ApprovalQuery, Fragment, PageQuery, ToolsQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.manual_calls import ManualCall, call_by_hand
from gateway.agents.api.tool_bodies import (
    CreateTool,
    ToolSource,
    TriedTool,
    UpdateTool,
    read_tool_name,
    retain_stored_fields,
    with_update_and_schema,
)
from gateway.agents.api.tool_json import render_call_result, render_source_result, render_tool
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.registry.registry import AgentEdit
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.tools.written_blocks import write_blocks
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect, Repeated, Strings
from gateway.core.definition import AgentDefinition, ToolDefinition
from gateway.errors import BadRequest, UnknownId
from gateway.validation import Fault

# A tool as the API shows it.
_ToolJson = dict[str, Any]


class SearchTools(Body):
    """A search of tools by words of their names, descriptions and tags."""

    query: Maybe[Fragment] = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50
    search_mode: NoEffect[Literal["vector", "fts", "hybrid"]] = UNSET
    tags: Maybe[Strings] = UNSET
    tool_types: Maybe[Strings] = UNSET


class ApprovalBody(Body):
    """The need of a person's approval. The TypeScript client (1.12) sends `body_requires_approval`."""

    requires_approval: bool | UnsetType = UNSET
    body_requires_approval: bool | UnsetType = UNSET

    @property
    def is_needed(self) -> bool:
        """The value of the field that was sent. Raises: Unprocessable if neither field was sent."""
        for sent_value in (self.requires_approval, self.body_requires_approval):
            if (is_needed := find_sent(sent_value)) is not None:
                return is_needed
        raise Unprocessable(Fault(("body", "requires_approval"), "Field required", "missing"))


class ToolRoutes:
    """The routes of tools."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._tools = api.registry.tools
        self._defined_tools = api.agent_runs.defined_tools

    def list_routes(self) -> list[AgentsRoute]:
        tools, tool, agent_tools = "/v1/tools", "/v1/tools/{tool_id}", "/v1/agents/{agent_id}/tools"
        return [
            AgentsRoute("GET", tools, self.list_tools),
            AgentsRoute("GET", f"{tools}/count", self.count),
            AgentsRoute("POST", tools, self.create_or_change),
            AgentsRoute("PUT", tools, self.create_or_change),
            AgentsRoute("POST", f"{tools}/run", self.run_source),
            AgentsRoute("POST", f"{tools}/search", self.search),
            AgentsRoute("POST", f"{tools}/add-base-tools", self.list_base_tools),
            AgentsRoute("GET", tool, self.retrieve),
            AgentsRoute("PATCH", tool, self.update),
            AgentsRoute("DELETE", tool, self.delete),
            AgentsRoute("GET", agent_tools, self.list_agent_tools, paging=OLDEST_FIRST),
            AgentsRoute("PATCH", f"{agent_tools}/attach/{{tool_id}}", self.attach),
            AgentsRoute("PATCH", f"{agent_tools}/detach/{{tool_id}}", self.detach),
            AgentsRoute("PATCH", f"{agent_tools}/approval/{{tool_name}}", self.approve),
            AgentsRoute("POST", f"{agent_tools}/{{tool_name}}/run", self.call_tool),
        ]

    async def list_tools(self, request: ApiRequest, query: ToolsQuery) -> list[dict[str, Any]]:
        """List tools, the gateway's own among them."""
        page = []
        async for tool in self._select(request.project, query):
            page.append(render_tool(tool))
            if len(page) == query.get_size():
                break
        return page

    async def count(self, request: ApiRequest, query: ToolsQuery) -> int:
        """Count tools."""
        return len([tool async for tool in self._select(request.project, query)])

    async def list_base_tools(self, request: ApiRequest) -> list[dict[str, Any]]:
        """List the gateway's own tools, which need not be added."""
        query = ToolsQuery(return_only_letta_tools=True, order="asc")
        return [render_tool(tool) async for tool in self._select(request.project, query)]

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return a tool."""
        return render_tool(await self._tools.get(request.project, request.read_uid("tool", "tool_id")))

    async def create_or_change(self, request: ApiRequest, body: CreateTool) -> dict[str, Any]:
        """Make a tool (Python, or a webhook), or change the one of its name.

        Programs for Letta's server make their tools at each start.
        """
        name, new = await self._define_tool(body)
        merge = partial(retain_stored_fields, body, new)
        return render_tool(await self._tools.put(request.project, name, new, merge))

    async def update(self, request: ApiRequest, body: UpdateTool) -> dict[str, Any]:
        """Change a tool."""
        uid = request.read_uid("tool", "tool_id")

        def edit(definition: ToolDefinition) -> tuple[str | None, ToolDefinition]:
            updated = with_update_and_schema(definition, body)
            return read_tool_name(updated), updated

        record = (await self._tools.get(request.project, uid)).definition
        if record is not None:
            before = ToolDefinition.of(record.body)
            after = with_update_and_schema(before, body)
            if (after.source_type, after.source) != (before.source_type, before.source):
                await self._check_runnable(after)
        return render_tool(await self._tools.change(request.project, uid, edit))

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete a tool, and take it from all agents."""
        await self._tools.delete(request.project, request.read_uid("tool", "tool_id"))
        return {"message": "The tool is deleted."}

    async def search(self, request: ApiRequest, body: SearchTools) -> list[dict[str, Any]]:
        """Search tools by words."""
        words = set((find_sent(body.query) or "").lower().split())
        tags = set(find_sent(body.tags) or ())
        query = ToolsQuery(tool_types=find_sent(body.tool_types) or UNSET)
        tools = [render_tool(tool) async for tool in self._select(request.project, query)]
        ranked = _rank_by_words([tool for tool in tools if tags <= set(tool["tags"])], words)
        fixed_fields = {"vector_rank": None, "embedded_text": None}
        return [
            {"tool": tool, "combined_score": score, "fts_rank": rank, **fixed_fields}
            for rank, (score, tool) in enumerate(ranked[: body.limit], 1)
        ]

    async def run_source(self, request: ApiRequest, tried: TriedTool) -> dict[str, Any]:
        """Run a source once, without storing it."""
        name, tool = await self._define_tool(tried)
        answer = await call_by_hand(self._defined_tools, request, name, tool)
        return render_source_result(name, answer, at=self._api.now())

    async def approve(self, request: ApiRequest, _: ApprovalQuery, body: ApprovalBody) -> dict[str, Any]:
        """Say whether a person must approve an agent's calls of a tool."""
        name = request.path_params["tool_name"]
        is_needed = body.is_needed
        rule = {"tool_name": name, "type": "requires_approval"}

        def edit(definition: AgentDefinition) -> AgentDefinition:
            other_rules = tuple(other for other in definition.rules if not rule.items() <= other.items())
            return replace(definition, rules=(*other_rules, rule) if is_needed else other_rules)

        definition = _get_tool(await self._api.agents.get_view(request), name).definition
        if not is_needed and definition is not None and ToolDefinition.of(definition.body).needs_approval:
            raise BadRequest(
                f"{name} needs approval for every agent (`default_requires_approval`): change the tool.",
                param="requires_approval",
            )
        uid = request.read_uid("agent", "agent_id")
        view = await self._api.registry.change(request.project, uid, AgentEdit(edit_definition=edit))
        return await self._api.agents.render(view)

    async def call_tool(self, request: ApiRequest, _: ManualCall) -> dict[str, Any]:
        """Call an agent's tool by hand, and write what it changes in blocks."""
        # The body was checked as a `ManualCall`; `call_by_hand` reads its bytes again.
        view = await self._api.agents.get_view(request)
        name = request.path_params["tool_name"]
        definition = _get_tool(view, name).definition
        if definition is None:
            raise BadRequest(
                f"{name} is the gateway's own: the model calls it. Blocks and passages have routes.",
                param="tool_name",
            )
        tool = ToolDefinition.of(definition.body)
        answer = await call_by_hand(self._defined_tools, request, name, tool, view)
        if answer.changed_blocks:
            answer = await write_blocks(self._api.store, answer, at=self._api.now(), origin=f"tool:{name}")
        return render_call_result(answer)

    async def list_agent_tools(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List an agent's tools."""
        view = await self._api.agents.get_view(request)
        return cut_page([render_tool(tool) for tool in view.tools], query)

    async def attach(self, request: ApiRequest) -> dict[str, Any]:
        """Give an agent a tool."""
        uid, tool_uid = request.read_uid("agent", "agent_id"), request.read_uid("tool", "tool_id")
        view = await self._api.registry.attach_tool(request.project, uid, tool_uid)
        return await self._api.agents.render(view)

    async def detach(self, request: ApiRequest) -> dict[str, Any]:
        """Take a tool from an agent."""
        uid, tool_uid = request.read_uid("agent", "agent_id"), request.read_uid("tool", "tool_id")
        view = await self._api.registry.detach_tool(request.project, uid, tool_uid)
        return await self._api.agents.render(view)

    async def _define_tool(self, create: ToolSource) -> tuple[str, ToolDefinition]:
        """Returns the name and definition of a new tool.

        Raises: BadRequest if the tool cannot be run here; Unprocessable if it has no name.
        """
        tool = with_update_and_schema(ToolDefinition({}), create)
        await self._check_runnable(tool)
        name = read_tool_name(tool)
        if name is None:
            raise Unprocessable(
                Fault(("body", "json_schema"), "Field required for this source_type", "missing")
            )
        return name, tool

    async def _check_runnable(self, tool: ToolDefinition) -> None:
        if (reason := await self._defined_tools.explain_refusal(tool)) is not None:
            raise BadRequest(reason, param="source_type")

    async def _select(self, project: str, query: ToolsQuery) -> AsyncIterator[ToolView]:
        """Yields the tools that a query selects, from its cursor on."""
        names = set(find_sent(query.names) or ())
        uids = {read_uid("tool", tool_id) for tool_id in _split_values(query.tool_ids)}
        types, excluded_types = _split_values(query.tool_types), _split_values(query.exclude_tool_types)
        tools = self._tools.select(
            project,
            read_page_at(query, partial(read_uid, "tool")),
            name=find_sent(query.name),
            name_part=find_sent(query.search),
        )
        async for tool in tools:
            tool_type = render_tool(tool)["tool_type"] if types or excluded_types else None
            if (names and tool.name not in names) or (uids and tool.uid not in uids):
                continue
            if (types and tool_type not in types) or tool_type in excluded_types:
                continue
            if query.return_only_letta_tools is True and tool.definition is not None:
                continue
            yield tool


def _split_values(values: Repeated[str]) -> set[str]:
    """Returns the values of a repeated parameter. One value may be several, separated by commas."""
    return {part.strip() for value in find_sent(values) or () for part in value.split(",") if part.strip()}


def _get_tool(view: AgentView, name: str) -> ToolView:
    """Returns the tool of an agent with a name. Raises: UnknownId."""
    for tool in view.tools:
        if tool.name == name:
            return tool
    raise UnknownId(f"The agent has no tool {name!r}.")


def _rank_by_words(tools: Sequence[_ToolJson], words: Collection[str]) -> list[tuple[float, _ToolJson]]:
    """Returns the tools that have at least one of the words, best first, each with the share of the words that it has.

    Without words all tools are returned, with a share of 0.
    """
    ranked = []
    for tool in tools:
        text = " ".join((tool["name"].replace("_", " "), tool["description"] or "", *tool["tags"])).lower()
        word_count = sum(word in text for word in words)
        if word_count or not words:
            ranked.append((word_count / (len(words) or 1), tool))
    return sorted(ranked, key=lambda share_and_tool: share_and_tool[0], reverse=True)
