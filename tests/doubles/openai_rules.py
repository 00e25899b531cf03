"""The rules of OpenAI's chat completions endpoint: `check_chat` raises the error with which the API refuses a body.

The rules come from the API reference and the wording of its errors. A case that the reference does not mention is
refused here, so that the gateway never relies on leniency. `Rules` has what differs between upstreams.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

JSON = Any

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
PARTS = {
    "user": ("text", "image_url", "input_audio", "file"),
    "system": ("text",),
    "developer": ("text",),
    "tool": ("text",),
    "assistant": ("text", "refusal"),
    "function": (),
}
MESSAGE_FIELDS = {
    "user": {"role", "content", "name"},
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    # `name` is not documented, but the first guides sent it, and many clients still do.
    "tool": {"role", "content", "tool_call_id", "name"},
    "function": {"role", "content", "name"},
    "assistant": {
        "role",
        "content",
        "name",
        "tool_calls",
        "refusal",
        "audio",
        "function_call",
        "annotations",
    },
}
PARAMETERS = frozenset(
    (
        *("messages", "model", "store", "reasoning_effort", "metadata", "frequency_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "n", "modalities", "prediction"),
        *("audio", "presence_penalty", "response_format", "seed", "service_tier", "stop", "stream"),
        *("stream_options", "temperature", "top_p", "tools", "tool_choice", "parallel_tool_calls", "user"),
        *("function_call", "functions", "verbosity", "web_search_options", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    )
)
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
INTEGERS: Mapping[str, tuple[int, int]] = {
    "n": (1, 128),
    "max_tokens": (1, 2**31),
    "max_completion_tokens": (1, 2**31),
    "top_logprobs": (0, 20),
    "seed": (-(2**63), 2**63 - 1),
}
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]+")
MESSAGE_NAME = re.compile(r"[^\s<|\\/>]+")


class Rules(Struct, frozen=True):
    """The rules of an upstream: what it accepts. The defaults are those of OpenAI."""

    # A field that the API does not have is refused.
    unknown_parameters: bool = True
    # There is at most one system message, at the front, and adjacent messages differ in their role (unless both are of
    # tools), as the chat templates of many open models demand.
    strict_template: bool = False
    # Content may have images.
    image_parts: bool = True
    # Content may have parts of type "thinking", as with Mistral.
    thinking_parts: bool = False
    # A message may have several calls.
    parallel_tools: bool = True
    developer_role: bool = True
    stream_options: bool = True
    # `metadata` is accepted without `store`.
    metadata: bool = False
    # The names for the limit of a completion's tokens.
    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    # The limit -1 means no limit.
    unlimited: bool = False
    # Ids of calls may have any form.
    any_call_id: bool = True
    # An assistant message may be empty (not with Mistral and Kimi).
    empty_replies: bool = True
    # In the current turn the first call of each reply needs a signature, as with Gemini.
    signs_calls: bool = False
    # If there are tools, each reply needs `reasoning_content`, and no tool choice may force a call, as with DeepSeek.
    wants_thoughts: bool = False
    # The model thinks by default, and accepts functions only without reasoning, as OpenAI's models from 5.5 on.
    thinks: bool = False


class Refusal(Exception):
    """The API refuses the request. body, status: of its reply."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}


