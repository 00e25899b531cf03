"""Tools: the gateway's own and those that were made over REST, and which an agent has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from gateway.core import ids
from gateway.core.definition import AgentDefinition, ToolDefinition
from gateway.core.memory.builtin import definition_of
from gateway.dialects.letta.body import given
from gateway.dialects.letta.error import Fault, Unprocessable
from gateway.dialects.letta.query import ApprovalQuery, PageQuery, ToolsQuery
from gateway.dialects.letta.resources.tool import (
    ApprovalBody,
    CreateTool,
    HandCall,
    SearchTools,
    ToolSource,
    TriedTool,
    UpdateTool,
    built_in_json,
    execution_json,
    tool_json,
    tool_of,
    tried_json,
    upserted,
)
from gateway.errors import BadRequest, UnknownId
from gateway.run.agents.registry import AgentEdit, AgentView
from gateway.run.agents.tools import ToolView
from gateway.run.tools.signature import function_name, schema_of
from gateway.run.tools.toolbox import ForeignCall
from gateway.run.tools.written_blocks import write_blocks
from gateway.web.letta.api import AgentsApi, given_or_none, uid_or_none
from gateway.web.letta.paging import OLDEST_FIRST, cut
from gateway.web.letta.routes import AgentsRoute, Asked, uid_in
from storage.errors import NotFound

_PAGE = 200


class ToolRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._tools = api.registry.tools

    def rows(self) -> list[AgentsRoute]:
        all_, one, own = "/v1/tools", "/v1/tools/{tool_id}", "/v1/agents/{agent_id}/tools"
        return [
            AgentsRoute(
                "GET", all_, self.index, "List tools, the gateway's own among them.", query=ToolsQuery
            ),
            AgentsRoute("GET", f"{all_}/count", self.count, "Count tools.", query=ToolsQuery),
            AgentsRoute("POST", all_, self.put, "Make a tool: Python, or a webhook.", body=CreateTool),
            AgentsRoute(
                "PUT", all_, self.put, "Make a tool, or change the one of its name.", body=CreateTool
            ),
            AgentsRoute(
                "POST", f"{all_}/run", self.try_out, "Run a source once, and keep nothing.", body=TriedTool
            ),
            AgentsRoute("POST", f"{all_}/search", self.search, "Search tools by words.", body=SearchTools),
            AgentsRoute(
                "POST", f"{all_}/add-base-tools", self.base, "List the gateway's own tools, which are there."
            ),
            AgentsRoute("GET", one, self.retrieve, "Return a tool."),
            AgentsRoute("PATCH", one, self.update, "Change a tool.", body=UpdateTool),
            AgentsRoute("DELETE", one, self.delete, "Delete a tool, and take it from all agents."),
            AgentsRoute(
                "GET", own, self.of_agent, "List an agent's tools.", query=PageQuery, pages=OLDEST_FIRST
            ),
            AgentsRoute("PATCH", f"{own}/attach/{{tool_id}}", self.attach, "Give an agent a tool."),
            AgentsRoute("PATCH", f"{own}/detach/{{tool_id}}", self.detach, "Take a tool from an agent."),
            AgentsRoute(
                "PATCH",
                f"{own}/approval/{{tool_name}}",
                self.approve,
                "Say whether a person must approve its calls.",
                body=ApprovalBody,
                query=ApprovalQuery,
            ),
            AgentsRoute("POST", f"{own}/{{tool_name}}/run", self.run, "Call a tool by hand.", body=HandCall),
        ]

    async def index(self, asked: Asked) -> Any:
        query: ToolsQuery = asked.query
        found = []
        async for tool in self._wanted(asked.project, query):
            found.append(show_tool(tool))
            if len(found) == query.size():
                break
        return found

    async def count(self, asked: Asked) -> Any:
        return len([tool async for tool in self._wanted(asked.project, asked.query)])

    async def base(self, asked: Asked) -> Any:
        own = ToolsQuery(return_only_letta_tools=True, order="asc")
        return [show_tool(tool) async for tool in self._wanted(asked.project, own)]

    async def retrieve(self, asked: Asked) -> Any:
        return show_tool(await self._tools.get(asked.project, asked.uid("tool", "tool_id")))

    async def put(self, asked: Asked) -> Any:
        """Makes a tool, or changes the one of its name: on Letta's server a program makes its tools at each start."""
        create: CreateTool = asked.body
        name, made = await self._made(create)

        def merge(before: ToolDefinition) -> ToolDefinition:
            return upserted(create, made, before)

        return show_tool(await self._tools.put(asked.project, name, made, merge))

    async def update(self, asked: Asked) -> Any:
        uid, update = asked.uid("tool", "tool_id"), asked.body
        found = (await self._tools.get(asked.project, uid)).definition
        if found is not None:
            before = ToolDefinition.of(found.body)
            made = _edited(update, before)[1]
            if (made.source_type, made.source) != (before.source_type, before.source):
                await self._check(made)
        changed = await self._tools.change(asked.project, uid, lambda before: _edited(update, before))
        return show_tool(changed)

    async def delete(self, asked: Asked) -> Any:
        await self._tools.delete(asked.project, asked.uid("tool", "tool_id"))
        return {"message": "The tool is deleted."}

    async def search(self, asked: Asked) -> Any:
        search: SearchTools = asked.body
        words = set((given_or_none(search.query) or "").lower().split())
        types, tags = given_or_none(search.tool_types), set(given_or_none(search.tags) or ())
        scored = []
        async for tool in self._wanted(asked.project, ToolsQuery()):
            shown = show_tool(tool)
            text = " ".join(
                (shown["name"].replace("_", " "), shown["description"] or "", *shown["tags"])
            ).lower()
            hits = sum(word in text for word in words)
            if (
                (hits or not words)
                and tags <= set(shown["tags"])
                and (not types or shown["tool_type"] in types)
            ):
                scored.append((hits / (len(words) or 1), shown))
        scored.sort(key=lambda each: -each[0])
        return [
            {
                "tool": shown,
                "combined_score": score,
                "fts_rank": rank,
                "vector_rank": None,
                "embedded_text": None,
            }
            for rank, (score, shown) in enumerate(scored[: search.limit], 1)
        ]

    async def try_out(self, asked: Asked) -> Any:
        tried: TriedTool = asked.body
        name, made = await self._made(tried)
        call = ForeignCall(name, tried.args, "", "", "", ids.new_uid(), {}, asked.project)
        answer = await self._api.called(made, call)
        return tried_json(
            name, answer.status, answer.content, answer.stdout, answer.stderr, at=self._api.now()
        )

    async def _made(self, create: ToolSource) -> tuple[str, ToolDefinition]:
        """Returns a tool as it is to be made, with its name. Raises: BadRequest: it cannot be had here."""
        name, made = _edited(create, ToolDefinition({}))
        await self._check(made)
        if name is None:
            raise Unprocessable(
                [Fault(("body", "json_schema"), "Field required for this source_type", "missing")]
            )
        return name, made

    async def _check(self, made: ToolDefinition) -> None:
        if (why := await self._api.runs.foreign.refusal(made)) is not None:
            raise BadRequest(why, param="source_type")

    async def approve(self, asked: Asked) -> Any:
        name, needed = asked.path["tool_name"], asked.body.is_needed

        def edit(definition: AgentDefinition) -> AgentDefinition:
            rule = {"tool_name": name, "type": "requires_approval"}
            others = tuple(
                each
                for each in definition.rules
                if (each.get("tool_name"), each.get("type")) != tuple(rule.values())
            )
            return replace(definition, rules=(*others, rule) if needed else others)

        uid = asked.uid("agent", "agent_id")
        definition = self._named(await self._api.view(asked), name).definition
        if not needed and definition is not None and ToolDefinition.of(definition.body).needs_approval:
            raise BadRequest(
                f"{name} needs approval for every agent (`default_requires_approval`): change the tool.",
                param="requires_approval",
            )
        return await self._api.shown(
            await self._api.registry.change(asked.project, uid, AgentEdit(edit=edit))
        )

    async def run(self, asked: Asked) -> Any:
        view, name = await self._api.view(asked), asked.path["tool_name"]
        definition = self._named(view, name).definition
        if definition is None:
            raise BadRequest(
                f"{name} is the gateway's own: the model calls it. Blocks and passages have routes.",
                param="tool_name",
            )
        arguments, shown = given_or_none(asked.body.args) or {}, await self._api.shown(view)
        state = {"id": shown["id"], "name": shown["name"], "blocks": shown["blocks"]}
        call = ForeignCall(name, arguments, "", shown["id"], "", ids.new_uid(), state, asked.project)
        answer = await self._api.called(ToolDefinition.of(definition.body), call)
        if answer.blocks:
            blocks = [entry.block for entry in view.blocks]
            answer = await write_blocks(
                self._api.store, answer, blocks, at=self._api.now(), origin=f"tool:{name}"
            )
        return execution_json(answer.status, answer.content, answer.stdout, answer.stderr)

    def _named(self, view: AgentView, name: str) -> ToolView:
        for tool in view.tools:
            if tool.name == name:
                return tool
        raise UnknownId(f"The agent has no tool {name!r}.")

    async def of_agent(self, asked: Asked) -> Any:
        view = await self._api.view(asked)
        return cut([show_tool(tool) for tool in view.tools], asked.query)

    async def attach(self, asked: Asked) -> Any:
        uids = asked.uid("agent", "agent_id"), asked.uid("tool", "tool_id")
        return await self._api.shown(await self._api.registry.attach_tool(asked.project, *uids))

    async def detach(self, asked: Asked) -> Any:
        uids = asked.uid("agent", "agent_id"), asked.uid("tool", "tool_id")
        return await self._api.shown(await self._api.registry.detach_tool(asked.project, *uids))

    async def _wanted(self, project: str, query: ToolsQuery) -> AsyncIterator[ToolView]:
        """Yields the tools that a query asks for, from its cursor on."""
        names = set(given_or_none(query.names) or ())
        uids = {uid_in("tool", each) for each in given_or_none(query.tool_ids) or ()}
        types, without = given_or_none(query.tool_types), given_or_none(query.exclude_tool_types) or ()
        after = uid_or_none("tool", query.after)
        while True:
            try:
                page = await self._tools.list(
                    project,
                    after=after,
                    before=uid_or_none("tool", query.before),
                    limit=_PAGE,
                    newest_first=query.newest_first(),
                    name=given_or_none(query.name),
                    text=given_or_none(query.search),
                )
            except NotFound:
                return
            for tool in page:
                kind = show_tool(tool)["tool_type"] if types or without else None
                if (names and tool.name not in names) or (uids and tool.uid not in uids):
                    continue
                if (types and kind not in types) or kind in without:
                    continue
                if query.return_only_letta_tools is True and tool.definition is not None:
                    continue
                yield tool
            if len(page) < _PAGE:
                return
            after = page[-1].uid


def _edited(update: ToolSource, before: ToolDefinition) -> tuple[str | None, ToolDefinition]:
    """Returns a tool after an update; what is not said of its schema is read off its source. Raises: BadRequest."""
    name, made = tool_of(update, before)
    sent = given(update)
    if made.source_type != "python":
        return name, made
    if sent.get("source_code") and not sent.get("json_schema"):
        schema = schema_of(made.source, sent.get("args_json_schema"))
        if made.description:
            schema["description"] = made.description
        name, made = str(schema["name"]), replace(made, schema=schema)
    elif sent.get("json_schema") and (function := function_name(made.source)) != name:
        raise BadRequest(
            f"The json_schema names the function {name!r}, but the source's last one, which is the tool, is "
            f"{function!r}.",
            param="json_schema.name",
        )
    return name, made


def show_tool(tool: ToolView) -> dict[str, Any]:
    """Returns a tool as it is shown."""
    if tool.definition is not None:
        return tool_json(tool.definition)
    offered = definition_of(tool.name)
    return built_in_json(tool.uid, {"name": tool.name} if offered is None else offered["function"])
