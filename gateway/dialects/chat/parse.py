"""Reads a chat completion request, once, at the edge.

Fields that the gateway reads are checked. Everything else passes as it is, for the upstream to judge: unknown fields,
unknown types of content, broken tool calls. Errors name the field as OpenAI's errors do.
(platform.openai.com/docs/api-reference/chat/create)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.core.conversation.private import without_private
from gateway.core.conversation.wire_message import PRIVATE, read_named_calls
from gateway.core.json_limits import MAX_VALUES, check_values
from gateway.core.request.chat_request import MAX_TOKENS_FIELDS, ChatRequest, find_token_limit
from gateway.dialects.fields import (
    check_depth,
    check_length,
    check_model_name,
    make_missing_field_error,
    make_unknown_value_error,
    make_wrong_type_error,
    read_object,
    read_optional,
    read_optional_integer,
)
from gateway.dialects.repeated_keys import find_repeated_keys
from gateway.errors import BadRequest

# The default of `server.max_messages`: an agent's day. Finding the conversation takes about 10 us a message.
MAX_MESSAGES = 5_000
# The roles of messages, the most frequent first: the role of each message is compared with them in this order.
ROLES = ("user", "assistant", "tool", "system", "developer", "function")
_ROLES_IN_ERRORS = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"

# A repeated key among these fields is refused. The gateway acts on one of its values, and the upstream's parser might
# take the other value, and so answer for another user or model.
_FIELDS_ACTED_ON = frozenset(
    (
        # Fields in which voice platforms name the user or the conversation (`gateway.core.request.envelope`).
        *("call", "customer", "elevenlabs_extra_body", "user_id"),
        # Fields of OpenAI's API.
        *("function_call", "functions", "logprobs", "max_completion_tokens", "max_tokens", "messages"),
        *("metadata", "model", "n", "response_format", "safety_identifier", "stream", "stream_options"),
        *("tool_choice", "tools", "top_logprobs", "user"),
    )
)
# Fields that the gateway reads. Their types are checked.
_TYPED_FIELDS = frozenset(
    (*MAX_TOKENS_FIELDS, "functions", "n", "response_format", "stream", "stream_options", "tools")
)


def parse(body: bytes, max_messages: int = MAX_MESSAGES, agent: str | None = None) -> ChatRequest:
    """Reads a request's body.

    max_messages: the most messages of the request.
    agent: the agent that the request's path names, in place of `model`; None: the path names no agent.

    Raises: BadRequest, BodyTooLarge.
    """
    json = read_object(body)
    for key in find_repeated_keys(body, json=json):
        if key in _FIELDS_ACTED_ON:
            raise BadRequest(f"Duplicate key in the request body: `{key}`.", param=key)
    if agent is not None:
        json["model"] = f"agent/{agent}"
    return make_chat_request(body, json, max_messages)


def make_chat_request(body: bytes, json: dict[str, Any], max_messages: int | None) -> ChatRequest:
    """Returns a chat completion request, and checks the fields that the gateway reads.

    json: the value of the body.
    max_messages: the most messages; None: any number, as in a translated body, of which the client's list was checked.

    Raises: BadRequest, BodyTooLarge.
    """
    messages = _read_messages(json, max_messages)
    if len(body) > MAX_VALUES:  # each value takes a byte at least, so a shorter body cannot have too many
        check_values(*_list_json_arguments(messages))
    if _TYPED_FIELDS.isdisjoint(json):  # as in most requests
        return ChatRequest(body, json, _read_model(json), messages)
    for key in ("tools", "functions"):
        if key in json:
            check_depth(key, json[key], depth=1)
    stream_options = read_optional(json, "stream_options", dict)
    token_limit = find_token_limit({key: read_optional_integer(json, key) for key in MAX_TOKENS_FIELDS})
    tools = [*_read_tools(json, "tools"), *_read_tools(json, "functions")]
    read_optional(json, "response_format", dict)
    count = read_optional_integer(json, "n")
    if count is not None and count < 1:
        raise BadRequest(
            f"Invalid 'n': integer below minimum value. Expected a value >= 1, but got {count} instead.",
            param="n",
            code="integer_below_min_value",
        )
    return ChatRequest(
        raw=body,
        json=json,
        model=_read_model(json),
        messages=messages,
        stream=read_optional(json, "stream", bool) or False,
        wants_usage=stream_options is not None and stream_options.get("include_usage") is True,
        tool_names=tuple(_list_tool_names(tools)),
        has_tools=bool(tools),
        n=count or 1,
        token_limit=token_limit,
    )


def _list_json_arguments(messages: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yields the arguments of calls that are JSON. A check of the body does not read them, since they are texts."""
    for message in messages:
        for _, arguments in read_named_calls(message):
            # The arguments of a custom tool may be any text.
            if isinstance(arguments, str) and arguments.lstrip().startswith(("{", "[")):
                yield arguments.encode()


