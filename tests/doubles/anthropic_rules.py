"""The rules of Anthropic's Messages endpoint: a pure function from a request to the error object it deserves.

They come from the API reference, the wording of its errors, and the notes of version 2026-10-21. Where the real one is
silent about a case, or repairs it by itself (turns in a row by one role), this one is strict, so that nothing we send
relies on leniency.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

OLD_VERSION, NEW_VERSION = "2023-06-01", "2026-10-21"
VERSIONS = (OLD_VERSION, NEW_VERSION)
LATE_SYSTEM = ("claude-opus-4-8", "claude-opus-5", "claude-sonnet-5-5", "claude-haiku-5-5")
PARAMETERS = frozenset(
    (
        *("cache_control", "container", "context_management", "diagnostics", "inference_geo", "max_tokens"),
        *("mcp_servers", "messages", "metadata", "model", "output_config", "service_tier", "speed"),
        *("stop_sequences", "stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k"),
        *("top_p", "user_profile_id"),
    )
)
SAMPLING = ("temperature", "top_p", "top_k")
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "image", "document", "search_result", "tool_result"),
    "assistant": (
        *("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"),
        *("container_upload", "document"),
    ),
    "system": ("text",),
    "tool_result": ("text", "image", "document", "search_result"),
}
FIELDS: Mapping[str, set[str]] = {
    "text": {"type", "text", "cache_control", "citations"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "context", "citations", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}
IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
TOOL_FIELDS = {
    *("name", "description", "input_schema", "cache_control", "strict", "type", "defer_loading"),
    *("eager_input_streaming", "input_examples", "allowed_callers"),
}


class Refused(Exception):
    """A request that the API would refuse, with the error object and status it would send."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"type": "error", "error": {"type": kind, "message": message}}


def sign(thinking: str) -> str:
    """Returns the signature of a thought; it is accepted back with that thought alone."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise Refused(message)


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        _want(key not in found, f"{key}: the key is there twice")
        found[key] = value
    return found


def check_request(raw: bytes, headers: Mapping[str, str]) -> Json:
    """Returns the parsed body. Raises: Refused."""
    _want(headers.get("content-type", "").startswith("application/json"), "Content-Type: application/json")
    version = headers.get("anthropic-version")
    _want(version is not None, "anthropic-version: header is required")
    _want(version in VERSIONS, f'anthropic-version: "{version}" is not a valid version')
    beta = headers.get("anthropic-beta")
    _want(beta is None or bool(re.fullmatch(r"[\w.-]+(, ?[\w.-]+)*", beta)), "anthropic-beta: malformed")
    try:
        body: Json = json.loads(raw, object_pairs_hook=_once)
    except ValueError as error:
        raise Refused("The request body is not valid JSON") from error
    _want(isinstance(body, dict), "The request body is not an object")
    for key, value in body.items():
        _want(key in PARAMETERS, f"{key}: Extra inputs are not permitted")
        _want(value is not None, f"{key}: Input should not be null")
    _want(isinstance(body.get("model"), str) and body["model"] != "", "model: Field required")
    _want("max_tokens" in body, "max_tokens: Field required")
    _want(isinstance(body["max_tokens"], int) and body["max_tokens"] >= 0, "max_tokens: Input should be >= 0")
    _check_system(body)
    _check_messages(body, version == NEW_VERSION)
    _check_tools(body)
    _check_thinking(body)
    _check_scalars(body, version == NEW_VERSION)
    marks = _marks(body)
    _want(len(marks) <= 4, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}.")
    for mark in marks:
        is_mark = isinstance(mark, dict) and mark.get("type") == "ephemeral"
        _want(is_mark and mark.get("ttl", "5m") in ("5m", "1h"), "cache_control: Input should be 'ephemeral'")
    return body


def _marks(value: Any) -> list[Any]:
    """Yields every cache_control, except within a tool's schema or input, where it is an ordinary name."""
    if isinstance(value, list):
        return [mark for each in value for mark in _marks(each)]
    if not isinstance(value, dict):
        return []
    found = [value["cache_control"]] if "cache_control" in value else []
    skipped = ("cache_control", "input", "input_schema", "output_config")
    return found + [mark for key, each in value.items() if key not in skipped for mark in _marks(each)]


