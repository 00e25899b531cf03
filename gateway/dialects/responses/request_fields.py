"""The fields of a Responses request besides its input and its tools: checked, translated, and repeated in the response.

Fields that chat completions have under another name or in another form are translated; fields that neither API knows
pass as they are. (platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters.types import Json
from gateway.core.json_limits import is_too_deep
from gateway.core.request.chat_request import ChatRequest
from gateway.dialects.fields import (
    QUOTED_CHARS,
    check_depth,
    make_unknown_value_error,
    make_unsupported_error,
    make_wrong_type_error,
    read_optional,
    read_optional_integer,
)
from gateway.dialects.responses.metadata import read_metadata
from gateway.dialects.responses.tools import RequestTools
from gateway.errors import BadRequest

# Fields about objects and services that only OpenAI has.
_REFUSED_FIELDS = ("prompt", "context_management")
# Fields that no chat completion has: for the padding of a stream, OpenAI's tools and storage, or a full window.
FIELDS_NOT_PASSED_ON = (
    "background",
    "client_metadata",
    "include",
    "max_tool_calls",
    "previous_response_id",
    "store",
    "stream_options",
    "truncation",
)
# The types of the fields that `make_chat_request` does not check. `"store": "false"` must not be true.
_FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys(("background", "parallel_tool_calls", "store"), bool),
    **dict.fromkeys(("client_metadata", "stream_options"), dict),
    "service_tier": str,
}
# Fields of chat completions with results that a response cannot show, or for which this API has other fields.
_CHAT_FIELDS = ("audio", "function_call", "functions", "messages", "modalities", "n")
# Fields that are read by functions of their own.
_FIELDS_READ_APART = ("model", "input", "instructions", "conversation", "tool_choice", "tools")
_FIELDS_NOT_COPIED = frozenset((*_REFUSED_FIELDS, *FIELDS_NOT_PASSED_ON, *_FIELDS_READ_APART))
# Values of `include`: thoughts in the form in which they can be sent back, and the log probabilities of a text.
SEALED_THOUGHTS = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
_SUMMARY_KINDS = ("auto", "concise", "detailed")
# The values that OpenAI takes in `include`. All but logprobs and thoughts are for tools that do not exist here.
_INCLUDE_VALUES = frozenset(
    (
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("message.input_image.image_url", "computer_call_output.output.image_url"),
        *("code_interpreter_call.outputs", SEALED_THOUGHTS, LOGPROBS),
    )
)
# Fields of the response that echo the request, each with its default.
ECHO_DEFAULTS: Json = {
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


# All fields of this API.
KNOWN_FIELDS = frozenset(
    (
        *(*ECHO_DEFAULTS, *_FIELDS_NOT_COPIED, "reasoning", "stream"),
        *("prompt_cache_options", "prompt_cache_retention", "background_options", "moderation"),
        *("access_programs", "image", "personality"),
    )
)


def check_fields(json: Json, repeated_keys: Sequence[str]) -> None:
    """Checks the fields of a body: their names, their types and their depth. Raises: BadRequest."""
    for key in _REFUSED_FIELDS:
        if json.get(key) is not None:
            raise make_unsupported_error(key, key)
    for key in _CHAT_FIELDS:
        if key in json and json[key] is not None and not (key == "n" and json[key] == 1):
            raise BadRequest(f"Unknown parameter: '{key}'.", param=key, code="unknown_parameter")
    for key in json:
        if key in _FIELD_TYPES:
            read_optional(json, key, _FIELD_TYPES[key])
    if json.get("background") and json.get("store") is False:
        raise BadRequest(
            "A response in the background has to be stored: `store` is false.", param="background"
        )
    if is_too_deep([[[json]]]):  # nested as deep as in the stored response
        for key, value in json.items():
            check_depth(key, value, depth=4)
    # A proxy may have let the request pass by the other value.
    if repeated_keys:
        key = repeated_keys[0][:QUOTED_CHARS]
        raise BadRequest(f"Duplicate key in the request body: `{key}`.", param=key)
    _read_positive(json, "max_tool_calls")
    read_metadata(json)


def add_translated(chat_json: Json, json: Json) -> None:
    """Adds the fields that chat completions also have, in their names and forms. Raises: BadRequest."""
    for key, value in json.items():
        if value is None or key in _FIELDS_NOT_COPIED:
            continue
        if key in _FIELD_TRANSLATORS:
            chat_json.update(_FIELD_TRANSLATORS[key](value))
        else:
            chat_json.setdefault(key, value)
    if "tools" not in chat_json:
        _remove_tool_choices(chat_json)


def read_include(json: Json) -> list[str]:
    """Returns the `include` of a request. Raises: BadRequest."""
    include = read_optional(json, "include", list) or []
    for index, value in enumerate(include):
        if not isinstance(value, str):
            raise make_wrong_type_error(f"include[{index}]", "a string", value)
    _check_include(include)
    return include


def _check_include(include: Sequence[str]) -> None:
    """Refuses a value that OpenAI does not take. Raises: BadRequest."""
    for index, value in enumerate(include):
        if value not in _INCLUDE_VALUES:
            raise make_unknown_value_error(f"include[{index}]", value, ", ".join(sorted(_INCLUDE_VALUES)))


def asks_for_sealed_thoughts(query: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether a query asks for thoughts in the form in which they can be sent back. Raises: BadRequest."""
    include = [*query.get("include", ()), *query.get("include[]", ())]
    _check_include(include)
    return SEALED_THOUGHTS in include


