"""The fields of a Responses request besides its input and its tools: checked, translated, and repeated in the response.

What chat completions know under another name or in another form is translated, and what neither API knows goes on as it
is. (platform.openai.com/docs/api-reference/responses/create)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters.types import Json
from gateway.core.json_limits import is_too_deep
from gateway.core.request.chat_request import ChatRequest
from gateway.dialects.fields import check_depth, read_integer, read_optional, wrong_type
from gateway.dialects.responses.metadata import read_metadata
from gateway.dialects.responses.tools import RequestTools, unsupported_value
from gateway.errors import BadRequest

# Fields that ask for what only OpenAI has.
_OPENAI_ONLY = ("prompt", "context_management")
# Fields about the padding of a stream, tools at OpenAI, its storage or a full window: no chat completion has them.
NOT_PASSED_ON = (
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
_NOT_COPIED = frozenset((*_OPENAI_ONLY, *NOT_PASSED_ON, *_READ_APART))
SEALED_THOUGHTS = "reasoning.encrypted_content"
_SUMMARIES = ("auto", "concise", "detailed")
LOGPROBS = "message.output_text.logprobs"
# What OpenAI takes in `include`. All but logprobs and thoughts are of tools that nothing here has.
_INCLUDABLE = frozenset(
    (
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("message.input_image.image_url", "computer_call_output.output.image_url"),
        *("code_interpreter_call.outputs", SEALED_THOUGHTS, LOGPROBS),
    )
)


def check_fields(json: Json, repeated_keys: Sequence[str]) -> None:
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
    # What let the request through on its way here may have read the other value.
    for key in repeated_keys:
        raise BadRequest(f"Duplicate key in the request body: `{key[:60]}`.", param=key[:60])
    _positive_number(json, "max_tool_calls")
    read_metadata(json)


def add_translated(chat: Json, json: Json) -> None:
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


def read_strings(json: Json, key: str) -> list[str]:
    """Returns the texts of a field that has a list of them. Raises: BadRequest."""
    values = read_optional(json, key, list) or []
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise wrong_type(f"{key}[{index}]", "a string", value)
    return values


def checked_included(include: Sequence[str]) -> Sequence[str]:
    """Returns the `include` of a request as it is. Raises: BadRequest: it names something that no response has."""
    for index, value in enumerate(include):
        if value not in _INCLUDABLE:
            raise BadRequest(
                f"Invalid value: {value[:60]!r}. Supported values are: {', '.join(sorted(_INCLUDABLE))}.",
                param=f"include[{index}]",
                code="invalid_value",
            )
    return include


def asks_for_sealed_thoughts(query: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether a request's query wants thoughts in the form in which they are sent back. Raises: BadRequest."""
    return SEALED_THOUGHTS in checked_included([*query.get("include", ()), *query.get("include[]", ())])


def may_be_truncated(json: Json) -> bool:
    """Returns whether old messages may be left out where the window is full. Raises: BadRequest."""
    truncation: str | None = read_optional(json, "truncation", str)
    if truncation not in (None, "auto", "disabled"):
        raise BadRequest(
            f"Invalid value: {truncation[:40]!r}. Supported values are: 'auto' and 'disabled'.",
            param="truncation",
            code="invalid_value",
        )
    return truncation != "disabled"


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


def wants_thoughts(reasoning: Json) -> bool:
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


def echo_fields(json: Json, request: ChatRequest, conversation: str | None, tools: RequestTools) -> Json:
    """Returns the fields of a request that its response repeats. conversation: the id of the one that it continues."""
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
