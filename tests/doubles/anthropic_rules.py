"""The rules of Anthropic's Messages endpoint: `check_request` raises the error with which the API refuses a request.

The rules come from the API reference, the wording of its errors, and the notes of version 2026-10-21. A case that the
reference does not mention, or that the API repairs (turns in a row by one role), is refused here, so that the gateway
never relies on leniency.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

Json = dict[str, Any]

OLD_VERSION, NEW_VERSION = "2023-06-01", "2026-10-21"
VERSIONS = (OLD_VERSION, NEW_VERSION)
THREADS_BETA = "message-threads-2026-08-12"
BINDING_BETA = "thinking-binding-controls-2026-08-01"


@dataclass(frozen=True)
class Model:
    """The fields that a family of models accepts."""

    # The types of thinking.
    thinking_types: tuple[str, ...] = ("enabled", "disabled")
    # True: a tool choice may force a call.
    can_force: bool = True
    # True: a thinking block is accepted only after the messages to which it was the answer.
    binds_thoughts: bool = False
    # True: the last message may be the assistant's, and the reply continues it.
    can_prefill: bool = True
    # True: a system message may come after a user's message.
    accepts_late_system: bool = False


_ADAPTIVE = Model(("adaptive", "disabled"), can_prefill=False)
_ALWAYS = Model(("adaptive",), can_prefill=False, accepts_late_system=True)
_BOUND = Model(
    ("adaptive",), can_force=False, binds_thoughts=True, can_prefill=False, accepts_late_system=True
)
MODELS = {
    "": Model(("enabled", "adaptive", "disabled")),
    "claude-": Model(),
    "claude-opus-4-6": Model(("enabled", "adaptive", "disabled"), can_prefill=False),
    "claude-sonnet-4-6": Model(("enabled", "adaptive", "disabled"), can_prefill=False),
    "claude-opus-4-7": _ADAPTIVE,
    "claude-opus-4-8": Model(("adaptive", "disabled"), can_prefill=False, accepts_late_system=True),
    "claude-opus-5": Model(("adaptive", "disabled"), can_prefill=False, accepts_late_system=True),
    "claude-sonnet-5": _ADAPTIVE,
    "claude-mythos-preview": Model(("enabled", "adaptive"), can_prefill=False),
    "claude-fable-5": _ALWAYS,
    "claude-mythos-5": _ALWAYS,
    "claude-fable-5-1": _BOUND,
    "claude-fable-5-2": _BOUND,
    "claude-mythos-5-1": _BOUND,
    "claude-mythos-5-2": _BOUND,
    "claude-opus-5-5": _BOUND,
    "claude-sonnet-5-5": Model(
        ("adaptive", "between_tools"),
        can_force=False,
        binds_thoughts=True,
        can_prefill=False,
        accepts_late_system=True,
    ),
    "claude-haiku-5-5": Model(
        ("adaptive", "disabled"), binds_thoughts=True, can_prefill=False, accepts_late_system=True
    ),
}


def rules_of(model: str) -> Model:
    # Proxies add to the names: us.anthropic.claude-opus-4-6-v1:0, anthropic/claude-opus-4.6
    model = model[max(model.find("claude-"), 0) :].replace(".", "-")
    return MODELS[max((name for name in MODELS if model.startswith(name)), key=len)]


# The fields of a request that need no beta.
PARAMETERS = frozenset(
    (
        *("cache_control", "container", "diagnostics", "inference_geo", "max_tokens", "messages", "metadata"),
        *("model", "output_config", "service_tier", "speed", "stop_sequences", "stream", "system"),
        *("temperature", "thinking", "tool_choice", "tools", "top_k", "top_p"),
        *("user_profile_id", "workspace_id"),
    )
)
# The betas that allow a field or a block which is refused without them. Their names are without the date.
PER_TURN = ("per-turn-control", "mid-conversation-output-config")
BETA_FIELDS: Mapping[str, tuple[str, ...]] = {
    "billing_policy": ("user-profiles",),
    "compaction": ("compact",),
    "context_management": ("context-management", "compact"),
    "fallback_credit_token": ("fallback-credit",),
    "fallbacks": ("server-side-fallback",),
    "mcp_servers": ("mcp-client",),
    "safeguards": ("dangerous-tool-use",),
    "thread": ("message-threads",),
}
BETA_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "compaction": ("compact",),
    "fallback": ("server-side-fallback",),
    "mcp_tool_result": ("mcp-client",),
    "mcp_tool_use": ("mcp-client",),
    "tool_addition": ("mid-conversation-tool-changes",),
    "tool_removal": ("mid-conversation-tool-changes",),
}
SAMPLING = ("temperature", "top_p", "top_k")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
# The types of blocks in a message of a role, and in the result of a tool.
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "image", "document", "search_result", "tool_result", "container_upload"),
    "assistant": (
        *("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"),
        *("web_fetch_tool_result", "code_execution_tool_result", "bash_code_execution_tool_result"),
        *("text_editor_code_execution_tool_result", "tool_search_tool_result"),
        *("container_upload", "document"),
        *("mcp_tool_use", "mcp_tool_result", "compaction", "fallback"),
    ),
    "system": ("text", "tool_addition", "tool_removal"),
    "tool_result": ("text", "image", "document", "search_result", "tool_reference"),
}
# The fields of blocks; a type that is not here may have any.
FIELDS: Mapping[str, set[str]] = {
    "text": {"type", "text", "cache_control", "citations"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "context", "citations", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
    "search_result": {"type", "source", "title", "content", "citations", "cache_control"},
    "container_upload": {"type", "file_id", "cache_control"},
    "tool_reference": {"type", "tool_name", "cache_control"},
    "tool_addition": {"type", "tool", "cache_control"},
    "tool_removal": {"type", "tool", "cache_control"},
}
IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
TOOL_FIELDS = {
    *("name", "description", "input_schema", "cache_control", "strict", "type", "defer_loading"),
    *("eager_input_streaming", "input_examples", "allowed_callers"),
}


class Refused(Exception):
    """The API refuses the request. body, status: of its reply."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"type": "error", "error": {"type": kind, "message": message}}