def _check_system(body: Json) -> None:
    system = body.get("system", "x")
    if isinstance(system, list):
        _want(bool(system), "system: at least one block is required")
        _check_blocks(system, "system", "system", is_new=True)
    else:
        _want(isinstance(system, str), "system: Input should be a string or a list")
        _want(bool(system.strip()), "system: text content blocks must be non-empty")


def _check_messages(body: Json, is_new: bool) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise Refused("messages: Field required")
    _want(bool(messages), "messages: at least one message is required")
    _want(messages[0].get("role") == "user", 'messages: first message must use the "user" role')
    turns = [(place, m) for place, m in enumerate(messages)]
    before = ""
    for place, message in turns:
        where, role = f"messages.{place}", message.get("role")
        _want(role in ("user", "assistant", "system"), f"{where}: Input should be 'user' or 'assistant'")
        _want(set(message) == {"role", "content"}, f"{where}: Extra inputs are not permitted")
        _want(role != before, f"{where}: roles must alternate between 'user' and 'assistant'")
        if role == "system":
            _want(
                any(body["model"].startswith(model) for model in LATE_SYSTEM),
                f"{where}: role 'system' is not supported on this model",
            )
            _want(before == "user", f"{where}: a system message must follow a user message")
        elif before == "system":
            _want(role == "assistant", f"{where}: a system message must be last or before an assistant's")
        content = message["content"]
        if isinstance(content, str):
            _want(bool(content.strip()), f"{where}: text content blocks must be non-empty")
        else:
            _want(isinstance(content, list) and bool(content), f"{where}: all messages must have content")
            _check_blocks(content, role, f"{where}.content", is_new)
        before = role
    _check_calls([m for m in messages if m["role"] != "system"])
    last = messages[-1]
    if last["role"] == "assistant":
        block = last["content"][-1] if isinstance(last["content"], list) else {"text": last["content"]}
        text = block.get("text", "")
        _want(text == text.rstrip(), "messages: final assistant content cannot end with trailing whitespace")


def _check_blocks(blocks: Sequence[Json], role: str, where: str, is_new: bool) -> None:
    for place, block in enumerate(blocks):
        at = f"{where}.{place}"
        _want(isinstance(block, dict), f"{at}: Input should be an object")
        kind = block.get("type")
        _want(
            kind in BLOCKS[role],
            f"{at}: Input tag '{kind}' found using 'type' does not match any of those expected",
        )
        for key in block:
            _want(key in FIELDS.get(str(kind), {key}), f"{at}.{kind}.{key}: Extra inputs are not permitted")
        match kind:
            case "text":
                text = block.get("text")
                _want(isinstance(text, str), f"{at}.text.text: Field required")
                _want(
                    bool(block["text"].strip()), f"{at}: text content blocks must contain non-whitespace text"
                )
                if is_new and role == "user":
                    _want(not block.get("citations"), f"{at}.text.citations: not permitted in user messages")
            case "image":
                _check_image(block.get("source"), at)
            case "document":
                _want(not (is_new and role == "assistant"), f"{at}: document blocks are not permitted here")
                _want(isinstance(block.get("source"), dict), f"{at}.document.source: Field required")
            case "tool_use":
                _want(
                    bool(NAME.fullmatch(str(block.get("id")))),
                    f"{at}.tool_use.id: String should match pattern",
                )
                _want(
                    bool(NAME.fullmatch(str(block.get("name")))), f"{at}.tool_use.name: should match pattern"
                )
                _want(isinstance(block.get("input"), dict), f"{at}.tool_use.input: Input should be an object")
            case "tool_result":
                _want(
                    bool(NAME.fullmatch(str(block.get("tool_use_id")))),
                    f"{at}.tool_use_id: should match pattern",
                )
                content = block.get("content", "")
                if not isinstance(content, str):
                    _check_blocks(content, "tool_result", f"{at}.tool_result.content", is_new)
            case "thinking":
                _want(bool(block.get("signature")), f"{at}.thinking.signature: Field required")
                _want(isinstance(block.get("thinking"), str), f"{at}.thinking.thinking: Field required")
                is_signed = block["signature"] == sign(block["thinking"])
                _want(is_signed, f"{at}: Invalid `signature` in `thinking` block")
            case "redacted_thinking":
                _want(bool(block.get("data")), f"{at}.redacted_thinking.data: Field required")


