"""Reads a request to OpenAI's Responses API as a chat completion, once, at the edge.

What both APIs know goes on under its name there. What only the Responses API has is refused where leaving it out would
change the answer: tools that run at OpenAI, references to what OpenAI has stored, runs in the background. Fields that
neither knows go on as they are, for the upstream to judge. (platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.request.chat_request import ChatRequest, Reference
from gateway.core.request.identity import checked_id
from gateway.dialects.chat.parse import MAX_MESSAGES
from gateway.dialects.chat.parse import parse as parse_chat
from gateway.dialects.fields import (
    check_depth,
    check_length,
    missing,
    number,
    optional,
    read_object,
    repeated_keys,
    text_in,
    wrong_type,
)
from gateway.dialects.responses.input import read_items, untold
from gateway.dialects.responses.response_ids import turn_of
from gateway.errors import BadRequest

# What only OpenAI has or does.
_ELSEWHERE = ("prompt", "context_management")
# How a stream is padded, tools at OpenAI, what OpenAI stores, a window that is full: nothing of it is asked of a chat
# completion. `include` is read for the one thing of it that is.
_NOT_ASKED = (
    "background",
    "client_metadata",
    "include",
    "max_tool_calls",
    "previous_response_id",
    "store",
    "stream_options",
    "truncation",
)
_LEFT_OUT = frozenset((*_ELSEWHERE, *_NOT_ASKED))
_LOGPROBS = "message.output_text.logprobs"


class ResponsesRequest(Struct, frozen=True):
    """A request with the fields that its reply echoes. conversation: the one that it goes on with, by its id; None:
    none.

    echo: the fields of the response that are the request's.
    """

    chat: ChatRequest
    echo: Json
    conversation: str | None


def parse(body: bytes, max_messages: int = MAX_MESSAGES) -> ResponsesRequest:
    """Reads a request's body. Raises: BadRequest, BodyTooLarge."""
    json = read_object(body)
    for key in _ELSEWHERE:
        if json.get(key) is not None:
            raise untold(key, key)
    if optional(json, "background", bool):
        raise untold("background", "true")
    for key, value in json.items():
        check_depth(key, [value])
    # Whoever let the request through on its way here may have read the other one.
    for key in repeated_keys(body):
        raise BadRequest(f"Duplicate key in the request body: `{key[:60]}`.", param=key[:60])
    messages, references = _messages(json, max_messages)
    chat: Json = {"model": json.get("model"), "messages": messages}
    if _LOGPROBS in _strings(json, "include") or json.get("top_logprobs") is not None:
        chat["logprobs"] = True
    for key, value in json.items():
        if value is None or key in _LEFT_OUT:
            continue
        if key in _TRANSLATED:
            chat.update(_TRANSLATED[key](value))
        else:
            chat.setdefault(key, value)
    if "tools" not in chat:
        _leave_out_choices(chat)
    request = parse_chat(orjson.dumps(chat), max_messages)
    request.wants_usage = True
    request.references = tuple(references)
    conversation = conversation_of(json)
    return ResponsesRequest(request, _echo(json, request, conversation), conversation)


def _messages(json: Json, max_messages: int) -> tuple[list[Json], list[Reference]]:
    items = json.get("input")
    if not isinstance(items, str | list):
        raise missing("input") if items is None else wrong_type("input", "a string or an array", items)
    if isinstance(items, list):
        check_length("input", items, max_messages - 1)
    instructions = optional(json, "instructions", str)
    head: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    translated = read_items(items, len(head))
    messages, references = translated.messages, translated.references
    if not messages:
        raise BadRequest("Invalid 'input': there is no message in it.", param="input", code="empty_array")
    previous = optional(json, "previous_response_id", str)
    if previous is not None:
        param = "previous_response_id"
        if json.get("conversation") is not None:
            raise BadRequest(f"'{param}' cannot be used in conjunction with 'conversation'.", param=param)
        references.insert(0, Reference(len(head), previous, *turn_of(previous), param, is_path=True))
    return [*head, *messages], references


def conversation_of(json: Json) -> str | None:
    """Returns the id of the conversation with items that come before the input; None: none is named.

    Raises: BadRequest.
    """
    named = json.get("conversation")
    if isinstance(named, dict):
        named = named.get("id")
        if named is None:
            raise missing("conversation.id")
    if named is None:
        return None
    if not isinstance(named, str):
        raise wrong_type("conversation", "a string or an object", named)
    conversation = checked_id(named, "conversation")
    if conversation is None:
        raise BadRequest("Invalid 'conversation': the name is empty.", param="conversation")
    return conversation


