"""The fields of a request for a response, each with its check. A check raises the error with OpenAI's wording.

The checks come from the API reference, the types of OpenAI's SDK and the wording of its errors. A case that the
reference does not mention is refused. (platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.doubles.openai_rules import Refusal

Json = dict[str, Any]
# Takes a value and its path in the request. Raises: Refusal.
Check = Callable[[Any, str], None]
INCLUDED: Final = (
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url"),
    *("code_interpreter_call.outputs", "reasoning.encrypted_content", "message.output_text.logprobs"),
)
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
_CHOICES: Final = ("none", "auto", "required")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TYPE_NAMES: Final = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    list: "an array",
    dict: "an object",
}


def wrong_value(param: str, value: Any, supported: tuple[str, ...] = ()) -> Refusal:
    hint = f" Supported values are: {', '.join(map(repr, supported))}." if supported else ""
    return Refusal(f"Invalid value: {value!r}.{hint}", param, "invalid_value")


def missing(param: str) -> Refusal:
    return Refusal(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def unknown(param: str) -> Refusal:
    return Refusal(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def of_type(kind: type) -> Check:
    def check(value: Any, param: str) -> None:
        if type(value) is not kind:
            raise Refusal(
                f"Invalid type for '{param}': expected {_TYPE_NAMES[kind]}, but got {type(value).__name__} instead.",
                param,
                "invalid_type",
            )

    return check


def one_of(*values: str) -> Check:
    def check(value: Any, param: str) -> None:
        text(value, param)
        if value not in values:
            raise wrong_value(param, value, values)

    return check


def number(low: float, high: float | None, *, whole: bool = False) -> Check:
    def check(value: Any, param: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise Refusal(f"Invalid type for '{param}': expected a number.", param, "invalid_type")
        if value < low or (high is not None and value > high):
            raise Refusal(f"Invalid '{param}': {value} is out of range.", param, "decimal_out_of_range")

    return check


def short(max_chars: int) -> Check:
    def check(value: Any, param: str) -> None:
        text(value, param)
        if len(value) > max_chars:
            raise Refusal(
                f"Invalid '{param}': string too long. Expected a string with maximum length {max_chars}.",
                param,
                "string_above_max_length",
            )

    return check


def members(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    checks = {**required, **(optional or {})}

    def check(value: Any, param: str) -> None:
        an_object(value, param)
        for name in required:
            if name not in value:
                raise missing(f"{param}.{name}")
        for name in value:
            if name not in checks:
                raise unknown(f"{param}.{name}")
        for name, check_member in checks.items():
            if value.get(name) is not None:
                check_member(value[name], f"{param}.{name}")

    return check


def each_item(inner: Check) -> Check:
    def check(value: Any, param: str) -> None:
        a_list(value, param)
        for index, item in enumerate(value):
            inner(item, f"{param}[{index}]")

    return check


def by_type(checks: Mapping[str, Check]) -> Check:
    def check(value: Any, param: str) -> None:
        an_object(value, param)
        if "type" not in value:
            raise missing(f"{param}.type")
        text(value["type"], f"{param}.type")
        if value["type"] not in checks:
            raise wrong_value(f"{param}.type", value["type"], tuple(checks))
        checks[value["type"]](value, param)

    return check


def anything(value: Any, param: str) -> None: ...


text, a_flag, an_object, a_list = of_type(str), of_type(bool), of_type(dict), of_type(list)


def _name(value: Any, param: str) -> None:
    text(value, param)
    if not _NAME.fullmatch(value):
        raise Refusal(
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            param,
            "invalid_value",
        )


def _metadata(value: Any, param: str) -> None:
    an_object(value, param)
    if len(value) > 16:
        raise Refusal(f"Invalid '{param}': too many properties.", param, "object_above_max_properties")
    for key, text_value in value.items():
        short(64)(key, param)
        short(512)(text_value, f"{param}.{key}")


def _text_or(other: Check, inner: Check = text) -> Check:
    """Returns the check of a value that may be a text. inner: checks a text. other: checks any other value."""
    return lambda value, param: (inner if isinstance(value, str) else other)(value, param)


def _list_or(inner: Check, other: Check) -> Check:
    return lambda value, param: (inner if isinstance(value, list) else other)(value, param)


def _tool(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    return members({"type": text, **required}, optional)


_DESCRIBED: Final[Mapping[str, Check]] = {
    "description": text,
    "defer_loading": a_flag,
    "allowed_callers": a_list,
}
_FUNCTION = _tool(
    {"name": _name, "parameters": an_object}, {**_DESCRIBED, "strict": a_flag, "output_schema": an_object}
)
_CUSTOM = _tool({"name": _name}, {**_DESCRIBED, "format": an_object})
_FUNCTION_OR_CUSTOM = by_type({"function": _FUNCTION, "custom": _CUSTOM})
_SEARCH = _tool(
    {},
    {
        **dict.fromkeys(("filters", "user_location"), an_object),
        "search_context_size": one_of("low", "medium", "high"),
        "external_web_access": a_flag,
        "search_content_types": a_list,
    },
)
_CONTAINER = _tool(
    {},
    {
        "file_ids": each_item(text),
        "memory_limit": one_of("1g", "4g", "16g", "64g"),
        "network_policy": an_object,
    },
)
_ALLOWED_TOOLS = members({}, {"read_only": a_flag, "tool_names": each_item(text)})
_MCP = _tool(
    {"server_label": text},
    {
        **dict.fromkeys(
            ("server_url", "connector_id", "tunnel_id", "authorization", "server_description"), text
        ),
        "allowed_callers": each_item(one_of("direct", "programmatic")),
        "allowed_tools": _list_or(each_item(text), _ALLOWED_TOOLS),
        "defer_loading": a_flag,
        "headers": an_object,
        "require_approval": _text_or(
            members({}, {"always": _ALLOWED_TOOLS, "never": _ALLOWED_TOOLS}), one_of("always", "never")
        ),
    },
)
_IMAGES = _tool(
    {},
    {
        "action": one_of("generate", "edit", "auto"),
        "background": one_of("transparent", "opaque", "auto"),
        "complexity": one_of("low", "medium", "high"),
        **dict.fromkeys(("frame_count", "frame_duration_ms"), number(0, None, whole=True)),
        "input_fidelity": one_of("high", "low"),
        "input_image_mask": members({}, {"file_id": text, "image_url": text}),
        "model": text,
        "moderation": one_of("auto", "low"),
        "output_compression": number(0, 100, whole=True),
        "output_format": one_of("png", "webp", "jpeg", "gif", "svg"),
        "partial_images": number(0, 3, whole=True),
        "quality": one_of("low", "medium", "high", "xhigh", "max", "auto"),
        "size": text,
        "svg": an_object,
    },
)


def _mcp(value: Any, param: str) -> None:
    _MCP(value, param)
    if not any(value.get(key) for key in ("server_url", "connector_id", "tunnel_id")):
        raise missing(f"{param}.server_url")


TOOL: Final = by_type(
    {
        "function": _FUNCTION,
        "custom": _CUSTOM,
        "web_search": _SEARCH,
        "web_search_preview": _SEARCH,
        "file_search": _tool(
            {"vector_store_ids": each_item(text)},
            {"max_num_results": number(1, 50, whole=True), "filters": an_object, "ranking_options": an_object},
        ),
        "code_interpreter": _tool({"container": _text_or(_CONTAINER)}, {"allowed_callers": a_list}),
        "image_generation": _IMAGES,
        "mcp": _mcp,
        "namespace": _tool(
            {"name": _name, "description": text, "tools": each_item(_FUNCTION_OR_CUSTOM)}
        ),
        "tool_search": _tool(
            {}, {"execution": one_of("server", "client"), "description": text, "parameters": an_object}
        ),
        "local_shell": _tool({}),
        "shell": _tool({}, {"environment": an_object}),
        "apply_patch": _tool({}),
    }
)  # fmt: skip
_CHOSEN = by_type(
    {
        "function": _tool({"name": _name}),
        "custom": _tool({"name": _name}),
        "mcp": _tool({"server_label": text}, {"name": text}),
        "allowed_tools": _tool({"mode": one_of("auto", "required"), "tools": each_item(an_object)}),
        **{
            kind: _tool({})
            for kind in (
                *("web_search", "web_search_preview", "file_search", "code_interpreter"),
                *("image_generation", "shell", "apply_patch"),
            )
        },
    }
)


def _choice(value: Any, param: str) -> None:
    if isinstance(value, str):
        one_of(*_CHOICES)(value, param)
    else:
        _CHOSEN(value, param)


def _conversation(value: Any, param: str) -> None:
    if not isinstance(value, str):
        members({"id": text})(value, param)


_FORMAT = by_type(
    {
        "text": _tool({}),
        "json_object": _tool({}),
        "json_schema": _tool({"name": _name, "schema": an_object}, {"description": text, "strict": a_flag}),
    }
)
_FIELDS: Final[Mapping[str, Check]] = {
    "model": text,
    "input": anything,
    "instructions": text,
    "previous_response_id": text,
    "conversation": _conversation,
    "background": a_flag,
    "store": a_flag,
    "stream": a_flag,
    "stream_options": members({}, {"include_obfuscation": a_flag}),
    "include": each_item(one_of(*INCLUDED)),
    "truncation": one_of("auto", "disabled"),
    "max_output_tokens": number(16, None, whole=True),
    "max_tool_calls": number(1, None, whole=True),
    "metadata": _metadata,
    "parallel_tool_calls": a_flag,
    "prompt": members({"id": text}, {"version": text, "variables": an_object}),
    "prompt_cache_key": text,
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "prompt_cache_options": an_object,
    "reasoning": members(
        {},
        {
            "effort": one_of(*_EFFORTS),
            "summary": one_of("auto", "concise", "detailed"),
            "generate_summary": one_of("auto", "concise", "detailed"),
            "context": one_of("auto", "current_turn", "all_turns"),
            "mode": text,
        },
    ),
    "safety_identifier": short(64),
    "service_tier": one_of("auto", "default", "flex", "scale", "priority"),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_logprobs": number(0, 20, whole=True),
    "text": members({}, {"format": _FORMAT, "verbosity": one_of("low", "medium", "high")}),
    "tools": each_item(TOOL),
    "tool_choice": _choice,
    "user": text,
    "context_management": each_item(an_object),
    "client_metadata": an_object,
    "background_options": an_object,
    "moderation": an_object,
}


def check_fields(body: Json) -> None:
    """Checks all fields of a request except its input. Raises: Refusal."""
    for name in body:
        if name not in _FIELDS:
            raise unknown(name)
    for name, check in _FIELDS.items():
        if body.get(name) is not None:
            check(body[name], name)
    if body.get("stream_options") is not None and not body.get("stream"):
        raise Refusal(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    if body.get("background") and body.get("store") is False:
        raise Refusal("Background mode requires store=true.", "background")
    if body.get("previous_response_id") is not None and body.get("conversation") is not None:
        raise Refusal("'previous_response_id' cannot be used in conjunction with 'conversation'.")
    tools = {tool.get("name") or tool["type"] for tool in body.get("tools") or ()}
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice["type"] in ("function", "custom") and choice["name"] not in tools:
        raise Refusal(f"Tool choice '{choice['name']}' not found in 'tools' parameter.", "tool_choice")
    if choice == "required" and not tools:
        raise Refusal("Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice")
