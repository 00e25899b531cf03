"""Reads a request to OpenAI's Responses API as a chat completion, once, at the edge.

What both APIs know goes on under its name there. What only the Responses API has is refused where leaving it out would
change the answer: tools that run at OpenAI, references to what OpenAI has stored, runs in the background. Fields that
neither knows go on as they are, for the upstream to judge. (platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.canonical import SYSTEM_ROLES
from gateway.core.json_limits import is_too_deep
from gateway.core.request.chat_request import ChatRequest, Reference
from gateway.core.request.identity import checked_id
from gateway.dialects.chat.parse import MAX_MESSAGES, make_chat_request
from gateway.dialects.fields import (
    check_depth,
    check_length,
    missing_field,
    read_integer,
    read_object,
    read_optional,
    wrong_type,
)
from gateway.dialects.responses.codex import codex_side_request
from gateway.dialects.responses.compaction import summaries_in
from gateway.dialects.responses.input import InputMessages, read_items
from gateway.dialects.responses.metadata import read_metadata
from gateway.dialects.responses.response_ids import parse_turn_names
from gateway.dialects.responses.tools import (
    FUNCTIONS_ALONE,
    TOOL_SEARCH,
    CallForm,
    RequestTools,
    UpstreamTools,
    read_choice,
    read_tools,
    unsupported_value,
)
from gateway.errors import BadRequest

# Fields that ask for what only OpenAI has.
_OPENAI_ONLY = ("prompt", "context_management")
# Fields about the padding of a stream, tools at OpenAI, its storage or a full window: no chat completion has them.
_NOT_PASSED_ON = (
    "background",
    "client_metadata",
    "include",
    "max_tool_calls",
    "previous_response_id",
    "store",
    "stream_options",
    "truncation",
)
# Fields that chat completions do not have, or have unchecked. A `store` of "false" must not be taken for true.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("background", "parallel_tool_calls", "store"), bool),
    **dict.fromkeys(("client_metadata", "stream_options"), dict),
    "service_tier": str,
}
# Fields of chat completions that ask for what a response cannot show, or for which a response has other fields.
_CHAT_ONLY = ("audio", "function_call", "functions", "messages", "modalities", "n")
# Fields that are read one by one.
_READ_APART = ("model", "input", "instructions", "conversation", "tool_choice", "tools")
_NOT_COPIED = frozenset((*_OPENAI_ONLY, *_NOT_PASSED_ON, *_READ_APART))
# The fields that are read of objects whose other fields have no place in a chat completion.
_READ_MEMBERS = {
    "reasoning": frozenset(("effort", "summary", "generate_summary", "mode")),
    "text": frozenset(("format", "verbosity")),
}
SEALED_THOUGHTS = "reasoning.encrypted_content"
_SUMMARIES = ("auto", "concise", "detailed")
_LOGPROBS = "message.output_text.logprobs"
# What OpenAI takes in `include`. All but logprobs and thoughts are of tools that nothing here has.
_INCLUDABLE = frozenset(
    (
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("message.input_image.image_url", "computer_call_output.output.image_url"),
        *("code_interpreter_call.outputs", SEALED_THOUGHTS, _LOGPROBS),
    )
)


class ResponsesRequest(Struct, frozen=True):
    """A request as a chat completion, with what its reply needs of it."""

    chat: ChatRequest
    # The fields of the request that its response repeats.
    echo: Json
    # The id of the conversation that it continues; None: it names none.
    conversation: str | None
    # The forms of its tools' calls, by their names upstream.
    forms: dict[str, CallForm]
    # Thoughts are asked for in the form in which they can be sent back.
    shows_sealed_thoughts: bool
    body: bytes
    # The tools that its upstreams take.
    upstream_tools: UpstreamTools
    # The request asks for a summary of its conversation in place of a reply.
    wants_compaction: bool = False
    # The indices of the messages that belong to every response of the conversation, and not to this turn alone.
    shared_messages: frozenset[int] = frozenset()
    # The tools that searches have found in what the request only names.
    found_tools: Sequence[Json] = ()

    @property
    def may_have_found_tools(self) -> bool:
        """The client searches for tools, and may have found some in messages that the request only names."""
        return TOOL_SEARCH in self.forms and bool(self.chat.references)

    @property
    def turn_messages(self) -> list[Json]:
        """The messages of its input that its turn alone has."""
        return self._input_without(self.shared_messages)

    @property
    def sent_messages(self) -> list[Json]:
        """The messages of `turn_messages` that the client sends itself, and does not name by their ids."""
        named = {each.index for each in self.chat.references if each.kind == "message"}
        return self._input_without(self.shared_messages | named)

    def _input_without(self, indices: Collection[int]) -> list[Json]:
        messages = self.input_messages
        if not indices:
            return messages
        first = len(self.chat.messages) - len(messages)
        return [m for n, m in enumerate(messages, first) if n not in indices]

    @property
    def input_messages(self) -> list[Json]:
        """The messages of its input, the instructions excluded."""
        return self.chat.messages[1 if self.echo["instructions"] else 0 :]

    @property
    def asks_to_be_stored(self) -> bool:
        """Returns whether it says `store: true`, or is made in the background, where all are stored."""
        return bool(self.echo["background"]) or (self.chat.dialect_fields or {}).get("store") is True


def parse(
    body: bytes,
    max_messages: int = MAX_MESSAGES,
    upstream_tools: UpstreamTools = FUNCTIONS_ALONE,
    waiting: Sequence[Json] = (),
    *,
    found_tools: Sequence[Json] = (),
    needs_input: bool = True,
    repeated_keys: Sequence[str] = (),
) -> ResponsesRequest:
    """Reads a request's body.

    upstream_tools: what its upstreams take of tools.
    waiting: items of its conversation that come before its input.
    found_tools: as in `ResponsesRequest`.
    needs_input: without any it is an error.
    repeated_keys: the keys that are in the body more than once.

    Raises: BadRequest, BodyTooLarge.
    """
    json = read_object(body)
    _check_fields(json, repeated_keys)
    read, shared = _read_messages(json, max_messages, upstream_tools, waiting, needs_input=needs_input)
    included = check_included(_strings(json, "include"))
    tools = read_tools(json, upstream_tools, read.left_out, waiting, found_tools)
    chat: Json = {"model": json.get("model"), "messages": read.messages}
    if _LOGPROBS in included or json.get("top_logprobs") is not None:
        chat["logprobs"] = True
    if tools.chat:
        chat["tools"] = tools.chat
    if json.get("tool_choice") is not None:
        chat.update(read_choice(json["tool_choice"], tools, upstream_tools))
    _add_translated(chat, json)
    request = make_chat_request(orjson.dumps(chat), chat, read.messages)
    # User and conversation may be named by what no chat completion has, such as a client's own metadata.
    request.dialect_fields = {key: json[key] for key in _NOT_PASSED_ON if key in json} or None
    request.side_request = codex_side_request(json)
    request.wants_thoughts = _wants_thoughts(json.get("reasoning") or {})
    request.wants_usage = request.is_translated = True
    for key, members in _READ_MEMBERS.items():
        read.left_out.add_rest(json.get(key) or {}, members, key)
    request.consumed = read.left_out.names
    request.references = tuple(read.references)
    request.reply_models = read.models
    request.may_evict = _may_be_truncated(json)
    conversation = read_conversation_id(json)
    echo = _echo_fields(json, request, conversation, tools)
    return ResponsesRequest(
        chat=request,
        echo=echo,
        conversation=conversation,
        forms=tools.forms,
        shows_sealed_thoughts=SEALED_THOUGHTS in included,
        body=body,
        upstream_tools=upstream_tools,
        wants_compaction=_wants_compaction(json),
        shared_messages=shared,
        found_tools=found_tools,
    )


def _check_fields(json: Json, repeated_keys: Sequence[str]) -> None:
    """Checks which fields a body has, their types and their depth. Raises: BadRequest."""
    for key in _OPENAI_ONLY:
        if json.get(key) is not None:
            raise unsupported_value(key, key)
    for key in _CHAT_ONLY:
        if key in json and json[key] is not None and not (key == "n" and json[key] == 1):
            raise BadRequest(f"Unknown parameter: '{key}'.", param=key, code="unknown_parameter")
    for key in json:
        if key in _TYPES:
            read_optional(json, key, _TYPES[key])
    if json.get("background") and json.get("store") is False:
        raise BadRequest(
            "A response in the background has to be stored: `store` is false.", param="background"
        )
    if is_too_deep([[[json]]]):  # as deep as it lies in what is stored of the response
        for key, value in json.items():
            check_depth(key, [[[[value]]]])
    # Whoever let the request through on its way here may have read the other one.
    for key in repeated_keys:
        raise BadRequest(f"Duplicate key in the request body: `{key[:60]}`.", param=key[:60])
    _positive_number(json, "max_tool_calls")
    read_metadata(json)


def _add_translated(chat: Json, json: Json) -> None:
    """Adds the fields that a chat completion has as well, under its names and in its forms."""
    for key, value in json.items():
        if value is None or key in _NOT_COPIED:
            continue
        if key in _TRANSLATED:
            chat.update(_TRANSLATED[key](value))
        else:
            chat.setdefault(key, value)
    if "tools" not in chat:
        _remove_tool_choices(chat)


def _read_messages(
    json: Json,
    max_messages: int,
    upstream_tools: UpstreamTools,
    waiting: Sequence[Json],
    *,
    needs_input: bool,
) -> tuple[InputMessages, frozenset[int]]:
    """Returns the messages of a chat completion: instructions, summaries, and those of the input.

    Returns also the indices of those that each response of the conversation has: its system and developer messages, and
    its summaries.
    """
    items = json.get("input")
    if items is None and not needs_input:
        items = []
    if not isinstance(items, (str, list)):
        raise missing_field("input") if items is None else wrong_type("input", "a string or an array", items)
    if isinstance(items, list):
        check_length("input", items, max_messages - 1)
    instructions = read_optional(json, "instructions", str)
    head: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    if waiting:
        own = [{"role": "user", "content": items}] if isinstance(items, str) else items
        items = [*waiting, *own]
    if isinstance(items, list):
        head += summaries_in(items, items_before=len(waiting))
    read = read_items(items, len(head), upstream_tools=upstream_tools, items_before=len(waiting))
    shared = _shared_messages(head, read, waiting) if waiting else frozenset()
    if needs_input and not read.messages:
        raise BadRequest("Invalid 'input': there is no message in it.", param="input", code="empty_array")
    previous = read_optional(json, "previous_response_id", str)
    if previous is not None:
        param = "previous_response_id"
        if json.get("conversation") is not None:
            raise BadRequest(f"'{param}' cannot be used in conjunction with 'conversation'.", param=param)
        read.references.insert(0, Reference(len(head), previous, *parse_turn_names(previous), param, "path"))
    # A chat completion has at least one message, and a previous response is inserted before one.
    if not read.messages and (previous is not None or not head):
        read.messages.append({"role": "user", "content": ""})
    read.messages[:0] = head
    return read, shared


def _shared_messages(head: list[Json], read: InputMessages, waiting: Sequence[Json]) -> frozenset[int]:
    """Returns the indices of the messages that each response of a conversation has. head: those before the input's."""
    summaries = summaries_in(waiting)
    shared = {n for n, message in enumerate(head) if message in summaries}
    for n, place in enumerate(read.places):
        if 0 <= place < len(waiting) and read.messages[n]["role"] in SYSTEM_ROLES:
            shared.add(len(head) + n)
    return frozenset(shared)


