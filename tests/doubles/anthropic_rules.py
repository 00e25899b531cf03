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
    """A family of models.

    thinks: the types of thinking that it takes. is_forced: it can be made to call a tool. is_bound: its thoughts count
    only after what they were thought about. is_prefilled: it goes on with an assistant's text. late_system: it takes
    system messages after a user's.
    """

    thinks: tuple[str, ...] = ("enabled", "disabled")
    is_forced: bool = True
    is_bound: bool = False
    is_prefilled: bool = True
    late_system: bool = False


_ADAPTIVE = Model(("adaptive", "disabled"), is_prefilled=False)
_ALWAYS = Model(("adaptive",), is_prefilled=False, late_system=True)
_BOUND = Model(("adaptive",), is_forced=False, is_bound=True, is_prefilled=False, late_system=True)
MODELS = {
    "": Model(("enabled", "adaptive", "disabled")),
    "claude-": Model(),
    "claude-opus-4-6": Model(("enabled", "adaptive", "disabled"), is_prefilled=False),
    "claude-sonnet-4-6": Model(("enabled", "adaptive", "disabled"), is_prefilled=False),
    "claude-opus-4-7": _ADAPTIVE,
    "claude-opus-4-8": Model(("adaptive", "disabled"), is_prefilled=False, late_system=True),
    "claude-opus-5": Model(("adaptive", "disabled"), is_prefilled=False, late_system=True),
    "claude-sonnet-5": _ADAPTIVE,
    "claude-mythos-preview": Model(("enabled", "adaptive"), is_prefilled=False),
    "claude-fable-5": _ALWAYS,
    "claude-mythos-5": _ALWAYS,
    "claude-fable-5-1": _BOUND,
    "claude-fable-5-2": _BOUND,
    "claude-mythos-5-1": _BOUND,
    "claude-mythos-5-2": _BOUND,
    "claude-opus-5-5": _BOUND,
    "claude-sonnet-5-5": Model(
        ("adaptive", "between_tools"), is_forced=False, is_bound=True, is_prefilled=False, late_system=True
    ),
    "claude-haiku-5-5": Model(("adaptive", "disabled"), is_bound=True, is_prefilled=False, late_system=True),
}


def rules_of(model: str) -> Model:
    # As proxies name them: us.anthropic.claude-opus-4-6-v1:0, anthropic/claude-opus-4.6
    model = model[max(model.find("claude-"), 0) :].replace(".", "-")
    return MODELS[max((name for name in MODELS if model.startswith(name)), key=len)]


PARAMETERS = frozenset(
    (
        *("cache_control", "container", "diagnostics", "inference_geo", "max_tokens", "messages", "metadata"),
        *("model", "output_config", "service_tier", "speed", "stop_sequences", "stream", "system"),
        *(
            "temperature",
            "thinking",
            "tool_choice",
            "tools",
            "top_k",
            "top_p",
            "user_profile_id",
            "workspace_id",
        ),
    )
)
# Fields and blocks that are refused without a beta, by its name without the date.
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
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "image", "document", "search_result", "tool_result", "container_upload"),
    "assistant": (
        *("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"),
        *("web_fetch_tool_result", "code_execution_tool_result", "bash_code_execution_tool_result"),
        *(
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "container_upload",
            "document",
        ),
        *("mcp_tool_use", "mcp_tool_result", "compaction", "fallback"),
    ),
    "system": ("text", "tool_addition", "tool_removal"),
    "tool_result": ("text", "image", "document", "search_result", "tool_reference"),
}
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
    """A request that the API would refuse, with the error object and status it would send."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"type": "error", "error": {"type": kind, "message": message}}


def sign(thinking: str) -> str:
    """Returns the signature of a thought; it is accepted back with that thought alone."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def bind(blocks: Sequence[Json], body: Json, *, joins_text: bool = False) -> list[Json]:
    """Returns a reply's blocks with each thought bound to its place in it, and for some models to what was asked.

    A thought with nothing but thoughts before it, of a model that binds none, stays as it is. body: of the request.
    joins_text: for clients of a dialect that cannot show where a block of text ends.
    """
    asked = [*_digests(body)][-1] if rules_of(body["model"]).is_bound else ""
    found: list[Json] = []
    for block in blocks:
        key = _SEALED.get(block["type"])
        place = (
            _placed(found, joins_text=joins_text)
            if any(each["type"] not in _SEALED for each in found)
            else ""
        )
        is_bound = key is not None and (asked or place)
        found.append({**block, key: f"{block[key]}.{asked}.{place}"} if is_bound else block)
    return found