def sign(thinking: str) -> str:
    """Returns the signature of a thinking block, which is accepted only with the same text."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def bind(blocks: Sequence[Json], body: Json, *, joins_text: bool = False) -> list[Json]:
    """Returns a reply's blocks with each thinking block bound to the blocks before it.

    If the model `binds_thoughts`, each is bound to the prompt as well. A block that is bound to nothing is unchanged.

    body: the request.
    joins_text: adjacent text blocks count as one, for a dialect that does not show where a text block ends.
    """
    prompt_hash = [*_hash_prompts(body)][-1] if rules_of(body["model"]).binds_thoughts else ""
    bound: list[Json] = []
    for block in blocks:
        seal_field = _SEAL_FIELDS.get(block["type"])
        has_other_blocks = any(earlier["type"] not in _SEAL_FIELDS for earlier in bound)
        reply_hash = _hash_earlier_blocks(bound, joins_text=joins_text) if has_other_blocks else ""
        is_bound = seal_field is not None and (prompt_hash or reply_hash)
        bound.append(
            {**block, seal_field: f"{block[seal_field]}.{prompt_hash}.{reply_hash}"} if is_bound else block
        )
    return bound


# The types of thinking blocks -> the field that the API verifies.
_SEAL_FIELDS = {"thinking": "signature", "redacted_thinking": "data"}


def _hash_prompts(body: Json) -> Iterator[str]:
    """Yields a hash of the prompt before each message, and of the whole prompt.

    It covers system, tools and the messages so far, without thinking blocks and `cache_control`.
    """
    hashed = hashlib.sha256(_canonical_json([_as_blocks(body.get("system", [])), body.get("tools", [])]))
    yield hashed.hexdigest()[:16]
    for turn in body["messages"]:
        content = [
            block for block in _as_blocks(turn.get("content", "")) if block["type"] not in _SEAL_FIELDS
        ]
        hashed.update(_canonical_json({**turn, "content": content}))
        yield hashed.hexdigest()[:16]


def _hash_value(value: Any) -> str:
    return hashlib.sha256(_canonical_json(value)).hexdigest()[:16]


def _canonical_json(value: Any) -> bytes:
    return json.dumps(_without_marks(value), sort_keys=True).encode()


def _as_blocks(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _without_marks(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_marks(item) for key, item in value.items() if key != "cache_control"}
    return value


def _hash_earlier_blocks(before: Sequence[Json], *, joins_text: bool) -> str:
    """Returns a hash of the blocks before a thinking block in its reply.

    Blank text is left out, since the API refuses it in a request.

    joins_text: as for `bind`; citations and the blanks around a text are left out then.
    """
    parts: list[Any] = []
    for block in before:
        if not joins_text or block["type"] != "text":
            parts += [block] if block["type"] != "text" or block["text"].strip() else []
        elif parts and isinstance(parts[-1], str):
            parts[-1] += block["text"]
        elif block["text"].strip():
            parts.append(block["text"])
    if not parts:
        return ""
    prefix = _JOINED_PREFIX if joins_text else ""
    return prefix + _hash_value([part.strip() if isinstance(part, str) else part for part in parts])


# Begins the hashes that were made with `joins_text`.
_JOINED_PREFIX = "~"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Refused(message)


def _unique_keys(pairs: list[tuple[str, Any]]) -> Json:
    values: Json = {}
    for key, value in pairs:
        _require(key not in values, f"{key}: the key is there twice")
        values[key] = value
    return values


class Threads:
    """The message threads of the API."""

    def __init__(self) -> None:
        # The id of a reply -> the conversation up to it.
        self._conversations: dict[str, Json] = {}
        # The ids of replies after which the thread went on.
        self._continued: set[str] = set()

    def read_whole_body(self, raw: bytes, headers: Mapping[str, str]) -> bytes:
        """Returns the body of a request with the earlier messages of its thread. Raises: Refused."""
        try:
            body = json.loads(raw)
        except ValueError:
            return raw
        if (
            not isinstance(body, dict)
            or "thread" not in body
            or THREADS_BETA not in headers.get("anthropic-beta", "")
        ):
            return raw
        thread = body.pop("thread")
        if thread == {"type": "create"}:
            return json.dumps(body).encode()
        _require(
            set(thread) == {"type", "previous_message_id"} and thread["type"] == "continue", "thread: invalid"
        )
        for key in ("system", "tools"):
            _require(key not in body, f"{key}: Extra inputs are not permitted when continuing a thread")
        previous = thread["previous_message_id"]
        if previous not in self._conversations:
            raise _thread_refused(404, "not_found_error", "thread_not_found")
        if previous in self._continued:
            raise _thread_refused(409, "conflict_error", "thread_already_continued")
        self._continued.add(previous)
        conversation = self._conversations[previous]
        return json.dumps(
            {**body, **conversation, "messages": [*conversation["messages"], *body["messages"]]}
        ).encode()

    def store(self, body: Json, id: str, content: Sequence[Json]) -> None:
        """Stores a conversation with a new reply.

        body: the whole body of the request.
        id: the id of the reply.
        content: the blocks of the reply.
        """
        settings = {key: body[key] for key in ("system", "tools") if key in body}
        reply = {"role": "assistant", "content": [*content]}
        self._conversations[id] = {**settings, "messages": [*body["messages"], reply]}


def _thread_refused(status: int, kind: str, code: str) -> Refused:
    refused = Refused(f"thread: {code}", status, kind)
    refused.body["error"]["details"] = {"error_code": code}
    return refused


def check_request(raw: bytes, headers: Mapping[str, str], *, counts: bool = False) -> Json:
    """Returns the parsed body. counts: the request is for `count_tokens`. Raises: Refused."""
    _require(headers.get("content-type", "").startswith("application/json"), "Content-Type: application/json")
    version = headers.get("anthropic-version")
    _require(version is not None, "anthropic-version: header is required")
    _require(version in VERSIONS, f'anthropic-version: "{version}" is not a valid version')
    beta = headers.get("anthropic-beta")
    _require(beta is None or bool(re.fullmatch(r"[\w.-]+(, ?[\w.-]+)*", beta)), "anthropic-beta: malformed")
    try:
        body: Json = json.loads(raw, object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise Refused("The request body is not valid JSON") from error
    _require(isinstance(body, dict), "The request body is not an object")
    betas = Betas(beta or "")
    for key, value in body.items():
        is_known = key in PARAMETERS or betas.have(BETA_FIELDS.get(key, ()))
        _require(is_known, f"{key}: Extra inputs are not permitted")
        _require(value is not None, f"{key}: Input should not be null")
    _require(isinstance(body.get("model"), str) and body["model"] != "", "model: Field required")
    if counts:
        for key in ("max_tokens", "stream", "metadata"):
            _require(key not in body, f"{key}: Extra inputs are not permitted")
    else:
        _require("max_tokens" in body, "max_tokens: Field required")
        limit = body["max_tokens"]
        _require(
            isinstance(limit, int) and not isinstance(limit, bool),
            "max_tokens: Input should be a valid integer",
        )
        _require(limit >= 0, "max_tokens: Input should be >= 0")
        _require(isinstance(body.get("stream", False), bool), "stream: Input should be a valid boolean")
    _check_system(body, betas)
    _check_messages(body, betas, version == NEW_VERSION)
    _check_tools(body)
    _check_thinking(body, betas)
    _check_bindings(body)
    _check_scalars(body, betas, version == NEW_VERSION)
    _check_marks(body)
    return body


class Betas:
    """The betas that a request asks for."""

    def __init__(self, header: str) -> None:
        # The names without their dates.
        self.names = {re.sub(r"-\d{4}-\d\d-\d\d$", "", each.strip()) for each in header.split(",")}

    def have(self, any_of: Sequence[str]) -> bool:
        return not self.names.isdisjoint(any_of)


def _check_marks(body: Json) -> None:
    # A mark of the request itself counts for its last block.
    parts = [*(_marks(body.get(key)) for key in ("tools", "system", "messages")), _top_level_mark(body)]
    marks = [mark for part in parts for mark in part]
    _require(
        len(marks) <= 4, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}."
    )
    is_short = False
    for mark in marks:
        is_mark = isinstance(mark, dict) and mark.get("type") == "ephemeral" and set(mark) <= {"type", "ttl"}
        _require(
            is_mark and mark.get("ttl", "5m") in ("5m", "1h"), "cache_control: Input should be 'ephemeral'"
        )
        is_long = mark.get("ttl") == "1h"
        _require(
            not (is_long and is_short),
            "cache_control: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. "
            "Note that blocks are processed in the following order: `tools`, `system`, `messages`.",
        )
        is_short = is_short or not is_long


def _top_level_mark(value: Json) -> list[Any]:
    return [value["cache_control"]] if "cache_control" in value else []


def _marks(value: Any) -> list[Any]:
    """Yields every cache_control, except within a tool's schema or input, where it is an ordinary name."""
    if isinstance(value, list):
        return [mark for item in value for mark in _marks(item)]
    if not isinstance(value, dict):
        return []
    own = [value["cache_control"]] if "cache_control" in value else []
    skipped = ("cache_control", "input", "input_schema", "output_config")
    return own + [mark for key, item in value.items() if key not in skipped for mark in _marks(item)]


