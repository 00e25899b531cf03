"""Reads a request to Anthropic's Messages API as a chat completion, once, at the edge.

What both APIs know goes on under its name there. What chat completions have no place for is refused by name where
leaving it out would change the answer, and named in `x-mnemogate-consumed` where it would not.
(platform.claude.com/docs/en/api/messages)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from msgspec import Struct

from adapters.json_escapes import may_round, read_exact
from adapters.types import Json
from gateway.core.json_limits import is_too_deep
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import INSTALLATION
from gateway.core.request.native_body import MessageThread
from gateway.core.request.request_headers import RawHeaders, header_text
from gateway.dialects.chat.parse import make_chat_request
from gateway.dialects.fields import check_depth, check_length, is_written_so, read_object, repeated_keys
from gateway.dialects.messages.content import (
    FieldChecker,
    MessageOrigin,
    find_effort_of_turn,
    read_attribution,
    read_messages,
    read_system,
)
from gateway.dialects.messages.errors import invalid_field, untranslatable_field
from gateway.errors import BadRequest

SUB_AGENT: Final = "claude-code sub-agent"
# Asks in a session for one token, to see whether a model answers: after `/model`, and before the first turn.
PROBE: Final = "claude-code probe"
_SUB_AGENT_HEADER: Final = b"x-claude-code-agent-id"
_SUB_AGENT_MARK: Final = "cc_is_subagent=true"
_BETA: Final = b"anthropic-beta"
# Fields without an effect on the reply of a chat completion.
_NO_EFFECT: Final = ("cache_control", "thinking", "service_tier", "inference_geo")
# The ignored fields that a reply's header names, in this order.
_NAMED: Final = (*_NO_EFFECT, "context_management")
_READ: Final = frozenset(
    (
        *("model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "metadata"),
        *("output_config", "tools", "tool_choice", "stream", "context_management"),
    )
)
_KNOWN: Final = _READ.union(_NO_EFFECT)
# The fields that are read of each.
_METADATA: Final = frozenset(("user_id",))
_OUTPUT_CONFIG: Final = frozenset(("effort", "format"))
_FORMAT: Final = frozenset(("type", "schema"))
_MANAGEMENT: Final = frozenset(("edits",))
_TOOL: Final = frozenset(("type", "name", "description", "input_schema", "strict"))
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_CHOICE: Final = frozenset(("type", "name", "disable_parallel_tool_use"))
# Fields that a request of this API has to have, and a chat completion has not.
_ADDED: Final = frozenset(("max_tokens",))
# Fields that ask for what runs at Anthropic.
_SERVED: Final = ("mcp_servers", "container")
_CLEARS_THOUGHTS: Final = "clear_thinking_"
# `user_<device>_account_<uuid or nothing>_session_<uuid>`, as older versions of Claude Code name their user.
_OLDER_USER: Final = re.compile(r"user_([0-9a-zA-Z]+)_account_([0-9a-zA-Z-]*)_session_([0-9a-zA-Z-]+)")

_MAX_USER_CHARS: Final = 256  # that the API takes of `metadata.user_id`


class MessagesRequest(Struct, frozen=True):
    """A request to the Messages API."""

    raw: bytes
    json: Json
    # The request as a chat completion.
    chat: ChatRequest
    # For each message of `chat`.
    origins: Sequence[MessageOrigin]
    # The names of what `chat` lacks and its answer needs.
    left_out: tuple[str, ...]


def parse_body(body: bytes) -> Json:
    """Returns a body's JSON. Raises: BadRequest, BodyTooLarge."""
    json = read_object(body)
    if is_too_deep(json):
        for key, value in json.items():
            check_depth(key, [value])
    if is_written_so(body, json):
        return json
    for key in repeated_keys(body):
        raise invalid_field(key[:60], "the key is in the body twice")
    # The input of a call may have integers of any size.
    return read_exact(body, json) if may_round(body) else json


def read_names(json: Json) -> Json:
    """Returns the fields of a request that name model, user and conversation."""
    try:
        metadata = _read_user(json.get("metadata"))
    except BadRequest:
        metadata = {}
    return {"model": json.get("model"), "metadata": metadata}