_SEALED = {"thinking": "signature", "redacted_thinking": "data"}


def _digests(body: Json) -> Iterator[str]:
    """Yields a hash of what thoughts are bound to, before each message and after the last one.

    That is: system, tools and the messages so far, without thoughts and marks.
    """
    hashed = hashlib.sha256(_dump([_listed(body.get("system", [])), body.get("tools", [])]))
    yield hashed.hexdigest()[:16]
    for turn in body["messages"]:
        said = [block for block in _listed(turn.get("content", "")) if block["type"] not in _SEALED]
        hashed.update(_dump({**turn, "content": said}))
        yield hashed.hexdigest()[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(_dump(value)).hexdigest()[:16]


def _dump(value: Any) -> bytes:
    return json.dumps(_plain(value), sort_keys=True).encode()


def _listed(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key != "cache_control"}
    return value


def _placed(before: Sequence[Json], *, joins_text: bool) -> str:
    """Returns a hash of the blocks before a thought in its reply.

    Blank text does not count, since the API would not have it back.
    joins_text: text is one, however it is cut, without its citations and its ends.
    """
    found: list[Any] = []
    for block in before:
        if not joins_text or block["type"] != "text":
            found += [block] if block["type"] != "text" or block["text"].strip() else []
        elif found and isinstance(found[-1], str):
            found[-1] += block["text"]
        elif block["text"].strip():
            found.append(block["text"])
    if not found:
        return ""
    mark = _JOINED if joins_text else ""
    return mark + _digest([each.strip() if isinstance(each, str) else each for each in found])


_JOINED = "~"


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise Refused(message)


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        _want(key not in found, f"{key}: the key is there twice")
        found[key] = value
    return found


class Threads:
    """The message threads of the API: what it holds of each conversation, by the id of its last reply."""

    def __init__(self) -> None:
        self._held: dict[str, Json] = {}
        self._continued: set[str] = set()

    def whole(self, raw: bytes, headers: Mapping[str, str]) -> bytes:
        """Returns the body of a request with all that its thread has before it. Raises: Refused."""
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
        _want(
            set(thread) == {"type", "previous_message_id"} and thread["type"] == "continue", "thread: invalid"
        )
        for key in ("system", "tools"):
            _want(key not in body, f"{key}: Extra inputs are not permitted when continuing a thread")
        previous = thread["previous_message_id"]
        if previous not in self._held:
            raise _thread_refused(404, "not_found_error", "thread_not_found")
        if previous in self._continued:
            raise _thread_refused(409, "conflict_error", "thread_already_continued")
        self._continued.add(previous)
        held = self._held[previous]
        return json.dumps({**body, **held, "messages": [*held["messages"], *body["messages"]]}).encode()

    def hold(self, body: Json, id: str, content: Sequence[Json]) -> None:
        """Holds a conversation that has come to a reply. body: of the whole request."""
        kept = {key: body[key] for key in ("system", "tools") if key in body}
        reply = {"role": "assistant", "content": [*content]}
        self._held[id] = {**kept, "messages": [*body["messages"], reply]}


def _thread_refused(status: int, kind: str, code: str) -> Refused:
    refused = Refused(f"thread: {code}", status, kind)
    refused.body["error"]["details"] = {"error_code": code}
    return refused


def check_request(raw: bytes, headers: Mapping[str, str], *, counts: bool = False) -> Json:
    """Returns the parsed body. counts: of a request whose tokens are counted. Raises: Refused."""
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
    betas = Betas(beta or "")
    for key, value in body.items():
        is_known = key in PARAMETERS or betas.have(BETA_FIELDS.get(key, ()))
        _want(is_known, f"{key}: Extra inputs are not permitted")
        _want(value is not None, f"{key}: Input should not be null")
    _want(isinstance(body.get("model"), str) and body["model"] != "", "model: Field required")
    if counts:
        for key in ("max_tokens", "stream", "metadata"):
            _want(key not in body, f"{key}: Extra inputs are not permitted")
    else:
        _want("max_tokens" in body, "max_tokens: Field required")
        limit = body["max_tokens"]
        _want(
            isinstance(limit, int) and not isinstance(limit, bool),
            "max_tokens: Input should be a valid integer",
        )
        _want(limit >= 0, "max_tokens: Input should be >= 0")
        _want(isinstance(body.get("stream", False), bool), "stream: Input should be a valid boolean")
    _check_system(body, betas)
    _check_messages(body, betas, version == NEW_VERSION)
    _check_tools(body)
    _check_thinking(body, betas)
    _check_bound(body)
    _check_scalars(body, betas, version == NEW_VERSION)
    _check_marks(body)
    return body


class Betas:
    """The betas that a request asks for."""

    def __init__(self, header: str) -> None:
        # Without their dates.
        self.names = {re.sub(r"-\d{4}-\d\d-\d\d$", "", each.strip()) for each in header.split(",")}

    def have(self, any_of: Sequence[str]) -> bool:
        return not self.names.isdisjoint(any_of)


def _check_marks(body: Json) -> None:
    # The mark of the whole request is that of its last block.
    parts = [*(_marks(body.get(key)) for key in ("tools", "system", "messages")), _own_mark(body)]
    marks = [mark for part in parts for mark in part]
    _want(len(marks) <= 4, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}.")
    is_short = False
    for mark in marks:
        is_mark = isinstance(mark, dict) and mark.get("type") == "ephemeral" and set(mark) <= {"type", "ttl"}
        _want(is_mark and mark.get("ttl", "5m") in ("5m", "1h"), "cache_control: Input should be 'ephemeral'")
        is_long = mark.get("ttl") == "1h"
        _want(
            not (is_long and is_short),
            "cache_control: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. "
            "Note that blocks are processed in the following order: `tools`, `system`, `messages`.",
        )
        is_short = is_short or not is_long


def _own_mark(value: Json) -> list[Any]:
    return [value["cache_control"]] if "cache_control" in value else []


def _marks(value: Any) -> list[Any]:
    """Yields every cache_control, except within a tool's schema or input, where it is an ordinary name."""
    if isinstance(value, list):
        return [mark for each in value for mark in _marks(each)]
    if not isinstance(value, dict):
        return []
    found = [value["cache_control"]] if "cache_control" in value else []
    skipped = ("cache_control", "input", "input_schema", "output_config")
    return found + [mark for key, each in value.items() if key not in skipped for mark in _marks(each)]


def _check_system(body: Json, betas: Betas) -> None:
    system = body.get("system", "x")
    if isinstance(system, list):
        _want(bool(system), "system: at least one block is required")
        _want(
            all(isinstance(block, dict) and block.get("type") == "text" for block in system),
            "system: Input should be 'text'",
        )
        _check_blocks(system, "system", "system", betas, is_new=True)
    else:
        _want(isinstance(system, str), "system: Input should be a string or a list")
        _want(bool(system.strip()), "system: text content blocks must be non-empty")


def _check_messages(body: Json, betas: Betas, is_new: bool) -> None:
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
        _check_fields_of_message(message, where, betas)
        _want(role != before, f"{where}: roles must alternate between 'user' and 'assistant'")
        if role == "system":
            _want(
                rules_of(body["model"]).late_system, f"{where}: role 'system' is not supported on this model"
            )
            _want(before == "user", f"{where}: a system message must follow a user message")
        elif before == "system":
            _want(role == "assistant", f"{where}: a system message must be last or before an assistant's")
        content = message.get("content", "")
        if role == "system" and not content and message.get("output_config"):
            pass  # its effort is all that it says
        elif isinstance(content, str):
            _want(bool(content.strip()), f"{where}: text content blocks must be non-empty")
        else:
            _want(isinstance(content, list) and bool(content), f"{where}: all messages must have content")
            _check_blocks(content, role, f"{where}.content", betas, is_new)
            kind = content[-1]["type"]
            _want(
                kind not in _SEALED, f"{where}: The final block in an assistant message cannot be `{kind}`."
            )
        before = role
    _check_calls([m for m in messages if m["role"] != "system"])
    last = messages[-1]
    if last["role"] == "assistant":
        block = last["content"][-1] if isinstance(last["content"], list) else {"text": last["content"]}
        text = block.get("text", "")
        _want(text == text.rstrip(), "messages: final assistant content cannot end with trailing whitespace")
        # What its own tools have begun goes on on all models.
        is_begun = "text" not in block or any(
            "server_tool_use" in b["type"] for b in _listed(last["content"])
        )
        can_go_on = is_begun or rules_of(body["model"]).is_prefilled
        _want(can_go_on, "This model does not support assistant message prefill.")


def _check_fields_of_message(message: Json, where: str, betas: Betas) -> None:
    known = {"role", "content"}
    if message.get("role") == "system":
        known |= {"output_config"} if betas.have(PER_TURN) else set()
        known |= {"clear_at"} if betas.have(("mid-conversation-system-clear-at",)) else set()
    for key in message:
        _want(key in known, f"{where}.{key}: Extra inputs are not permitted")
    config = message.get("output_config", {})
    _want(set(config) <= {"effort"}, f"{where}.output_config: Extra inputs are not permitted")
    _want(config.get("effort", "low") in EFFORTS, f"{where}.output_config.effort: Input should be one of")


def _check_blocks(blocks: Sequence[Json], role: str, where: str, betas: Betas, is_new: bool) -> None:
    for place, block in enumerate(blocks):
        at = f"{where}.{place}"
        _want(isinstance(block, dict), f"{at}: Input should be an object")
        kind = block.get("type")
        _want(
            kind in BLOCKS[role] and (kind not in BETA_BLOCKS or betas.have(BETA_BLOCKS[kind])),
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
                has_reason = bool(content) or not block.get("is_error")
                _want(has_reason, f"{at}.tool_result: content cannot be empty if `is_error` is true")
                if not isinstance(content, str):
                    _check_blocks(content, "tool_result", f"{at}.tool_result.content", betas, is_new)
            case "thinking":
                _want(bool(block.get("signature")), f"{at}.thinking.signature: Field required")
                _want(isinstance(block.get("thinking"), str), f"{at}.thinking.thinking: Field required")
                is_signed = block["signature"].partition(".")[0] == sign(block["thinking"])
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
    _check_server_calls(turns)


def _check_server_calls(turns: Sequence[Json]) -> None:
    """Checks that calls of the API's own tools have results; the newest may get them in the reply."""
    said = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    last: dict[str, int] = {}
    for place in said:
        for block in _listed(turns[place]["content"]):
            if block["type"] in ("server_tool_use", "mcp_tool_use"):
                last[block["id"]] = place
            elif block["type"].endswith("_tool_result"):
                kind = block["type"]
                _want(
                    block["tool_use_id"] in last,
                    f"messages: unexpected `tool_use_id` found in `{kind}` blocks",
                )
                del last[block["tool_use_id"]]
    # They go on where the reply was paused, or with the results of the calls next to them and nothing else.
    behind = [block for turn in turns[said[-1] + 1 :] for block in _listed(turn["content"])] if said else []
    goes_on = all(block["type"] == "tool_result" for block in behind)
    missing = [id for id, place in last.items() if place < said[-1] or not goes_on]
    _want(not missing, f"messages: tool use with id {missing} was found without a corresponding result block")


def _check_tools(body: Json) -> None:
    names = set()
    tools = body.get("tools", [])
    # An empty list is taken: Claude Code asks for titles with one.
    _want(isinstance(tools, list), "tools: Input should be a valid list")
    for place, tool in enumerate(tools):
        at = f"tools.{place}"
        if tool.get("type", "custom") != "custom":
            names.add(tool.get("name"))  # a server's own tool
            continue
        for key in tool:
            _want(key in TOOL_FIELDS, f"{at}.custom.{key}: Extra inputs are not permitted")
        name = tool.get("name")
        _want(bool(NAME.fullmatch(str(name))), f"{at}.custom.name: String should match pattern")
        _want(name not in names, "tools: Tool names must be unique.")
        names.add(name)
        schema = tool.get("input_schema")
        _want(isinstance(schema, dict), f"{at}.custom.input_schema: Field required")
        _want(schema.get("type") == "object", f"{at}.custom.input_schema.type: Input should be 'object'")
        if tool.get("strict"):
            _check_schema(schema, f"{at}.custom")
        is_union = not schema.keys().isdisjoint(("oneOf", "allOf", "anyOf"))
        _want(
            not is_union,
            f"{at}.custom.input_schema: does not support oneOf, allOf, or anyOf at the top level",
        )
    strict = sum(bool(tool.get("strict")) for tool in tools)
    _want(
        strict <= MAX_STRICT,
        f"Too many strict tools ({strict}). The maximum number supported is {MAX_STRICT}.",
    )
    choice = body.get("tool_choice")
    if choice is None:
        return
    _want(bool(tools), "tool_choice: may only be specified while providing tools")
    _want(choice.get("type") in ("auto", "any", "tool", "none"), "tool_choice: Input tag does not match")
    allowed = {"type"} if choice["type"] == "none" else {"type", "disable_parallel_tool_use"}
    allowed |= {"name"} if choice["type"] == "tool" else set()
    _want(set(choice) <= allowed, "tool_choice: Extra inputs are not permitted")
    is_taken = choice["type"] in ("auto", "none") or rules_of(body["model"]).is_forced
    _want(is_taken, 'tool_choice: type "tool" and "any" are not supported for this model')
    if choice["type"] == "tool":
        _want(choice.get("name") in names, f"Tool '{choice.get('name')}' not found in provided tools")


def _check_thinking(body: Json, betas: Betas) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    kind = thinking.get("type")
    kinds = ("enabled", "adaptive", "disabled", "between_tools")
    _want(kind in kinds, "thinking: Input tag does not match")
    _want(
        kind in rules_of(body["model"]).thinks,
        f'"thinking.type.{kind}" is not supported for this model. Use "thinking.type.adaptive" and '
        f'"output_config.effort" to control thinking behavior.',
    )
    known = {"enabled": {"budget_tokens", "display"}, "adaptive": {"display"}}.get(kind, set())
    known |= {"block_binding"} if betas.have(("thinking-binding-controls",)) and known else set()
    for key in thinking:
        _want(key in {"type", *known}, f"thinking.{kind}.{key}: Extra inputs are not permitted")
    displays = {"summarized", "omitted"} | (
        {"updates"} if betas.have(("thinking-display-updates",)) else set()
    )
    _want(thinking.get("display", "omitted") in displays, f"thinking.{kind}.display: Input should be one of")
    if kind in ("disabled", "between_tools"):
        return
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


def _check_bound(body: Json) -> None:
    """Checks that thoughts stand where they stood, and for some models after the same messages."""
    binding = body.get("thinking", {}).get("block_binding", {})
    may_drop = binding.get("prefix_mismatch_behavior", "error") == "drop_block"
    is_bound_to_prompt = rules_of(body["model"]).is_bound and not may_drop
    digests = _digests(body) if is_bound_to_prompt else repeat("")
    for place, (turn, before) in enumerate(zip(body["messages"], digests, strict=False)):
        blocks = _listed(turn.get("content", ""))
        for n, block in enumerate(blocks):
            key = _SEALED.get(block["type"])
            _, is_bound, seal = block[key].partition(".") if key else ("", "", "")
            at = f"messages.{place}.content.{n}"
            if not is_bound:
                continue
            asked, _, said = seal.partition(".")
            if is_bound_to_prompt:
                _want(
                    not asked or asked == before,
                    f"{at}: Invalid `signature` in `{block['type']}` block. The block is bound to a different "
                    f"conversation. Remove the block, or set `thinking.block_binding.prefix_mismatch_behavior` to "
                    f'"drop_block".',
                )
            # Replies in a row are one message here, so what stands before a thought may begin with another reply.
            joins_text = said.startswith(_JOINED)
            starts = [_placed(blocks[start:n], joins_text=joins_text) for start in range(n + 1)]
            _want(
                not said or said in starts,
                f"{at}: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified. "
                f"These blocks must remain as they were in the original response.",
            )


def _check_scalars(body: Json, betas: Betas, is_new: bool) -> None:
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
    user = metadata.get("user_id", "")
    is_plain = len(user) <= 256 and "@" not in user and not re.fullmatch(r"\+?[\d\s()-]{7,}", user)
    _want(
        is_plain,
        "metadata.user_id: user_id appears to contain an email address. Please send a uuid or hash value",
    )
    tier = body.get("service_tier", "auto")
    _want(tier in ("auto", "standard_only"), "service_tier: Input should be 'auto' or 'standard_only'")
    config = body.get("output_config", {})
    known = {"effort", "format"} | ({"task_budget"} if betas.have(("task-budgets",)) else set())
    _want(set(config) <= known, "output_config: Extra inputs are not permitted")
    _want(config.get("effort", "low") in EFFORTS, "output_config.effort: Input should be one of")
    if "format" in config:
        form = config["format"]
        _want(
            set(form) == {"type", "schema"} and form["type"] == "json_schema", "output_config.format: invalid"
        )
        _check_schema(form["schema"], "output_config.format.schema")


# build-with-claude/structured-outputs, "JSON Schema limitations"
SCHEMA = {
    *(
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "$ref",
    ),
    # The first is sent by the AI SDK.
    *("$schema", "$defs", "definitions", "default", "description", "title", "format", "minItems"),
}
FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
}
MAX_STRICT = 20


def _check_schema(schema: Any, at: str) -> None:
    if isinstance(schema, list):
        for each in schema:
            _check_schema(each, at)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            _want(
                schema.get("additionalProperties") is False,
                f"{at}: For 'object' type, 'additionalProperties' must be set to false",
            )
        more = sorted(schema.keys() - SCHEMA)
        _want(not more, f"{at}: For '{kind}' type, properties {', '.join(more)} are not supported")
        _want(schema.get("format", "date") in FORMATS, f"{at}: String format is not supported")
        _want(
            schema.get("minItems", 0) in (0, 1),
            f"{at}: 'minItems' values other than 0 or 1 are not supported",
        )
        for key, value in schema.items():
            if key in ("properties", "$defs", "definitions"):
                _check_schema([*value.values()], at)
            elif key not in ("const", "default", "enum"):
                _check_schema(value, at)


class PromptCache:
    """The cache of prompts: what stands before a mark is written, and looked up at most 20 blocks before a mark.

    could_read: bytes that the requests had in common with what the ones before have written, in their conversation.
    read: those of them that were found. (build-with-claude/prompt-caching)
    """

    LOOK_BACK = 20

    def __init__(self) -> None:
        self._written: dict[str, int] = {}  # hash of a prefix -> its bytes
        self.read = self.could_read = 0
        self.reads: list[
            tuple[int, int]
        ] = []  # of each request: read, and what the longest prefix before had

    def take(self, body: Json) -> None:
        hashes, sizes, marks = _prefixes(body)
        found = 0
        for mark in marks:
            for at in range(mark, max(-1, mark - self.LOOK_BACK - 1), -1):
                if hashes[at] in self._written:
                    found = max(found, sizes[at])
                    break
        longest = max(self._written.values(), default=0)
        self.reads.append((found, longest))
        self.read += found
        self.could_read += longest
        for mark in marks:
            self._written[hashes[mark]] = sizes[mark]


def _prefixes(body: Json) -> tuple[list[str], list[int], list[int]]:
    """Returns the hash and the size of the prompt up to each block, and the blocks with a mark."""
    blocks: list[tuple[str, Any]] = [("tool", each) for each in body.get("tools", ())]
    blocks += [("system", each) for each in _listed(body.get("system", []))]
    for turn in body["messages"]:
        blocks += [(turn["role"], each) for each in _listed(turn.get("content", ""))]
    hashes, sizes, marks = [], [], []
    hashed, size = hashlib.sha256(), 0
    for at, (role, block) in enumerate(blocks):
        data = _dump([role, block])
        hashed.update(data)
        size += len(data)
        hashes.append(hashed.hexdigest())
        sizes.append(size)
        if "cache_control" in block:
            marks.append(at)
    if "cache_control" in body:
        marks.append(len(blocks) - 1)
    return hashes, sizes, marks