def check_chat(body: JSON, rules: Rules = Rules()) -> None:  # noqa: B008
    """Checks a request body. Raises: Refusal."""
    if not isinstance(body, dict):
        raise Refusal("We could not parse the JSON body of your request: it is not an object.")
    if rules.unknown_parameters:
        for key in body:
            if key not in PARAMETERS:
                raise Refusal(f"Unknown parameter: '{key}'.", key, "unknown_parameter")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal("you must provide a model parameter")
    if "messages" not in body:
        raise Refusal("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    _check_messages(body["messages"], rules)
    names = _check_tools(body)
    _check_tool_choice(body, names)
    for key in ("prediction", "web_search_options", "grammar"):
        # https://developers.openai.com/api/docs/guides/predicted-outputs; only search models take web_search_options,
        # and only llama.cpp takes a grammar (tools/server/server-common.cpp, oaicompat_chat_params_parse).
        if body.get(key) is not None and names:
            raise Refusal(f"'tools' is not supported with '{key}'.", "tools")
    if rules.wants_thoughts and body.get("tools"):
        _check_thoughts(body)
    if rules.thinks and body.get("tools") and body.get("reasoning_effort") != "none":
        raise Refusal(
            f"Function tools with reasoning_effort are not supported for {model} in /v1/chat/completions. To use "
            "function tools, use /v1/responses or set reasoning_effort to 'none'.",
            "reasoning_effort",
        )
    _check_scalars(body, rules)
    _check_limits(body, rules)
    _check_stream(body, rules)
    _check_metadata(body, rules)
    _check_format(body)


def _check_type(value: JSON, type_: type | tuple[type, ...], where: str, expected: str) -> None:
    if isinstance(value, type_) and not (isinstance(value, bool) and type_ is not bool):
        return
    raise Refusal(
        f"Invalid type for '{where}': expected {expected}, but got {_type_name(value)} instead.",
        where,
        "invalid_type",
    )


def _type_name(value: JSON) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer"}
    return "null" if value is None else kinds.get(type(value), "a decimal number")


def _check_not_empty(value: list[JSON], where: str) -> None:
    if not value:
        raise Refusal(
            f"Invalid '{where}': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            where,
            "empty_array",
        )


def _check_messages(messages: JSON, rules: Rules) -> None:
    _check_type(messages, list, "messages", "an array of objects")
    _check_not_empty(messages, "messages")
    # The calls of the last assistant message, and those of them that have no result yet.
    calls: list[str] = []
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        _check_type(message, dict, path, "an object")
        role = message.get("role")
        if role is None:
            raise Refusal(
                f"Missing required parameter: '{path}.role'.", f"{path}.role", "missing_required_parameter"
            )
        if role not in ROLES or (role == "developer" and not rules.developer_role):
            supported = ", ".join(
                f"'{supported_role}'"
                for supported_role in ROLES
                if supported_role != "developer" or rules.developer_role
            )
            raise Refusal(
                f"Invalid value: '{role}'. Supported values are: {supported}.",
                f"{path}.role",
                "invalid_value",
            )
        if rules.unknown_parameters:
            fields = MESSAGE_FIELDS[role] | ({"reasoning_content"} if rules.wants_thoughts else set())
            for key in message:
                if key not in fields:
                    raise Refusal(f"Unknown parameter: '{path}.{key}'.", f"{path}.{key}", "unknown_parameter")
        if role != "tool":
            _check_all_answered(open_calls, path)
        _check_content(message, role, path, rules)
        if message.get("name") is not None:
            _check_type(message["name"], str, f"{path}.name", "a string")
            if not MESSAGE_NAME.fullmatch(message["name"]) or len(message["name"]) > 64:
                raise Refusal(
                    f"Invalid '{path}.name': string does not match pattern.",
                    f"{path}.name",
                    "invalid_value",
                )
        if role == "tool":
            _check_tool_message(message, index, calls, open_calls)
        else:
            calls = _check_calls(message, path, rules) if role == "assistant" else []
            open_calls = list(calls)
    _check_all_answered(open_calls, "messages")
    if rules.strict_template:
        _check_template(messages)
    if rules.signs_calls:
        turn_start = max(
            (index for index, message in enumerate(messages) if message["role"] == "user"), default=0
        )
        first_calls = [
            message["tool_calls"][0] for message in messages[turn_start:] if message.get("tool_calls")
        ]
        if not all(
            call.get("extra_content", {}).get("google", {}).get("thought_signature") for call in first_calls
        ):
            raise Refusal("Function call is missing a thought_signature in functionCall parts.", "messages")


def _check_all_answered(open_calls: list[str], where: str) -> None:
    if open_calls:
        raise Refusal(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(open_calls)}",
            where,
        )