def _check_system(body: Json, betas: Betas) -> None:
    system = body.get("system", "x")
    if isinstance(system, list):
        _require(bool(system), "system: at least one block is required")
        _require(
            all(isinstance(block, dict) and block.get("type") == "text" for block in system),
            "system: Input should be 'text'",
        )
        _check_blocks(system, "system", "system", betas, is_new=True)
    else:
        _require(isinstance(system, str), "system: Input should be a string or a list")
        _require(bool(system.strip()), "system: text content blocks must be non-empty")


def _check_messages(body: Json, betas: Betas, is_new: bool) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise Refused("messages: Field required")
    _require(bool(messages), "messages: at least one message is required")
    _require(messages[0].get("role") == "user", 'messages: first message must use the "user" role')
    previous_role = ""
    for index, message in enumerate(messages):
        path, role = f"messages.{index}", message.get("role")
        _require(role in ("user", "assistant", "system"), f"{path}: Input should be 'user' or 'assistant'")
        _check_fields_of_message(message, path, betas)
        _require(role != previous_role, f"{path}: roles must alternate between 'user' and 'assistant'")
        if role == "system":
            _require(
                rules_of(body["model"]).accepts_late_system,
                f"{path}: role 'system' is not supported on this model",
            )
            _require(previous_role == "user", f"{path}: a system message must follow a user message")
        elif previous_role == "system":
            _require(role == "assistant", f"{path}: a system message must be last or before an assistant's")
        content = message.get("content", "")
        if role == "system" and not content and message.get("output_config"):
            pass  # the message only sets the effort
        elif isinstance(content, str):
            _require(bool(content.strip()), f"{path}: text content blocks must be non-empty")
        else:
            _require(isinstance(content, list) and bool(content), f"{path}: all messages must have content")
            _check_blocks(content, role, f"{path}.content", betas, is_new)
            last_type = content[-1]["type"]
            _require(
                last_type not in _SEAL_FIELDS,
                f"{path}: The final block in an assistant message cannot be `{last_type}`.",
            )
        previous_role = role
    _check_calls([message for message in messages if message["role"] != "system"])
    last = messages[-1]
    if last["role"] == "assistant":
        block = last["content"][-1] if isinstance(last["content"], list) else {"text": last["content"]}
        text = block.get("text", "")
        _require(
            text == text.rstrip(), "messages: final assistant content cannot end with trailing whitespace"
        )
        # All models continue a message that stopped at a call of the API's own tools.
        is_paused = "text" not in block or any(
            "server_tool_use" in block["type"] for block in _as_blocks(last["content"])
        )
        is_accepted = is_paused or rules_of(body["model"]).can_prefill
        _require(is_accepted, "This model does not support assistant message prefill.")


