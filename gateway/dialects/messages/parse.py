"""Reads a request to Anthropic's Messages API as a chat completion, once, at the edge.

Fields that both APIs know get the names that they have in chat completions. A field without a place in chat completions
is refused by name if the answer depends on it; otherwise it is left out, and `x-mnemogate-consumed` names it.
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
from gateway.core.json_object import is_written_by_orjson, parse_object
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import INSTALLATION_FIELD
from gateway.core.request.native_body import MessageThread
from gateway.core.request.request_headers import RawHeaders, read_header
from gateway.dialects.chat.parse import make_chat_request
from gateway.dialects.fields import QUOTED_CHARS, check_depth, check_length, read_object
from gateway.dialects.messages.content import TranslatedMessages, read_attribution, read_messages, read_system
from gateway.dialects.messages.errors import make_field_error, make_untranslatable_error
from gateway.dialects.messages.field_checker import FieldChecker
from gateway.dialects.messages.message_origin import MessageOrigin
from gateway.dialects.messages.request_fields import (
    add_max_tokens,
    add_output_config,
    add_sampling,
    add_stops,
    add_tool_choice,
    add_tools,
    check_context_management,
)
from gateway.dialects.repeated_keys import find_repeated_keys
from gateway.errors import BadRequest

SUB_AGENT: Final = "claude-code sub-agent"
# A request of Claude Code for one token, by which it tries a model: after `/model`, and before the first turn.
PROBE: Final = "claude-code probe"
_SUB_AGENT_HEADER: Final = b"x-claude-code-agent-id"
_SUB_AGENT_MARK: Final = "cc_is_subagent=true"
_BETA_HEADER: Final = b"anthropic-beta"
# Fields without an effect on the reply of a chat completion.
_REQUEST_FIELDS_WITHOUT_EFFECT: Final = ("cache_control", "thinking", "service_tier", "inference_geo")
# The ignored fields that `x-mnemogate-consumed` names, in this order.
_FIELDS_NAMED_IN_REPLY: Final = (*_REQUEST_FIELDS_WITHOUT_EFFECT, "context_management")
_FIELDS_READ: Final = frozenset(
    (
        *("model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "metadata"),
        *("output_config", "tools", "tool_choice", "stream", "context_management"),
    )
)
_KNOWN_FIELDS: Final = _FIELDS_READ.union(_REQUEST_FIELDS_WITHOUT_EFFECT)
# The fields of `metadata` that are read.
_METADATA_FIELDS: Final = frozenset(("user_id",))
# The value of `ChatRequest.gateway_fields`: this API demands `max_tokens`, so the client has not chosen the field.
_GATEWAY_FIELDS: Final = frozenset(("max_tokens",))
# Fields that ask for tools and containers which run at Anthropic.
_PROVIDER_FIELDS: Final = ("mcp_servers", "container")
# `user_<device>_account_<uuid or nothing>_session_<uuid>`, as older versions of Claude Code name their user.
_OLDER_USER_ID: Final = re.compile(r"user_([0-9a-zA-Z]+)_account_([0-9a-zA-Z-]*)_session_([0-9a-zA-Z-]+)")
# The most characters of `metadata.user_id`, by Anthropic's own limit.
_MAX_USER_CHARS: Final = 256


class MessagesRequest(Struct, frozen=True):
    """A request to the Messages API."""

    # The body as it came.
    raw: bytes
    # The parsed value of the body.
    json: Json
    # The request as a chat completion.
    chat: ChatRequest
    # For each message of `chat`, the part of the request of which the message is made.
    origins: Sequence[MessageOrigin]
    # The names of parts that `chat` lacks, though an answer depends on them: no model of another dialect can answer.
    untranslatable: tuple[str, ...]


def parse_body(body: bytes) -> Json:
    """Returns a body's JSON. Raises: BadRequest, BodyTooLarge."""
    json = read_object(body)
    if is_too_deep(json):
        for key, value in json.items():
            check_depth(key, value, depth=1)
    if is_written_by_orjson(body, json):
        return json
    if repeated := find_repeated_keys(body):
        raise make_field_error(repeated[0][:QUOTED_CHARS], "the key is in the body twice")
    # The input of a call may have integers of any size.
    return read_exact(body, json) if may_round(body) else json