def _check_tool_message(message: JSON, index: int, calls: list[str], open_calls: list[str]) -> None:
    if not calls:
        raise Refusal(
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
            "'tool_calls'.",
            f"messages.[{index}].role",
        )
    where = f"messages.[{index}].tool_call_id"
    if "tool_call_id" not in message:
        raise Refusal(f"Missing parameter 'tool_call_id' at {where}.", where, "missing_required_parameter")
    call_id = message["tool_call_id"]
    _check_type(call_id, str, where, "a string")
    if call_id not in calls:
        raise Refusal(
            f"Invalid parameter: 'tool_call_id' of '{call_id}' not found in 'tool_calls' of previous message.",
            where,
        )
    if call_id not in open_calls:
        raise Refusal(f"Invalid parameter: 'tool_call_id' of '{call_id}' was answered twice.", where)
    open_calls.remove(call_id)


def _check_content(message: JSON, role: str, path: str, rules: Rules) -> None:
    content = message.get("content")
    path = f"{path}.content"
    if content is None:
        if role == "assistant" and any(
            message.get(index) is not None for index in ("tool_calls", "function_call", "refusal", "audio")
        ):
            return
        raise Refusal(f"Invalid value for 'content': expected a string, got null. ({path})", path)
    if isinstance(content, str):
        if role == "assistant" and not (content or rules.empty_replies or message.get("tool_calls")):
            raise Refusal(f"Assistant message must have either content or tool_calls. ({path})", path)
        return
    _check_type(content, list, path, "one of a string or array of objects")
    _check_not_empty(content, path)
    for index, part in enumerate(content):
        path = f"{path}[{index}]"
        _check_type(part, dict, path, "an object")
        type_ = part.get("type")
        if type_ == "thinking" and rules.thinking_parts and role == "assistant":
            continue
        if type_ not in PARTS[role]:
            supported = " and ".join(f"'{p}'" for p in PARTS[role])
            raise Refusal(
                f"Invalid value: '{type_}'. Supported values are: {supported}.",
                f"{path}.type",
                "invalid_value",
            )
        _check_part(part, type_, path, rules)


def _check_part(part: JSON, type_: str, path: str, rules: Rules) -> None:
    if type_ not in part:
        raise Refusal(
            f"Missing required parameter: '{path}.{type_}'.", f"{path}.{type_}", "missing_required_parameter"
        )
    if type_ in ("text", "refusal"):
        _check_type(part[type_], str, f"{path}.{type_}", "a string")
        return
    _check_type(part[type_], dict, f"{path}.{type_}", "an object")
    if type_ == "image_url":
        if not rules.image_parts:
            raise Refusal("Invalid content type. image_url is only supported by certain models.", path)
        url = part[type_].get("url")
        _check_type(url, str, f"{path}.image_url.url", "a string")
        if not url.startswith(("http://", "https://", "data:image/")):
            raise Refusal(
                f"Invalid '{path}.image_url.url'. Expected a valid URL.",
                f"{path}.image_url.url",
                "invalid_image_url",
            )


def _check_thoughts(body: JSON) -> None:
    replies = [message for message in body["messages"] if message["role"] == "assistant"]
    if not all(isinstance(message.get("reasoning_content"), str) for message in replies):
        raise Refusal("The `reasoning_content` in the thinking mode must be passed back to the API.")
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise Refusal("Thinking mode does not support this tool_choice")


def _check_calls(message: JSON, where: str, rules: Rules) -> list[str]:
    if message.get("tool_calls") is None:
        return []
    where = f"{where}.tool_calls"
    calls = message["tool_calls"]
    _check_type(calls, list, where, "an array of objects")
    _check_not_empty(calls, where)
    if len(calls) > 1 and not rules.parallel_tools:
        raise Refusal("This model only supports single tool-calls at once!", where)
    ids: list[str] = []
    for index, call in enumerate(calls):
        path = f"{where}[{index}]"
        _check_type(call, dict, path, "an object")
        _check_type(call.get("id"), str, f"{path}.id", "a string")
        if call["id"] in ids or not call["id"]:
            raise Refusal(f"Invalid '{path}.id': '{call['id']}' is empty or not unique.", f"{path}.id")
        if not rules.any_call_id and not re.fullmatch("[a-zA-Z0-9]{9}", call["id"]):
            raise Refusal(
                f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9.", path, "3280"
            )
        ids.append(call["id"])
        if call.get("type") == "custom":
            continue
        if call.get("type") != "function":
            raise Refusal(f"Invalid value: '{call.get('type')}'.", f"{path}.type", "invalid_value")
        function = call.get("function")
        _check_type(function, dict, f"{path}.function", "an object")
        _check_name(function.get("name"), f"{path}.function.name")
        _check_type(function.get("arguments"), str, f"{path}.function.arguments", "a string")
    return ids