def read_conversation_id(json: Json) -> str | None:
    """Returns the id of the conversation with items that come before the input; None: none is named.

    Raises: BadRequest.
    """
    named = json.get("conversation")
    if isinstance(named, dict):
        named = named.get("id")
        if named is None:
            raise missing_field("conversation.id")
    if named is None:
        return None
    if not isinstance(named, str):
        raise wrong_type("conversation", "a string or an object", named)
    conversation = checked_id(named, "conversation")
    if conversation is None:
        raise BadRequest("Invalid 'conversation': the name is empty.", param="conversation")
    return conversation


def _strings(json: Json, key: str) -> list[str]:
    values = read_optional(json, key, list) or []
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise wrong_type(f"{key}[{index}]", "a string", value)
    return values


def _wants_compaction(json: Json) -> bool:
    items = json.get("input")
    last = items[-1] if isinstance(items, list) and items else None
    return isinstance(last, dict) and last.get("type") == "compaction_trigger"


def check_included(wanted: Sequence[str]) -> Sequence[str]:
    """Returns what a request wants in its response. Raises: BadRequest."""
    for index, value in enumerate(wanted):
        if value not in _INCLUDABLE:
            raise BadRequest(
                f"Invalid value: {value[:60]!r}. Supported values are: {', '.join(sorted(_INCLUDABLE))}.",
                param=f"include[{index}]",
                code="invalid_value",
            )
    return wanted


