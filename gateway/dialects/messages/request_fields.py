"""The fields of a request to the Messages API besides its messages, as fields of a chat completion.

Each function adds the fields of one subject, or refuses them by name.
(platform.claude.com/docs/en/api/messages)
"""

from __future__ import annotations

from typing import Any, Final

from adapters.types import Json
from gateway.dialects.fields import QUOTED_CHARS
from gateway.dialects.messages.content import read_effort_of_turn
from gateway.dialects.messages.errors import make_field_error, make_untranslatable_error
from gateway.dialects.messages.field_checker import FieldChecker

# The fields of each object that are read.
_OUTPUT_CONFIG_FIELDS: Final = frozenset(("effort", "format"))
_FORMAT_FIELDS: Final = frozenset(("type", "schema"))
_MANAGEMENT_FIELDS: Final = frozenset(("edits",))
_TOOL_FIELDS: Final = frozenset(("type", "name", "description", "input_schema", "strict"))
_CHOICE_TYPES: Final = {"auto": "auto", "any": "required", "none": "none"}
_CHOICE_FIELDS: Final = frozenset(("type", "name", "disable_parallel_tool_use"))
_THOUGHT_EDIT_PREFIX: Final = "clear_thinking_"


def add_max_tokens(chat_json: Json, json: Json) -> None:
    """Adds the most tokens of the reply. Raises: BadRequest."""
    limit = json.get("max_tokens")
    if limit is None:
        raise make_field_error("max_tokens", "Field required")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise make_field_error("max_tokens", "Input should be a valid integer")
    chat_json["max_tokens"] = limit


def add_sampling(chat_json: Json, json: Json) -> None:
    """Adds the fields that narrow the model's choice of tokens."""
    for key in ("temperature", "top_p"):
        if json.get(key) is not None:
            chat_json[key] = json[key]


def add_stops(chat_json: Json, json: Json) -> None:
    """Adds the texts at which the reply ends. Raises: BadRequest."""
    stops = json.get("stop_sequences")
    if stops is not None:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise make_field_error("stop_sequences", "Input should be a valid list of strings")
        if stops:
            chat_json["stop"] = stops


def add_tools(chat_json: Json, json: Json, checker: FieldChecker) -> None:
    """Adds the client's tools. Raises: BadRequest."""
    tools = json.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise make_field_error("tools", "Input should be a valid list")
    functions = [
        function
        for index, tool in enumerate(tools or ())
        if (function := _translate_tool(tool, f"tools.{index}", checker)) is not None
    ]
    if functions:
        chat_json["tools"] = functions


def add_tool_choice(chat_json: Json, json: Json, checker: FieldChecker) -> None:
    """Adds the choice of the tools that the model may call. Raises: BadRequest."""
    choice = json.get("tool_choice")
    if choice is None:
        return
    if not isinstance(choice, dict):
        raise make_field_error("tool_choice", "Input should be a valid dictionary")
    checker.check(choice, _CHOICE_FIELDS, "tool_choice")
    if json.get("tools"):
        chat_json["tool_choice"] = _translate_choice(choice)
        if choice.get("disable_parallel_tool_use") is True:
            chat_json["parallel_tool_calls"] = False
    elif choice.get("type") in ("any", "tool"):
        raise make_field_error("tool_choice", "may only be specified while providing tools")


def add_output_config(chat_json: Json, json: Json, checker: FieldChecker) -> None:
    """Adds the effort and the form of the answer. Raises: BadRequest."""
    config = json.get("output_config") or {}
    if not isinstance(config, dict):
        raise make_field_error("output_config", "Input should be a valid dictionary")
    effort = config.get("effort")
    checker.check(config, _OUTPUT_CONFIG_FIELDS, "output_config")
    if not checker.is_lenient:
        effort = read_effort_of_turn(json["messages"], checker) or effort
    if effort is not None:
        chat_json["reasoning_effort"] = effort
    answer_format = config.get("format")
    if answer_format is None:
        return
    if not isinstance(answer_format, dict) or answer_format.get("type") != "json_schema":
        raise make_field_error("output_config.format.type", "Input should be 'json_schema'")
    checker.check(answer_format, _FORMAT_FIELDS, "output_config.format")
    schema = {"name": "output", "schema": answer_format.get("schema"), "strict": True}
    chat_json["response_format"] = {"type": "json_schema", "json_schema": schema}


def check_context_management(management: Any, checker: FieldChecker) -> None:
    """Refuses edits of the context that a chat completion cannot make. Raises: BadRequest."""
    if management is None:
        return
    if not isinstance(management, dict):
        raise make_field_error("context_management", "Input should be a valid dictionary")
    checker.check(management, _MANAGEMENT_FIELDS, "context_management")
    edits = management.get("edits") or []
    if not isinstance(edits, list):
        raise make_field_error("context_management.edits", "Input should be a valid list")
    for index, edit in enumerate(edits):
        edit_type = edit.get("type") if isinstance(edit, dict) else None
        if not isinstance(edit_type, str) or not edit_type.startswith(_THOUGHT_EDIT_PREFIX):
            raise make_untranslatable_error(
                f"context_management.edits.{index}.{str(edit_type)[:QUOTED_CHARS]}"
            )


def _translate_choice(choice: Json) -> str | Json:
    """Returns the `tool_choice` of a chat completion. Raises: BadRequest."""
    choice_type = choice.get("type")
    if choice_type == "tool":
        if not isinstance(choice.get("name"), str):
            raise make_field_error("tool_choice.tool.name", "Input should be a valid string")
        return {"type": "function", "function": {"name": choice["name"]}}
    if not isinstance(choice_type, str) or choice_type not in _CHOICE_TYPES:
        raise make_field_error("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")
    return _CHOICE_TYPES[choice_type]


def _translate_tool(tool: Any, path: str, checker: FieldChecker) -> Json | None:
    """Returns the client's tool as a chat completion has it; None: the tool runs at Anthropic, and is left out.

    Raises: BadRequest.
    """
    if not isinstance(tool, dict):
        raise make_field_error(path, "Input should be a valid dictionary")
    if tool.get("type") not in (None, "custom"):
        tool_type = str(tool["type"])[:QUOTED_CHARS]
        if checker.is_lenient:
            checker.left_out[f"tools.{tool_type}"] = None
            return None
        raise make_untranslatable_error(f"{path}.{tool_type}")
    checker.check(tool, _TOOL_FIELDS, path)
    if not checker.is_lenient:
        callers = tool.get("allowed_callers")
        if callers is not None and not (isinstance(callers, list) and "direct" in callers):
            raise make_untranslatable_error(f"{path}.allowed_callers")  # the model itself may not call it
    name = tool.get("name")
    if not isinstance(name, str):
        raise make_field_error(f"{path}.name", "Field required")
    function: Json = {"name": name}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = tool.get("input_schema") or {"type": "object"}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}