def _check_image(source: Any, at: str) -> None:
    _want(isinstance(source, dict), f"{at}.image.source: Field required")
    match source.get("type"):
        case "base64":
            _want(set(source) == {"type", "media_type", "data"}, f"{at}.image.source: Field required")
            _want(
                source["media_type"] in IMAGES,
                f"{at}.image.source.base64.media_type: Input should be one of {IMAGES}",
            )
            try:
                _want(bool(base64.b64decode(source["data"], validate=True)), f"{at}.image: empty")
            except ValueError as error:
                raise Refused(f"{at}.image.source.base64: invalid base64 data") from error
        case "url":
            _want(set(source) == {"type", "url"}, f"{at}.image.source: Field required")
            _want(
                str(source["url"]).startswith("https://"),
                f"{at}.image.source.url: Only HTTPS URLs are supported.",
            )
        case "file":
            _want(set(source) == {"type", "file_id"}, f"{at}.image.source: Field required")
        case _:
            raise Refused(f"{at}.image.source: Input tag does not match any of those expected")


def _check_calls(turns: Sequence[Json]) -> None:
    """Checks that each call is answered in the next turn, before anything else in it, and that nothing else is."""
    ids: set[str] = set()
    open_: list[str] = []
    for place, turn in enumerate(turns):
        blocks = turn["content"] if isinstance(turn["content"], list) else []
        results = [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
        if turn["role"] == "user":
            leading = [b["type"] == "tool_result" for b in blocks]
            _want(
                leading == sorted(leading, reverse=True),
                f"messages.{place}: `tool_result` blocks must come first",
            )
            _want(
                len(set(results)) == len(results),
                f"messages.{place}: each tool_use must have a single result",
            )
            for each in results:
                _want(
                    each in open_,
                    f"messages.{place}: unexpected `tool_use_id` found in `tool_result` blocks: {each}",
                )
            missing = [each for each in open_ if each not in results]
            _want(
                not missing,
                f"messages.{place}: `tool_use` ids without `tool_result` blocks immediately after: {missing}",
            )
            open_ = []
        else:
            open_ = [b["id"] for b in blocks if b["type"] == "tool_use"]
            _want(
                len(set(open_)) == len(open_) and not ids & set(open_),
                "messages: `tool_use` ids must be unique",
            )
            ids |= set(open_)
    _want(not open_, "messages: `tool_use` ids were found without `tool_result` blocks immediately after")


def _check_tools(body: Json) -> None:
    names = set()
    tools = body.get("tools", [])
    _want("tools" not in body or bool(tools), "tools: List should have at least 1 item")
    for place, tool in enumerate(tools):
        at = f"tools.{place}"
        if tool.get("type", "custom") != "custom":
            continue  # a server's own tool
        for key in tool:
            _want(key in TOOL_FIELDS, f"{at}.custom.{key}: Extra inputs are not permitted")
        name = tool.get("name")
        _want(bool(NAME.fullmatch(str(name))), f"{at}.custom.name: String should match pattern")
        _want(name not in names, "tools: Tool names must be unique.")
        names.add(name)
        schema = tool.get("input_schema")
        _want(isinstance(schema, dict), f"{at}.custom.input_schema: Field required")
        _want(schema.get("type") == "object", f"{at}.custom.input_schema.type: Input should be 'object'")
    choice = body.get("tool_choice")
    if choice is None:
        return
    _want(bool(tools), "tool_choice: may only be specified while providing tools")
    _want(choice.get("type") in ("auto", "any", "tool", "none"), "tool_choice: Input tag does not match")
    allowed = {"type"} if choice["type"] == "none" else {"type", "disable_parallel_tool_use"}
    allowed |= {"name"} if choice["type"] == "tool" else set()
    _want(set(choice) <= allowed, "tool_choice: Extra inputs are not permitted")
    if choice["type"] == "tool":
        _want(choice.get("name") in names, f"Tool '{choice.get('name')}' not found in provided tools")


def _check_thinking(body: Json) -> None:
    thinking = body.get("thinking")
    if thinking is None or thinking.get("type") == "disabled":
        return
    _want(thinking.get("type") in ("enabled", "adaptive"), "thinking: Input tag does not match")
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    _want(not forced, "Thinking may not be enabled when tool_choice forces tool use.")
    _want(body.get("temperature", 1) == 1, "`temperature` may only be set to 1 when thinking is enabled.")
    _want("top_k" not in body, "`top_k` must be unset when thinking is enabled.")
    if thinking["type"] == "adaptive":
        return
    budget = thinking.get("budget_tokens")
    _want(isinstance(budget, int) and budget >= 1024, "thinking.enabled.budget_tokens: should be >= 1024")
    _want(budget < body["max_tokens"], "`max_tokens` must be greater than `thinking.budget_tokens`.")
    last = next((m for m in reversed(body["messages"]) if m["role"] == "assistant"), None)
    is_loop = last is not None and any(
        b["type"] == "tool_use" for b in last["content"] if isinstance(b, dict)
    )
    if last is not None and is_loop and body["messages"][-1]["role"] != "assistant":
        first = last["content"][0]["type"]
        _want(
            first in ("thinking", "redacted_thinking"),
            f"messages: Expected `thinking` or `redacted_thinking`, but found `{first}`.",
        )


def _check_scalars(body: Json, is_new: bool) -> None:
    for key in SAMPLING:
        _want(not (is_new and key in body), f"{key}: Extra inputs are not permitted")
    for key in ("temperature", "top_p"):
        value = body.get(key, 0)
        _want(isinstance(value, int | float) and 0 <= value <= 1, f"{key}: range: 0..1")
    stops = body.get("stop_sequences", [])
    _want(isinstance(stops, list), "stop_sequences: Input should be a valid list")
    for stop in stops:
        _want(isinstance(stop, str) and bool(stop.strip()), "stop_sequences: must contain non-whitespace")
    metadata = body.get("metadata", {})
    _want(set(metadata) <= {"user_id"}, "metadata: Extra inputs are not permitted")
    _want(isinstance(metadata.get("user_id", ""), str), "metadata.user_id: Input should be a valid string")
    tier = body.get("service_tier", "auto")
    _want(tier in ("auto", "standard_only"), "service_tier: Input should be 'auto' or 'standard_only'")
    config = body.get("output_config", {})
    _want(set(config) <= {"effort", "format"}, "output_config: Extra inputs are not permitted")
    effort = config.get("effort", "low")
    _want(effort in ("low", "medium", "high", "xhigh", "max"), "output_config.effort: Input should be one of")
    if "format" in config:
        form = config["format"]
        _want(
            set(form) == {"type", "schema"} and form["type"] == "json_schema", "output_config.format: invalid"
        )
        _check_schema(form["schema"])


def _check_schema(schema: Any) -> None:
    if isinstance(schema, list):
        for each in schema:
            _check_schema(each)
    elif isinstance(schema, dict):
        if schema.get("type") == "object":
            _want(
                schema.get("additionalProperties") is False,
                "output_config.format.schema: For 'object' type, 'additionalProperties' must be set to false",
            )
        for key, value in schema.items():
            if key not in ("const", "default", "enum", "examples"):
                _check_schema(value)