def _check_fields_of_message(message: Json, path: str, betas: Betas) -> None:
    allowed = {"role", "content"}
    if message.get("role") == "system":
        allowed |= {"output_config"} if betas.have(PER_TURN) else set()
        allowed |= {"clear_at"} if betas.have(("mid-conversation-system-clear-at",)) else set()
    for key in message:
        _require(key in allowed, f"{path}.{key}: Extra inputs are not permitted")
    config = message.get("output_config", {})
    _require(set(config) <= {"effort"}, f"{path}.output_config: Extra inputs are not permitted")
    _require(config.get("effort", "low") in EFFORTS, f"{path}.output_config.effort: Input should be one of")


def _check_blocks(blocks: Sequence[Json], role: str, parent: str, betas: Betas, is_new: bool) -> None:
    for index, block in enumerate(blocks):
        path = f"{parent}.{index}"
        _require(isinstance(block, dict), f"{path}: Input should be an object")
        type_ = block.get("type")
        _require(
            type_ in BLOCKS[role] and (type_ not in BETA_BLOCKS or betas.have(BETA_BLOCKS[type_])),
            f"{path}: Input tag '{type_}' found using 'type' does not match any of those expected",
        )
        for key in block:
            _require(
                key in FIELDS.get(str(type_), {key}), f"{path}.{type_}.{key}: Extra inputs are not permitted"
            )
        _check_block_fields(block, role, path, betas, is_new)


