"""The rules of OpenAI's chat completions endpoint: a pure function from a request body to the error object it deserves.

Written from the API reference and the wording of its errors. Where the real one is silent about a case, this one
is strict, so that nothing we send relies on leniency. Switches for what differs between upstreams are `Rules`.
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
    "tool": {
        "role",
        "content",
        "tool_call_id",
        "name",
    },  # undocumented; what the first guides sent, and many do
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
    """The switches for what differs between upstreams.

    unknown_parameters: a field that the API does not have is a 400.

    strict_template: one system message, at the front, and never two messages of a role in a row, as the chat
    templates of many open models have it (tool messages may follow each other).
    thinking_parts: content may have thoughts among its parts, as Mistral's.
    image_parts: the model accepts images. parallel_tools: it accepts several calls in one message.
    developer_role, stream_options: these exist. metadata: it is accepted without `store`.
    limits: the names that a completion's limit may have. unlimited: the limit -1 is none.
    any_call_id: ids of calls may have any form.
    empty_replies: an assistant message may have nothing in it (Mistral and Kimi refuse that).
    signs_calls: the first call of each reply of the turn under way bears a signature, as Gemini's have to.
    thinks: it does by default, and takes no functions beside that, as OpenAI's models from 5.5 on.
    wants_thoughts: where there are tools, each reply has thoughts, perhaps empty ones, and no call is forced, as before
    DeepSeek's models.
    """

    unknown_parameters: bool = True
    strict_template: bool = False
    image_parts: bool = True
    thinking_parts: bool = False
    parallel_tools: bool = True
    developer_role: bool = True
    stream_options: bool = True
    metadata: bool = False
    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    unlimited: bool = False
    any_call_id: bool = True
    empty_replies: bool = True
    signs_calls: bool = False
    wants_thoughts: bool = False
    thinks: bool = False


class Refusal(Exception):
    """A request that the API would refuse, with the error object and status it would send."""

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


def _typed(value: JSON, kind: type | tuple[type, ...], where: str, expected: str) -> None:
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return
    raise Refusal(
        f"Invalid type for '{where}': expected {expected}, but got {_kind(value)} instead.",
        where,
        "invalid_type",
    )


def _kind(value: JSON) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer"}
    return "null" if value is None else kinds.get(type(value), "a decimal number")


def _not_empty(value: list[JSON], where: str) -> None:
    if not value:
        raise Refusal(
            f"Invalid '{where}': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            where,
            "empty_array",
        )


def _check_messages(messages: JSON, rules: Rules) -> None:
    _typed(messages, list, "messages", "an array of objects")
    _not_empty(messages, "messages")
    open_calls: list[str] = []  # asked for by the last assistant message, not answered yet
    calls: list[str] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        _typed(message, dict, where, "an object")
        role = message.get("role")
        if role is None:
            raise Refusal(
                f"Missing required parameter: '{where}.role'.", f"{where}.role", "missing_required_parameter"
            )
        if role not in ROLES or (role == "developer" and not rules.developer_role):
            supported = ", ".join(f"'{r}'" for r in ROLES if r != "developer" or rules.developer_role)
            raise Refusal(
                f"Invalid value: '{role}'. Supported values are: {supported}.",
                f"{where}.role",
                "invalid_value",
            )
        if rules.unknown_parameters:
            known = MESSAGE_FIELDS[role] | ({"reasoning_content"} if rules.wants_thoughts else set())
            for key in message:
                if key not in known:
                    raise Refusal(
                        f"Unknown parameter: '{where}.{key}'.", f"{where}.{key}", "unknown_parameter"
                    )
        if role != "tool":
            _all_answered(open_calls, where)
        _check_content(message, role, where, rules)
        if message.get("name") is not None:
            _typed(message["name"], str, f"{where}.name", "a string")
            if not MESSAGE_NAME.fullmatch(message["name"]) or len(message["name"]) > 64:
                raise Refusal(
                    f"Invalid '{where}.name': string does not match pattern.",
                    f"{where}.name",
                    "invalid_value",
                )
        if role == "tool":
            _check_answer(message, i, calls, open_calls)
        else:
            calls = _check_calls(message, where, rules) if role == "assistant" else []
            open_calls = list(calls)
    _all_answered(open_calls, "messages")
    if rules.strict_template:
        _check_template(messages)
    if rules.signs_calls:
        begun = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
        firsts = [message["tool_calls"][0] for message in messages[begun:] if message.get("tool_calls")]
        if not all(
            call.get("extra_content", {}).get("google", {}).get("thought_signature") for call in firsts
        ):
            raise Refusal("Function call is missing a thought_signature in functionCall parts.", "messages")


def _all_answered(open_calls: list[str], where: str) -> None:
    if open_calls:
        raise Refusal(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(open_calls)}",
            where,
        )


def _check_answer(message: JSON, i: int, calls: list[str], open_calls: list[str]) -> None:
    if not calls:
        raise Refusal(
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
            "'tool_calls'.",
            f"messages.[{i}].role",
        )
    where = f"messages.[{i}].tool_call_id"
    if "tool_call_id" not in message:
        raise Refusal(f"Missing parameter 'tool_call_id' at {where}.", where, "missing_required_parameter")
    call_id = message["tool_call_id"]
    _typed(call_id, str, where, "a string")
    if call_id not in calls:
        raise Refusal(
            f"Invalid parameter: 'tool_call_id' of '{call_id}' not found in 'tool_calls' of previous message.",
            where,
        )
    if call_id not in open_calls:
        raise Refusal(f"Invalid parameter: 'tool_call_id' of '{call_id}' was answered twice.", where)
    open_calls.remove(call_id)


def _check_content(message: JSON, role: str, where: str, rules: Rules) -> None:
    content = message.get("content")
    where = f"{where}.content"
    if content is None:
        if role == "assistant" and any(
            message.get(k) is not None for k in ("tool_calls", "function_call", "refusal", "audio")
        ):
            return
        raise Refusal(f"Invalid value for 'content': expected a string, got null. ({where})", where)
    if isinstance(content, str):
        if role == "assistant" and not (content or rules.empty_replies or message.get("tool_calls")):
            raise Refusal(f"Assistant message must have either content or tool_calls. ({where})", where)
        return
    _typed(content, list, where, "one of a string or array of objects")
    _not_empty(content, where)
    for k, part in enumerate(content):
        at = f"{where}[{k}]"
        _typed(part, dict, at, "an object")
        kind = part.get("type")
        if kind == "thinking" and rules.thinking_parts and role == "assistant":
            continue
        if kind not in PARTS[role]:
            supported = " and ".join(f"'{p}'" for p in PARTS[role])
            raise Refusal(
                f"Invalid value: '{kind}'. Supported values are: {supported}.", f"{at}.type", "invalid_value"
            )
        _check_part(part, kind, at, rules)


def _check_part(part: JSON, kind: str, at: str, rules: Rules) -> None:
    if kind not in part:
        raise Refusal(
            f"Missing required parameter: '{at}.{kind}'.", f"{at}.{kind}", "missing_required_parameter"
        )
    if kind in ("text", "refusal"):
        _typed(part[kind], str, f"{at}.{kind}", "a string")
        return
    _typed(part[kind], dict, f"{at}.{kind}", "an object")
    if kind == "image_url":
        if not rules.image_parts:
            raise Refusal("Invalid content type. image_url is only supported by certain models.", at)
        url = part[kind].get("url")
        _typed(url, str, f"{at}.image_url.url", "a string")
        if not url.startswith(("http://", "https://", "data:image/")):
            raise Refusal(
                f"Invalid '{at}.image_url.url'. Expected a valid URL.",
                f"{at}.image_url.url",
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
    _typed(calls, list, where, "an array of objects")
    _not_empty(calls, where)
    if len(calls) > 1 and not rules.parallel_tools:
        raise Refusal("This model only supports single tool-calls at once!", where)
    ids: list[str] = []
    for k, call in enumerate(calls):
        at = f"{where}[{k}]"
        _typed(call, dict, at, "an object")
        _typed(call.get("id"), str, f"{at}.id", "a string")
        if call["id"] in ids or not call["id"]:
            raise Refusal(f"Invalid '{at}.id': '{call['id']}' is empty or not unique.", f"{at}.id")
        if not rules.any_call_id and not re.fullmatch("[a-zA-Z0-9]{9}", call["id"]):
            raise Refusal(
                f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9.", at, "3280"
            )
        ids.append(call["id"])
        if call.get("type") == "custom":
            continue
        if call.get("type") != "function":
            raise Refusal(f"Invalid value: '{call.get('type')}'.", f"{at}.type", "invalid_value")
        function = call.get("function")
        _typed(function, dict, f"{at}.function", "an object")
        _check_name(function.get("name"), f"{at}.function.name")
        _typed(function.get("arguments"), str, f"{at}.function.arguments", "a string")
    return ids


def _check_name(name: JSON, where: str) -> None:
    _typed(name, str, where, "a string")
    if not TOOL_NAME.fullmatch(name) or len(name) > 64:
        raise Refusal(
            f"Invalid '{where}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            where,
            "invalid_value",
        )


def _check_template(messages: list[JSON]) -> None:
    roles = ["system" if m["role"] == "developer" else m["role"] for m in messages]
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
    _typed(tools, list, "tools", "an array of objects")
    if not tools:
        raise Refusal("[] is too short - 'tools'", "tools", "empty_array")
    if len(tools) > 128:
        raise Refusal("Invalid 'tools': array too long.", "tools", "array_above_max_length")
    names: set[str] = set()
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        _typed(tool, dict, where, "an object")
        kind = tool.get("type")
        if kind not in ("function", "custom"):
            raise Refusal(
                f"Invalid value: '{kind}'. Supported values are: 'function' and 'custom'.",
                f"{where}.type",
                "invalid_value",
            )
        inner = tool.get(kind)
        _typed(inner, dict, f"{where}.{kind}", "an object")
        name = inner.get("name")
        _check_name(name, f"{where}.{kind}.name")
        if name in names:
            raise Refusal(f"Invalid 'tools': the name '{name}' is given twice.", "tools", "invalid_value")
        names.add(name)
        schema = inner.get("parameters")
        if kind == "function" and schema is not None:
            _typed(schema, dict, f"{where}.function.parameters", "an object")
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
    _typed(choice, dict, "tool_choice", "one of a string or an object")
    name = (choice.get(choice.get("type")) or {}).get("name")
    if choice.get("type") in ("function", "custom") and name not in names:
        raise Refusal(f"Tool choice '{name}' not found in 'tools' parameter.", "tool_choice")


def _check_scalars(body: JSON, rules: Rules) -> None:
    def bounded(key: str, kind: type | tuple[type, ...], expected: str, low: float, high: float) -> None:
        value = body.get(key)
        if value is None or (rules.unlimited and key in rules.limits and value == -1):
            return
        _typed(value, kind, key, expected)
        if not low <= value <= high:
            below = value < low
            edge = f"minimum value. Expected a value >= {low}" if below else f"maximum. Expected <= {high}"
            raise Refusal(
                f"Invalid '{key}': value out of range ({edge}, but got {value} instead).",
                key,
                "integer_below_min_value" if below else "integer_above_max_value",
            )

    for key, (low, high) in INTEGERS.items():
        bounded(key, int, "an integer", low, high)
    for key, (least, most) in RANGES.items():
        bounded(key, (int, float), "a decimal number", least, most)
    kinds: list[tuple[tuple[str, ...], type, str]] = [
        (("user", "safety_identifier", "prompt_cache_key", "service_tier"), str, "a string"),
        (("store", "logprobs", "parallel_tool_calls", "stream"), bool, "a boolean"),
    ]
    for keys, kind, expected in kinds:
        for key in keys:
            if body.get(key) is not None:
                _typed(body[key], kind, key, expected)
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
        _typed(stop, list, "stop", "one of a string or an array of strings")
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
    _typed(options, dict, "stream_options", "an object")
    for key in options:
        if key not in ("include_usage", "include_obfuscation"):
            where = f"stream_options.{key}"
            raise Refusal(f"Unknown parameter: '{where}'.", where, "unknown_parameter")


def _check_metadata(body: JSON, rules: Rules) -> None:
    metadata = body.get("metadata")
    if metadata is None:
        return
    _typed(metadata, dict, "metadata", "an object")
    if not body.get("store") and not rules.metadata:
        raise Refusal("The 'metadata' parameter is only allowed when 'store' is enabled.", "metadata")
    if len(metadata) > 16:
        raise Refusal("Invalid 'metadata': too many properties.", "metadata")
    for key, value in metadata.items():
        _typed(value, str, f"metadata.{key}", "a string")


def _check_format(body: JSON) -> None:
    form = body.get("response_format")
    if form is None:
        return
    _typed(form, dict, "response_format", "an object")
    checks: dict[JSON, Callable[[], None]] = {
        "text": lambda: None,
        "json_object": lambda: _mentions_json(body),
        "json_schema": lambda: _has_schema(form),
    }
    check = checks.get(form.get("type"))
    if check is None:
        raise Refusal(f"Invalid value: '{form.get('type')}'.", "response_format.type", "invalid_value")
    check()


def _mentions_json(body: JSON) -> None:
    if "json" not in str([m.get("content") for m in body["messages"]]).lower():
        raise Refusal(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
            "'json_object'.",
            "messages",
        )


def _has_schema(form: JSON) -> None:
    inner = form.get("json_schema")
    _typed(inner, dict, "response_format.json_schema", "an object")
    _check_name(inner.get("name"), "response_format.json_schema.name")
    if inner.get("schema") is not None:
        _typed(inner["schema"], dict, "response_format.json_schema.schema", "an object")