def _strings(json: Json, key: str) -> list[str]:
    values = optional(json, key, list) or []
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise wrong_type(f"{key}[{index}]", "a string", value)
    return values


# What chat completions know under another name or in another form: the translation


def _tools(tools: Any) -> Json:
    if not isinstance(tools, list):
        raise wrong_type("tools", "an array of objects", tools)
    translated = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    return {"tools": translated} if translated else {}


def _tool(tool: Any, where: str) -> Json:
    kind = _kind(tool, where)
    named: Json = {"name": text_in(tool, "name", where)}
    if kind == "function":
        return {"type": kind, "function": named | _fields(tool, "description", "parameters", "strict")}
    custom, form = named | _fields(tool, "description"), optional(tool, "format", dict, where)
    if form is not None:
        is_grammar = form.get("type") == "grammar"
        grammar = {"type": "grammar", "grammar": _fields(form, "definition", "syntax")}
        custom["format"] = grammar if is_grammar else form
    return {"type": kind, "custom": custom}


def _tool_choice(choice: Any) -> Json:
    if isinstance(choice, str):
        return {"tool_choice": choice}
    if not isinstance(choice, dict):
        raise wrong_type("tool_choice", "a string or an object", choice)
    if choice.get("type") != "allowed_tools":
        return {"tool_choice": _named_tool(choice, "tool_choice")}
    tools = optional(choice, "tools", list, "tool_choice") or []
    allowed = [_named_tool(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(tools)]
    return {
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {**_fields(choice, "mode"), "tools": allowed},
        }
    }


def _leave_out_choices(chat: Json) -> None:
    """Leaves out what means nothing without tools, and is refused there by chat completions alone."""
    chat.pop("parallel_tool_calls", None)
    if chat.get("tool_choice") in ("auto", "none"):
        del chat["tool_choice"]


def _named_tool(choice: Any, where: str) -> Json:
    kind = _kind(choice, where)
    return {"type": kind, kind: {"name": text_in(choice, "name", where)}}


def _kind(tool: Any, where: str) -> str:
    """Returns the type of a tool that the client runs itself. Raises: BadRequest: it is none."""
    if not isinstance(tool, dict):
        raise wrong_type(where, "an object", tool)
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        raise missing(f"{where}.type") if kind is None else untold(f"{where}.type", kind)
    return str(kind)


def text_format(text: Any) -> Json:
    """Returns the form of an answer in terms of chat completions. Raises: BadRequest."""
    if not isinstance(text, dict):
        raise wrong_type("text", "an object", text)
    translated = _fields(text, "verbosity")
    form = optional(text, "format", dict, "text")
    if form is None or form.get("type") == "text":
        return translated
    if form.get("type") == "json_schema":
        schema = {key: value for key, value in form.items() if key != "type"}
        return {**translated, "response_format": {"type": "json_schema", "json_schema": schema}}
    return {**translated, "response_format": form}


def _reasoning(reasoning: Any) -> Json:
    if not isinstance(reasoning, dict):
        raise wrong_type("reasoning", "an object", reasoning)
    if (mode := reasoning.get("mode")) not in (None, "standard"):
        raise untold("reasoning.mode", mode)
    effort = reasoning.get("effort")
    return {} if effort is None else {"reasoning_effort": effort}


def _limit(tokens: Any) -> Json:
    return {"max_completion_tokens": number({"max_output_tokens": tokens}, "max_output_tokens")}


def _nothing(_: Any) -> Json:
    return {}


def _fields(value: Json, *keys: str) -> Json:
    """Returns those of the fields that are set."""
    return {key: value[key] for key in keys if value.get(key) is not None}


_TRANSLATED: dict[str, Callable[[Any], Json]] = {
    "model": _nothing,
    "input": _nothing,
    "instructions": _nothing,
    "conversation": _nothing,
    "max_output_tokens": _limit,
    "reasoning": _reasoning,
    "text": text_format,
    "tool_choice": _tool_choice,
    "tools": _tools,
}


# Fields of the response that echo the request, each with its default.
ECHOED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


def _echo(json: Json, request: ChatRequest, conversation: str | None) -> Json:
    echoed = {key: json[key] for key in ECHOED if json.get(key) is not None}
    reasoning = json.get("reasoning") or {}
    return {
        **ECHOED,
        **echoed,
        "model": request.model,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "conversation": None if conversation is None else {"id": conversation},
        # By its id another request can go on from it, but it cannot be retrieved.
        "store": False,
    }