def _check_block_fields(block: Json, role: str, path: str, betas: Betas, is_new: bool) -> None:
    """Checks the fields of a block with a type that its message may have. Raises: Refused."""
    match block["type"]:
        case "text":
            text = block.get("text")
            _require(isinstance(text, str), f"{path}.text.text: Field required")
            _require(
                bool(block["text"].strip()),
                f"{path}: text content blocks must contain non-whitespace text",
            )
            if is_new and role == "user":
                _require(not block.get("citations"), f"{path}.text.citations: not permitted in user messages")
        case "image":
            _check_image(block.get("source"), path)
        case "document":
            _require(not (is_new and role == "assistant"), f"{path}: document blocks are not permitted here")
            _require(isinstance(block.get("source"), dict), f"{path}.document.source: Field required")
        case "tool_use":
            _require(
                bool(NAME.fullmatch(str(block.get("id")))),
                f"{path}.tool_use.id: String should match pattern",
            )
            _require(
                bool(NAME.fullmatch(str(block.get("name")))),
                f"{path}.tool_use.name: should match pattern",
            )
            _require(
                isinstance(block.get("input"), dict), f"{path}.tool_use.input: Input should be an object"
            )
        case "tool_result":
            _require(
                bool(NAME.fullmatch(str(block.get("tool_use_id")))),
                f"{path}.tool_use_id: should match pattern",
            )
            content = block.get("content", "")
            has_reason = bool(content) or not block.get("is_error")
            _require(has_reason, f"{path}.tool_result: content cannot be empty if `is_error` is true")
            if not isinstance(content, str):
                _check_blocks(content, "tool_result", f"{path}.tool_result.content", betas, is_new)
        case "thinking":
            _require(bool(block.get("signature")), f"{path}.thinking.signature: Field required")
            _require(isinstance(block.get("thinking"), str), f"{path}.thinking.thinking: Field required")
            is_signed = block["signature"].partition(".")[0] == sign(block["thinking"])
            _require(is_signed, f"{path}: Invalid `signature` in `thinking` block")
        case "redacted_thinking":
            _require(bool(block.get("data")), f"{path}.redacted_thinking.data: Field required")


def _check_image(source: Any, path: str) -> None:
    _require(isinstance(source, dict), f"{path}.image.source: Field required")
    match source.get("type"):
        case "base64":
            _require(set(source) == {"type", "media_type", "data"}, f"{path}.image.source: Field required")
            _require(
                source["media_type"] in IMAGES,
                f"{path}.image.source.base64.media_type: Input should be one of {IMAGES}",
            )
            try:
                _require(bool(base64.b64decode(source["data"], validate=True)), f"{path}.image: empty")
            except ValueError as error:
                raise Refused(f"{path}.image.source.base64: invalid base64 data") from error
        case "url":
            _require(set(source) == {"type", "url"}, f"{path}.image.source: Field required")
            _require(
                str(source["url"]).startswith("https://"),
                f"{path}.image.source.url: Only HTTPS URLs are supported.",
            )
        case "file":
            _require(set(source) == {"type", "file_id"}, f"{path}.image.source: Field required")
        case _:
            raise Refused(f"{path}.image.source: Input tag does not match any of those expected")


