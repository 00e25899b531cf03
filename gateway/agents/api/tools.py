"""Tools: the gateway's own and those that were made over REST, and which an agent has."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import orjson
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._paging import OLDEST_FIRST, page_items
from gateway.agents.api._query import ApprovalQuery, Fragment, PageQuery, ToolsQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, uid_in
from gateway.agents.api.dependencies import AgentsApi, sent_or_none, uid_or_none
from gateway.agents.core.kinds import FILE_TOOLS, MULTI_AGENT_TOOLS
from gateway.agents.registry.registry import AgentEdit, AgentView
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.tools.signature import function_name, schema_of
from gateway.agents.tools.written_blocks import write_blocks
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.shown_values import iso_time, lines_of
from gateway.agents.wire.struct_fields import MAX_PARTS, Body, Entry, Maybe, NoEffect, refused, sent_fields
from gateway.checked import Fault
from gateway.core import ids
from gateway.core.definition import MAX_SCHEMA_BYTES, AgentDefinition, ToolDefinition
from gateway.core.memory.builtin import definition_of
from gateway.errors import BadRequest, UnknownId
from gateway.run.tools.toolbox import ToolAnswer
from storage.records import Definition


class _Rule(Entry, kw_only=True):
    tool_name: str
    prompt_template: NoEffect[str] = UNSET


class RunFirstBody(_Rule, tag_field="type", tag="run_first", kw_only=True):
    args: Maybe[dict[str, Any]] = UNSET


class ChildArguments(Entry):
    name: str
    args: Maybe[dict[str, Any]] = UNSET


class ConstrainChildrenBody(_Rule, tag_field="type", tag="constrain_child_tools", kw_only=True):
    children: Annotated[list[str], MAX_PARTS]
    child_arg_nodes: Maybe[list[ChildArguments]] = UNSET


class ConditionalBody(_Rule, tag_field="type", tag="conditional", kw_only=True):
    child_output_mapping: dict[str, str]
    default_child: Maybe[str] = UNSET
    require_output_mapping: bool | UnsetType = UNSET


class ParentLastBody(_Rule, tag_field="type", tag="parent_last_tool", kw_only=True):
    children: Annotated[list[str], MAX_PARTS]


class MaxCountBody(_Rule, tag_field="type", tag="max_count_per_step", kw_only=True):
    max_count_limit: Annotated[int, Meta(ge=0)]


class ContinueLoopBody(_Rule, tag_field="type", tag="continue_loop", kw_only=True): ...


class ExitLoopBody(_Rule, tag_field="type", tag="exit_loop", kw_only=True): ...


class RequiredBeforeExitBody(_Rule, tag_field="type", tag="required_before_exit", kw_only=True): ...


class RequiresApprovalBody(_Rule, tag_field="type", tag="requires_approval", kw_only=True): ...


ToolRuleBody = (
    RunFirstBody
    | ConstrainChildrenBody
    | ConditionalBody
    | ParentLastBody
    | MaxCountBody
    | ContinueLoopBody
    | ExitLoopBody
    | RequiredBeforeExitBody
    | RequiresApprovalBody
)


# What every provider takes as a name (platform.openai.com/docs/guides/function-calling).
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REQUIREMENTS = refused(
    "The sandbox has Python's standard library alone; nothing is installed while it runs."
)

_NO_VARIABLES = refused("The sandbox has no variables; what a tool is to know is among its arguments.")


class ToolSource(Body):
    """The source of a tool, and its schema."""

    source_code: Maybe[str] = UNSET
    source_type: Maybe[Literal["python", "typescript", "webhook", "json"]] = UNSET
    json_schema: Maybe[dict[str, Any]] = UNSET
    args_json_schema: Maybe[dict[str, Any]] = UNSET
    name: Maybe[str] = UNSET
    pip_requirements: Annotated[list[dict[str, Any]] | None, _REQUIREMENTS] | UnsetType = UNSET
    npm_requirements: Annotated[list[dict[str, Any]] | None, _REQUIREMENTS] | UnsetType = UNSET


class UpdateTool(ToolSource):
    """A change of a tool; what is left out or null stays. A changed schema may give it another name."""

    description: Maybe[str] = UNSET
    tags: Maybe[Annotated[list[str], MAX_PARTS]] = UNSET
    return_char_limit: Maybe[Annotated[int, Meta(ge=1, le=1_000_000)]] = UNSET
    default_requires_approval: Maybe[bool] = UNSET
    enable_parallel_execution: Maybe[bool] = UNSET
    metadata_: Maybe[dict[str, Any]] = UNSET


class SearchTools(Body):
    """A search of tools by words of their names, descriptions and tags."""

    query: Maybe[Fragment] = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50
    search_mode: Literal["vector", "fts", "hybrid"] = "hybrid"
    tags: Maybe[Annotated[list[str], MAX_PARTS]] = UNSET
    tool_types: Maybe[Annotated[list[str], MAX_PARTS]] = UNSET


class ManualCall(Body):
    """The arguments of a call made by hand."""

    args: Maybe[dict[str, Any]] = UNSET


class ApprovalBody(Body):
    """Returns whether a person must approve. The TypeScript client (1.12) sends the field by its parameter's name."""

    requires_approval: bool | UnsetType = UNSET
    body_requires_approval: bool | UnsetType = UNSET

    @property
    def is_needed(self) -> bool:
        """Raises: Unprocessable: it is missing."""
        for result in (self.requires_approval, self.body_requires_approval):
            if isinstance(result, bool):
                return result
        raise Unprocessable([Fault(("body", "requires_approval"), "Field required", "missing")])


