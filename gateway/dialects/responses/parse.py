"""Reads a request to OpenAI's Responses API as a chat completion, once, at the edge.

Fields that both APIs know get the names that they have in chat completions. Fields that only the Responses API has are
refused where leaving them out would change the answer: tools that run at OpenAI, references to objects that OpenAI has
stored. Fields that neither API knows pass as they are, for the upstream to judge.
(platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.request.chat_request import ChatRequest, Reference
from gateway.core.request.request_ids import normalize_id
from gateway.core.roles import SYSTEM_ROLES
from gateway.dialects.chat.parse import MAX_MESSAGES, make_chat_request
from gateway.dialects.fields import (
    check_length,
    make_missing_field_error,
    make_wrong_type_error,
    read_object,
    read_optional,
)
from gateway.dialects.responses.call_form import FUNCTIONS_ALONE, CallForm, UpstreamTools
from gateway.dialects.responses.codex import find_codex_side_request
from gateway.dialects.responses.compaction import make_compaction_messages
from gateway.dialects.responses.input import InputMessages, read_items
from gateway.dialects.responses.request_fields import (
    FIELDS_NOT_PASSED_ON,
    LOGPROBS,
    SEALED_THOUGHTS,
    add_translated,
    check_fields,
    echo_fields,
    may_be_truncated,
    read_include,
    wants_thoughts,
)
from gateway.dialects.responses.response_ids import parse_turn_name
from gateway.dialects.responses.tool_choice import read_choice
from gateway.dialects.responses.tools import TOOL_SEARCH, read_tools
from gateway.errors import BadRequest

# The fields of these objects that are read; their other fields have no place in a chat completion.
_MEMBERS_READ = {
    "reasoning": frozenset(("effort", "summary", "generate_summary", "mode")),
    "text": frozenset(("format", "verbosity")),
}


class ResponsesRequest(Struct, frozen=True):
    """A request as a chat completion, with the facts about it that its reply needs."""

    # The request as a chat completion.
    chat: ChatRequest
    # The fields of the request that its response repeats.
    echo: Json
    # The conversation that the request continues; None: it names no conversation.
    conversation_id: str | None
    # The forms of tools' calls, by the names of the tools upstream.
    forms: dict[str, CallForm]
    # True if the client asks for thoughts in the form in which they can be sent back.
    shows_sealed_thoughts: bool
    # The body as the client sent it.
    body: bytes
    # The kinds of tools that the request's upstreams take.
    upstream_tools: UpstreamTools
    # True if the request asks for a summary of its conversation in place of a reply.
    wants_compaction: bool = False
    # The indices of the messages that belong to every response of the conversation, and not to this turn alone.
    shared_messages: frozenset[int] = frozenset()
    # The tools that searches have found in messages to which the request only refers.
    found_tools: Sequence[Json] = ()

    @property
    def may_have_found_tools(self) -> bool:
        """True if the client's searches may have found tools in messages that the request only names."""
        return TOOL_SEARCH in self.forms and bool(self.chat.references)

    @property
    def turn_messages(self) -> list[Json]:
        """The messages of the input that belong to this turn alone."""
        return self._without_messages(self.shared_messages)

    @property
    def sent_messages(self) -> list[Json]:
        """The messages of `turn_messages` that the client sends whole, and not by their ids."""
        named_messages = {
            reference.index for reference in self.chat.references if reference.kind == "message"
        }
        return self._without_messages(self.shared_messages | named_messages)

    @property
    def input_messages(self) -> list[Json]:
        """The messages of the input, without the instructions."""
        return self.chat.messages[1 if self.echo["instructions"] else 0 :]

    @property
    def is_for_background(self) -> bool:
        return bool(self.echo["background"])

    @property
    def is_retrievable(self) -> bool:
        """True if the response can be retrieved, if its turn is stored."""
        return bool(self.echo["store"])

    @property
    def asks_to_be_stored(self) -> bool:
        """True if the request has `store: true`, or is for the background, where each response is stored."""
        return self.is_for_background or (self.chat.dialect_fields or {}).get("store") is True

    def _without_messages(self, indices: Collection[int]) -> list[Json]:
        """Returns the messages of the input without some messages. indices: their indices in `chat`."""
        messages = self.input_messages
        if not indices:
            return messages
        first_index = len(self.chat.messages) - len(messages)
        return [message for index, message in enumerate(messages, first_index) if index not in indices]


def parse(
    body: bytes,
    max_messages: int = MAX_MESSAGES,
    upstream_tools: UpstreamTools = FUNCTIONS_ALONE,
    waiting_items: Sequence[Json] = (),
    *,
    found_tools: Sequence[Json] = (),
    needs_input: bool = True,
    repeated_keys: Sequence[str] = (),
) -> ResponsesRequest:
    """Reads a request's body.

    max_messages: the most messages of the chat completion: the instructions and the items of the input.
    upstream_tools: the kinds of tools that the request's upstreams take.
    waiting_items: the items of the conversation that come before the input.
    found_tools: the tools that searches have found, as in `ResponsesRequest`.
    needs_input: True to refuse a request without input.
    repeated_keys: the keys that the body has more than once.

    Raises: BadRequest, BodyTooLarge.
    """
    json = read_object(body)
    check_fields(json, repeated_keys)
    translated = _read_messages(json, max_messages, upstream_tools, waiting_items, needs_input=needs_input)
    included = read_include(json)
    tools = read_tools(json, upstream_tools, translated.left_out, waiting_items, found_tools)
    chat_json: Json = {"model": json.get("model"), "messages": translated.messages}
    if LOGPROBS in included or json.get("top_logprobs") is not None:
        chat_json["logprobs"] = True
    if tools.chat_tools:
        chat_json["tools"] = tools.chat_tools
    if json.get("tool_choice") is not None:
        chat_json.update(read_choice(json["tool_choice"], tools, upstream_tools))
    add_translated(chat_json, json)
    request = _make_chat_request(json, chat_json, translated)
    conversation_id = read_conversation_id(json)
    return ResponsesRequest(
        chat=request,
        echo=echo_fields(json, request, conversation_id, tools),
        conversation_id=conversation_id,
        forms=tools.forms,
        shows_sealed_thoughts=SEALED_THOUGHTS in included,
        body=body,
        upstream_tools=upstream_tools,
        wants_compaction=_wants_compaction(json),
        shared_messages=_find_shared_messages(translated, waiting_items) if waiting_items else frozenset(),
        found_tools=found_tools,
    )


