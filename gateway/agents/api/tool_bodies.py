"""The bodies of requests about tools, and the definitions made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.tools.signature import TOOL_NAME, make_schema, read_function_name
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import get_sent_fields
from gateway.agents.wire.struct_fields import Body, Maybe, Strings, refused
from gateway.core.definition import MAX_SCHEMA_BYTES, ToolDefinition
from gateway.core.json_object import without_none
from gateway.errors import BadRequest
from gateway.validation import Fault, Path

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
    tags: Maybe[Strings] = UNSET
    return_char_limit: Maybe[Annotated[int, Meta(ge=1, le=1_000_000)]] = UNSET
    default_requires_approval: Maybe[bool] = UNSET
    enable_parallel_execution: Maybe[bool] = UNSET
    metadata_: Maybe[dict[str, Any]] = UNSET


class CreateTool(UpdateTool):
    """A new tool. Its name is that of its schema, or of the last function of its source."""

    source_code: str


class TriedTool(ToolSource, kw_only=True):
    """A source that is run once, with these arguments, and not stored."""

    source_code: str
    args: dict[str, Any]
    env_vars: Annotated[dict[str, str] | None, _NO_VARIABLES] | UnsetType = UNSET


# The fields of a definition by the fields of a request. An upsert retains the fields that it does not name.
_RETAINED_FIELDS = {
    "tags": "tags",
    "return_char_limit": "result_chars",
    "default_requires_approval": "needs_approval",
    "enable_parallel_execution": "is_parallel",
    "metadata_": "metadata",
}
_FIELDS = {
    **_RETAINED_FIELDS,
    "source_code": "source",
    "source_type": "source_type",
    "description": "description",
}
# The fields of a tool that its MCP server sets, and that no caller may change.
_SERVER_FIELDS = frozenset({"source_code", "source_type", "json_schema", "args_json_schema"})


def with_tool_update(
    definition: ToolDefinition, update: ToolSource, path: Path = ("body",)
) -> ToolDefinition:
    """Returns a copy of a tool's definition after an update. The schema is not read from the source.

    path: the path of the update in the request, for errors.

    Raises: Unprocessable, BadRequest.
    """
    fields = without_none(get_sent_fields(update))
    if definition.source_type == "mcp" and (server_fields := sorted(_SERVER_FIELDS & fields.keys())):
        raise BadRequest("The MCP server defines this tool: refresh the server.", param=server_fields[0])
    values: dict[str, Any] = {name: fields[field] for field, name in _FIELDS.items() if field in fields}
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    if "json_schema" in fields:
        values["schema"] = _read_schema(fields["json_schema"], (*path, "json_schema"))
    elif "args_json_schema" in fields:
        _check_parameters(fields["args_json_schema"], (*path, "args_json_schema"))
        values["schema"] = {**definition.schema, "parameters": fields["args_json_schema"]}
    updated = replace(definition, **values)
    if "description" in fields and updated.schema:
        return replace(updated, schema={**updated.schema, "description": updated.description or ""})
    return updated


def with_update_and_schema(definition: ToolDefinition, update: ToolSource) -> ToolDefinition:
    """Returns a copy of a tool's definition after an update, with the schema of a new source unless one was sent.

    Raises: Unprocessable, BadRequest.
    """
    updated, fields = with_tool_update(definition, update), get_sent_fields(update)
    if updated.source_type != "python":
        return updated
    if fields.get("source_code") and not fields.get("json_schema"):
        schema = make_schema(updated.source, fields.get("args_json_schema"))
        if updated.description:
            schema["description"] = updated.description
        return replace(updated, schema=schema)
    name = read_tool_name(updated)
    if fields.get("json_schema") and (function := read_function_name(updated.source)) != name:
        raise BadRequest(
            f"The json_schema names the function {name!r}, but the source's last one, which is the tool, is "
            f"{function!r}.",
            param="json_schema.name",
        )
    return updated


def read_tool_name(definition: ToolDefinition) -> str | None:
    """Returns the name in a tool's schema; None if the tool has no schema."""
    return definition.schema.get("name")


def retain_stored_fields(create: CreateTool, new: ToolDefinition, stored: ToolDefinition) -> ToolDefinition:
    """Returns the definition that replaces a stored tool of the same name, with the stored fields that were not sent.

    new: the definition that the request makes without regard to the stored tool.
    stored: the definition of the stored tool.
    """
    if stored.source_type == "mcp":
        return new
    sent_names = without_none(get_sent_fields(create)).keys()
    retained_names = [name for field, name in _RETAINED_FIELDS.items() if field not in sent_names]
    return replace(new, **{name: getattr(stored, name) for name in retained_names})


def _read_schema(schema: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a function's schema in the form that models get.

    path: the path of the schema in the request, for errors.

    Raises: Unprocessable.
    """
    inner = schema.get("function")
    # Some programs pass the entry of a request's `tools`, with the function in it.
    if isinstance(inner, dict) and "name" not in schema:
        schema = inner
    name, parameters = schema.get("name"), schema.get("parameters")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        message = "Expected 1 to 64 letters, digits, '_' or '-'"
        raise Unprocessable(Fault((*path, "name"), message, "value_error", name))
    if parameters is not None:
        _check_parameters(parameters, (*path, "parameters"))
    return {
        "name": name,
        "description": schema.get("description") or "",
        "parameters": parameters or {"type": "object", "properties": {}},
        **({"strict": True} if schema.get("strict") is True else {}),
    }


def _check_parameters(parameters: Any, path: Path) -> None:
    """Checks the parts of a schema to which arguments are added. Raises: Unprocessable."""
    if not isinstance(parameters, dict) or parameters.get("type") not in (None, "object"):
        raise Unprocessable(Fault(path, "Expected the schema of an object", "type_error"))
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, dict) or not all(
        isinstance(property_, dict | bool) for property_ in properties.values()
    ):
        raise Unprocessable(Fault((*path, "properties"), "Expected an object of schemas", "type_error"))
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise Unprocessable(Fault((*path, "required"), "Expected a list of names", "type_error"))
    if (size := len(orjson.dumps(parameters))) > MAX_SCHEMA_BYTES:
        message = f"A schema has at most {MAX_SCHEMA_BYTES:,} bytes; this one has {size:,}"
        raise Unprocessable(Fault(path, message, "value_error"))