class CreateTool(UpdateTool):
    """A new tool. Its name is that of its schema, or of the last function of its source."""

    source_code: str


class TriedTool(ToolSource, kw_only=True):
    """A source that is run once, with these arguments, and not stored."""

    source_code: str
    args: dict[str, Any]
    env_vars: Annotated[dict[str, str] | None, _NO_VARIABLES] | UnsetType = UNSET


# A field of a request -> that of a definition. An upsert retains those that it does not name.
_RETAINED = {
    "tags": "tags",
    "return_char_limit": "result_chars",
    "default_requires_approval": "needs_approval",
    "enable_parallel_execution": "is_parallel",
    "metadata_": "metadata",
}
_FIELDS = {
    **_RETAINED,
    "source_code": "source",
    "source_type": "source_type",
    "description": "description",
}
# The fields of a tool that its MCP server sets, and that no caller may change.
_SET_BY_SERVER = frozenset({"source_code", "source_type", "json_schema", "args_json_schema"})


def with_tool_update(definition: ToolDefinition, update: ToolSource) -> ToolDefinition:
    """Returns a tool's definition after an update. Raises: Unprocessable, BadRequest."""
    sent = {name: value for name, value in sent_fields(update).items() if value is not None}
    if definition.source_type == "mcp" and _SET_BY_SERVER & sent.keys():
        raise BadRequest("The MCP server defines this tool: refresh the server.", param="source_code")
    values: dict[str, Any] = {name: sent[field] for field, name in _FIELDS.items() if field in sent}
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    if "json_schema" in sent:
        values["schema"] = _function_schema(sent["json_schema"])
    elif "args_json_schema" in sent:
        _check_parameters(sent["args_json_schema"], ("body", "args_json_schema"))
        values["schema"] = {**definition.schema, "parameters": sent["args_json_schema"]}
    updated = replace(definition, **values)
    if "description" in sent and updated.schema:
        return replace(updated, schema={**updated.schema, "description": updated.description or ""})
    return updated


def _with_source(definition: ToolDefinition, update: ToolSource) -> ToolDefinition:
    """Returns a tool after an update; missing parts of its schema are read from its source. Raises: BadRequest."""
    updated, sent = with_tool_update(definition, update), sent_fields(update)
    if updated.source_type != "python":
        return updated
    if sent.get("source_code") and not sent.get("json_schema"):
        schema = schema_of(updated.source, sent.get("args_json_schema"))
        if updated.description:
            schema["description"] = updated.description
        return replace(updated, schema=schema)
    name = _name_of(updated)
    if sent.get("json_schema") and (function := function_name(updated.source)) != name:
        raise BadRequest(
            f"The json_schema names the function {name!r}, but the source's last one, which is the tool, is "
            f"{function!r}.",
            param="json_schema.name",
        )
    return updated