def _check_calls(turns: Sequence[Json]) -> None:
    """Checks that the next turn begins with one result for each call, and has no result without a call."""
    ids: set[str] = set()
    open_ids: list[str] = []
    for index, turn in enumerate(turns):
        blocks = turn["content"] if isinstance(turn["content"], list) else []
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if turn["role"] == "user":
            leading = [block["type"] == "tool_result" for block in blocks]
            _require(
                leading == sorted(leading, reverse=True),
                f"messages.{index}: `tool_result` blocks must come first",
            )
            _require(
                len(set(results)) == len(results),
                f"messages.{index}: each tool_use must have a single result",
            )
            for id in results:
                _require(
                    id in open_ids,
                    f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks: {id}",
                )
            missing = [id for id in open_ids if id not in results]
            _require(
                not missing,
                f"messages.{index}: `tool_use` ids without `tool_result` blocks immediately after: {missing}",
            )
            open_ids = []
        else:
            open_ids = [block["id"] for block in blocks if block["type"] == "tool_use"]
            _require(
                len(set(open_ids)) == len(open_ids) and not ids & set(open_ids),
                "messages: `tool_use` ids must be unique",
            )
            ids |= set(open_ids)
    _require(
        not open_ids, "messages: `tool_use` ids were found without `tool_result` blocks immediately after"
    )
    _check_server_calls(turns)


def _check_server_calls(turns: Sequence[Json]) -> None:
    """Checks that calls of the API's own tools have results. Those of the last reply may get them in the next one."""
    assistant_turns = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    open_calls: dict[str, int] = {}
    for index in assistant_turns:
        for block in _as_blocks(turns[index]["content"]):
            if block["type"] in ("server_tool_use", "mcp_tool_use"):
                open_calls[block["id"]] = index
            elif block["type"].endswith("_tool_result"):
                result_type = block["type"]
                _require(
                    block["tool_use_id"] in open_calls,
                    f"messages: unexpected `tool_use_id` found in `{result_type}` blocks",
                )
                del open_calls[block["tool_use_id"]]
    # The next reply continues the last one if the request adds nothing, or only results of the client's calls.
    later_blocks = (
        [block for turn in turns[assistant_turns[-1] + 1 :] for block in _as_blocks(turn["content"])]
        if assistant_turns
        else []
    )
    has_only_results = all(block["type"] == "tool_result" for block in later_blocks)
    missing = [id for id, index in open_calls.items() if index < assistant_turns[-1] or not has_only_results]
    _require(
        not missing, f"messages: tool use with id {missing} was found without a corresponding result block"
    )


def _check_tools(body: Json) -> None:
    names = set()
    tools = body.get("tools", [])
    # An empty list is accepted: Claude Code sends one when it asks for a title.
    _require(isinstance(tools, list), "tools: Input should be a valid list")
    for index, tool in enumerate(tools):
        path = f"tools.{index}"
        if tool.get("type", "custom") != "custom":
            names.add(tool.get("name"))  # a tool of the API itself
            continue
        for key in tool:
            _require(key in TOOL_FIELDS, f"{path}.custom.{key}: Extra inputs are not permitted")
        name = tool.get("name")
        _require(bool(NAME.fullmatch(str(name))), f"{path}.custom.name: String should match pattern")
        _require(name not in names, "tools: Tool names must be unique.")
        names.add(name)
        schema = tool.get("input_schema")
        _require(isinstance(schema, dict), f"{path}.custom.input_schema: Field required")
        _require(schema.get("type") == "object", f"{path}.custom.input_schema.type: Input should be 'object'")
        if tool.get("strict"):
            _check_schema(schema, f"{path}.custom")
        is_union = not schema.keys().isdisjoint(("oneOf", "allOf", "anyOf"))
        _require(
            not is_union,
            f"{path}.custom.input_schema: does not support oneOf, allOf, or anyOf at the top level",
        )
    strict_count = sum(bool(tool.get("strict")) for tool in tools)
    _require(
        strict_count <= MAX_STRICT,
        f"Too many strict tools ({strict_count}). The maximum number supported is {MAX_STRICT}.",
    )
    choice = body.get("tool_choice")
    if choice is None:
        return
    _require(bool(tools), "tool_choice: may only be specified while providing tools")
    _require(choice.get("type") in ("auto", "any", "tool", "none"), "tool_choice: Input tag does not match")
    fields = {"type"} if choice["type"] == "none" else {"type", "disable_parallel_tool_use"}
    fields |= {"name"} if choice["type"] == "tool" else set()
    _require(set(choice) <= fields, "tool_choice: Extra inputs are not permitted")
    is_supported = choice["type"] in ("auto", "none") or rules_of(body["model"]).can_force
    _require(is_supported, 'tool_choice: type "tool" and "any" are not supported for this model')
    if choice["type"] == "tool":
        _require(choice.get("name") in names, f"Tool '{choice.get('name')}' not found in provided tools")