def _check_name(name: JSON, where: str) -> None:
    _check_type(name, str, where, "a string")
    if not TOOL_NAME.fullmatch(name) or len(name) > 64:
        raise Refusal(
            f"Invalid '{where}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            where,
            "invalid_value",
        )


def _check_template(messages: list[JSON]) -> None:
    roles = ["system" if message["role"] == "developer" else message["role"] for message in messages]
    if roles.count("system") > 1:
        raise Refusal("Only one system message is supported.", "messages")
    if "system" in roles and roles[0] != "system":
        raise Refusal("System message must be at the beginning.", "messages")
    for before, after in itertools.pairwise(roles):
        if before == after and before != "tool":
            raise Refusal(
                "Conversation roles must alternate user/assistant/user/assistant/... "
                f"(two '{after}' in a row).",
                "messages",
            )


def _check_tools(body: JSON) -> set[str]:
    if body.get("tools") is None:
        return set()
    tools = body["tools"]
    _check_type(tools, list, "tools", "an array of objects")
    if not tools:
        raise Refusal("[] is too short - 'tools'", "tools", "empty_array")
    if len(tools) > 128:
        raise Refusal("Invalid 'tools': array too long.", "tools", "array_above_max_length")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        _check_type(tool, dict, where, "an object")
        type_ = tool.get("type")
        if type_ not in ("function", "custom"):
            raise Refusal(
                f"Invalid value: '{type_}'. Supported values are: 'function' and 'custom'.",
                f"{where}.type",
                "invalid_value",
            )
        definition = tool.get(type_)
        _check_type(definition, dict, f"{where}.{type_}", "an object")
        name = definition.get("name")
        _check_name(name, f"{where}.{type_}.name")
        if name in names:
            raise Refusal(f"Invalid 'tools': the name '{name}' is given twice.", "tools", "invalid_value")
        names.add(name)
        schema = definition.get("parameters")
        if type_ == "function" and schema is not None:
            _check_type(schema, dict, f"{where}.function.parameters", "an object")
            if schema and schema.get("type") != "object":
                raise Refusal(
                    f"Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', "
                    f"got 'type: \"{schema.get('type')}\"'.",
                    f"{where}.function.parameters",
                    "invalid_function_parameters",
                )
    return names


def _check_tool_choice(body: JSON, names: set[str]) -> None:
    for key in ("tool_choice", "parallel_tool_calls"):
        if body.get(key) is not None and not names:
            raise Refusal(
                f"Invalid value for '{key}': '{key}' is only allowed when 'tools' are specified.", key
            )
    choice = body.get("tool_choice")
    if choice is None or choice in ("none", "auto", "required"):
        return
    if isinstance(choice, str):
        raise Refusal(f"Invalid value: '{choice}'.", "tool_choice", "invalid_value")
    _check_type(choice, dict, "tool_choice", "one of a string or an object")
    name = (choice.get(choice.get("type")) or {}).get("name")
    if choice.get("type") in ("function", "custom") and name not in names:
        raise Refusal(f"Tool choice '{name}' not found in 'tools' parameter.", "tool_choice")