def _name_of(definition: ToolDefinition) -> str | None:
    return definition.schema.get("name")


def upserted(create: CreateTool, new: ToolDefinition, stored: ToolDefinition) -> ToolDefinition:
    """Returns a tool that is made under a name which another one has.

    new: as if none had.
    stored: the other one.
    """
    if stored.source_type == "mcp":
        return new
    sent = {name for name, value in sent_fields(create).items() if value is not None}
    return replace(
        new, **{name: getattr(stored, name) for field, name in _RETAINED.items() if field not in sent}
    )


def _function_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a function's schema as a model is shown it. Raises: Unprocessable."""
    inner = schema.get("function")
    # Some programs pass the entry of a request's `tools`, with the function in it.
    if isinstance(inner, dict) and "name" not in schema:
        schema = inner
    name, parameters = schema.get("name"), schema.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "Expected 1 to 64 letters, digits, '_' or '-'"
        raise Unprocessable([Fault(("body", "json_schema", "name"), message, "value_error", name)])
    if parameters is not None:
        _check_parameters(parameters, ("body", "json_schema", "parameters"))
    return {
        "name": name,
        "description": schema.get("description") or "",
        "parameters": parameters or {"type": "object", "properties": {}},
        **({"strict": True} if schema.get("strict") is True else {}),
    }


def _check_parameters(parameters: Any, at: tuple[str | int, ...]) -> None:
    """Checks the parts of a schema to which arguments are added. Raises: Unprocessable."""
    if not isinstance(parameters, dict):
        raise Unprocessable([Fault(at, "Expected an object", "type_error")])
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, dict) or not all(
        isinstance(each, dict | bool) for each in properties.values()
    ):
        raise Unprocessable([Fault((*at, "properties"), "Expected an object of schemas", "type_error")])
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise Unprocessable([Fault((*at, "required"), "Expected a list of names", "type_error")])
    if (size := len(orjson.dumps(parameters))) > MAX_SCHEMA_BYTES:
        message = f"A schema has at most {MAX_SCHEMA_BYTES:,} bytes; this one has {size:,}"
        raise Unprocessable([Fault(at, message, "value_error")])


def _defined_tool_json(row: Definition) -> dict[str, Any]:
    """Returns a tool that was made over REST."""
    tool = ToolDefinition.of(row.body)
    is_mcp = tool.source_type == "mcp"
    return {
        **_tool_fields(row.uid, row.name, tool.schema, "external_mcp" if is_mcp else "custom"),
        "description": tool.description or tool.schema.get("description") or None,
        "source_type": tool.source_type,
        "source_code": None if is_mcp else tool.source or None,
        "tags": list(tool.tags),
        "return_char_limit": tool.result_chars,
        "default_requires_approval": tool.needs_approval,
        "enable_parallel_execution": tool.is_parallel,
        "metadata_": tool.metadata,
        "created_at": iso_time(row.created),
        "updated_at": iso_time(row.updated),
    }