def read_names(json: Json) -> Json:
    """Returns the fields of a request that name model, user and conversation."""
    try:
        identity_fields = _read_identity(json.get("metadata"))
    except BadRequest:
        identity_fields = {}
    return {"model": json.get("model"), "metadata": identity_fields}


def parse(
    body: bytes,
    json: Json,
    headers: RawHeaders,
    max_messages: int,
    *,
    is_lenient: bool,
    needs_max_tokens: bool = True,
) -> MessagesRequest:
    """Reads a request.

    body: the body as it came.
    json: the value of the body.
    max_messages: the most messages of the request.
    is_lenient: True to skip parts without a place in a chat completion, since the request goes upstream as it is.
    needs_max_tokens: True to refuse a request without `max_tokens`; a count of tokens needs none.

    Raises: BadRequest.
    """
    if not is_lenient:
        for key, value in json.items():
            if value is not None and key not in _KNOWN_FIELDS:
                raise make_untranslatable_error(key[:QUOTED_CHARS])
    checker = FieldChecker(is_lenient=is_lenient)
    translated = _read_conversation(json, max_messages, checker)
    identity_fields: Json = {}
    with checker.reading("metadata", json):
        identity_fields = _read_identity(json.get("metadata"))
    chat_json = _translate_fields(json, translated.messages, checker, needs_max_tokens=needs_max_tokens)
    if isinstance(user := identity_fields.get("user_id"), str) and user:
        chat_json["user"] = user
    request = make_chat_request(orjson.dumps(chat_json), chat_json, max_messages=None)
    request.wants_usage = request.is_translated = True
    # Claude's `max_tokens` is a field of chat completions as well. A model that refuses it takes
    # `max_completion_tokens`, so the limit may be renamed.
    if request.token_limit is not None and request.token_limit.field == "max_tokens":
        request.gateway_fields = _GATEWAY_FIELDS
    headers_by_name = dict(headers)
    request.consumed = () if is_lenient else _list_names_left_out(json, headers_by_name, checker)
    unread_fields = {key: value for key, value in json.items() if key not in _FIELDS_READ}
    # User and conversation are read from the request's own `metadata`, not from the field `user` of `chat`.
    request.dialect_fields = {"user": None, **unread_fields, "metadata": identity_fields}
    request.side_request = _find_side_request(json, identity_fields, headers_by_name)
    untranslatable: list[str] = []
    if is_lenient:
        untranslatable = [*checker.left_out, *(key for key in _PROVIDER_FIELDS if json.get(key))]
    return MessagesRequest(
        raw=body, json=json, chat=request, origins=translated.origins, untranslatable=tuple(untranslatable)
    )


def _read_conversation(json: Json, max_messages: int, checker: FieldChecker) -> TranslatedMessages:
    """Returns the system prompt and the messages of a request. Raises: BadRequest."""
    if isinstance(json.get("messages"), list):
        check_length("messages", json["messages"], max_messages)
    translated = read_messages(json.get("messages"), checker)
    if not checker.is_lenient and json["messages"][-1].get("role") == "assistant":
        raise make_field_error(
            "messages",
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        )
    if system := read_system(json.get("system"), checker):
        translated.messages.insert(0, {"role": "system", "content": "\n\n".join(system)})
        translated.origins.insert(0, MessageOrigin(-1))
    return translated


def read_thread(json: Json) -> MessageThread | None:
    """Returns the message thread that a request begins or continues; None: no thread. Raises: BadRequest."""
    thread = json.get("thread")
    if thread is None:
        return None
    thread_type = thread.get("type") if isinstance(thread, dict) else None
    previous_id = thread.get("previous_message_id") if thread_type == "continue" else None
    if thread_type != "create" and not (isinstance(previous_id, str) and previous_id):
        raise make_field_error(
            "thread", "Input should have the type 'create', or 'continue' and a `previous_message_id`"
        )
    return MessageThread(previous_id)


