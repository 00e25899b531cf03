"""The items of calls and of their results: rendered from the calls of a chat completion, and read as such calls.

The form of a tool's calls (`CallForm`) is decided where the tools of a request are read (`tools`).
(platform.openai.com/docs/api-reference/responses/create, `input`)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from adapters.types import Json
from gateway.core.conversation.portable_message import INPUT_ARGUMENT, as_function_call
from gateway.core.lenient import decode_list, decode_object
from gateway.dialects.fields import (
    FieldPath,
    make_missing_field_error,
    make_wrong_type_error,
    read_optional,
    read_required_text,
)
from gateway.dialects.responses.call_form import CallForm, UpstreamTools, make_flat_name

# The keys with the arguments of built-in tools, by the types of their calls. In calls of other types it is `action`.
_ARGUMENTS_KEYS = {"tool_search_call": "arguments", "apply_patch_call": "operation"}


def render_call(form: CallForm, arguments: str, *, text: str | None = None) -> Json:
    """Returns the members of the item for a call of this form.

    arguments: the arguments of the call as they are written.
    text: the input of a custom tool, if it was read before; None: the input is read from the arguments.
    """
    namespace_field: Json = {"namespace": form.namespace} if form.namespace is not None else {}
    if form.item_type == "function_call":
        return {"type": form.item_type, "name": form.name, "arguments": arguments, **namespace_field}
    value = decode_object(arguments)
    if form.item_type == "custom_tool_call":
        argument = value.get(INPUT_ARGUMENT)
        whole_input = text or (argument if isinstance(argument, str) else arguments)
        return {"type": form.item_type, "name": form.name, "input": whole_input, **namespace_field}
    if form.item_type == "tool_search_call":
        return {"type": form.item_type, "execution": "client", "arguments": value}
    if form.item_type == "local_shell_call":
        return {"type": form.item_type, "action": {"type": "exec", "command": [], "env": {}, **value}}
    if form.item_type == "shell_call":
        action = {"commands": [], "timeout_ms": None, "max_output_length": None, **value}
        return {"type": form.item_type, "action": action}
    return {"type": form.item_type, "operation": value}


def read_call(item: Json, path: FieldPath, upstream_tools: UpstreamTools) -> Json:
    """Returns an item with a call as a call of a chat completion. Raises: BadRequest."""
    call_id = _read_call_id(item, path)
    if item["type"] == "function_call":
        name = _read_flat_name(item, path)
        return _make_function_call(call_id, name, read_required_text(item, "arguments", path))
    if item["type"] == "custom_tool_call":
        custom = {"name": _read_flat_name(item, path), "input": read_required_text(item, "input", path)}
        call: Json = {"id": call_id, "type": "custom", "custom": custom}
        return call if upstream_tools.takes_custom_tools else as_function_call(call)
    return _make_function_call(
        call_id, item["type"].removesuffix("_call"), _read_built_in_arguments(item, path)
    )


class ToolOutput(NamedTuple):
    """The output of a tool, as an item has it."""

    # The id of the call.
    call_id: str
    # The output: a text, or a list of parts.
    output: Any


def read_result(item: Json, path: FieldPath) -> ToolOutput:
    """Returns the output of a tool. Raises: BadRequest."""
    call_id = _read_call_id(item, path)
    if item["type"] == "tool_search_output":
        return ToolOutput(call_id, orjson.dumps(item.get("tools") or []).decode())
    output = item.get("output")
    if item["type"] == "apply_patch_call_output":
        result = {key: item[key] for key in ("status", "output") if item.get(key) is not None}
        return ToolOutput(call_id, orjson.dumps(result).decode())
    if output is None:
        raise make_missing_field_error(f"{path}.output")
    may_have_parts = item["type"] in ("function_call_output", "custom_tool_call_output")
    if not may_have_parts and not isinstance(output, str):
        output = orjson.dumps(output).decode()
    return ToolOutput(call_id, output)


def render_result(item_type: str, content: str | list[Json]) -> Json:
    """Returns the members of an item with the result of a call.

    item_type: the type of the item.
    content: the result in the form of a chat completion.
    """
    if isinstance(content, list):
        return {"type": item_type, "status": "completed", "output": content}
    if item_type == "tool_search_output":
        return {
            "type": item_type,
            "status": "completed",
            "execution": "client",
            "tools": decode_list(content),
        }
    if item_type == "apply_patch_call_output":
        return {"type": item_type, "status": "completed", **decode_object(content)}
    output = (decode_list(content) if item_type == "shell_call_output" else None) or content
    return {"type": item_type, "status": "completed", "output": output}


def _make_function_call(call_id: str, name: str, arguments: str) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_flat_name(item: Json, path: FieldPath) -> str:
    namespace = read_optional(item, "namespace", str, path)
    return make_flat_name(namespace, read_required_text(item, "name", path))


def _read_built_in_arguments(item: Json, path: FieldPath) -> str:
    """Returns the arguments of a call of a tool that the Responses API has built in. Raises: BadRequest."""
    item_type: str = item["type"]
    key = _ARGUMENTS_KEYS.get(item_type, "action")
    value = item.get(key)
    if value is None:
        raise make_missing_field_error(f"{path}.{key}")
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise make_wrong_type_error(f"{path}.{key}", "an object", value)
    # The type of a local shell's action has one value only.
    keys_left_out = ("type",) if item_type == "local_shell_call" else ()
    arguments = {
        name: argument
        for name, argument in value.items()
        if argument is not None and name not in keys_left_out
    }
    return orjson.dumps(arguments).decode()


def _read_call_id(item: Json, path: FieldPath) -> str:
    # `local_shell_call_output` has the id of its call as its own id.
    key = "call_id" if item.get("call_id") is not None or item.get("id") is None else "id"
    return read_required_text(item, key, path)