def _built_in_tool_json(uid: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool of the gateway's own. uid: a constant."""
    return _tool_fields(uid, schema["name"], schema, _TYPES.get(schema["name"], "letta_core"))


_TYPES = {
    **dict.fromkeys(("core_memory_append", "core_memory_replace", "memory"), "letta_memory_core"),
    **dict.fromkeys(
        ("memory_insert", "memory_replace", "memory_rethink", "memory_apply_patch", "memory_finish_edits"),
        "letta_sleeptime_core",
    ),
    **dict.fromkeys(MULTI_AGENT_TOOLS, "letta_multi_agent_core"),
    **dict.fromkeys(FILE_TOOLS, "letta_files_core"),
}


def _tool_fields(uid: str, name: str, schema: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": ids.id_of("tool", uid),
        "name": name,
        "tool_type": kind,
        "description": schema.get("description") or None,
        "source_type": "python",
        "source_code": None,
        "json_schema": schema,
        "args_json_schema": schema.get("parameters"),
        "tags": [],
        "return_char_limit": 50_000,
        "pip_requirements": None,
        "npm_requirements": None,
        "default_requires_approval": False,
        "enable_parallel_execution": False,
        "metadata_": {},
        "project_id": None,
        "created_by_id": None,
        "last_updated_by_id": None,
    }


def tried_json(name: str, answer: ToolAnswer, *, at: float) -> dict[str, Any]:
    """Returns the result of a source that was tried. There is no message of it, nor a call: as on Letta's server."""
    result = {
        "tool_return": answer.content,
        "status": answer.status,
        "tool_call_id": "null",
        "stdout": lines_of(answer.stdout),
        "stderr": lines_of(answer.stderr),
    }
    return {
        "id": "null",
        "message_type": "tool_return_message",
        "date": iso_time(at),
        "name": name,
        **result,
        "tool_returns": [{"type": "tool", **result}],
    }


def execution_json(answer: ToolAnswer) -> dict[str, Any]:
    """Returns the result of a call made by hand."""
    return {
        "status": answer.status,
        "func_return": answer.content,
        "stdout": lines_of(answer.stdout),
        "stderr": lines_of(answer.stderr),
        "agent_state": None,
        "sandbox_config_fingerprint": None,
    }


class ToolRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._tools = api.registry.tools

    def routes(self) -> list[AgentsRoute]:
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
            AgentsRoute(
                "POST", f"{own}/{{tool_name}}/run", self.run, "Call a tool by hand.", body=ManualCall
            ),
        ]

    async def index(self, request: ApiRequest) -> Any:
        query: ToolsQuery = request.query
        found = []
        async for tool in self._select(request.project, query):
            found.append(tool_json(tool))
            if len(found) == query.size():
                break
        return found

    async def count(self, request: ApiRequest) -> Any:
        return len([tool async for tool in self._select(request.project, request.query)])

    async def base(self, request: ApiRequest) -> Any:
        own = ToolsQuery(return_only_letta_tools=True, order="asc")
        return [tool_json(tool) async for tool in self._select(request.project, own)]

    async def retrieve(self, request: ApiRequest) -> Any:
        return tool_json(await self._tools.get(request.project, request.uid("tool", "tool_id")))

    async def put(self, request: ApiRequest) -> Any:
        """Makes a tool, or changes the one of its name: on Letta's server a program makes its tools at each start."""
        create: CreateTool = request.body
        name, new = await self._new_tool(create)

        def merge(stored: ToolDefinition) -> ToolDefinition:
            return upserted(create, new, stored)

        return tool_json(await self._tools.put(request.project, name, new, merge))

    async def update(self, request: ApiRequest) -> Any:
        uid, update = request.uid("tool", "tool_id"), request.body

        def edit(definition: ToolDefinition) -> tuple[str | None, ToolDefinition]:
            updated = _with_source(definition, update)
            return _name_of(updated), updated

        found = (await self._tools.get(request.project, uid)).definition
        if found is not None:
            before = ToolDefinition.of(found.body)
            after = _with_source(before, update)
            if (after.source_type, after.source) != (before.source_type, before.source):
                await self._check_runnable(after)
        return tool_json(await self._tools.change(request.project, uid, edit))

    async def delete(self, request: ApiRequest) -> Any:
        await self._tools.delete(request.project, request.uid("tool", "tool_id"))
        return {"message": "The tool is deleted."}

    async def search(self, request: ApiRequest) -> Any:
        search: SearchTools = request.body
        words = set((sent_or_none(search.query) or "").lower().split())
        types, tags = sent_or_none(search.tool_types), set(sent_or_none(search.tags) or ())
        scored = []
        async for tool in self._select(request.project, ToolsQuery()):
            shown = tool_json(tool)
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

    async def try_out(self, request: ApiRequest) -> Any:
        tried: TriedTool = request.body
        name, tool = await self._new_tool(tried)
        answer = await self._api.call_by_hand(request, name, tool)
        return tried_json(name, answer, at=self._api.now())

    async def _new_tool(self, create: ToolSource) -> tuple[str, ToolDefinition]:
        """Returns the name and definition of a new tool. Raises: BadRequest: it cannot be run here."""
        tool = _with_source(ToolDefinition({}), create)
        await self._check_runnable(tool)
        name = _name_of(tool)
        if name is None:
            raise Unprocessable(
                [Fault(("body", "json_schema"), "Field required for this source_type", "missing")]
            )
        return name, tool

    async def _check_runnable(self, tool: ToolDefinition) -> None:
        if (why := await self._api.runs.foreign.refusal(tool)) is not None:
            raise BadRequest(why, param="source_type")

    async def approve(self, request: ApiRequest) -> Any:
        name, needed = request.path["tool_name"], request.body.is_needed

        def edit(definition: AgentDefinition) -> AgentDefinition:
            rule = {"tool_name": name, "type": "requires_approval"}
            others = tuple(
                each
                for each in definition.rules
                if (each.get("tool_name"), each.get("type")) != tuple(rule.values())
            )
            return replace(definition, rules=(*others, rule) if needed else others)

        uid = request.uid("agent", "agent_id")
        definition = self._tool_named(await self._api.agent_view(request), name).definition
        if not needed and definition is not None and ToolDefinition.of(definition.body).needs_approval:
            raise BadRequest(
                f"{name} needs approval for every agent (`default_requires_approval`): change the tool.",
                param="requires_approval",
            )
        return await self._api.view_json(
            await self._api.registry.change(request.project, uid, AgentEdit(edit=edit))
        )

    async def run(self, request: ApiRequest) -> Any:
        view, name = await self._api.agent_view(request), request.path["tool_name"]
        definition = self._tool_named(view, name).definition
        if definition is None:
            raise BadRequest(
                f"{name} is the gateway's own: the model calls it. Blocks and passages have routes.",
                param="tool_name",
            )
        answer = await self._api.call_by_hand(request, name, ToolDefinition.of(definition.body), view)
        if answer.changed_blocks:
            answer = await write_blocks(self._api.store, answer, at=self._api.now(), origin=f"tool:{name}")
        return execution_json(answer)

    def _tool_named(self, view: AgentView, name: str) -> ToolView:
        for tool in view.tools:
            if tool.name == name:
                return tool
        raise UnknownId(f"The agent has no tool {name!r}.")

    async def of_agent(self, request: ApiRequest) -> Any:
        view = await self._api.agent_view(request)
        return page_items([tool_json(tool) for tool in view.tools], request.query)

    async def attach(self, request: ApiRequest) -> Any:
        uids = request.uid("agent", "agent_id"), request.uid("tool", "tool_id")
        return await self._api.view_json(await self._api.registry.attach_tool(request.project, *uids))

    async def detach(self, request: ApiRequest) -> Any:
        uids = request.uid("agent", "agent_id"), request.uid("tool", "tool_id")
        return await self._api.view_json(await self._api.registry.detach_tool(request.project, *uids))

    async def _select(self, project: str, query: ToolsQuery) -> AsyncIterator[ToolView]:
        """Yields the tools that a query asks for, from its cursor on."""
        names = set(sent_or_none(query.names) or ())
        uids = {uid_in("tool", each) for each in sent_or_none(query.tool_ids) or ()}
        types, without = sent_or_none(query.tool_types), sent_or_none(query.exclude_tool_types) or ()
        found = self._tools.select(
            project,
            after=uid_or_none("tool", query.after),
            before=uid_or_none("tool", query.before),
            newest_first=query.newest_first(),
            name=sent_or_none(query.name),
            text=sent_or_none(query.search),
        )
        async for tool in found:
            kind = tool_json(tool)["tool_type"] if types or without else None
            if (names and tool.name not in names) or (uids and tool.uid not in uids):
                continue
            if (types and kind not in types) or kind in without:
                continue
            if query.return_only_letta_tools is True and tool.definition is not None:
                continue
            yield tool


def tool_json(tool: ToolView) -> dict[str, Any]:
    """Returns a tool as it is shown."""
    if tool.definition is not None:
        return _defined_tool_json(tool.definition)
    offered = definition_of(tool.name)
    return _built_in_tool_json(tool.uid, {"name": tool.name} if offered is None else offered["function"])