def asks_for_sealed_thoughts(query: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether a request's query wants thoughts in the form in which they are sent back. Raises: BadRequest."""
    return SEALED_THOUGHTS in check_included([*query.get("include", ()), *query.get("include[]", ())])


def _may_be_truncated(json: Json) -> bool:
    """Returns whether old messages may be left out where the window is full. Raises: BadRequest."""
    truncation: str | None = read_optional(json, "truncation", str)
    if truncation not in (None, "auto", "disabled"):
        raise BadRequest(
            f"Invalid value: {truncation[:40]!r}. Supported values are: 'auto' and 'disabled'.",
            param="truncation",
            code="invalid_value",
        )
    return truncation != "disabled"


# What chat completions know under another name or in another form: the translation


def _remove_tool_choices(chat: Json) -> None:
    """Leaves out what means nothing without tools, and is refused there by chat completions alone."""
    chat.pop("parallel_tool_calls", None)
    if chat.get("tool_choice") in ("auto", "none"):
        del chat["tool_choice"]


def translate_text_format(text: Any) -> Json:
    """Returns the form of an answer in terms of chat completions. Raises: BadRequest."""
    if not isinstance(text, dict):
        raise wrong_type("text", "an object", text)
    translated: Json = {} if text.get("verbosity") is None else {"verbosity": text["verbosity"]}
    form = read_optional(text, "format", dict, "text")
    if form is None or form.get("type") == "text":
        return translated
    if form.get("type") == "json_schema":
        schema = {key: value for key, value in form.items() if key != "type"}
        return {**translated, "response_format": {"type": "json_schema", "json_schema": schema}}
    return {**translated, "response_format": form}


def _translate_reasoning(reasoning: Any) -> Json:
    if not isinstance(reasoning, dict):
        raise wrong_type("reasoning", "an object", reasoning)
    if (mode := reasoning.get("mode")) not in (None, "standard"):
        raise unsupported_value("reasoning.mode", mode)
    effort = reasoning.get("effort")
    return {} if effort is None else {"reasoning_effort": effort}


def _wants_thoughts(reasoning: Json) -> bool:
    """Returns whether a summary of thoughts is asked for without an effort. Raises: BadRequest."""
    summary = read_optional(reasoning, "summary", str, "reasoning") or read_optional(
        reasoning, "generate_summary", str, "reasoning"
    )
    if summary is None:
        return False
    if summary not in _SUMMARIES:
        raise BadRequest(
            f"Invalid value: {summary[:40]!r}. Supported values are: 'auto', 'concise', and 'detailed'.",
            param="reasoning.summary",
            code="invalid_value",
        )
    return reasoning.get("effort") is None


def _translate_limit(tokens: Any) -> Json:
    return {"max_completion_tokens": _positive_number({"max_output_tokens": tokens}, "max_output_tokens")}


def _positive_number(json: Json, key: str) -> int | None:
    value = read_integer(json, key)
    if value is not None and value < 1:
        raise BadRequest(
            f"Invalid '{key}': integer below minimum value. Expected a value >= 1, but got {value} instead.",
            param=key,
            code="integer_below_min_value",
        )
    return value


_TRANSLATED: dict[str, Callable[[Any], Json]] = {
    "max_output_tokens": _translate_limit,
    "reasoning": _translate_reasoning,
    "text": translate_text_format,
}


# Fields of the response that echo the request, each with its default.
ECHOED: Json = {
    "background": False,
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def _echo_fields(json: Json, request: ChatRequest, conversation: str | None, tools: RequestTools) -> Json:
    echoed = {key: value for key, value in json.items() if key in ECHOED and value is not None}
    if echoed.get("service_tier") == "auto":
        del echoed["service_tier"]  # the tier that served it is shown, where the upstream names one
    reasoning = json.get("reasoning") or {}
    return {
        **ECHOED,
        **echoed,
        "tools": tools.echo,
        "model": request.model,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "conversation": None if conversation is None else {"id": conversation},
        # Whether it can be retrieved, where memory stores its turn.
        "store": json.get("store") is not False,
    }
