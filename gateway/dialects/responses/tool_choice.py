"""The `tool_choice` of a Responses request as members of a chat completion.

(platform.openai.com/docs/api-reference/responses/create, `tool_choice`)
"""

from __future__ import annotations

from typing import Any, Final

from adapters.types import Json
from gateway.dialects.fields import (
    make_missing_field_error,
    make_unknown_value_error,
    make_unsupported_error,
    make_wrong_type_error,
    read_optional,
    read_required_text,
)
from gateway.dialects.responses.call_form import UpstreamTools, make_flat_name
from gateway.dialects.responses.tools import BUILT_IN_TOOLS, TOOL_SEARCH, RequestTools

# Types of tools of which a request has one at most, so `tool_choice` names only the type.
_TYPES_FORCED_BY_TYPE: Final = frozenset((*BUILT_IN_TOOLS, TOOL_SEARCH))


def read_choice(choice: Any, tools: RequestTools, upstream_tools: UpstreamTools) -> Json:
    """Returns the members of a chat completion for a `tool_choice`. Raises: BadRequest."""
    if isinstance(choice, str):
        return {"tool_choice": choice}
    if not isinstance(choice, dict):
        raise make_wrong_type_error("tool_choice", "a string or an object", choice)
    if choice.get("type") != "allowed_tools":
        return {"tool_choice": _translate_named_choice(choice, "tool_choice", upstream_tools)}
    listed_tools = read_optional(choice, "tools", list, "tool_choice") or []
    allowed_tools = [
        _translate_named_choice(tool, f"tool_choice.tools[{index}]", upstream_tools)
        for index, tool in enumerate(listed_tools)
    ]
    mode = choice.get("mode") or "auto"
    if mode not in ("auto", "required"):
        raise make_unknown_value_error("tool_choice.mode", mode, "'auto' and 'required'")
    if upstream_tools.takes_custom_tools:
        return {
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed_tools}}
        }
    names = {tool["function"]["name"] for tool in allowed_tools}
    return {
        "tool_choice": mode,
        "tools": [tool for tool in tools.chat_tools if _read_tool_name(tool) in names],
    }


def _translate_named_choice(choice: Any, path: str, upstream_tools: UpstreamTools) -> Json:
    """Returns the `tool_choice` of a chat completion for the choice of one tool. Raises: BadRequest."""
    if not isinstance(choice, dict):
        raise make_wrong_type_error(path, "an object", choice)
    tool_type = choice.get("type")
    if tool_type is None:
        raise make_missing_field_error(f"{path}.type")
    if isinstance(tool_type, str) and tool_type in _TYPES_FORCED_BY_TYPE:
        return {"type": "function", "function": {"name": tool_type}}
    if tool_type not in ("function", "custom"):
        raise make_unsupported_error(f"{path}.type", tool_type)
    name = make_flat_name(
        read_optional(choice, "namespace", str, path), read_required_text(choice, "name", path)
    )
    upstream_type = tool_type if upstream_tools.takes_custom_tools else "function"
    return {"type": upstream_type, upstream_type: {"name": name}}


def _read_tool_name(tool: Json) -> str:
    return str((tool.get(str(tool.get("type"))) or tool).get("name"))