def _check_scalars(body: JSON, rules: Rules) -> None:
    def check_range(key: str, type_: type | tuple[type, ...], expected: str, low: float, high: float) -> None:
        value = body.get(key)
        if value is None or (rules.unlimited and key in rules.limits and value == -1):
            return
        _check_type(value, type_, key, expected)
        if not low <= value <= high:
            is_below = value < low
            edge = f"minimum value. Expected a value >= {low}" if is_below else f"maximum. Expected <= {high}"
            raise Refusal(
                f"Invalid '{key}': value out of range ({edge}, but got {value} instead).",
                key,
                "integer_below_min_value" if is_below else "integer_above_max_value",
            )

    for key, (low, high) in INTEGERS.items():
        check_range(key, int, "an integer", low, high)
    for key, (low, high) in RANGES.items():
        check_range(key, (int, float), "a decimal number", low, high)
    types: list[tuple[tuple[str, ...], type, str]] = [
        (("user", "safety_identifier", "prompt_cache_key", "service_tier"), str, "a string"),
        (("store", "logprobs", "parallel_tool_calls", "stream"), bool, "a boolean"),
    ]
    for keys, type_, expected in types:
        for key in keys:
            if body.get(key) is not None:
                _check_type(body[key], type_, key, expected)
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise Refusal(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
            "invalid_parameter_combination",
        )
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise Refusal(
            "Invalid value for 'top_logprobs': only allowed when 'logprobs' is enabled.", "top_logprobs"
        )
    stop = body.get("stop")
    if stop is not None and not isinstance(stop, str):
        _check_type(stop, list, "stop", "one of a string or an array of strings")
        if len(stop) > 4:
            raise Refusal("Invalid 'stop': array too long.", "stop", "array_above_max_length")


def _check_limits(body: JSON, rules: Rules) -> None:
    for key in ("max_tokens", "max_completion_tokens"):
        if body.get(key) is not None and key not in rules.limits:
            raise Refusal(
                f"Unsupported parameter: '{key}' is not supported with this model. Use '{rules.limits[0]}' instead.",
                key,
                "unsupported_parameter",
            )


def _check_stream(body: JSON, rules: Rules) -> None:
    options = body.get("stream_options")
    if options is None:
        return
    if not rules.stream_options:
        raise Refusal("Unknown parameter: 'stream_options'.", "stream_options", "unknown_parameter")
    if not body.get("stream"):
        raise Refusal(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    _check_type(options, dict, "stream_options", "an object")
    for key in options:
        if key not in ("include_usage", "include_obfuscation"):
            where = f"stream_options.{key}"
            raise Refusal(f"Unknown parameter: '{where}'.", where, "unknown_parameter")


def _check_metadata(body: JSON, rules: Rules) -> None:
    metadata = body.get("metadata")
    if metadata is None:
        return
    _check_type(metadata, dict, "metadata", "an object")
    if not body.get("store") and not rules.metadata:
        raise Refusal("The 'metadata' parameter is only allowed when 'store' is enabled.", "metadata")
    if len(metadata) > 16:
        raise Refusal("Invalid 'metadata': too many properties.", "metadata")
    for key, value in metadata.items():
        _check_type(value, str, f"metadata.{key}", "a string")


def _check_format(body: JSON) -> None:
    format_ = body.get("response_format")
    if format_ is None:
        return
    _check_type(format_, dict, "response_format", "an object")
    checks: dict[JSON, Callable[[], None]] = {
        "text": lambda: None,
        "json_object": lambda: _check_mentions_json(body),
        "json_schema": lambda: _check_schema(format_),
    }
    if "type" in format_:
        _check_type(format_["type"], str, "response_format.type", "a string")
    check = checks.get(format_.get("type"))
    if check is None:
        raise Refusal(f"Invalid value: '{format_.get('type')}'.", "response_format.type", "invalid_value")
    check()


def _check_mentions_json(body: JSON) -> None:
    if "json" not in str([message.get("content") for message in body["messages"]]).lower():
        raise Refusal(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
            "'json_object'.",
            "messages",
        )


def _check_schema(format_: JSON) -> None:
    definition = format_.get("json_schema")
    _check_type(definition, dict, "response_format.json_schema", "an object")
    _check_name(definition.get("name"), "response_format.json_schema.name")
    if definition.get("schema") is not None:
        _check_type(definition["schema"], dict, "response_format.json_schema.schema", "an object")