def read_conversation_id(json: Json) -> str | None:
    """Returns the id of the conversation that a request continues; None: it names no conversation.

    Raises: BadRequest.
    """
    value = json.get("conversation")
    if isinstance(value, dict):
        value = value.get("id")
        if value is None:
            raise make_missing_field_error("conversation.id")
    if value is None:
        return None
    if not isinstance(value, str):
        raise make_wrong_type_error("conversation", "a string or an object", value)
    conversation_id = normalize_id(value, "conversation")
    if conversation_id is None:
        raise BadRequest("Invalid 'conversation': the name is empty.", param="conversation")
    return conversation_id


def _make_chat_request(json: Json, chat_json: Json, translated: InputMessages) -> ChatRequest:
    """Returns a request as a chat completion. Raises: BadRequest.

    chat_json: the value of the chat completion's body.
    """
    request = make_chat_request(orjson.dumps(chat_json), chat_json, max_messages=None)
    # Fields that no chat completion has, such as `client_metadata`, may name user and conversation.
    request.dialect_fields = {key: json[key] for key in FIELDS_NOT_PASSED_ON if key in json} or None
    request.side_request = find_codex_side_request(json)
    request.wants_thoughts = wants_thoughts(json.get("reasoning") or {})
    request.wants_usage = True
    request.is_translated = True
    for key, members in _MEMBERS_READ.items():
        translated.left_out.add_rest(json.get(key) or {}, members, key)
    request.consumed = translated.left_out.names
    request.references = tuple(translated.references)
    request.reply_models = translated.models
    request.may_evict = may_be_truncated(json)
    # All responses of a conversation are stored.
    request.makes_response = json.get("store") is not False or json.get("conversation") is not None
    return request


def _read_messages(
    json: Json,
    max_messages: int,
    upstream_tools: UpstreamTools,
    waiting_items: Sequence[Json],
    *,
    needs_input: bool,
) -> InputMessages:
    """Returns the messages of a chat completion: the instructions, the summaries, then the input.

    Raises: BadRequest.
    """
    items = _read_input(json, max_messages, waiting_items, needs_input=needs_input)
    instructions = read_optional(json, "instructions", str)
    leading_messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(items, list):
        leading_messages += make_compaction_messages(items, items_before=len(waiting_items))
    translated = read_items(
        items, leading_messages, upstream_tools=upstream_tools, items_before=len(waiting_items)
    )
    has_input_messages = len(translated.messages) > len(leading_messages)
    if needs_input and not has_input_messages:
        raise BadRequest("Invalid 'input': there is no message in it.", param="input", code="empty_array")
    previous_reference = _read_previous(json, len(leading_messages))
    if previous_reference is not None:
        translated.references.insert(0, previous_reference)
    # A chat completion has at least one message, and a previous response needs a message before which it is inserted.
    if not has_input_messages and (previous_reference is not None or not leading_messages):
        translated.messages.append({"role": "user", "content": ""})
        translated.item_indices.append(-1)
    return translated


def _read_input(
    json: Json, max_messages: int, waiting_items: Sequence[Json], *, needs_input: bool
) -> str | list[Any]:
    """Returns the input of a request, after the items that wait in its conversation. Raises: BadRequest."""
    items = json.get("input")
    if items is None and not needs_input:
        items = []
    if items is None:
        raise make_missing_field_error("input")
    if not isinstance(items, (str, list)):
        raise make_wrong_type_error("input", "a string or an array", items)
    if isinstance(items, list):
        check_length("input", items, max_messages - 1)
    if not waiting_items:
        return items
    request_items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    return [*waiting_items, *request_items]


def _read_previous(json: Json, index: int) -> Reference | None:
    """Returns the response that a request continues; None: it continues no response. Raises: BadRequest.

    index: the index of the message that comes after the previous response.
    """
    param = "previous_response_id"
    previous_id = read_optional(json, param, str)
    if previous_id is None:
        return None
    if json.get("conversation") is not None:
        raise BadRequest(f"'{param}' cannot be used in conjunction with 'conversation'.", param=param)
    return Reference(index, previous_id, parse_turn_name(previous_id), param, "path")


def _find_shared_messages(translated: InputMessages, waiting_items: Sequence[Json]) -> frozenset[int]:
    """Returns the indices of the messages that each response of a conversation has.

    These are the conversation's summaries, system messages and developer messages.
    """
    summaries = make_compaction_messages(waiting_items)
    shared_indices: set[int] = set()
    for index, message in enumerate(translated.messages):
        item_index = translated.item_indices[index]
        if item_index < 0:
            is_shared = message in summaries
        else:
            is_shared = item_index < len(waiting_items) and message["role"] in SYSTEM_ROLES
        if is_shared:
            shared_indices.add(index)
    return frozenset(shared_indices)


def _wants_compaction(json: Json) -> bool:
    items = json.get("input")
    last_item = items[-1] if isinstance(items, list) and items else None
    return isinstance(last_item, dict) and last_item.get("type") == "compaction_trigger"
