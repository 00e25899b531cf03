"""Reads the tools of an agent file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.agent_file.file_structs import FILE_FIELD, FileTool
from gateway.agents.api.tool_bodies import UpdateTool, with_tool_update
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import convert
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import BUILT_IN_TOOLS
from gateway.core.turn.asides import HEARTBEAT
from gateway.validation import Fault, Path

# The fields of a tool in a file that have the same meaning in a request that changes a tool.
_FIELDS = {*UpdateTool.__struct_fields__} - {"args_json_schema", "pip_requirements", "npm_requirements"}


class ToolsOfFile(Struct, frozen=True):
    """The tools of a file."""

    # The tools that the file defines, by name.
    definitions: Mapping[str, ToolDefinition]
    # The names of all tools by their ids in the file; None: the gateway has no such tool.
    names: Mapping[str, str | None]
    # The names of the parts that are left out.
    left_out: Sequence[str]


def read_tools(tools: Sequence[dict[str, Any]], *, is_own: bool) -> ToolsOfFile:
    """Returns the tools of a file. is_own: True if Mnemogate wrote the file. Raises: Unprocessable."""
    definitions: dict[str, ToolDefinition] = {}
    names: dict[str, str | None] = {}
    left_out: list[str] = []
    for index, raw in enumerate(tools):
        path = (*FILE_FIELD, "tools", index)
        tool = convert(raw, FileTool, path)
        # The file has only the names of other tools, which are the gateway's or of the project's MCP servers.
        is_file_tool = tool.tool_type != "external_mcp" and tool.name not in BUILT_IN_TOOLS
        if is_file_tool and tool.tool_type != "custom":
            names[tool.id] = None
            left_out.append(f"tools.{tool.name}")
            continue
        names[tool.id] = tool.name
        if is_file_tool:
            definitions[tool.name] = _make_definition(tool, raw, path, is_own=is_own)
            if raw.get("pip_requirements") or raw.get("npm_requirements"):
                left_out.append(f"tools.{tool.name}.requirements")
    return ToolsOfFile(definitions, names, left_out)


def _make_definition(tool: FileTool, raw: Mapping[str, Any], path: Path, *, is_own: bool) -> ToolDefinition:
    """Returns the definition of a tool. raw: the tool as JSON. Raises: Unprocessable."""
    fields = {name: raw[name] for name in sorted(_FIELDS) if raw.get(name) is not None}
    schema = fields.get("json_schema")
    if not isinstance(schema, dict) or schema.get("name") != tool.name:
        raise Unprocessable(Fault((*path, "json_schema", "name"), "Expected a schema with the tool's name"))
    if fields.get("source_type") == "json" and fields.get("source_code") and not is_own:
        # Letta's server runs all that is not TypeScript as Python.
        fields["source_type"] = "python"
    definition = with_tool_update(ToolDefinition({}), convert(fields, UpdateTool, path), path)
    return definition if is_own else replace(definition, schema=_without_heartbeat(definition.schema))


def _without_heartbeat(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a schema without the argument that Letta's older agents added to each tool.

    The gateway passes that argument to no tool.
    """
    parameters = schema["parameters"]
    properties = dict(parameters.get("properties", {}))
    if properties.pop(HEARTBEAT, None) is None:
        return dict(schema)
    required = [name for name in parameters.get("required", ()) if name != HEARTBEAT]
    return {**schema, "parameters": {**parameters, "properties": properties, "required": required}}