def read_request(
    body: bytes,
    json: Json,
    headers: RawHeaders,
    max_messages: int,
    *,
    is_lenient: bool,
    has_limit: bool = True,
) -> MessagesRequest:
    """Reads a request.

    json: the body's.
    is_lenient: what a chat completion has no place for is passed over, since the request goes upstream as it is.
    has_limit: it needs `max_tokens`, as all requests but those whose tokens are counted.

    Raises: BadRequest.
    """
    if not is_lenient:
        for key, field in json.items():
            if field is not None and key not in _KNOWN:
                raise untranslatable_field(key[:60])
    check_length("messages", json["messages"] if isinstance(json.get("messages"), list) else [], max_messages)
    checker = FieldChecker(is_lenient=is_lenient)
    translated = read_messages(json.get("messages"), checker)
    if not is_lenient and json["messages"][-1].get("role") == "assistant":
        raise invalid_field(
            "messages",
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        )
    if system := read_system(json.get("system"), checker):
        translated.messages.insert(0, {"role": "system", "content": "\n\n".join(system)})
        translated.origins.insert(0, MessageOrigin(-1))
    chat, metadata = _translate_fields(json, translated.messages, checker, has_limit=has_limit)
    request = make_chat_request(orjson.dumps(chat), chat, translated.messages)
    request.wants_usage = request.is_translated = True
    # Chat completions have a newer name for it, which models that refuse this one take.
    if request.max_tokens_field == "max_tokens":
        request.added_fields = _ADDED
    by_name = dict(headers)
    request.consumed = () if is_lenient else _names_left_out(json, by_name, checker)
    own = {key: value for key, value in json.items() if key not in _READ}
    request.dialect_fields = {"user": None, **own, "metadata": metadata}
    if _is_sub_agent(json, by_name):
        request.side_request = SUB_AGENT
    elif json.get("max_tokens") == 1 and "conversation_id" in metadata:
        request.side_request = PROBE
    needed = (*checker.left_out, *(key for key in _SERVED if json.get(key))) if is_lenient else ()
    return MessagesRequest(body, json, request, translated.origins, needed)


def read_thread(json: Json) -> MessageThread | None:
    """Returns the message thread that a request begins or goes on with; None: it has none. Raises: BadRequest."""
    thread = json.get("thread")
    if thread is None:
        return None
    kind = thread.get("type") if isinstance(thread, dict) else None
    previous = thread.get("previous_message_id") if kind == "continue" else None
    if kind != "create" and not (isinstance(previous, str) and previous):
        raise invalid_field(
            "thread", "Input should have the type 'create', or 'continue' and a `previous_message_id`"
        )
    return MessageThread(previous)


def _translate_fields(
    json: Json, messages: list[Json], checker: FieldChecker, *, has_limit: bool
) -> tuple[Json, Json]:
    """Returns the body of a chat completion, and the fields of `metadata` that name user and conversation."""
    chat: Json = {"model": json.get("model"), "messages": messages}
    if json.get("stream") is not None:
        chat["stream"] = json["stream"]
    metadata: Json = {}
    try:
        metadata = _read_user(json.get("metadata"))
        _add_tools(chat, json, checker)
        _add_output_config(chat, json, checker)
        if has_limit:
            _add_limits(chat, json)
        if not checker.is_lenient:
            _check_context_management(json.get("context_management"), checker)
            checker.check(json.get("metadata") or {}, _METADATA, "metadata")
    except BadRequest:
        if not checker.is_lenient:
            raise
    if isinstance(user := metadata.get("user_id"), str) and user:
        chat["user"] = user
    return chat, metadata


def _add_limits(chat: Json, json: Json) -> None:
    limit = json.get("max_tokens")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise invalid_field(
            "max_tokens", "Field required" if limit is None else "Input should be a valid integer"
        )
    chat["max_tokens"] = limit
    for key in ("temperature", "top_p"):
        if json.get(key) is not None:
            chat[key] = json[key]
    stops = json.get("stop_sequences")
    if stops is not None:
        if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
            raise invalid_field("stop_sequences", "Input should be a valid list of strings")
        if stops:
            chat["stop"] = stops