def _check_thinking(body: Json, betas: Betas) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    type_ = thinking.get("type")
    kinds = ("enabled", "adaptive", "disabled", "between_tools")
    _require(type_ in kinds, "thinking: Input tag does not match")
    _require(
        type_ in rules_of(body["model"]).thinking_types,
        f'"thinking.type.{type_}" is not supported for this model. Use "thinking.type.adaptive" and '
        f'"output_config.effort" to control thinking behavior.',
    )
    fields = {"enabled": {"budget_tokens", "display"}, "adaptive": {"display"}}.get(type_, set())
    fields |= {"block_binding"} if betas.have(("thinking-binding-controls",)) and fields else set()
    for key in thinking:
        _require(key in {"type", *fields}, f"thinking.{type_}.{key}: Extra inputs are not permitted")
    displays = {"summarized", "omitted"} | (
        {"updates"} if betas.have(("thinking-display-updates",)) else set()
    )
    _require(
        thinking.get("display", "omitted") in displays, f"thinking.{type_}.display: Input should be one of"
    )
    if type_ in ("disabled", "between_tools"):
        return
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    _require(not forced, "Thinking may not be enabled when tool_choice forces tool use.")
    _require(body.get("temperature", 1) == 1, "`temperature` may only be set to 1 when thinking is enabled.")
    _require("top_k" not in body, "`top_k` must be unset when thinking is enabled.")
    if thinking["type"] == "adaptive":
        return
    budget = thinking.get("budget_tokens")
    _require(isinstance(budget, int) and budget >= 1024, "thinking.enabled.budget_tokens: should be >= 1024")
    _require(budget < body["max_tokens"], "`max_tokens` must be greater than `thinking.budget_tokens`.")
    last_assistant = next(
        (message for message in reversed(body["messages"]) if message["role"] == "assistant"), None
    )
    is_loop = last_assistant is not None and any(
        block["type"] == "tool_use" for block in last_assistant["content"] if isinstance(block, dict)
    )
    if last_assistant is not None and is_loop and body["messages"][-1]["role"] != "assistant":
        first_type = last_assistant["content"][0]["type"]
        _require(
            first_type in ("thinking", "redacted_thinking"),
            f"messages: Expected `thinking` or `redacted_thinking`, but found `{first_type}`.",
        )


def _check_bindings(body: Json) -> None:
    """Checks that thinking blocks come after the blocks, and for some models the messages, to which they are bound."""
    binding = body.get("thinking", {}).get("block_binding", {})
    may_drop = binding.get("prefix_mismatch_behavior", "error") == "drop_block"
    is_bound_to_prompt = rules_of(body["model"]).binds_thoughts and not may_drop
    digests = _hash_prompts(body) if is_bound_to_prompt else repeat("")
    for turn_index, (turn, current_hash) in enumerate(zip(body["messages"], digests, strict=False)):
        blocks = _as_blocks(turn.get("content", ""))
        for block_index, block in enumerate(blocks):
            seal_field = _SEAL_FIELDS.get(block["type"])
            _, separator, seal = block[seal_field].partition(".") if seal_field else ("", "", "")
            path = f"messages.{turn_index}.content.{block_index}"
            if not separator:
                continue
            prompt_hash, _, reply_hash = seal.partition(".")
            if is_bound_to_prompt:
                _require(
                    not prompt_hash or prompt_hash == current_hash,
                    f"{path}: Invalid `signature` in `{block['type']}` block. The block is bound to a different "
                    f"conversation. Remove the block, or set `thinking.block_binding.prefix_mismatch_behavior` to "
                    f'"drop_block".',
                )
            # Adjacent replies are one message here, so the reply of a thinking block may begin at any block before it.
            joins_text = reply_hash.startswith(_JOINED_PREFIX)
            starts = [
                _hash_earlier_blocks(blocks[start:block_index], joins_text=joins_text)
                for start in range(block_index + 1)
            ]
            _require(
                not reply_hash or reply_hash in starts,
                f"{path}: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified. "
                f"These blocks must remain as they were in the original response.",
            )


