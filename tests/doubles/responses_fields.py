"""The fields of a request for a response, each with what it may be; what is wrong is refused in OpenAI's words.

Written from the API reference, the types of OpenAI's SDK and the wording of its errors. Where the real one is silent,
this one is strict. (platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.doubles.openai_rules import Refusal

Json = dict[str, Any]
Check = Callable[[Any, str], None]
INCLUDED: Final = (
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url"),
    *("code_interpreter_call.outputs", "reasoning.encrypted_content", "message.output_text.logprobs"),
)
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
_CHOICES: Final = ("none", "auto", "required")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KINDS: Final = {str: "a string", bool: "a boolean", int: "an integer", list: "an array", dict: "an object"}


def wrong_value(param: str, value: Any, known: tuple[str, ...] = ()) -> Refusal:
    named = f" Supported values are: {', '.join(map(repr, known))}." if known else ""
    return Refusal(f"Invalid value: {value!r}.{named}", param, "invalid_value")


def missing(param: str) -> Refusal:
    return Refusal(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def unknown(param: str) -> Refusal:
    return Refusal(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def of(kind: type) -> Check:
    def check(value: Any, param: str) -> None:
        if type(value) is not kind:
            raise Refusal(
                f"Invalid type for '{param}': expected {_KINDS[kind]}, but got {type(value).__name__} instead.",
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


def number(least: float, most: float | None, *, whole: bool = False) -> Check:
    def check(value: Any, param: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise Refusal(f"Invalid type for '{param}': expected a number.", param, "invalid_type")
        if value < least or (most is not None and value > most):
            raise Refusal(f"Invalid '{param}': {value} is out of range.", param, "decimal_out_of_range")

    return check


def short(most: int) -> Check:
    def check(value: Any, param: str) -> None:
        text(value, param)
        if len(value) > most:
            raise Refusal(
                f"Invalid '{param}': string too long. Expected a string with maximum length {most}.",
                param,
                "string_above_max_length",
            )

    return check


def members(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    known = {**required, **(optional or {})}

    def check(value: Any, param: str) -> None:
        thing(value, param)
        for name in required:
            if name not in value:
                raise missing(f"{param}.{name}")
        for name in value:
            if name not in known:
                raise unknown(f"{param}.{name}")
        for name, each in known.items():
            if value.get(name) is not None:
                each(value[name], f"{param}.{name}")

    return check


def each(inner: Check) -> Check:
    def check(value: Any, param: str) -> None:
        many(value, param)
        for n, one in enumerate(value):
            inner(one, f"{param}[{n}]")

    return check


def by_type(kinds: Mapping[str, Check]) -> Check:
    def check(value: Any, param: str) -> None:
        thing(value, param)
        if "type" not in value:
            raise missing(f"{param}.type")
        if value["type"] not in kinds:
            raise wrong_value(f"{param}.type", value["type"], tuple(kinds))
        kinds[value["type"]](value, param)

    return check


def anything(value: Any, param: str) -> None: ...


text, flag, thing, many = of(str), of(bool), of(dict), of(list)


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
    thing(value, param)
    if len(value) > 16:
        raise Refusal(f"Invalid '{param}': too many properties.", param, "object_above_max_properties")
    for key, one in value.items():
        short(64)(key, param)
        short(512)(one, f"{param}.{key}")


def _text_or(other: Check, inner: Check = text) -> Check:
    """Returns the check of a value that is a text, or is checked by the other."""
    return lambda value, param: (inner if isinstance(value, str) else other)(value, param)


def _list_or(inner: Check, other: Check) -> Check:
    return lambda value, param: (inner if isinstance(value, list) else other)(value, param)


def _tool(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    return members({"type": text, **required}, optional)


_DESCRIBED: Final[Mapping[str, Check]] = {"description": text, "defer_loading": flag, "allowed_callers": many}
_FUNCTION = _tool(
    {"name": _name, "parameters": thing}, {**_DESCRIBED, "strict": flag, "output_schema": thing}
)
_CUSTOM = _tool({"name": _name}, {**_DESCRIBED, "format": thing})
_SEARCH = _tool(
    {},
    {
        **dict.fromkeys(("filters", "user_location"), thing),
        "search_context_size": one_of("low", "medium", "high"),
        "external_web_access": flag,
        "search_content_types": many,
    },
)
_CONTAINER = _tool(
    {},
    {
        "file_ids": each(text),
        "memory_limit": one_of("1g", "4g", "16g", "64g"),
        "network_policy": thing,
    },
)
_ALLOWED_TOOLS = members({}, {"read_only": flag, "tool_names": each(text)})
_MCP = _tool(
    {"server_label": text},
    {
        **dict.fromkeys(
            ("server_url", "connector_id", "tunnel_id", "authorization", "server_description"), text
        ),
        "allowed_callers": each(one_of("direct", "programmatic")),
        "allowed_tools": _list_or(each(text), _ALLOWED_TOOLS),
        "defer_loading": flag,
        "headers": thing,
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
        "svg": thing,
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
            {"vector_store_ids": each(text)},
            {"max_num_results": number(1, 50, whole=True), "filters": thing, "ranking_options": thing},
        ),
        "code_interpreter": _tool({"container": _text_or(_CONTAINER)}, {"allowed_callers": many}),
        "image_generation": _IMAGES,
        "mcp": _mcp,
        "namespace": _tool(
            {"name": _name, "description": text, "tools": each(by_type({"function": _FUNCTION, "custom": _CUSTOM}))}
        ),
        "tool_search": _tool({}, {"execution": one_of("server", "client"), "description": text, "parameters": thing}),
        "local_shell": _tool({}),
        "shell": _tool({}, {"environment": thing}),
        "apply_patch": _tool({}),
    }
)  # fmt: skip
_CHOSEN = by_type(
    {
        "function": _tool({"name": _name}),
        "custom": _tool({"name": _name}),
        "mcp": _tool({"server_label": text}, {"name": text}),
        "allowed_tools": _tool({"mode": one_of("auto", "required"), "tools": each(thing)}),
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
        "json_schema": _tool({"name": _name, "schema": thing}, {"description": text, "strict": flag}),
    }
)
_FIELDS: Final[Mapping[str, Check]] = {
    "model": text,
    "input": anything,
    "instructions": text,
    "previous_response_id": text,
    "conversation": _conversation,
    "background": flag,
    "store": flag,
    "stream": flag,
    "stream_options": members({}, {"include_obfuscation": flag}),
    "include": each(one_of(*INCLUDED)),
    "truncation": one_of("auto", "disabled"),
    "max_output_tokens": number(16, None, whole=True),
    "max_tool_calls": number(1, None, whole=True),
    "metadata": _metadata,
    "parallel_tool_calls": flag,
    "prompt": members({"id": text}, {"version": text, "variables": thing}),
    "prompt_cache_key": text,
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "prompt_cache_options": thing,
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
    "tools": each(TOOL),
    "tool_choice": _choice,
    "user": text,
    "context_management": each(thing),
    "client_metadata": thing,
    "background_options": thing,
    "moderation": thing,
}


def check_fields(asked: Json) -> None:
    """Checks the fields of a request but for its input. Raises: Refusal."""
    for name in asked:
        if name not in _FIELDS:
            raise unknown(name)
    for name, check in _FIELDS.items():
        if asked.get(name) is not None:
            check(asked[name], name)
    if asked.get("stream_options") is not None and not asked.get("stream"):
        raise Refusal(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    if asked.get("background") and asked.get("store") is False:
        raise Refusal("Background mode requires store=true.", "background")
    if asked.get("previous_response_id") is not None and asked.get("conversation") is not None:
        raise Refusal("'previous_response_id' cannot be used in conjunction with 'conversation'.")
    tools = {tool.get("name") or tool["type"] for tool in asked.get("tools") or ()}
    chosen = asked.get("tool_choice")
    if isinstance(chosen, dict) and chosen["type"] in ("function", "custom") and chosen["name"] not in tools:
        raise Refusal(f"Tool choice '{chosen['name']}' not found in 'tools' parameter.", "tool_choice")
    if chosen == "required" and not tools:
        raise Refusal("Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice")