def _read_model(json: dict[str, Any]) -> str:
    model = json.get("model")
    if model is None:
        raise make_missing_field_error("model")
    if not isinstance(model, str):
        raise make_wrong_type_error("model", "a string", model)
    if not model.strip():
        raise BadRequest("Invalid 'model': the name is empty.", param="model")
    check_model_name(model)
    return model


def _read_messages(json: dict[str, Any], max_messages: int | None) -> list[dict[str, Any]]:
    """Returns the messages without the gateway's private field, which the body that goes upstream still has."""
    sent_messages = json.get("messages")
    if sent_messages is None:
        raise make_missing_field_error("messages")
    if not isinstance(sent_messages, list):
        raise make_wrong_type_error("messages", "an array of objects", sent_messages)
    if not sent_messages:
        raise BadRequest(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            param="messages",
            code="empty_array",
        )
    if max_messages is not None:
        check_length("messages", sent_messages, max_messages)
    messages = sent_messages
    nested_messages = []  # the few messages that have more than a role and a text
    # The loop compares `__class__`, which takes less time than `isinstance`: it runs for each message of each request.
    for index, message in enumerate(sent_messages):
        if message.__class__ is not dict:
            raise make_wrong_type_error(f"messages[{index}]", "an object", message)
        role = message.get("role")
        if role not in ROLES:
            raise make_unknown_value_error(f"messages[{index}].role", role, _ROLES_IN_ERRORS)
        content = message.get("content")
        if content.__class__ is not str or len(message) > 2:
            if PRIVATE in message:
                if messages is sent_messages:
                    messages = [*sent_messages]
                messages[index] = without_private(message)
            nested_messages.append(message)
            if content.__class__ is not str and content is not None:
                _check_content(content, f"messages[{index}].content")
    if nested_messages:
        check_depth("messages", nested_messages, depth=1)
    return messages


def _check_content(content: Any, param: str) -> None:
    if not isinstance(content, list):
        raise make_wrong_type_error(param, "a string or an array of objects", content)
    for index, part in enumerate(content):
        if not isinstance(part, dict):
            raise make_wrong_type_error(f"{param}[{index}]", "an object", part)


def _read_tools(json: dict[str, Any], key: str) -> list[dict[str, Any]]:
    tools: list[dict[str, Any]] = read_optional(json, key, list) or []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise make_wrong_type_error(f"{key}[{index}]", "an object", tool)
    return tools


def _list_tool_names(tools: list[dict[str, Any]]) -> list[str]:
    """Returns the names of tools; a tool without a name is left out.

    A function is `{"type": "function", "function": {"name"}}`, a custom tool likewise; a legacy function is `{"name"}`.
    """
    names = []
    for tool in tools:
        tool_type = tool.get("type", "function")
        definition = tool.get(tool_type) if isinstance(tool_type, str) else None
        name = definition.get("name") if isinstance(definition, dict) else tool.get("name")
        if isinstance(name, str):
            names.append(name)
    return names
