"""Tools, as the agents API takes and shows them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from msgspec import UNSET, Meta, UnsetType

from gateway.core import ids
from gateway.core.definition import MOST_SCHEMA_BYTES, ToolDefinition
from gateway.core.memory.kinds import FILE_TOOLS, MULTI_AGENT_TOOLS
from gateway.dialects.letta.body import Body, Maybe, given, refused
from gateway.dialects.letta.error import Fault, Unprocessable
from gateway.dialects.letta.shown import lines_of, time_of
from gateway.errors import BadRequest
from storage.records import Definition

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
    tags: Maybe[list[str]] = UNSET
    return_char_limit: Maybe[Annotated[int, Meta(ge=1, le=1_000_000)]] = UNSET
    default_requires_approval: Maybe[bool] = UNSET
    enable_parallel_execution: Maybe[bool] = UNSET
    metadata_: Maybe[dict[str, Any]] = UNSET


class SearchTools(Body):
    """A search of tools by words of their names, descriptions and tags."""

    query: Maybe[str] = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50
    search_mode: Literal["vector", "fts", "hybrid"] = "hybrid"
    tags: Maybe[list[str]] = UNSET
    tool_types: Maybe[list[str]] = UNSET


class HandCall(Body):
    """The arguments of a call that somebody makes by hand."""

    args: Maybe[dict[str, Any]] = UNSET


class ApprovalBody(Body):
    """Says whether a person must approve. The TypeScript client (1.12) sends the field by its parameter's name."""

    requires_approval: bool | UnsetType = UNSET
    body_requires_approval: bool | UnsetType = UNSET

    @property
    def is_needed(self) -> bool:
        """Raises: Unprocessable: it is not said."""
        for said in (self.requires_approval, self.body_requires_approval):
            if isinstance(said, bool):
                return said
        raise Unprocessable([Fault(("body", "requires_approval"), "Field required", "missing")])


class CreateTool(UpdateTool):
    """A new tool. Its name is that of its schema, or of the last function of its source."""

    source_code: str


class TriedTool(ToolSource, kw_only=True):
    """A source that is run once, with these arguments, and not kept."""

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
# Of a tool of an MCP server.
_SAID_BY_SERVER = frozenset({"source_code", "source_type", "json_schema", "args_json_schema"})


def tool_of(update: ToolSource, before: ToolDefinition | None = None) -> tuple[str | None, ToolDefinition]:
    """Returns a tool after an update, with its name as far as the schema says it. Raises: Unprocessable."""
    sent = {name: value for name, value in given(update).items() if value is not None}
    if before is not None and before.source_type == "mcp" and _SAID_BY_SERVER & sent.keys():
        raise BadRequest("The MCP server says what this tool is: refresh the server.", param="source_code")
    made = before or ToolDefinition({})
    values: dict[str, Any] = {name: sent[field] for field, name in _FIELDS.items() if field in sent}
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    schema = sent.get("json_schema")
    if schema is not None:
        values["schema"] = _checked(schema)
    elif "args_json_schema" in sent:
        _check_parameters(sent["args_json_schema"], ("body", "args_json_schema"))
        values["schema"] = {**made.schema, "parameters": sent["args_json_schema"]}
    made = replace(made, **values)
    if "description" in sent and made.schema:
        made = replace(made, schema={**made.schema, "description": made.description or ""})
    return made.schema.get("name"), made


def upserted(create: CreateTool, made: ToolDefinition, before: ToolDefinition) -> ToolDefinition:
    """Returns a tool that is made under a name which another one has. made: as if none had. before: the other one."""
    if before.source_type == "mcp":
        return made
    sent = {name for name, value in given(create).items() if value is not None}
    return replace(
        made, **{name: getattr(before, name) for field, name in _RETAINED.items() if field not in sent}
    )


def _checked(schema: dict[str, Any]) -> dict[str, Any]:
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
    if (size := len(orjson.dumps(parameters))) > MOST_SCHEMA_BYTES:
        message = f"A schema has at most {MOST_SCHEMA_BYTES:,} bytes; this one has {size:,}"
        raise Unprocessable([Fault(at, message, "value_error")])


def tool_json(made: Definition) -> dict[str, Any]:
    """Returns a tool that was made over REST."""
    tool = ToolDefinition.of(made.body)
    is_mcp = tool.source_type == "mcp"
    return {
        **_tool(made.uid, made.name, tool.schema, "external_mcp" if is_mcp else "custom"),
        "description": tool.description or tool.schema.get("description") or None,
        "source_type": tool.source_type,
        "source_code": None if is_mcp else tool.source or None,
        "tags": list(tool.tags),
        "return_char_limit": tool.result_chars,
        "default_requires_approval": tool.needs_approval,
        "enable_parallel_execution": tool.is_parallel,
        "metadata_": tool.metadata,
        "created_at": time_of(made.created),
        "updated_at": time_of(made.updated),
    }


def built_in_json(uid: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool of the gateway's own. uid: a constant."""
    return _tool(uid, schema["name"], schema, _TYPES.get(schema["name"], "letta_core"))


_TYPES = {
    **dict.fromkeys(("core_memory_append", "core_memory_replace", "memory"), "letta_memory_core"),
    **dict.fromkeys(
        ("memory_insert", "memory_replace", "memory_rethink", "memory_apply_patch", "memory_finish_edits"),
        "letta_sleeptime_core",
    ),
    **dict.fromkeys(MULTI_AGENT_TOOLS, "letta_multi_agent_core"),
    **dict.fromkeys(FILE_TOOLS, "letta_files_core"),
}


def _tool(uid: str, name: str, schema: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": ids.named("tool", uid),
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


def tried_json(
    name: str, status: str, content: str, stdout: str, stderr: str, *, at: float
) -> dict[str, Any]:
    """Returns the result of a source that was tried. There is no message of it, nor a call: as on Letta's server."""
    said = {
        "tool_return": content,
        "status": status,
        "tool_call_id": "null",
        "stdout": lines_of(stdout),
        "stderr": lines_of(stderr),
    }
    return {
        "id": "null",
        "message_type": "tool_return_message",
        "date": time_of(at),
        "name": name,
        **said,
        "tool_returns": [{"type": "tool", **said}],
    }


def execution_json(status: str, content: str, stdout: str = "", stderr: str = "") -> dict[str, Any]:
    """Returns the result of a call that somebody made by hand."""
    return {
        "status": status,
        "func_return": content,
        "stdout": lines_of(stdout),
        "stderr": lines_of(stderr),
        "agent_state": None,
        "sandbox_config_fingerprint": None,
    }