def _check_scalars(body: Json, betas: Betas, is_new: bool) -> None:
    for key in SAMPLING:
        _require(not (is_new and key in body), f"{key}: Extra inputs are not permitted")
    for key in ("temperature", "top_p"):
        value = body.get(key, 0)
        _require(isinstance(value, int | float) and 0 <= value <= 1, f"{key}: range: 0..1")
    takes_sampling = "enabled" in rules_of(body["model"]).thinking_types
    for key in SAMPLING:
        _require(takes_sampling or key not in body, f"`{key}` is deprecated for this model.")
    _require(
        not ("claude-" in body["model"] and {"temperature", "top_p"} <= body.keys()),
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
    )
    stops = body.get("stop_sequences", [])
    _require(isinstance(stops, list), "stop_sequences: Input should be a valid list")
    for stop in stops:
        _require(isinstance(stop, str) and bool(stop.strip()), "stop_sequences: must contain non-whitespace")
    metadata = body.get("metadata", {})
    _require(set(metadata) <= {"user_id"}, "metadata: Extra inputs are not permitted")
    _require(isinstance(metadata.get("user_id", ""), str), "metadata.user_id: Input should be a valid string")
    user = metadata.get("user_id", "")
    is_plain = len(user) <= 256 and "@" not in user and not re.fullmatch(r"\+?[\d\s()-]{7,}", user)
    _require(
        is_plain,
        "metadata.user_id: user_id appears to contain an email address. Please send a uuid or hash value",
    )
    tier = body.get("service_tier", "auto")
    _require(tier in ("auto", "standard_only"), "service_tier: Input should be 'auto' or 'standard_only'")
    config = body.get("output_config", {})
    config_fields = {"effort", "format"} | ({"task_budget"} if betas.have(("task-budgets",)) else set())
    _require(set(config) <= config_fields, "output_config: Extra inputs are not permitted")
    _require(config.get("effort", "low") in EFFORTS, "output_config.effort: Input should be one of")
    if "format" in config:
        format_ = config["format"]
        _require(
            set(format_) == {"type", "schema"} and format_["type"] == "json_schema",
            "output_config.format: invalid",
        )
        _check_schema(format_["schema"], "output_config.format.schema")


# build-with-claude/structured-outputs, "JSON Schema limitations"
SCHEMA_KEYWORDS = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
    *("anyOf", "allOf", "$ref"),
    # The AI SDK sends `$schema`.
    *("$schema", "$defs", "definitions", "default", "description", "title", "format", "minItems"),
}
STRING_FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
}
MAX_STRICT = 20


def _check_schema(schema: Any, path: str) -> None:
    if isinstance(schema, list):
        for item in schema:
            _check_schema(item, path)
    elif isinstance(schema, dict):
        type_ = schema.get("type")
        if type_ == "object" or "properties" in schema:
            _require(
                schema.get("additionalProperties") is False,
                f"{path}: For 'object' type, 'additionalProperties' must be set to false",
            )
        unsupported = sorted(schema.keys() - SCHEMA_KEYWORDS)
        _require(
            not unsupported,
            f"{path}: For '{type_}' type, properties {', '.join(unsupported)} are not supported",
        )
        _require(schema.get("format", "date") in STRING_FORMATS, f"{path}: String format is not supported")
        _require(
            schema.get("minItems", 0) in (0, 1),
            f"{path}: 'minItems' values other than 0 or 1 are not supported",
        )
        for key, value in schema.items():
            if key in ("properties", "$defs", "definitions"):
                _check_schema([*value.values()], path)
            elif key not in ("const", "default", "enum"):
                _check_schema(value, path)


class PromptCache:
    """The prompt cache of one conversation: a mark writes the prefix up to it (build-with-claude/prompt-caching)."""

    # The number of blocks before a mark in which an earlier prefix is looked up, by that page.
    LOOK_BACK = 20

    def __init__(self) -> None:
        # The hash of a prefix -> its bytes.
        self._written: dict[str, int] = {}
        # The bytes of all requests that were read from the cache.
        self.read = 0
        # The bytes that would have been read if each request had found the longest prefix before it.
        self.could_read = 0
        # The two numbers of each request.
        self.reads: list[tuple[int, int]] = []

    def take(self, body: Json) -> None:
        hashes, sizes, marks = _hash_prefixes(body)
        read_bytes = 0
        for mark in marks:
            for index in range(mark, max(-1, mark - self.LOOK_BACK - 1), -1):
                if hashes[index] in self._written:
                    read_bytes = max(read_bytes, sizes[index])
                    break
        longest = max(self._written.values(), default=0)
        self.reads.append((read_bytes, longest))
        self.read += read_bytes
        self.could_read += longest
        for mark in marks:
            self._written[hashes[mark]] = sizes[mark]


def _hash_prefixes(body: Json) -> tuple[list[str], list[int], list[int]]:
    """Returns the hash and the bytes of the prompt up to each block, and the indices of the blocks with a mark."""
    blocks: list[tuple[str, Any]] = [("tool", block) for block in body.get("tools", ())]
    blocks += [("system", block) for block in _as_blocks(body.get("system", []))]
    for turn in body["messages"]:
        blocks += [(turn["role"], block) for block in _as_blocks(turn.get("content", ""))]
    hashes, sizes, marks = [], [], []
    hashed, size = hashlib.sha256(), 0
    for index, (role, block) in enumerate(blocks):
        data = _canonical_json([role, block])
        hashed.update(data)
        size += len(data)
        hashes.append(hashed.hexdigest())
        sizes.append(size)
        if "cache_control" in block:
            marks.append(index)
    if "cache_control" in body:
        marks.append(len(blocks) - 1)
    return hashes, sizes, marks