def _translate_fields(
    json: Json, messages: list[Json], checker: FieldChecker, *, needs_max_tokens: bool
) -> Json:
    """Returns the body of a chat completion with these messages and a request's fields. Raises: BadRequest."""
    chat_json: Json = {"model": json.get("model"), "messages": messages}
    if json.get("stream") is not None:
        chat_json["stream"] = json["stream"]
    with checker.reading("tools", json):
        add_tools(chat_json, json, checker)
    with checker.reading("tool_choice", json):
        add_tool_choice(chat_json, json, checker)
    with checker.reading("output_config", json):
        add_output_config(chat_json, json, checker)
    if needs_max_tokens:
        with checker.reading("max_tokens", json):
            add_max_tokens(chat_json, json)
        add_sampling(chat_json, json)
        with checker.reading("stop_sequences", json):
            add_stops(chat_json, json)
    if not checker.is_lenient:
        check_context_management(json.get("context_management"), checker)
        checker.check(json.get("metadata") or {}, _METADATA_FIELDS, "metadata")
    return chat_json


def _read_identity(metadata: Any) -> Json:
    """Returns the fields that name user and conversation, read from a request's `metadata`. Raises: BadRequest."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise make_field_error("metadata", "Input should be a valid dictionary")
    user = metadata.get("user_id")
    if user is None:
        return {}
    if not isinstance(user, str):
        raise make_field_error("metadata.user_id", "Input should be a valid string")
    return {"user_id": user} if len(user) > _MAX_USER_CHARS else _split_user(user)


def _split_user(user: str) -> Json:
    """Returns the names in a `user_id` of Claude Code's, or the text itself as the user.

    If the text names an account and a device, the account counts as the user and as the `INSTALLATION_FIELD`.
    """
    if match := _OLDER_USER_ID.fullmatch(user):
        person = match[2] or match[1]
        return {"user_id": person, INSTALLATION_FIELD: person, "conversation_id": match[3]}
    names = parse_object(user) if user.startswith("{") else None
    if names is None or not isinstance(names.get("device_id"), str):
        return {"user_id": user}
    account, session = names.get("account_uuid"), names.get("session_id")
    person = account if isinstance(account, str) and account else names["device_id"]
    fields = {"user_id": person, INSTALLATION_FIELD: person}
    if isinstance(session, str) and session:
        fields["conversation_id"] = session
    return fields


def _list_names_left_out(
    json: Json, headers_by_name: Mapping[bytes, bytes], checker: FieldChecker
) -> tuple[str, ...]:
    """Returns the names of fields and headers that are left out without an effect on the reply.

    checker: the checker that has read the request, with the fields of blocks and tools that it left out.
    """
    names = {key: None for key in _FIELDS_NAMED_IN_REPLY if json.get(key) is not None}
    if _BETA_HEADER in headers_by_name:
        names[_BETA_HEADER.decode()] = None
    return tuple(names | checker.left_out)


def _find_side_request(
    json: Json, identity_fields: Json, headers_by_name: Mapping[bytes, bytes]
) -> str | None:
    """Returns the name of a request that Claude Code makes by itself; None: a user has written the request."""
    if _is_sub_agent(json, headers_by_name):
        return SUB_AGENT
    return PROBE if json.get("max_tokens") == 1 and "conversation_id" in identity_fields else None


def _is_sub_agent(json: Json, headers_by_name: Mapping[bytes, bytes]) -> bool:
    """Returns whether a model has written this request to a sub-agent of Claude Code's."""
    if _SUB_AGENT_MARK in read_attribution(json.get("system")):
        return True
    agent_id = headers_by_name.get(_SUB_AGENT_HEADER, b"")
    return bool(read_header(agent_id, _SUB_AGENT_HEADER.decode()).strip())