def may_be_truncated(json: Json) -> bool:
    """Returns whether old messages may be left out if the window is full. Raises: BadRequest."""
    truncation: str | None = read_optional(json, "truncation", str)
    if truncation not in (None, "auto", "disabled"):
        raise make_unknown_value_error("truncation", truncation, "'auto' and 'disabled'")
    return truncation != "disabled"


def wants_thoughts(reasoning: Json) -> bool:
    """Returns whether a summary of thoughts is asked for without an effort. Raises: BadRequest."""
    summary = read_optional(reasoning, "summary", str, "reasoning") or read_optional(
        reasoning, "generate_summary", str, "reasoning"
    )
    if summary is None:
        return False
    if summary not in _SUMMARY_KINDS:
        raise make_unknown_value_error("reasoning.summary", summary, "'auto', 'concise', and 'detailed'")
    return reasoning.get("effort") is None


def translate_text_format(text: Any) -> Json:
    """Returns the fields of a chat completion for the form of an answer, `text`. Raises: BadRequest."""
    if not isinstance(text, dict):
        raise make_wrong_type_error("text", "an object", text)
    translated: Json = {}
    if text.get("verbosity") is not None:
        translated["verbosity"] = text["verbosity"]
    form = read_optional(text, "format", dict, "text")
    if form is None or form.get("type") == "text":
        return translated
    if form.get("type") == "json_schema":
        schema = {key: value for key, value in form.items() if key != "type"}
        return {**translated, "response_format": {"type": "json_schema", "json_schema": schema}}
    return {**translated, "response_format": form}


def echo_fields(json: Json, request: ChatRequest, conversation_id: str | None, tools: RequestTools) -> Json:
    """Returns the fields of a request that its response repeats.

    conversation_id: the id of the conversation that the request continues; None: it continues no conversation.
    """
    echoed = {key: value for key, value in json.items() if key in ECHO_DEFAULTS and value is not None}
    if echoed.get("service_tier") == "auto":
        del echoed["service_tier"]  # the response shows the tier that the upstream names
    if "text" in echoed and echoed["text"].get("format") is None:
        echoed["text"] = {**echoed["text"], **ECHO_DEFAULTS["text"]}
    reasoning = json.get("reasoning") or {}
    return {
        **ECHO_DEFAULTS,
        **echoed,
        "tools": tools.echo,
        "model": request.model,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "conversation": {"id": conversation_id} if conversation_id is not None else None,
        # True if the response can be retrieved once its turn is stored.
        "store": json.get("store") is not False,
    }


def _remove_tool_choices(chat_json: Json) -> None:
    """Removes fields that have no meaning without tools: chat completions refuse such fields, this API does not."""
    chat_json.pop("parallel_tool_calls", None)
    if chat_json.get("tool_choice") in ("auto", "none"):
        del chat_json["tool_choice"]


def _translate_reasoning(reasoning: Any) -> Json:
    if not isinstance(reasoning, dict):
        raise make_wrong_type_error("reasoning", "an object", reasoning)
    if (mode := reasoning.get("mode")) not in (None, "standard"):
        raise make_unsupported_error("reasoning.mode", mode)
    effort = reasoning.get("effort")
    return {"reasoning_effort": effort} if effort is not None else {}


def _translate_limit(tokens: Any) -> Json:
    return {"max_completion_tokens": _read_positive({"max_output_tokens": tokens}, "max_output_tokens")}


def _read_positive(json: Json, key: str) -> int | None:
    """Returns an integer above 0 of the body; None: the field is missing or null. Raises: BadRequest."""
    value = read_optional_integer(json, key)
    if value is not None and value < 1:
        raise BadRequest(
            f"Invalid '{key}': integer below minimum value. Expected a value >= 1, but got {value} instead.",
            param=key,
            code="integer_below_min_value",
        )
    return value


# The functions that make a chat completion's fields of a field's value, by the field.
_FIELD_TRANSLATORS: dict[str, Callable[[Any], Json]] = {
    "max_output_tokens": _translate_limit,
    "reasoning": _translate_reasoning,
    "text": translate_text_format,
}