def _add_tools(chat: Json, json: Json, checker: FieldChecker) -> None:
    tools = json.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise invalid_field("tools", "Input should be a valid list")
    functions = [
        function
        for index, tool in enumerate(tools or ())
        if (function := _translate_tool(tool, f"tools.{index}", checker)) is not None
    ]
    if functions:
        chat["tools"] = functions
    choice = json.get("tool_choice")
    if choice is None:
        return
    if not isinstance(choice, dict):
        raise invalid_field("tool_choice", "Input should be a valid dictionary")
    checker.check(choice, _CHOICE, "tool_choice")
    kind = choice.get("type")
    if not tools:
        if kind in ("any", "tool"):
            raise invalid_field("tool_choice", "may only be specified while providing tools")
        return
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise invalid_field("tool_choice.tool.name", "Input should be a valid string")
        chat["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in _CHOICES:
        chat["tool_choice"] = _CHOICES[kind]
    else:
        raise invalid_field("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


def _translate_tool(tool: Any, where: str, checker: FieldChecker) -> Json | None:
    """Returns a tool of the client's own; None: the upstream alone knows what it is."""
    if not isinstance(tool, dict):
        raise invalid_field(where, "Input should be a valid dictionary")
    if tool.get("type") not in (None, "custom"):
        kind = str(tool["type"])[:60]
        if checker.is_lenient:
            checker.left_out[f"tools.{kind}"] = None
            return None
        raise untranslatable_field(f"{where}.{kind}")
    checker.check(tool, _TOOL, where)
    if not checker.is_lenient:
        callers = tool.get("allowed_callers")
        if callers is not None and not (isinstance(callers, list) and "direct" in callers):
            raise untranslatable_field(f"{where}.allowed_callers")  # the model itself may not call it
    name = tool.get("name")
    if not isinstance(name, str):
        raise invalid_field(f"{where}.name", "Field required")
    function: Json = {"name": name}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = tool.get("input_schema") or {"type": "object"}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _add_output_config(chat: Json, json: Json, checker: FieldChecker) -> None:
    config = json.get("output_config") or {}
    if not isinstance(config, dict):
        raise invalid_field("output_config", "Input should be a valid dictionary")
    effort = config.get("effort")
    checker.check(config, _OUTPUT_CONFIG, "output_config")
    if not checker.is_lenient:
        effort = find_effort_of_turn(json["messages"], checker) or effort
    if effort is not None:
        chat["reasoning_effort"] = effort
    form = config.get("format")
    if form is None:
        return
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise invalid_field("output_config.format.type", "Input should be 'json_schema'")
    checker.check(form, _FORMAT, "output_config.format")
    schema = {"name": "output", "schema": form.get("schema"), "strict": True}
    chat["response_format"] = {"type": "json_schema", "json_schema": schema}


def _check_context_management(management: Any, checker: FieldChecker) -> None:
    """Refuses edits of the context that a chat completion cannot make. Raises: BadRequest."""
    if management is None:
        return
    if not isinstance(management, dict):
        raise invalid_field("context_management", "Input should be a valid dictionary")
    checker.check(management, _MANAGEMENT, "context_management")
    edits = management.get("edits") or []
    if not isinstance(edits, list):
        raise invalid_field("context_management.edits", "Input should be a valid list")
    for index, edit in enumerate(edits):
        kind = edit.get("type") if isinstance(edit, dict) else None
        if not isinstance(kind, str) or not kind.startswith(_CLEARS_THOUGHTS):
            raise untranslatable_field(f"context_management.edits.{index}.{str(kind)[:60]}")


def _read_user(metadata: Any) -> Json:
    """Returns `user_id` and `conversation_id` of a request's metadata.

    Claude Code writes several names into one text; of these the account counts, else the device. It is also the
    `INSTALLATION`.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise invalid_field("metadata", "Input should be a valid dictionary")
    user = metadata.get("user_id")
    if not isinstance(user, str):
        if user is not None:
            raise invalid_field("metadata.user_id", "Input should be a valid string")
        return {}
    if len(user) > _MAX_USER_CHARS:
        return {"user_id": user}
    if found := _OLDER_USER.fullmatch(user):
        person = found[2] or found[1]
        return {"user_id": person, INSTALLATION: person, "conversation_id": found[3]}
    if user.startswith("{"):
        try:
            names = orjson.loads(user)
        except orjson.JSONDecodeError:
            names = None
        if isinstance(names, dict) and isinstance(names.get("device_id"), str):
            account, session = names.get("account_uuid"), names.get("session_id")
            person = account if isinstance(account, str) and account else names["device_id"]
            found_names = {"user_id": person, INSTALLATION: person}
            if isinstance(session, str) and session:
                found_names["conversation_id"] = session
            return found_names
    return {"user_id": user}


def _names_left_out(json: Json, headers: Mapping[bytes, bytes], checker: FieldChecker) -> tuple[str, ...]:
    """Returns the names of what a chat completion has no need of. checker: has checked all of the request."""
    names = {key: None for key in _NAMED if json.get(key) is not None}
    if _BETA in headers:
        names[_BETA.decode()] = None
    return tuple(names | checker.left_out)


def _is_sub_agent(json: Json, headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether a model has written this request to a sub-agent of Claude Code's."""
    if _SUB_AGENT_MARK in read_attribution(json.get("system")):
        return True
    named = headers.get(_SUB_AGENT_HEADER, b"")
    return bool(header_text(named, _SUB_AGENT_HEADER.decode()).strip())
